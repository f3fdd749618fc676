//! What is pending for this consumer at the server: from before a restart, or lost on the way.
//!
//! Taking an entry marks its next hand-out at the server. So an entry that is pending for this consumer and unknown here was
//! marked for a hand-out that did not happen, unless it was pending before this consumer started.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Connected, Reader, WatchedConnection};
use crate::commands::{self, Candidate, GivenBack, PendingEntry};
use crate::connection::Connection;
use crate::consumer::in_flight::Phase;
use crate::consumer::leases;
use crate::consumer::shared::Shared;
use crate::endpoint::ConsumerKey;
use crate::entry_id::EntryId;
use crate::error::Result;

/// How many pending entries are looked at with one command when a consumer ends.
const ROWS: usize = 256;
/// The greatest count that the server keeps.
const MOST_DELIVERIES: u64 = i64::MAX as u64;
/// How many rows of the pending list are asked for: some are a short reply on any line.
const PAGE: std::ops::RangeInclusive<usize> = 16..=1024;

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

    /// It was pending before this consumer started, and has not been looked at.
    fn is_inherited(&self, id: EntryId) -> bool {
        matches!(self.inherited_behind, Inherited::Behind(before) if id > before)
    }

    /// These are asked for, and their next hand-outs are about to be marked.
    pub(super) fn begin_taking(&mut self, candidates: &[Candidate]) {
        let marks = candidates.iter().map(|candidate| (candidate.id(), candidate.next_hand_out));
        self.being_taken.extend(marks);
    }

    /// The server has answered.
    pub(super) fn end_taking(&mut self, candidates: &[Candidate]) {
        for candidate in candidates {
            self.being_taken.remove(&candidate.id());
        }
    }

    /// It was asked for, and whether it was marked is not known.
    fn is_being_taken(&self, id: EntryId) -> bool {
        self.being_taken.contains_key(&id)
    }

    /// The number of an entry's next hand-out. What was marked and not used is used now.
    pub(super) fn next_hand_out(&self, pending: &PendingEntry, is_own: bool) -> u64 {
        if let Some(marked) = self.being_taken.get(&pending.id) {
            return *marked;
        }
        let inherited = self.is_inherited(pending.id);
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
        let is_known = !matches!(shared.in_flight.phase(pending.id), None | Some(Phase::Expected));
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
pub(super) fn next_hand_out(
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
        // What was lost on the way may wait for its last chance.
        let is_marked = |waiting: &Candidate| waiting.next_hand_out <= waiting.pending.deliveries;
        let all_seen =
            self.own_pending.is_done() && self.reread_at.is_none() && !self.last_chances.values().any(is_marked);
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
            let rows = self.size.now().clamp(*PAGE.start(), *PAGE.end());
            let page = connection.ask(|server| commands::own_pending(server, &shared.key, after, rows))?;
            let Some(last) = page.last().map(|pending| pending.id) else {
                self.own_pending.finish();
                return Ok(());
            };
            // What was given back here may have been taken again, in a request whose reply was lost.
            let unknown = |pending: &PendingEntry| {
                self.own_pending.is_being_taken(pending.id)
                    || matches!(shared.in_flight.phase(pending.id), None | Some(Phase::Settled | Phase::Expected))
            };
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

    /// Finds what was lost on the way, and has the server count it as fresh. On a slow line it takes long to come again, one
    /// entry after the other, and others must not take it for abandoned.
    pub(super) fn expect_lost(&mut self, connection: &mut WatchedConnection) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut after = EntryId::MIN;
        loop {
            let rows = self.size.now().clamp(*PAGE.start(), *PAGE.end());
            let page = connection.ask(|server| commands::own_pending(server, &shared.key, after, rows))?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.id;
            let is_lost = |pending: &&PendingEntry| {
                !self.own_pending.is_inherited(pending.id)
                    && matches!(shared.in_flight.phase(pending.id), None | Some(Phase::Expected))
            };
            let ids: Vec<EntryId> = page.iter().filter(is_lost).map(|pending| pending.id).collect();
            if ids.is_empty() {
                continue;
            }
            let sent = Instant::now();
            let not_ours = connection.ask(|server| commands::keep(server, &shared.key, &ids))?;
            shared.in_flight.expect(&ids, sent);
            leases::note_not_ours(&shared, &not_ours);
        }
    }
}
