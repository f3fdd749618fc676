//! A flag that is set once, and that any number of threads can wait for together with other things.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};

/// What a signal's channel would carry if it ever carried anything.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Never {}

/// Set once, never taken back. Clones are the same signal.
#[derive(Clone)]
pub(crate) struct Signal {
    /// Dropped when the signal is set, which disconnects the channel and so wakes every waiter.
    unset: Arc<Mutex<Option<Sender<Never>>>>,
    waiters: Receiver<Never>,
}

impl Signal {
    pub(crate) fn new() -> Signal {
        let (sender, waiters) = bounded(0);
        Signal { unset: Arc::new(Mutex::new(Some(sender))), waiters }
    }

    /// Sets it; whether it was this call that did.
    pub(crate) fn set(&self) -> bool {
        lock(&self.unset).take().is_some()
    }

    pub(crate) fn is_set(&self) -> bool {
        matches!(self.waiters.try_recv(), Err(crossbeam_channel::TryRecvError::Disconnected))
    }

    /// Waits for it to be set, at most for `limit`; whether it is.
    pub(crate) fn wait(&self, limit: Duration) -> bool {
        matches!(self.waiters.recv_timeout(limit), Err(RecvTimeoutError::Disconnected))
    }

    /// For `select!`: receiving fails as soon as the signal is set, and never succeeds.
    pub(crate) fn waiters(&self) -> &Receiver<Never> {
        &self.waiters
    }
}

impl fmt::Debug for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signal").field("set", &self.is_set()).finish()
    }
}

/// Locks a mutex whose data is whole at all times, so that a panic of another thread does not matter.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
