//! One time limit for all that a call does, however many steps it takes.

use std::io;
use std::time::{Duration, Instant};

/// A time limit that has begun to run.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadline {
    started: Instant,
    limit: Duration,
}

impl Deadline {
    /// A limit that begins now.
    pub(crate) fn after(limit: Duration) -> Deadline {
        Deadline { started: Instant::now(), limit }
    }

    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    pub(crate) fn limit(&self) -> Duration {
        self.limit
    }

    /// The time left; zero when it is over.
    pub(crate) fn left(&self) -> Duration {
        self.limit.saturating_sub(self.started.elapsed())
    }

    /// The time left, or the error of a deadline that is over.
    pub(crate) fn remaining(&self) -> io::Result<Duration> {
        match self.left() {
            Duration::ZERO => Err(self.expired()),
            left => Ok(left),
        }
    }

    pub(crate) fn expired(&self) -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, format!("not finished within {:?}", self.limit))
    }
}
