//! Entries that were delivered before: what is pending for this consumer, what others left behind, and what has had its
//! chances.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Reader;
use crate::commands;
use crate::connection::Connection;
use crate::delivery::move_to_dead_letters;
use crate::entry::{Entry, EntryId};
use crate::error::Result;

/// How often to look for entries of dead consumers at least, and at most.
const CLAIM_INTERVAL: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(1);

impl Reader {
    /// Entries that were delivered to this consumer and never settled: what it had before a restart, or what the server
    /// sent into a connection that broke.
    pub(super) fn read_own_pending(&mut self, connection: &mut Connection) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut after = EntryId::MIN;
        loop {
            let page = shared
                .reader
                .waiting(|| commands::own_pending(connection, &shared.member, after, shared.settings.batch))?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.id;
            let mut wanted = page;
            wanted.retain(|pending| !shared.in_flight.knows(pending.id));
            let Some(idle) = wanted.iter().map(|pending| pending.idle).min() else { continue };
            let ids: Vec<EntryId> = wanted.iter().map(|pending| pending.id).collect();
            let entries = shared.reader.waiting(|| commands::claim(connection, &shared.member, idle, &ids))?;
            if entries.len() < ids.len() {
                let unclaimed: Vec<EntryId> =
                    ids.iter().copied().filter(|id| !entries.iter().any(|entry| entry.id() == *id)).collect();
                self.drop_trimmed(connection, &unclaimed)?;
            }
            let counted = entries.into_iter().map(|entry| {
                let known = wanted.iter().find(|pending| pending.id == entry.id());
                let deliveries = known.map_or(1, |pending| pending.deliveries + 1);
                (entry, deliveries)
            });
            self.hand_over_known(connection, counted.collect())?;
            if shared.stopping.is_set() {
                return Ok(());
            }
        }
    }

    /// Of entries that could not be claimed, those whose content is gone can only be taken off the pending list. The others
    /// belong to somebody else by now.
    fn drop_trimmed(&mut self, connection: &mut Connection, unclaimed: &[EntryId]) -> Result<()> {
        let member = &self.shared.member;
        let gone =
            self.shared.reader.waiting(|| commands::missing_from_stream(connection, &member.stream_id, unclaimed))?;
        self.acknowledge_gone(connection, &gone)
    }

    pub(super) fn acknowledge_gone(&mut self, connection: &mut Connection, gone: &[EntryId]) -> Result<()> {
        self.shared.counters.trimmed.add(gone.len() as u64);
        self.shared.in_flight.remove(gone);
        self.shared.reader.waiting(|| crate::stream::acknowledge_gone(connection, &self.shared.member, gone))
    }

    pub(super) fn claim_is_due(&self) -> bool {
        self.shared.settings.claim && Instant::now() >= self.next_claim
    }

    fn claim_interval(&self) -> Duration {
        (self.shared.input.claim_idle / 4).clamp(*CLAIM_INTERVAL.start(), *CLAIM_INTERVAL.end())
    }

    /// Takes over what has lain idle for too long: at consumers that died, or given back by `release` and `retry_after`.
    pub(super) fn claim(&mut self, connection: &mut Connection) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let (idle, batch) = (shared.input.claim_idle, shared.settings.batch);
        let claimed =
            shared.reader.waiting(|| commands::autoclaim(connection, &shared.member, idle, self.claim_from, batch))?;
        self.claim_from = claimed.next;
        if claimed.next == EntryId::MIN {
            // The whole list was searched.
            self.next_claim = Instant::now() + self.claim_interval();
        }
        self.acknowledge_gone(connection, &claimed.gone)?;
        if claimed.entries.is_empty() {
            return Ok(());
        }
        let counts =
            shared.reader.waiting(|| commands::delivery_counts(connection, &shared.member, claimed.entries.iter()))?;
        // An entry without a count is no longer ours.
        let counted: Vec<_> =
            claimed.entries.into_iter().zip(counts).filter_map(|(entry, count)| Some((entry, count?))).collect();
        shared.counters.claimed.add(counted.len() as u64);
        self.hand_over_known(connection, counted)
    }

    /// Hands over entries that were delivered before, except those that had their chances.
    fn hand_over_known(&mut self, connection: &mut Connection, mut entries: Vec<(Entry, u64)>) -> Result<()> {
        self.last_seen = self.last_seen.max(entries.iter().map(|(entry, _)| entry.id()).max());
        self.shared.in_flight.admit(&mut entries);
        let mut outcome = Ok(());
        if let (Some(max), Some(_)) = (self.shared.settings.max_deliveries, self.shared.dead_letters()) {
            let (over_limit, good): (Vec<_>, Vec<_>) = entries.into_iter().partition(|(_, count)| *count > max);
            entries = good;
            outcome = self.move_to_dead_letters(connection, over_limit);
        }
        // They are held from now on, so nothing would bring them again if they were not handed over.
        self.hand_over(entries);
        outcome
    }

    /// Moves entries to the dead letter stream. Those that cannot go there are no longer held, and so come again.
    fn move_to_dead_letters(&mut self, connection: &mut Connection, over_limit: Vec<(Entry, u64)>) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let Some(output) = shared.dead_letters() else { return Ok(()) };
        let mut outcome = Ok(());
        for (entry, count) in over_limit {
            let id = entry.id();
            if shared.stopping.is_set() {
                shared.in_flight.park(id);
                self.in_hand.push(id);
                continue;
            }
            // The delivery that is counted last is the one that was not made.
            let deliveries = count.saturating_sub(1);
            let reason = format!("delivered {deliveries} times");
            let moved = match outcome {
                Ok(()) => shared
                    .reader
                    .waiting(|| move_to_dead_letters(connection, &shared.member, &entry, deliveries, output, &reason)),
                Err(error) => Err(error),
            };
            outcome = moved.as_ref().map(drop).map_err(Clone::clone);
            if let Ok(moved) = moved {
                // Not moved: somebody else has it by now.
                shared.in_flight.remove(&[id]);
                if moved {
                    shared.counters.dead_lettered.add(1);
                    log::warn!("entry {id} of stream {} is a dead letter: {reason}", shared.member.stream_id);
                }
            } else if connection.is_broken() {
                // The next connection finds them among the pending ones.
                shared.in_flight.remove(&[id]);
            } else {
                // The server has no room for dead letters now: later, and not with every reconnect.
                shared.in_flight.park(id);
            }
        }
        outcome
    }
}
