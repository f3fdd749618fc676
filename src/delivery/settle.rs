//! How deliveries end: who carries it out, and the way through the pool.

use std::time::Duration;

use crate::commands::{self, Buried, GivenBack, PendingEntry};
use crate::connection::Connection;
use crate::endpoint::{ConsumerKey, StreamInput, StreamOutput};
use crate::entry::Entry;
use crate::entry_id::EntryId;
use crate::error::{Error, Result};
use crate::pool::StepPool;

/// How a delivery ends.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Settlement<'a> {
    Ack,
    Release,
    RetryAfter(Duration),
    DeadLetter(&'a str),
    Leave,
}

/// What names one delivery to whoever settles it. An entry may be delivered again while an old guard of it still exists, and
/// a stream that is deleted and made again may bring the same ids: the id alone does not tell which delivery is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Receipt {
    pub(crate) id: EntryId,
    /// The number of this hand-out, which is the server's count as long as nobody else takes the entry.
    pub(crate) deliveries: u64,
    /// Tells apart the deliveries of one consumer. 0 for those of [`StepStream`](crate::StepStream), which keeps no list.
    pub(crate) generation: u64,
}

/// Where a delivery came from, and who carries out its end.
pub(crate) trait Settle: Send + Sync {
    /// The stream that the deliveries come from.
    fn stream_id(&self) -> &str;
    /// Ends one delivery.
    fn settle(&self, receipt: Receipt, entry: &Entry, settlement: Settlement<'_>) -> Result<()>;
    /// Acknowledges many at once.
    fn ack_batch(&self, receipts: &[Receipt]) -> Result<()>;
    /// Whether an `XACK` for this group of this pool's server, by whomever it is sent, is all that ends a delivery.
    fn shares_group_with(&self, pool: &StepPool, key: &ConsumerKey) -> bool;
}

/// Ends deliveries through the pool, each in one confirmed round trip.
#[derive(Debug)]
pub(crate) struct PoolSettler {
    pool: StepPool,
    key: ConsumerKey,
    claim_idle: Duration,
    dead_letters: Option<StreamOutput>,
}

impl PoolSettler {
    pub(crate) fn new(pool: StepPool, key: ConsumerKey, input: &StreamInput) -> PoolSettler {
        PoolSettler { pool, key, claim_idle: input.claim_idle, dead_letters: input.dead_letter.clone() }
    }

    /// Ends a delivery; whether it moved anything. It does not if the entry is another delivery's by now.
    pub(crate) fn carry_out(&self, receipt: Receipt, entry: &Entry, settlement: Settlement<'_>) -> Result<bool> {
        match settlement {
            Settlement::Ack => self.ack_batch(&[receipt]).map(|()| true),
            Settlement::Release => self.give_back(receipt, Duration::ZERO),
            Settlement::RetryAfter(delay) => self.give_back(receipt, delay),
            Settlement::DeadLetter(reason) => self.move_to_dead_letters(receipt, entry, reason),
            Settlement::Leave => Ok(false),
        }
    }

    fn give_back(&self, receipt: Receipt, delay: Duration) -> Result<bool> {
        let idle = self.claim_idle.checked_sub(delay).ok_or_else(|| {
            let longest = self.claim_idle;
            Error::params(
                "delay",
                format!("longer than `claim_idle` ({longest:?}); the server cannot keep it that long"),
            )
        })?;
        // The handler had it, so it stays counted.
        let Receipt { id, deliveries, .. } = receipt;
        let delivery = GivenBack { id, deliveries, counted: deliveries };
        Ok(commands::give_back(&mut *self.pool.get()?, &self.key, idle, &[delivery])? > 0)
    }

    fn move_to_dead_letters(&self, receipt: Receipt, entry: &Entry, reason: &str) -> Result<bool> {
        let output = self.dead_letters.as_ref().ok_or_else(|| {
            Error::params(
                "dead_letter",
                "no dead letter stream is named; give the input one with `dead_letter(output)`",
            )
        })?;
        let owner = self.key.consumer.as_bytes().into();
        let seen = PendingEntry { id: receipt.id, owner, deliveries: receipt.deliveries };
        move_to_dead_letters(&mut *self.pool.get()?, &self.key, &seen, Duration::ZERO, entry, output, reason)
    }
}

impl Settle for PoolSettler {
    fn stream_id(&self) -> &str {
        &self.key.stream_id
    }

    fn settle(&self, receipt: Receipt, entry: &Entry, settlement: Settlement<'_>) -> Result<()> {
        self.carry_out(receipt, entry, settlement).map(drop)
    }

    fn shares_group_with(&self, pool: &StepPool, key: &ConsumerKey) -> bool {
        self.pool.is_same(pool) && self.key.stream_id == key.stream_id && self.key.group == key.group
    }

    fn ack_batch(&self, receipts: &[Receipt]) -> Result<()> {
        commands::ack(&mut *self.pool.get()?, &self.key, receipts.iter().map(|receipt| receipt.id)).map(drop)
    }
}

/// The names of the fields that follow an entry's own in the dead letter stream, in this order.
pub(crate) const DEAD_LETTER_FIELDS: [&str; 6] =
    ["origin-stream", "origin-group", "origin-consumer", "origin-id", "deliveries", "reason"];

/// Copies an entry to the dead letter stream with its origin and the reason, and acknowledges it. `false`: it was no longer
/// as it was seen, another consumer's or delivered again, or has not lain idle for `min_idle`, and nothing was done.
pub(crate) fn move_to_dead_letters(
    connection: &mut Connection,
    key: &ConsumerKey,
    seen: &PendingEntry,
    min_idle: Duration,
    entry: &Entry,
    output: &StreamOutput,
    reason: &str,
) -> Result<bool> {
    with_origin(key, seen, reason, |origin| {
        let mut fields: Vec<(&[u8], &[u8])> = entry.fields().collect();
        fields.extend(origin);
        let moved = commands::dead_letter(connection, key, seen, min_idle, output, &fields)?;
        if moved.is_some() {
            refresh_dead_letters(connection, output);
        }
        Ok(moved.is_some())
    })
}

/// The same for an entry whose content is not here: the server copies what the stream holds.
pub(crate) fn bury(
    connection: &mut Connection,
    key: &ConsumerKey,
    seen: &PendingEntry,
    min_idle: Duration,
    output: &StreamOutput,
    reason: &str,
) -> Result<Buried> {
    let buried =
        with_origin(key, seen, reason, |origin| commands::bury(connection, key, seen, min_idle, output, origin))?;
    match buried {
        Buried::Moved => refresh_dead_letters(connection, output),
        Buried::TooLong => {
            let content = commands::contents(connection, &key.stream_id, &[seen.id])?.pop().flatten();
            let Some(entry) = content else { return Ok(Buried::Deleted) };
            let moved = move_to_dead_letters(connection, key, seen, min_idle, &entry, output, reason)?;
            return Ok(if moved { Buried::Moved } else { Buried::Changed });
        }
        Buried::Changed | Buried::Deleted => {}
    }
    Ok(buried)
}

/// The fields that follow an entry's own in the dead letter stream.
fn with_origin<T>(
    key: &ConsumerKey,
    seen: &PendingEntry,
    reason: &str,
    write: impl FnOnce(&[(&[u8], &[u8])]) -> T,
) -> T {
    let (id, deliveries) = (seen.id.to_string(), seen.deliveries.to_string());
    let values = [
        key.stream_id.as_bytes(),
        key.group.as_bytes(),
        &seen.owner,
        id.as_bytes(),
        deliveries.as_bytes(),
        reason.as_bytes(),
    ];
    let fields: Vec<_> = DEAD_LETTER_FIELDS.iter().zip(values).map(|(name, value)| (name.as_bytes(), value)).collect();
    write(&fields)
}

fn refresh_dead_letters(connection: &mut Connection, output: &StreamOutput) {
    if let Some(ttl) = output.ttl
        && let Err(error) = commands::refresh(connection, &output.stream_id, ttl)
    {
        log::warn!("the expiry of stream {} was not refreshed: {error}", output.stream_id);
    }
}
