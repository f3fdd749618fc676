//! Entries that were delivered before: what is pending for this consumer, what others left behind, and what has had its
//! chances.
//!
//! Taking an entry marks its next hand-out at the server. So an entry that is pending for this consumer and unknown here was
//! marked for a hand-out that did not happen, unless it was pending before this consumer started.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Connected, LOOK_AGAIN, Reader, WatchedConnection};
use crate::commands::{self, Buried, Candidate, GivenBack, PendingEntry};
use crate::connection::Connection;
use crate::consumer::in_flight::Phase;
use crate::consumer::shared::Shared;
use crate::delivery::{Receipt, bury};
use crate::endpoint::ConsumerKey;
use crate::entry::EntryId;
use crate::error::{Error, Result, with_causes};

/// How many pending entries are looked at with one command when a consumer ends.
const ROWS: usize = 256;
/// The greatest count that the server keeps.
const MOST_DELIVERIES: u64 = i64::MAX as u64;

/// What is known about the entries that are pending for this consumer at the server.
#[derive(Debug, Default)]
pub(super) struct OwnPending {
    /// All of them have been looked at, on this connection.
    done: bool,
    /// Those behind this one were pending before the consumer started, and have not been looked at; `None`: all have.
    inherited_behind: Inherited,
    /// Entries that were asked for in a request whose reply is not known, and the numbers of the hand-outs that it marked.
    being_taken: HashMap<EntryId, u64>,
}

/// Which entries were pending before this consumer started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Inherited {
    Behind(EntryId),
    None,
}

impl Default for Inherited {
    fn default() -> Inherited {
        Inherited::Behind(EntryId::MIN)
    }
}

impl OwnPending {
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    /// Entries may be there that nobody here knows of.
    pub(super) fn begin_again(&mut self) {
        self.done = false;
    }

    /// The group is lost, and nothing is pending any more.
    pub(super) fn forget(&mut self) {
        self.being_taken.clear();
        self.inherited_behind = Inherited::None;
    }

    fn looked_at(&mut self, last: EntryId) {
        if let Inherited::Behind(before) = self.inherited_behind {
            self.inherited_behind = Inherited::Behind(before.max(last));
        }
    }

    fn finish(&mut self) {
        self.done = true;
        self.inherited_behind = Inherited::None;
        self.being_taken.clear();
    }

    /// The number of an entry's next hand-out. What was marked and not used is used now.
    fn next_hand_out(&self, pending: &PendingEntry, is_own: bool) -> u64 {
        if let Some(marked) = self.being_taken.get(&pending.id) {
            return *marked;
        }
        let inherited = matches!(self.inherited_behind, Inherited::Behind(before) if pending.id > before);
        // The first delivery is counted by the server when it sends the entry.
        let is_first = is_own && !inherited && pending.deliveries <= 1;
        if is_first { 1 } else { pending.deliveries.saturating_add(1).min(MOST_DELIVERIES) }
    }
}

/// Entries that are pending for this consumer and did not reach it, as far as its reader could tell when it ended: the reply to
/// its last request was lost, or it had not looked yet.
#[derive(Debug)]
pub(in crate::consumer) struct Unseen {
    own_pending: OwnPending,
    last_chances: BTreeMap<EntryId, Candidate>,
    /// Where the last read may still be waiting.
    connected: Option<Connected>,
}

impl Unseen {
    /// Gives them back as they were before: nobody had them, and anyone may. First of all the last read is ended.
    pub(in crate::consumer) fn give_back(&self, server: &mut Connection, shared: &Shared) -> Result<()> {
        let key = &shared.key;
        self.end_last_read(server, key)?;
        let mut after = EntryId::MIN;
        while after < self.last() {
            let page = commands::own_pending(server, key, after, ROWS)?;
            let marked: Vec<GivenBack> = page.iter().filter_map(|pending| self.marked(pending, shared)).collect();
            if !marked.is_empty() {
                commands::give_back(server, key, shared.input.claim_idle, &marked)?;
            }
            let Some(last) = page.last() else { break };
            after = last.id;
        }
        Ok(())
    }

    /// An entry that is counted for a hand-out which did not happen.
    fn marked(&self, pending: &PendingEntry, shared: &Shared) -> Option<GivenBack> {
        let is_known = shared.in_flight.phase(pending.id).is_some();
        let counted = next_hand_out(&self.own_pending, &self.last_chances, pending, true).saturating_sub(1);
        let given_back = GivenBack { id: pending.id, deliveries: pending.deliveries, counted };
        (!is_known && counted < pending.deliveries).then_some(given_back)
    }

    /// Behind this one, nothing has been asked for.
    fn last(&self) -> EntryId {
        match self.own_pending.inherited_behind {
            Inherited::Behind(before) => self.own_pending.being_taken.keys().copied().fold(before, EntryId::max),
            Inherited::None => EntryId::MAX,
        }
    }

    fn end_last_read(&self, server: &mut Connection, key: &ConsumerKey) -> Result<()> {
        let Some(Connected { run_id: Some(run_id), client_id: Some(client), .. }) = &self.connected else {
            return Ok(());
        };
        if commands::run_id(server)?.as_ref() == Some(run_id) {
            commands::end_client(server, key, *client)?;
        }
        Ok(())
    }
}

/// The number of an entry's next hand-out, as far as is known here.
fn next_hand_out(
    own_pending: &OwnPending,
    last_chances: &BTreeMap<EntryId, Candidate>,
    pending: &PendingEntry,
    is_own: bool,
) -> u64 {
    // What was pending before this consumer started does not look like that when it is looked at again.
    match last_chances.get(&pending.id).filter(|waiting| waiting.pending == *pending) {
        Some(waiting) => waiting.next_hand_out,
        None => own_pending.next_hand_out(pending, is_own),
    }
}

impl Reader {
    /// What may have been on its way when the reader ended.
    pub(super) fn unseen(self) -> Option<Unseen> {
        let all_seen = self.own_pending.is_done() && self.reread_at.is_none();
        let Reader { own_pending, last_chances, connected, .. } = self;
        (!all_seen).then_some(Unseen { own_pending, last_chances, connected })
    }

    /// Entries that were delivered to this consumer and never settled: what it had before a restart, or what the server
    /// sent into a connection that broke.
    pub(super) fn read_own_pending(&mut self, connection: &mut WatchedConnection) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut after = EntryId::MIN;
        loop {
            if !self.has_room() {
                return Ok(());
            }
            let rows = self.size.now();
            let page = connection.ask(|server| commands::own_pending(server, &shared.key, after, rows))?;
            let Some(last) = page.last().map(|pending| pending.id) else {
                self.own_pending.finish();
                return Ok(());
            };
            let unknown =
                |pending: &PendingEntry| matches!(shared.in_flight.phase(pending.id), None | Some(Phase::Settled));
            let candidates = page.into_iter().filter(unknown);
            let candidates = candidates.map(|pending| self.candidate(pending, Duration::ZERO, true)).collect();
            self.redeliver(connection, candidates)?;
            self.own_pending.looked_at(last);
            after = last;
            if shared.stopping.is_set() {
                return Ok(());
            }
        }
    }

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

    fn candidate(&self, pending: PendingEntry, min_idle: Duration, is_own: bool) -> Candidate {
        let next_hand_out = next_hand_out(&self.own_pending, &self.last_chances, &pending, is_own);
        Candidate { pending, min_idle, next_hand_out }
    }

    /// Hands out entries that were delivered before, except those that had their chances. Those that have only one left
    /// wait until it is certain that a handler gets them.
    fn redeliver(&mut self, connection: &mut WatchedConnection, candidates: Vec<Candidate>) -> Result<()> {
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
            let (now, later) = rest.split_at(self.entries_that_fit().min(rest.len()));
            self.take(connection, now)?;
            rest = later;
        }
        Ok(())
    }

    /// Waits until the channel may take more bytes. `false`: it is time to stop.
    fn has_room(&mut self) -> bool {
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
        let marks = candidates.iter().map(|candidate| (candidate.id(), candidate.next_hand_out));
        self.own_pending.being_taken.extend(marks);
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
        for candidate in candidates {
            self.own_pending.being_taken.remove(&candidate.id());
        }
        self.note_answer(taken.entries.iter().map(|(entry, _)| entry));
        self.last_seen = self.last_seen.max(taken.entries.iter().map(|(entry, _)| entry.id()).max());
        if candidates.iter().any(Candidate::is_claim) {
            shared.counters.claimed.add(taken.entries.len() as u64);
        }
        let generation = shared.in_flight.admit_again(&taken.entries);
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
        if !self.may_offer_last_chance() {
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

    /// Whether an entry that is marked for its last hand-out now will be handed out, or nearly so: nothing else is queued,
    /// and either a handler waits in an iterator, or no other such entry is with a handler, who may bring the process down
    /// with it. Waits for that for a moment.
    pub(super) fn may_offer_last_chance(&self) -> bool {
        let shared = &self.shared;
        shared.acks.reader_is_away();
        let is_sure =
            || self.queue.is_empty() && (shared.takers.is_any_waiting() || !shared.in_flight.has_last_chance());
        shared.wait_for_handlers(LOOK_AGAIN, is_sure)
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
            let buried = connection.ask(|server| bury(server, &shared.key, pending, *min_idle, output, &reason));
            match buried.map_err(|error| self.name_entry(error, std::slice::from_ref(&candidate))) {
                Ok(Buried::Moved) => self.note_dead_letter(candidate.id(), &reason),
                Ok(Buried::Deleted) => deleted.push(candidate.id()),
                // Somebody else has it by now. What was too long for a script has been moved otherwise.
                Ok(Buried::Changed | Buried::TooLong) => {}
                Err(error) if error.is_retryable() && !connection.is_broken() => self.postpone(&candidate, &error),
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
        connection.ask(|server| crate::stream::acknowledge_deleted(server, &self.shared.key, deleted))?;
        self.shared.in_flight.forget(deleted);
        self.shared.counters.trimmed.add(deleted.len() as u64);
        Ok(())
    }
}
