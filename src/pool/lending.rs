//! Who gets which connection, who waits, and when an attempt to have another one is begun. All of it happens under one lock,
//! and knows neither sockets nor a clock: those are the [`World`]'s, so that every order of its steps can be tried.
//!
//! A connection fills a *place*, of which there is a fixed number. It is idle, lent, or in the hands of an attempt that opens
//! or checks it. Attempts belong to callers: none is begun while nobody waits. Each runs in a thread of its own and may
//! outlive the caller for whom it was begun, as the next one is glad of it.
//!
//! Whatever becomes free wakes one who waits, and whoever stops waiting passes on what it may have been woken for.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::attempt::{Attempt, Job, UnderWay};
use super::loan::Loan;
use super::state::{Counts, History, Next, Pace, State};
use crate::sync::{Condvar, Mutex, MutexGuard, lock};

/// What is outside of the lock: places, connections, threads and time.
pub(super) trait World: Send + Sync + Sized + 'static {
    /// Room for one connection; free again when it is dropped.
    type Place: Send + 'static;
    /// A connection in its place.
    type Connection: Send + 'static;
    type Failure: Clone + Send + Sync + 'static;
    /// Ends an attempt, and tells about it.
    type Handle: Clone + Send + Sync + 'static;

    fn now(&self) -> Instant;
    /// Waits for the condition, at most until then. It may return early.
    fn wait<'a, T>(&self, changed: &Condvar, guard: MutexGuard<'a, T>, until: Instant) -> MutexGuard<'a, T>;
    fn empty_place(&self) -> Option<Self::Place>;
    /// Closes a connection, and keeps its place.
    fn vacate(&self, connection: Self::Connection) -> Self::Place;
    /// Whether it has been idle for so long that it must answer before it is lent.
    fn is_stale(&self, connection: &Self::Connection, now: Instant) -> bool;
    /// A look at a connection that is to be lent, which waits for nothing.
    fn look(&self, connection: &mut Self::Connection) -> Result<(), Self::Failure>;
    /// Ends a loan: whether the connection is as it was lent.
    fn is_as_lent(&self, connection: &mut Self::Connection) -> bool;
    fn handle(&self, job: &Job<Self>) -> Self::Handle;
    fn interrupt(&self, handle: &Self::Handle);
    /// Opens or checks a connection. It may wait and it may panic.
    fn carry_out(
        &self,
        job: Job<Self>,
        handle: &Self::Handle,
        limit: Option<Duration>,
    ) -> Result<Self::Connection, Self::Failure>;
    /// What is told of an attempt that panicked.
    fn panicked(&self, handle: &Self::Handle) -> Self::Failure;
    /// Whether to try again is of no use.
    fn is_final(&self, failure: &Self::Failure) -> bool;
    /// Runs the attempt in a thread of its own; gives it back when there is none to have.
    fn spawn(&self, attempt: Attempt<Self>) -> Result<(), Attempt<Self>>;
}

pub(super) struct Lending<W: World> {
    pub(super) world: W,
    pub(super) state: Mutex<State<W>>,
    pub(super) changed: Condvar,
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum Denied<W: World> {
    /// An attempt failed, and no further one would do better.
    Refused(W::Failure),
    TimeIsUp {
        waited: Duration,
        counts: Counts,
        /// Why the last attempt to open one failed, or else why an idle one was discarded.
        cause: Option<W::Failure>,
        /// The oldest attempt that is still under way, and its age.
        under_way: Option<(W::Handle, Duration)>,
    },
    Closed,
}

impl<W: World> Lending<W> {
    pub(super) fn new(world: W, pace: Pace) -> Lending<W> {
        Lending { world, state: Mutex::new(State::new(pace)), changed: Condvar::new() }
    }

    /// Lends a connection, after waiting for it until `limit` is over.
    pub(super) fn checkout(self: &Arc<Self>, limit: Duration) -> Result<Loan<W>, Denied<W>> {
        let started = self.world.now();
        let mut now = started;
        let deadline = started.checked_add(limit);
        let mut caller = Caller { lending: self, waits: false };
        let mut discarded = None;
        let mut state = lock(&self.state);
        let refusals = state.refusals;
        loop {
            if let Some(connection) = state.take_ready(&self.world, now) {
                caller.leave(&mut state);
                drop(state);
                match self.look_at(Loan::new(self, connection), &mut discarded) {
                    Some(loan) => return Ok(loan),
                    None => state = lock(&self.state),
                }
                now = self.world.now();
                continue;
            }
            if state.closed {
                return Err(Denied::Closed);
            }
            if let Some(failure) = state.refusal.as_ref().filter(|_| state.refusals > refusals) {
                return Err(Denied::Refused(failure.clone()));
            }
            if deadline.is_some_and(|deadline| now >= deadline) {
                return Err(state.time_is_up(&self.world, started, now, discarded));
            }
            caller.wait(&mut state);
            match state.next(&self.world, now) {
                Next::Begin(job) => {
                    let attempt = self.begin(&mut state, job, now);
                    drop(state);
                    self.start(attempt, deadline);
                    state = lock(&self.state);
                }
                Next::Wait(until) => {
                    let until = until.into_iter().chain(deadline).min();
                    state = self.world.wait(&self.changed, state, until.unwrap_or(now + FOREVER));
                }
            }
            now = self.world.now();
        }
    }

    /// Lends a connection that lies ready.
    pub(super) fn checkout_ready(self: &Arc<Self>) -> Option<Loan<W>> {
        let now = self.world.now();
        loop {
            let connection = lock(&self.state).take_ready(&self.world, now)?;
            if let Some(loan) = self.look_at(Loan::new(self, connection), &mut None) {
                return Some(loan);
            }
        }
    }

    /// The loan, if a look finds nothing. Otherwise the connection is closed as it is given back.
    fn look_at(&self, mut loan: Loan<W>, discarded: &mut Option<W::Failure>) -> Option<Loan<W>> {
        match self.world.look(loan.connection_mut()) {
            Ok(()) => Some(loan),
            Err(failure) => {
                *discarded = Some(failure);
                None
            }
        }
    }

    fn begin(self: &Arc<Self>, state: &mut State<W>, job: Job<W>, now: Instant) -> Attempt<W> {
        let (id, handle) = (state.next_attempt, self.world.handle(&job));
        state.next_attempt += 1;
        state.last_begun = Some(now);
        let opens = matches!(job, Job::Open(_));
        state.under_way.push(UnderWay { id, begun: now, opens, gives_way: false, handle: handle.clone() });
        Attempt::new(Arc::clone(self), id, handle, job)
    }

    fn start(&self, attempt: Attempt<W>, deadline: Option<Instant>) {
        if let Err(attempt) = self.world.spawn(attempt) {
            // Without a thread, the caller sees to it, in the time that it has.
            let mut limit = deadline.map(|deadline| deadline.saturating_duration_since(self.world.now()));
            if !attempt.opens() {
                // A check that is not answered must leave time to open another one.
                limit = limit.into_iter().chain([lock(&self.state).pace.longest_check]).min();
            }
            // Whoever waits sees the outcome.
            let _ = attempt.carry_out(limit);
        }
    }

    /// Opens a connection in the caller's thread and keeps it ready.
    pub(super) fn open(self: &Arc<Self>) -> Result<(), Option<W::Failure>> {
        let place = self.world.empty_place().ok_or(None)?;
        let mut state = lock(&self.state);
        let attempt = self.begin(&mut state, Job::Open(place), self.world.now());
        drop(state);
        attempt.carry_out(None).map_err(Some)
    }

    pub(super) fn state(&self) -> (Counts, History<W::Failure>) {
        let state = lock(&self.state);
        (state.counts(), state.history.clone())
    }

    /// Takes out the idle connections that this is true of; the longest idle first, up to one of which it is not.
    pub(super) fn take_idle_while(&self, mut is_over: impl FnMut(&W::Connection) -> bool) -> Vec<W::Connection> {
        let mut state = lock(&self.state);
        let kept = state.idle.iter().position(|connection| !is_over(connection)).unwrap_or(state.idle.len());
        state.idle.drain(..kept).collect()
    }

    /// Wakes one who waits: a place is free.
    pub(super) fn place_is_free(&self) {
        let state = lock(&self.state);
        self.wake_one(state);
    }

    /// From now on nothing is lent, what is given back is closed, and what is under way ends.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.closed = true;
        for attempt in &state.under_way {
            self.world.interrupt(&attempt.handle);
        }
        let idle = std::mem::take(&mut state.idle);
        self.changed.notify_all();
        drop(state);
        drop(idle);
    }

    /// A loan has ended.
    pub(super) fn give_back(&self, mut connection: W::Connection) {
        if !self.world.is_as_lent(&mut connection) {
            // Its place is free before anybody is woken for it.
            drop(connection);
            let mut state = lock(&self.state);
            state.lent -= 1;
            self.wake_one(state);
            return;
        }
        let mut state = lock(&self.state);
        state.lent -= 1;
        if state.closed {
            drop(state);
            drop(connection);
            return;
        }
        state.idle.push(connection);
        self.wake_one(state);
    }

    /// An attempt has ended.
    pub(super) fn conclude(&self, attempt: u64, outcome: Outcome<W>) {
        let now = self.world.now();
        let mut state = lock(&self.state);
        let begun = state.remove(attempt);
        let closed_connection = match outcome {
            Outcome::Opened(connection) => {
                state.failing = false;
                state.history.opened += 1;
                state.history.last_opened = Some(now);
                state.history.last_failure = None;
                state.unanswered = None;
                // Twice as long as it took, the next may take; and a check as long.
                let took = begun.map_or(Duration::ZERO, |begun| now.saturating_duration_since(begun));
                state.pace.longest_opening = state.pace.least_opening.max(took * 2);
                state.pace.longest_check = state.pace.longest_check.max(took);
                state.keep(connection)
            }
            Outcome::Checked(connection) => {
                state.unanswered = None;
                state.keep(connection)
            }
            Outcome::NotOpened(failure) => {
                state.failing = true;
                state.history.failed += 1;
                if self.world.is_final(&failure) {
                    state.refusals += 1;
                    state.refusal = Some(failure.clone());
                    self.changed.notify_all();
                }
                state.history.last_failure = Some(failure);
                None
            }
            Outcome::NotAnswered(failure) => {
                state.unanswered = Some(failure);
                None
            }
        };
        self.wake_one(state);
        drop(closed_connection);
    }

    /// Wakes one who waits, if there is one: otherwise it costs no system call.
    fn wake_one(&self, state: MutexGuard<'_, State<W>>) {
        let somebody_waits = state.waiting > 0;
        // Who is woken finds the lock free.
        drop(state);
        if somebody_waits {
            self.changed.notify_one();
        }
    }
}

/// What became of an attempt. The place of one that failed is free already.
pub(super) enum Outcome<W: World> {
    Opened(W::Connection),
    Checked(W::Connection),
    NotOpened(W::Failure),
    NotAnswered(W::Failure),
}

/// The longest wait for a caller without a limit; then it looks around and waits on.
const FOREVER: Duration = Duration::from_secs(3600);

/// A caller, who counts as one while he waits.
struct Caller<'l, W: World> {
    lending: &'l Lending<W>,
    waits: bool,
}

impl<W: World> Caller<'_, W> {
    fn wait(&mut self, state: &mut State<W>) {
        state.waiting += usize::from(!self.waits);
        self.waits = true;
    }

    /// Waits no more, with a connection. What is under way is watched by another who waits, if any.
    fn leave(&mut self, state: &mut State<W>) {
        if std::mem::take(&mut self.waits) {
            state.waiting -= 1;
            if state.waiting > 0 && (state.failing || !state.under_way.is_empty()) {
                self.lending.changed.notify_one();
            }
        }
    }
}

/// Without a connection: what he may have been woken for is another's now.
impl<W: World> Drop for Caller<'_, W> {
    fn drop(&mut self) {
        if self.waits {
            let mut state = lock(&self.lending.state);
            state.waiting -= 1;
            self.lending.wake_one(state);
        }
    }
}
