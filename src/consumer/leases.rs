//! Leases: what is held here is kept fresh at the server, so that nobody claims it.

use std::time::{Duration, Instant};

use super::shared::Shared;
use crate::commands::NotOurs;
use crate::entry::EntryId;
use crate::error::Result;

/// How many entries one script looks after.
pub(super) const MOST_LEASES: usize = 256;

/// Tells the server that the entries held here are alive, those whose lease is older than `age`, `at_once` of them with one
/// command. One that was taken over is not taken back.
pub(super) fn renew(
    shared: &Shared,
    age: Duration,
    at_once: usize,
    mut keep: impl FnMut(&[EntryId]) -> Result<NotOurs>,
) -> Result<()> {
    let due = shared.in_flight.due(age);
    for ids in due.chunks(at_once.clamp(1, MOST_LEASES)) {
        shared.take_lease_turn(|| {
            // What was given back meanwhile is left alone.
            let ids = shared.in_flight.held_among(ids);
            if ids.is_empty() {
                return Ok(());
            }
            let sent = Instant::now();
            let not_ours = keep(&ids)?;
            shared.in_flight.renewed(&ids, sent);
            note_not_ours(shared, &not_ours);
            Ok(())
        })?;
    }
    Ok(())
}

/// Asks about entries that were given back `age` ago and have not come again: what others have is not remembered for ever.
pub(super) fn look_after_parked(
    shared: &Shared,
    age: Duration,
    mut look: impl FnMut(&[EntryId]) -> Result<NotOurs>,
) -> Result<()> {
    for ids in shared.in_flight.parked_for(age).chunks(MOST_LEASES) {
        let not_ours = look(ids)?;
        shared.in_flight.renewed(ids, Instant::now());
        note_not_ours(shared, &not_ours);
    }
    Ok(())
}

fn note_not_ours(shared: &Shared, not_ours: &NotOurs) {
    shared.in_flight.note_settled(&not_ours.settled);
    let held = shared.in_flight.give_up(&not_ours.taken_over);
    if held > 0 {
        shared.counters.taken_over.add(held as u64);
        shared.stopping.nudge();
        log::warn!(
            "{held} entries of stream {} were taken over by another consumer while consumer {} held them",
            shared.key.stream_id,
            shared.key.consumer,
        );
    }
}
