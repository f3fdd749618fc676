//! Places: room for this many connections, lent by r2d2.
//!
//! r2d2 connects when it is asked and when it is not, and keeps to itself what it failed with. So it lends places, which are
//! made at once and never break: who holds one decides when a connection is opened in it, and who waits is woken by the
//! return of a connection, broken or not.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use scheduled_thread_pool::{OnPoolDropBehavior, ScheduledThreadPool};

use crate::error::{Error, Result};
use crate::latch::lock;

/// An empty place. Dropping it gives it back.
pub(super) type Place = r2d2::PooledConnection<Manager>;

/// How long the thread may take that makes the places, which is nothing to do for a system that is well.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes places.
#[derive(Debug)]
pub(super) struct Manager;

impl r2d2::ManageConnection for Manager {
    type Connection = ();
    type Error = Infallible;

    fn connect(&self) -> Result<(), Infallible> {
        Ok(())
    }

    fn is_valid(&self, (): &mut ()) -> Result<(), Infallible> {
        Ok(())
    }

    fn has_broken(&self, (): &mut ()) -> bool {
        false
    }
}

/// This many places, all of them empty.
pub(super) fn places(count: u32, thread: Arc<ScheduledThreadPool>) -> Result<r2d2::Pool<Manager>> {
    r2d2::Pool::builder()
        .max_size(count)
        .test_on_check_out(false)
        .idle_timeout(None)
        .max_lifetime(None)
        .connection_timeout(PATIENCE)
        .thread_pool(thread)
        .build(Manager)
        .map_err(|error| Error::Thread { source: Arc::new(io::Error::other(error.to_string())) })
}

/// The thread that makes the places of all pools and closes connections that lie idle. It ends with the last pool.
pub(super) fn thread_of_all_pools() -> Arc<ScheduledThreadPool> {
    static THREAD: Mutex<Weak<ScheduledThreadPool>> = Mutex::new(Weak::new());
    let mut known = lock(&THREAD);
    known.upgrade().unwrap_or_else(|| {
        let thread = ScheduledThreadPool::builder()
            .num_threads(1)
            .thread_name_pattern("step-redis-pool")
            .on_drop_behavior(OnPoolDropBehavior::DiscardPendingScheduled)
            .build();
        let thread = Arc::new(thread);
        *known = Arc::downgrade(&thread);
        thread
    })
}
