//! What surrounds the lending: real connections, threads and the clock.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::attempt::{Attempt, Job};
use super::lending::World;
use super::places::{Manager, Place};
use super::state::Pace;
use crate::connection::{Connection, Connector, Progress};
use crate::deadline::Deadline;
use crate::error::{Error, Result, with_causes};
use crate::latch::lock;
use crate::log_later::log_later;
use crate::net::Interrupter;
use crate::params::PoolParams;
use crate::sync::{Condvar, MutexGuard};

/// What a pool is made of.
pub(super) struct Surroundings {
    pub(super) connector: Connector,
    pub(super) places: r2d2::Pool<Manager>,
}

/// A connection in its place.
pub(super) struct Filled {
    // Closed before its place is free.
    connection: Connection,
    _place: Place,
    /// It has answered for a caller who waits, and was not lent since: however short the interval, once is enough.
    answered: bool,
}

impl std::ops::Deref for Filled {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.connection
    }
}

impl std::ops::DerefMut for Filled {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.connection
    }
}

/// The reins of an attempt.
#[derive(Clone)]
pub(super) struct Handle {
    interrupter: Interrupter,
    /// How far the opening of a connection has come; a check has no steps.
    progress: Option<Arc<Progress>>,
    begun: Instant,
}

impl Surroundings {
    pub(super) fn params(&self) -> &PoolParams {
        self.connector.params()
    }

    /// How attempts follow each other: a caller with the usual patience lives to see a second one.
    pub(super) fn pace(&self) -> Pace {
        let checkout = self.params().connection_available_timeout;
        let least_opening = checkout.clamp(Duration::from_millis(500), Duration::from_secs(2));
        let at_most = |limit: u64, share: u32| Duration::from_millis(limit).min(checkout / share);
        Pace {
            retry: Duration::from_millis(100),
            beside_check: at_most(100, 4),
            beside_opening: at_most(1000, 2),
            longest_check: at_most(1000, 2),
            longest_opening: least_opening,
            least_opening,
            most_opening: least_opening.max(self.params().socket_connect_timeout / 2),
        }
    }

    /// What an attempt that is not finished has to tell.
    pub(super) fn unfinished(&self, handle: &Handle, age: Duration) -> Error {
        let address = self.connector.address();
        match &handle.progress {
            Some(progress) => {
                let expired = io::Error::new(io::ErrorKind::TimedOut, format!("not finished after {age:?}"));
                Error::connect(address, progress.step(), expired)
            }
            None => Error::Timeout { address: Arc::clone(address), limit: age, outcome_unknown: false },
        }
    }

    fn open(&self, place: Place, handle: &Handle, limit: Duration) -> Result<Filled> {
        let unobserved = Progress::default();
        let progress = handle.progress.as_deref().unwrap_or(&unobserved);
        match self.connector.connect_observed(limit, &handle.interrupter, progress) {
            Ok(connection) => Ok(Filled { connection, _place: place, answered: false }),
            // It was told to end.
            Err(_) if handle.interrupter.is_interrupted() => Err(self.unfinished(handle, handle.begun.elapsed())),
            Err(error) => Err(error),
        }
    }

    fn check(&self, mut filled: Box<Filled>, handle: &Handle, limit: Duration) -> Result<Box<Filled>> {
        let deadline = Deadline::after(limit.min(self.params().socket_timeout));
        match filled.prove_alive(deadline) {
            Ok(()) => {
                filled.answered = true;
                Ok(filled)
            }
            Err(_) if handle.interrupter.is_interrupted() => Err(self.unfinished(handle, handle.begun.elapsed())),
            Err(error) => Err(error),
        }
    }
}

impl World for Surroundings {
    type Place = Place;
    /// Connections are moved about by value: a box is cheaper to move.
    type Connection = Box<Filled>;
    type Failure = Arc<Error>;
    type Handle = Handle;

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn wait<'a, T>(&self, changed: &Condvar, guard: MutexGuard<'a, T>, until: Instant) -> MutexGuard<'a, T> {
        let limit = until.saturating_duration_since(Instant::now());
        changed.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner).0
    }

    fn empty_place(&self) -> Option<Place> {
        self.places.try_get()
    }

    fn vacate(&self, filled: Box<Filled>) -> Place {
        let Filled { connection, _place, .. } = *filled;
        drop(connection);
        _place
    }

    fn is_stale(&self, filled: &Box<Filled>, now: Instant) -> bool {
        let interval = self.params().health_check_interval;
        let longest = if filled.answered { interval.max(self.params().connection_available_timeout) } else { interval };
        filled.idle_since(now) > longest
    }

    fn look(&self, filled: &mut Box<Filled>) -> Result<(), Arc<Error>> {
        filled.look().map_err(|error| {
            log::debug!("an idle connection is closed: {}", with_causes(&error));
            Arc::new(error)
        })
    }

    fn is_as_lent(&self, filled: &mut Box<Filled>) -> bool {
        filled.answered = false;
        filled.end_loan()
    }

    fn handle(&self, job: &Job<Surroundings>) -> Handle {
        let begun = Instant::now();
        match job {
            Job::Open(_) => Handle { interrupter: Interrupter::new(), progress: Some(Arc::default()), begun },
            Job::Check(filled) => Handle { interrupter: filled.socket_interrupter(), progress: None, begun },
        }
    }

    fn interrupt(&self, handle: &Handle) {
        handle.interrupter.interrupt();
    }

    fn carry_out(
        &self,
        job: Job<Surroundings>,
        handle: &Handle,
        limit: Option<Duration>,
    ) -> Result<Box<Filled>, Arc<Error>> {
        let limit = limit.unwrap_or(Duration::MAX);
        let (result, failed) = match job {
            Job::Open(place) => (self.open(place, handle, limit).map(Box::new), "the pool cannot connect"),
            Job::Check(filled) => (self.check(filled, handle, limit), "an idle connection is closed"),
        };
        result.map_err(|error| {
            log_later!(Debug, "{failed}: {}", with_causes(&error));
            Arc::new(error)
        })
    }

    fn panicked(&self, handle: &Handle) -> Arc<Error> {
        let step = handle.progress.as_ref().map_or(crate::error::ConnectStep::Ping, |progress| progress.step());
        let panicked = io::Error::other("the thread panicked, as the program's logger or verifier may; it said why");
        Arc::new(Error::connect(self.connector.address(), step, panicked))
    }

    fn is_final(&self, failure: &Arc<Error>) -> bool {
        !failure.is_retryable()
    }

    fn spawn(&self, attempt: Attempt<Surroundings>) -> Result<(), Attempt<Surroundings>> {
        // A closure that cannot be started is dropped, so the attempt must not be in it.
        let attempt = Arc::new(Mutex::new(Some(attempt)));
        let handed_over = Arc::clone(&attempt);
        let thread = thread::Builder::new().name("step-redis-pool-connect".into()).spawn(move || {
            let attempt = lock(&handed_over).take();
            if let Some(attempt) = attempt {
                // Whoever waits sees the outcome.
                let _ = attempt.carry_out(None);
            }
        });
        let left_over = if thread.is_err() { lock(&attempt).take() } else { None };
        left_over.map_or(Ok(()), Err)
    }
}
