//! Leases: what is held here is kept fresh at the server, so that nobody claims it.

use std::time::{Duration, Instant};

use super::request_size::RequestSize;
use super::shared::Shared;
use crate::commands::NotOurs;
use crate::entry_id::EntryId;
use crate::error::Result;

/// How many entries one script looks after.
pub(super) const MOST_LEASES: usize = 256;

/// Tells the server that the entries held here are alive, those whose lease is older than `age`, as many with one command as
/// `size` says. One that was taken over is not taken back. `limit` is the time that each command has.
pub(super) fn renew(
    shared: &Shared,
    age: Duration,
    size: &mut RequestSize,
    limit: Duration,
    mut keep: impl FnMut(&[EntryId]) -> Result<NotOurs>,
) -> Result<()> {
    in_pieces(&shared.in_flight.due(age), size, limit, |ids| {
        shared.take_lease_turn(|| {
            // What was given back meanwhile is left alone.
            let ids = shared.in_flight.kept_among(ids);
            if ids.is_empty() {
                return Ok(());
            }
            let sent = Instant::now();
            let not_ours = keep(&ids)?;
            shared.in_flight.renewed(&ids, sent);
            note_not_ours(shared, &not_ours);
            Ok(())
        })
    })
}

/// Asks about entries that were given back `age` ago and have not come again: what others have is not remembered for ever.
pub(super) fn look_after_parked(
    shared: &Shared,
    age: Duration,
    size: &mut RequestSize,
    limit: Duration,
    mut look: impl FnMut(&[EntryId]) -> Result<NotOurs>,
) -> Result<()> {
    in_pieces(&shared.in_flight.parked_for(age), size, limit, |ids| {
        let not_ours = look(ids)?;
        shared.in_flight.renewed(ids, Instant::now());
        note_not_ours(shared, &not_ours);
        Ok(())
    })
}

/// Asks about all of these, as many with one command as `size` says. `limit` is the time that each command has.
pub(super) fn in_pieces<T>(
    all: &[T],
    size: &mut RequestSize,
    limit: Duration,
    mut ask: impl FnMut(&[T]) -> Result<()>,
) -> Result<()> {
    let mut rest = all;
    while !rest.is_empty() {
        let (now, later) = rest.split_at(size.now().min(rest.len()));
        let sent = Instant::now();
        ask(now).inspect_err(|error| size.note_failure(error))?;
        size.answered(now.len(), 0, sent.elapsed(), limit);
        rest = later;
    }
    Ok(())
}

pub(super) fn note_not_ours(shared: &Shared, not_ours: &NotOurs) {
    shared.in_flight.note_settled(&not_ours.settled);
    let held = shared.in_flight.give_up(&not_ours.taken_over);
    if held > 0 {
        shared.counters.taken_over.add(held as u64);
        shared.stopping.wake();
        log::warn!(
            "{held} entries of stream {} were taken over by another consumer while consumer {} held them",
            shared.key.stream_id,
            shared.key.consumer,
        );
    }
}
