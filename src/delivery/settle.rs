//! How deliveries end: who carries it out, and the way through the pool.

use std::time::Duration;

use crate::commands;
use crate::connection::Connection;
use crate::endpoint::{Member, StreamInput, StreamOutput};
use crate::entry::{Entry, EntryId};
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

/// Where a delivery came from, and who carries out its end.
pub(crate) trait Settle: Send + Sync {
    /// The stream that the deliveries come from.
    fn stream_id(&self) -> &str;
    /// Ends one delivery.
    fn settle(&self, entry: &Entry, deliveries: u64, settlement: Settlement<'_>) -> Result<()>;
    /// Acknowledges many at once.
    fn ack_batch(&self, ids: &[EntryId]) -> Result<()>;
    /// Whether an `XACK` for this group of this pool's server, by whomever it is sent, is all that ends a delivery.
    fn shares_group_with(&self, pool: &StepPool, member: &Member) -> bool;
}

/// Ends deliveries through the pool, each in one confirmed round trip.
#[derive(Debug)]
pub(crate) struct PoolSettler {
    pool: StepPool,
    member: Member,
    claim_idle: Duration,
    dead_letters: Option<StreamOutput>,
}

impl PoolSettler {
    pub(crate) fn new(pool: StepPool, member: Member, input: &StreamInput) -> PoolSettler {
        PoolSettler { pool, member, claim_idle: input.claim_idle, dead_letters: input.dead_letter.clone() }
    }

    fn set_idle_for_retry(&self, entry: &Entry, delay: Duration) -> Result<()> {
        let idle = self.claim_idle.checked_sub(delay).ok_or_else(|| {
            let longest = self.claim_idle;
            Error::params(
                "delay",
                format!("longer than `claim_idle` ({longest:?}); the server cannot keep it that long"),
            )
        })?;
        commands::set_idle(&mut *self.pool.get()?, &self.member, idle, &[entry.id()]).map(drop)
    }

    fn move_to_dead_letters(&self, entry: &Entry, deliveries: u64, reason: &str) -> Result<()> {
        let output = self.dead_letters.as_ref().ok_or_else(|| {
            Error::params(
                "dead_letter",
                "no dead letter stream is named; give the input one with `dead_letter(output)`",
            )
        })?;
        move_to_dead_letters(&mut *self.pool.get()?, &self.member, entry, deliveries, output, reason).map(drop)
    }
}

impl Settle for PoolSettler {
    fn stream_id(&self) -> &str {
        &self.member.stream_id
    }

    fn settle(&self, entry: &Entry, deliveries: u64, settlement: Settlement<'_>) -> Result<()> {
        match settlement {
            Settlement::Ack => self.ack_batch(&[entry.id()]),
            Settlement::Release => self.set_idle_for_retry(entry, Duration::ZERO),
            Settlement::RetryAfter(delay) => self.set_idle_for_retry(entry, delay),
            Settlement::DeadLetter(reason) => self.move_to_dead_letters(entry, deliveries, reason),
            Settlement::Leave => Ok(()),
        }
    }

    fn shares_group_with(&self, pool: &StepPool, member: &Member) -> bool {
        self.pool.is_same(pool) && self.member.stream_id == member.stream_id && self.member.group == member.group
    }

    fn ack_batch(&self, ids: &[EntryId]) -> Result<()> {
        commands::ack(&mut *self.pool.get()?, &self.member, ids).map(drop)
    }
}

/// The names of the fields that follow an entry's own in the dead letter stream, in this order.
pub(crate) const DEAD_LETTER_FIELDS: [&str; 6] =
    ["origin-stream", "origin-group", "origin-consumer", "origin-id", "deliveries", "reason"];

/// Copies an entry to the dead letter stream with its origin and the reason, and acknowledges it. `false`: it was no longer
/// this consumer's, and nothing was done.
pub(crate) fn move_to_dead_letters(
    connection: &mut Connection,
    member: &Member,
    entry: &Entry,
    deliveries: u64,
    output: &StreamOutput,
    reason: &str,
) -> Result<bool> {
    let (id, deliveries) = (entry.id().to_string(), deliveries.to_string());
    let origin = [&*member.stream_id, &*member.group, &*member.consumer, &id, &deliveries, reason];
    let mut fields: Vec<(&[u8], &[u8])> = entry.fields().collect();
    fields.extend(DEAD_LETTER_FIELDS.iter().zip(&origin).map(|(name, value)| (name.as_bytes(), value.as_bytes())));
    let moved = commands::dead_letter(connection, member, entry.id(), output, &fields)?;
    if let (Some(_), Some(ttl)) = (moved, output.ttl) {
        let refreshed = commands::refresh(connection, &output.stream_id, ttl);
        if let Err(error) = refreshed {
            log::warn!("the expiry of stream {} was not refreshed: {error}", output.stream_id);
        }
    }
    Ok(moved.is_some())
}
