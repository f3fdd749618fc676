//! The queue of acknowledgements, and the condition that the keeper sleeps on.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::delivery::Receipt;
use crate::latch::lock;

/// The most entries that are acknowledged by one command.
pub(super) const MOST_ACKS: usize = 1024;

/// Acknowledgements on their way to the server. Handlers push, the reader takes what is there along with its next read, and
/// the keeper sends what has waited long enough.
#[derive(Debug)]
pub(super) struct AckQueue {
    state: Mutex<State>,
    keeper: Condvar,
    max: usize,
    delay: Duration,
}

#[derive(Debug, Default)]
struct State {
    receipts: Vec<Receipt>,
    /// When the oldest of them was pushed.
    since: Option<Instant>,
    /// The keeper sleeps no longer than `delay`, so a push need not wake it.
    keeper_is_timed: bool,
    /// Somebody wants the keeper to look around.
    call: bool,
    closed: bool,
    /// The reader is about to take along what is there: the keeper need not be woken because there is much of it.
    reader_is_near: bool,
    /// The server has refused some.
    refused: bool,
}

impl State {
    /// Enough wait that they are to be sent now, and it is the keeper who has to.
    fn is_full(&self, max: usize) -> bool {
        self.receipts.len() >= max && !self.reader_is_near
    }

    fn take(&mut self, most: usize) -> Vec<Receipt> {
        if self.receipts.len() > most {
            return self.receipts.drain(..most).collect();
        }
        self.since = None;
        let capacity = self.receipts.capacity();
        std::mem::replace(&mut self.receipts, Vec::with_capacity(capacity.min(MOST_ACKS)))
    }
}

impl AckQueue {
    pub(super) fn new(max: usize, delay: Duration) -> AckQueue {
        AckQueue { state: Mutex::default(), keeper: Condvar::new(), max, delay }
    }

    /// Queues acknowledgements. `false`: the queue is closed, and nobody would send them.
    pub(super) fn push(&self, receipts: &[Receipt]) -> bool {
        let mut state = lock(&self.state);
        if state.closed {
            return false;
        }
        let was_full = state.is_full(self.max);
        state.receipts.extend_from_slice(receipts);
        let full = !was_full && state.is_full(self.max);
        let first = state.since.is_none();
        if first {
            state.since = Some(Instant::now());
        }
        if (first && !state.keeper_is_timed) || full {
            self.keeper.notify_one();
        }
        true
    }

    /// Takes what is there, up to `most`.
    pub(super) fn take(&self, most: usize) -> Vec<Receipt> {
        lock(&self.state).take(most)
    }

    /// The same for the reader, which comes again at once unless its request `waits` for entries at the server.
    pub(super) fn take_along(&self, most: usize, waits: bool) -> Vec<Receipt> {
        let mut state = lock(&self.state);
        if state.refused {
            return Vec::new();
        }
        state.reader_is_near = !waits;
        let receipts = state.take(most);
        self.call_if_full(&state);
        receipts
    }

    /// The reader waits for something else, and may be long in coming or not come at all.
    pub(super) fn reader_is_away(&self) {
        let mut state = lock(&self.state);
        if std::mem::take(&mut state.reader_is_near) {
            self.call_if_full(&state);
        }
    }

    fn call_if_full(&self, state: &State) {
        if state.is_full(self.max) {
            self.keeper.notify_one();
        }
    }

    /// Puts back what could not be confirmed. Acknowledging twice does no harm.
    pub(super) fn put_back(&self, mut receipts: Vec<Receipt>) {
        if receipts.is_empty() {
            return;
        }
        let mut state = lock(&self.state);
        receipts.append(&mut state.receipts);
        state.receipts = receipts;
        state.since.get_or_insert_with(Instant::now);
        if !state.keeper_is_timed {
            self.keeper.notify_one();
        }
    }

    /// The server refuses acknowledgements, or takes them again. While it refuses, they are the keeper's alone, who tries
    /// again after a while.
    pub(super) fn set_refused(&self, refused: bool) {
        lock(&self.state).refused = refused;
    }

    /// How many are queued.
    pub(super) fn len(&self) -> usize {
        lock(&self.state).receipts.len()
    }

    /// From now on nothing is accepted; what is queued stays to be sent.
    pub(super) fn close(&self) {
        lock(&self.state).closed = true;
    }

    /// Wakes the keeper.
    pub(super) fn call_keeper(&self) {
        lock(&self.state).call = true;
        self.keeper.notify_one();
    }

    /// The keeper sleeps until acknowledgements are due, somebody calls, or `until`. With `heed_acks` false it sleeps on
    /// although some are due: there is no connection to send them on.
    pub(super) fn wait(&self, until: Instant, heed_acks: bool) {
        let mut state = lock(&self.state);
        loop {
            let now = Instant::now();
            let acks_due = match state.since {
                Some(_) if state.is_full(self.max) => Some(now),
                Some(since) => Some(since.checked_add(self.delay).unwrap_or(until)),
                None => None,
            };
            let wake = acks_due.filter(|_| heed_acks).map_or(until, |due| due.min(until));
            if std::mem::take(&mut state.call) || wake <= now {
                state.keeper_is_timed = false;
                return;
            }
            state.keeper_is_timed = acks_due.is_some();
            state = self.keeper.wait_timeout(state, wake - now).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}
