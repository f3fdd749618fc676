//! An attempt to have a connection: to open one, or to hear from one that was idle.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lending::{Lending, Outcome, World};
use crate::log_later;

/// What is to be done.
pub(super) enum Job<W: World> {
    Open(W::Place),
    Check(W::Connection),
}

/// An attempt as the others see it.
pub(super) struct UnderWay<W: World> {
    pub(super) id: u64,
    pub(super) begun: Instant,
    /// It opens a connection; otherwise it checks one.
    pub(super) opens: bool,
    /// It was told to end, as another one needs its place.
    pub(super) gives_way: bool,
    pub(super) handle: W::Handle,
}

/// An attempt in the hands of whoever carries it out. However it ends, by a panic too, its place is taken by a connection or
/// free again, and those who wait are told.
pub(super) struct Attempt<W: World> {
    lending: Arc<Lending<W>>,
    id: u64,
    handle: W::Handle,
    opens: bool,
    job: Option<Job<W>>,
    concluded: bool,
}

impl<W: World> Attempt<W> {
    pub(super) fn new(lending: Arc<Lending<W>>, id: u64, handle: W::Handle, job: Job<W>) -> Attempt<W> {
        let opens = matches!(job, Job::Open(_));
        Attempt { lending, id, handle, opens, job: Some(job), concluded: false }
    }

    /// Does the job, within `limit` if there is one. A panic goes on when the others have been told. So are the log lines: the
    /// program's logger may itself want a connection of this pool.
    pub(super) fn carry_out(mut self, limit: Option<Duration>) -> Result<(), W::Failure> {
        let Some(job) = self.job.take() else { return Ok(()) };
        let world = &self.lending.world;
        let mut lines = Vec::new();
        // What it is about ends with it, and is not looked at again.
        let result = catch_unwind(AssertUnwindSafe(|| {
            log_later::keep(&mut lines, || world.carry_out(job, &self.handle, limit))
        }));
        let (outcome, panic) = match result {
            Ok(Ok(connection)) => {
                self.conclude(if self.opens { Outcome::Opened(connection) } else { Outcome::Checked(connection) });
                (Ok(()), None)
            }
            Ok(Err(failure)) => {
                self.fail(failure.clone());
                (Err(failure), None)
            }
            Err(panic) => {
                let failure = world.panicked(&self.handle);
                self.fail(failure);
                (Ok(()), Some(panic))
            }
        };
        log_later::tell(lines);
        panic.map_or(outcome, |panic| resume_unwind(panic))
    }

    /// Whether it opens a connection; otherwise it checks one.
    pub(super) fn opens(&self) -> bool {
        self.opens
    }

    fn fail(&mut self, failure: W::Failure) {
        self.conclude(if self.opens { Outcome::NotOpened(failure) } else { Outcome::NotAnswered(failure) });
    }

    fn conclude(&mut self, outcome: Outcome<W>) {
        self.concluded = true;
        self.lending.conclude(self.id, outcome);
    }
}

/// One that nobody has carried out.
impl<W: World> Drop for Attempt<W> {
    fn drop(&mut self) {
        if !self.concluded {
            drop(self.job.take());
            self.fail(self.lending.world.panicked(&self.handle));
        }
    }
}
