//! How deliveries end: who carries it out, and the way through the pool.

use std::time::Duration;

use crate::commands::{self, GivenBack, PendingEntry};
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
        commands::dead_letter(&mut *self.pool.get()?, &self.key, &seen, Duration::ZERO, entry, output, reason)
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
