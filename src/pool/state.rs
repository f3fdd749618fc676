//! What the lock of the lending guards, and what follows from it: what is lent next, and when an attempt is due.

use std::time::{Duration, Instant};

use super::attempt::{Job, UnderWay};
use super::lending::{Denied, World};

/// How attempts follow each other while somebody waits.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// From the begin of an attempt that failed to the begin of the next.
    pub(super) retry: Duration,
    /// After so long without an answer, another attempt is begun beside a check.
    pub(super) beside_check: Duration,
    /// The same for one that opens a connection.
    pub(super) beside_opening: Duration,
    /// A check that takes longer gives way to an attempt that finds no place.
    pub(super) longest_check: Duration,
    /// The same for one that opens a connection; more where it turns out to take more.
    pub(super) longest_opening: Duration,
    /// It is never less than this, and, as long as none succeeds, never more than that.
    pub(super) least_opening: Duration,
    pub(super) most_opening: Duration,
}

pub(super) struct State<W: World> {
    pub(super) pace: Pace,
    /// The one that was used last comes last, and is lent first.
    pub(super) idle: Vec<W::Connection>,
    pub(super) lent: usize,
    /// Callers who wait.
    pub(super) waiting: usize,
    pub(super) under_way: Vec<UnderWay<W>>,
    pub(super) next_attempt: u64,
    pub(super) last_begun: Option<Instant>,
    /// The last attempt to open a connection failed.
    pub(super) failing: bool,
    pub(super) history: History<W::Failure>,
    /// Failures so far that no further attempt would mend, and the last of them.
    pub(super) refusals: u64,
    pub(super) refusal: Option<W::Failure>,
    /// Why the last idle connection that was checked was closed, until one answers or is opened.
    pub(super) unanswered: Option<W::Failure>,
    pub(super) closed: bool,
}

/// What became of the attempts to open a connection.
#[derive(Clone, Debug)]
pub(super) struct History<F> {
    pub(super) opened: u64,
    pub(super) failed: u64,
    pub(super) last_opened: Option<Instant>,
    /// Why the last attempt failed, until one succeeds.
    pub(super) last_failure: Option<F>,
}

/// How many connections there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) idle: usize,
    pub(super) lent: usize,
}

/// What a caller who waits does next.
pub(super) enum Next<W: World> {
    Begin(Job<W>),
    /// Waits to be woken, or until then, when an attempt may be due.
    Wait(Option<Instant>),
}

impl<W: World> State<W> {
    pub(super) fn new(pace: Pace) -> State<W> {
        let history = History { opened: 0, failed: 0, last_opened: None, last_failure: None };
        State {
            pace,
            idle: Vec::new(),
            lent: 0,
            waiting: 0,
            under_way: Vec::new(),
            next_attempt: 0,
            last_begun: None,
            failing: false,
            history,
            refusals: 0,
            refusal: None,
            unanswered: None,
            closed: false,
        }
    }

    pub(super) fn counts(&self) -> Counts {
        Counts { idle: self.idle.len(), lent: self.lent }
    }

    /// Takes the connection that was used last, unless it must answer first.
    pub(super) fn take_ready(&mut self, world: &W, now: Instant) -> Option<W::Connection> {
        let connection = self.idle.pop_if(|connection| !world.is_stale(connection, now))?;
        self.lent += 1;
        Some(connection)
    }

    /// What a caller for whom nothing lies ready does for it.
    pub(super) fn next(&mut self, world: &W, now: Instant) -> Next<W> {
        let under_way = self.under_way.iter().filter(|attempt| !attempt.gives_way).count();
        let wait = match self.under_way.iter().rfind(|attempt| !attempt.gives_way) {
            _ if under_way < self.waiting && !self.failing => Duration::ZERO,
            // The server may be back.
            _ if under_way < self.waiting => self.pace.retry,
            // What hangs must not hold up what would not.
            Some(newest) if newest.opens => self.pace.beside_opening,
            Some(_) | None => self.pace.beside_check,
        };
        let due = self.last_begun.map(|begun| begun + wait);
        if let Some(due) = due.filter(|due| *due > now) {
            return Next::Wait(Some(due));
        }
        let silent = self.silent_checks(now);
        if silent > 0
            && let Some(place) = world.empty_place()
        {
            return Next::Begin(Job::Open(place));
        }
        if silent > 1 && !self.idle.is_empty() {
            // The others have probably died with those that do not answer. The one that lay idle for longest goes.
            return Next::Begin(Job::Open(world.vacate(self.idle.remove(0))));
        }
        if let Some(stale) = self.idle.pop() {
            return Next::Begin(Job::Check(stale));
        }
        match world.empty_place() {
            Some(place) => Next::Begin(Job::Open(place)),
            None => Next::Wait(self.make_way(world, now)),
        }
    }

    /// How many idle connections that are being checked should have answered by now; the last one that never did is one more.
    fn silent_checks(&self, now: Instant) -> usize {
        let is_silent = |attempt: &&UnderWay<W>| !attempt.opens && attempt.begun + self.pace.beside_check <= now;
        self.under_way.iter().filter(is_silent).count() + usize::from(self.unanswered.is_some())
    }

    /// Ends the attempt that is due first if it takes too long to be worth its place, or tells when it will.
    fn make_way(&mut self, world: &W, now: Instant) -> Option<Instant> {
        let pace = &mut self.pace;
        let due = |attempt: &UnderWay<W>| {
            attempt.begun + if attempt.opens { pace.longest_opening } else { pace.longest_check }
        };
        let oldest =
            self.under_way.iter_mut().filter(|attempt| !attempt.gives_way).min_by_key(|attempt| due(attempt))?;
        let due = due(oldest);
        if due > now {
            return Some(due);
        }
        if oldest.opens && now < due + pace.longest_opening {
            // The line may be slow: those to come get more time, or none would ever end.
            pace.longest_opening = (pace.longest_opening * 2).min(pace.most_opening);
        }
        oldest.gives_way = true;
        world.interrupt(&oldest.handle);
        // Its end wakes one who waits.
        None
    }

    /// Takes an attempt off the list: when it was begun.
    pub(super) fn remove(&mut self, attempt: u64) -> Option<Instant> {
        let position = self.under_way.iter().position(|other| other.id == attempt)?;
        Some(self.under_way.remove(position).begun)
    }

    pub(super) fn time_is_up(
        &self,
        world: &W,
        started: Instant,
        now: Instant,
        discarded: Option<W::Failure>,
    ) -> Denied<W> {
        if let Some(failure) = self.history.last_failure.as_ref().filter(|failure| world.is_final(failure)) {
            return Denied::Refused(failure.clone());
        }
        let oldest = self.under_way.first();
        Denied::TimeIsUp {
            waited: now.saturating_duration_since(started),
            counts: self.counts(),
            cause: self.history.last_failure.clone().or(discarded).or_else(|| self.unanswered.clone()),
            under_way: oldest.map(|oldest| (oldest.handle.clone(), now.saturating_duration_since(oldest.begun))),
        }
    }

    pub(super) fn keep(&mut self, connection: W::Connection) -> Option<W::Connection> {
        if self.closed {
            return Some(connection);
        }
        self.idle.push(connection);
        None
    }
}
