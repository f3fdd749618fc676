//! Entries that were delivered before: what is pending for this consumer, what others left behind, and what has had its
//! chances.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::own_pending::next_hand_out;
use super::{LONGEST_LAST_CHANCE, LOOK_AGAIN, Reader, WatchedConnection};
use crate::commands::{self, Buried, Candidate, PendingEntry};
use crate::consumer::in_flight::Phase;
use crate::delivery::Receipt;
use crate::entry_id::EntryId;
use crate::error::{Error, Result, with_causes};

/// How many entries one script takes at most.
const MOST_TAKEN: usize = 1024;

impl Reader {
    /// Takes over what has lain idle for too long, which the keeper has found: at consumers that died, or given back by
    /// `release` and `retry_after`.
    pub(super) fn claim(&mut self, connection: &mut WatchedConnection) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let own = |pending: &PendingEntry| *pending.owner == *shared.key.consumer.as_bytes();
        // What is held here is fresh, or about to be made so.
        let is_free = |pending: &PendingEntry| {
            !own(pending) || matches!(shared.in_flight.phase(pending.id), None | Some(Phase::Parked))
        };
        let mut candidates = Vec::new();
        for pending in shared.claimable.take().into_iter().filter(is_free) {
            // What was given back here has been handed out.
            let was_handed_out = shared.in_flight.phase(pending.id).is_some();
            let is_own = own(&pending) && !was_handed_out;
            candidates.push(self.candidate(pending, shared.input.claim_idle, is_own));
        }
        self.redeliver(connection, candidates)
    }

    pub(super) fn candidate(&self, pending: PendingEntry, min_idle: Duration, is_own: bool) -> Candidate {
        let next_hand_out = next_hand_out(&self.own_pending, &self.last_chances, &pending, is_own);
        Candidate { pending, min_idle, next_hand_out }
    }

    /// Hands out entries that were delivered before, except those that had their chances. Those that have only one left
    /// wait until it is certain that a handler gets them.
    pub(super) fn redeliver(&mut self, connection: &mut WatchedConnection, candidates: Vec<Candidate>) -> Result<()> {
        let (mut exhausted, mut good) = (Vec::new(), Vec::new());
        for candidate in candidates {
            match self.shared.max_deliveries() {
                Some(max) if candidate.next_hand_out > max => exhausted.push(candidate),
                Some(max) if candidate.next_hand_out == max => self.wait_with_last_chance(candidate),
                _ => good.push(candidate),
            }
        }
        self.bury(connection, exhausted)?;
        let mut rest = good.as_slice();
        // What is not taken by the time of a stop is as it was.
        while !rest.is_empty() && self.has_room() {
            let (now, later) = rest.split_at(self.entries_that_fit().min(MOST_TAKEN).min(rest.len()));
            self.take(connection, now)?;
            rest = later;
        }
        Ok(())
    }

    /// Waits until the channel may take more bytes. `false`: it is time to stop.
    pub(super) fn has_room(&mut self) -> bool {
        while !self.shared.stopping.is_set() && self.waits_for_room() {}
        !self.shared.stopping.is_set()
    }

    /// What others left behind is found again, so there is no need to remember much of it.
    fn wait_with_last_chance(&mut self, candidate: Candidate) {
        if !candidate.is_claim() || self.last_chances.len() < self.shared.settings.batch {
            self.last_chances.insert(candidate.id(), candidate);
        }
    }

    /// Makes entries this consumer's, marks their hand-outs, and enqueues them.
    fn take(&mut self, connection: &mut WatchedConnection, candidates: &[Candidate]) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        self.own_pending.begin_taking(candidates);
        (self.asked, self.asked_at) = (candidates.len(), Instant::now());
        let taken = connection.ask(|server| commands::take(server, &shared.key, candidates));
        let taken = taken.map_err(|error| self.name_entry(error, candidates)).inspect_err(|error| {
            if let (Error::EntryTooLarge { .. }, [candidate]) = (error, candidates) {
                // No handler will have it, so the hand-out that was marked is taken back at the end.
                let (id, deliveries) = (candidate.id(), candidate.next_hand_out);
                let generation = shared.in_flight.set_aside(id);
                self.not_enqueued.push(Receipt { id, deliveries, generation });
            }
        })?;
        self.server_is_back();
        self.own_pending.end_taking(candidates);
        self.note_answer(taken.entries.iter().map(|(entry, _)| entry));
        self.last_seen = self.last_seen.max(taken.entries.iter().map(|(entry, _)| entry.id()).max());
        if candidates.iter().any(Candidate::is_claim) {
            shared.counters.claimed.add(taken.entries.len() as u64);
        }
        let generation = shared.in_flight.admit_again(&taken.entries, self.fresh_since());
        let acknowledged = self.acknowledge_deleted(connection, &taken.deleted);
        // They are held from now on, so nothing would bring them again if they were not enqueued.
        self.enqueue(taken.entries, generation);
        acknowledged
    }

    /// Asking for less does not help where a single entry is too long.
    fn name_entry(&self, error: Error, asked: &[Candidate]) -> Error {
        match (error, asked) {
            (Error::ReplyTooLarge { limit, .. }, [candidate]) => {
                let stream_id = self.shared.key.stream_id.as_ref().into();
                Error::EntryTooLarge { stream_id, id: candidate.id(), limit }
            }
            (error, _) => error,
        }
    }

    /// Every entry that this consumer reads has only one chance.
    pub(super) fn only_last_chances(&self) -> bool {
        self.shared.max_deliveries() == Some(1)
    }

    /// Offers the next entry that has only one chance left, if a handler is there for it. Whether that, or waiting for a
    /// handler, is all that can be done now.
    pub(super) fn offer_last_chance(&mut self, connection: &mut WatchedConnection) -> Result<bool> {
        if self.last_chances.is_empty() {
            return Ok(false);
        }
        if !self.may_offer_last_chance(connection)? {
            // While a handler is at work on such an entry, others may be read. But as long as some are queued it would
            // never be this one's turn if more were.
            return Ok(!self.queue.is_empty());
        }
        if self.shared.stopping.is_set() {
            return Ok(true);
        }
        if let Some((_, candidate)) = self.last_chances.pop_first() {
            self.take(connection, &[candidate])?;
        }
        Ok(true)
    }

    /// Whether an entry that is marked for its last hand-out now will be handed out, or nearly so. Waits for that for a
    /// moment. Nothing else is queued, and a handler waits in an iterator; where handlers take from the receiver, nobody sees
    /// them wait.
    ///
    /// No other such entry is with a handler, which may bring the process down with it; a handler that keeps one for long does
    /// not hold up the others for ever. Where each entry has only one chance, they are not suspicious, and each handler may
    /// have one. Those that are done must be known to be done, or the end of the process would bury them.
    pub(super) fn may_offer_last_chance(&mut self, connection: &mut WatchedConnection) -> Result<bool> {
        let shared = Arc::clone(&self.shared);
        shared.acks.reader_is_away();
        let (takers, in_flight, sent) = (&shared.takers, &shared.in_flight, self.queue.sent());
        let are_unsuspicious = self.only_last_chances();
        let is_alone = || !in_flight.has_last_chance() || self.last_chance_at.elapsed() >= LONGEST_LAST_CHANCE;
        let is_handler_free = || {
            let is_seen = takers.are_all_seen(sent);
            (is_seen && are_unsuspicious || is_alone()) && (!is_seen || takers.is_any_waiting(sent))
        };
        if !shared.wait_for_handlers(LOOK_AGAIN, || self.queue.is_empty() && is_handler_free()) {
            return Ok(false);
        }
        if in_flight.has_acked_last_chance() {
            self.acknowledge(connection)?;
            // Others may be on the keeper's way.
            return Ok(shared.wait_for_handlers(LOOK_AGAIN, || !in_flight.has_acked_last_chance()));
        }
        Ok(true)
    }

    /// Sends the acknowledgements that are queued.
    fn acknowledge(&self, connection: &mut WatchedConnection) -> Result<()> {
        let shared = &self.shared;
        let mut acks = shared.acks.take_along(self.most_acks(), false);
        let done = shared.in_flight.retain_pending(&mut acks);
        shared.confirm(&done);
        if acks.is_empty() {
            return Ok(());
        }
        let ids = acks.iter().map(|receipt| receipt.id);
        let acked = connection.ask(|server| commands::ack(server, &shared.key, ids));
        super::note_acked(shared, acks, acked.map(drop), !connection.is_reusable())
    }

    /// Moves entries to the dead letter stream that were handed out as often as they may be. The server copies them, and they
    /// stay where they are until the copy is made.
    fn bury(&mut self, connection: &mut WatchedConnection, exhausted: Vec<Candidate>) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let Some(output) = shared.dead_letters() else { return Ok(()) };
        let mut deleted = Vec::new();
        for candidate in exhausted {
            if shared.stopping.is_set() {
                break;
            }
            let Candidate { pending, min_idle, .. } = &candidate;
            let reason = format!("delivered {} times", pending.deliveries);
            let buried =
                connection.ask(|server| commands::bury(server, &shared.key, pending, *min_idle, output, &reason));
            match buried.map_err(|error| self.name_entry(error, std::slice::from_ref(&candidate))) {
                Ok(Buried::Moved) => self.note_dead_letter(candidate.id(), &reason),
                Ok(Buried::Deleted) => deleted.push(candidate.id()),
                // Somebody else has it by now. What was too long for a script has been moved otherwise.
                Ok(Buried::Changed | Buried::TooLong) => {}
                Err(error) if error.is_retryable() && connection.is_reusable() => self.postpone(&candidate, &error),
                Err(error) => return Err(error),
            }
        }
        self.acknowledge_deleted(connection, &deleted)
    }

    fn note_dead_letter(&mut self, id: EntryId, reason: &str) {
        self.warned_dead_letters = false;
        self.shared.in_flight.forget(&[id]);
        self.shared.counters.dead_lettered.add(1);
        log::warn!("entry {id} of stream {} is a dead letter: {reason}", self.shared.key.stream_id);
    }

    /// The server has no room for dead letters now: later, and not with every reconnect.
    fn postpone(&mut self, candidate: &Candidate, error: &Error) {
        self.shared.counters.note_error(error);
        let level = match std::mem::replace(&mut self.warned_dead_letters, true) {
            false => log::Level::Warn,
            true => log::Level::Debug,
        };
        let (id, stream_id) = (candidate.id(), &self.shared.key.stream_id);
        log::log!(level, "entry {id} of stream {stream_id} cannot be made a dead letter now: {}", with_causes(error));
        if !candidate.is_claim() {
            self.shared.in_flight.set_aside(id);
        }
    }

    /// Entries that were trimmed or deleted while they were pending can only be taken off the pending list.
    pub(super) fn acknowledge_deleted(
        &mut self,
        connection: &mut WatchedConnection,
        deleted: &[EntryId],
    ) -> Result<()> {
        if deleted.is_empty() {
            return Ok(());
        }
        connection.ask(|server| commands::acknowledge_deleted(server, &self.shared.key, deleted))?;
        self.shared.in_flight.forget(deleted);
        self.shared.counters.trimmed.add(deleted.len() as u64);
        Ok(())
    }
}
