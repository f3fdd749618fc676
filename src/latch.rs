//! A flag that is set once, and that any number of threads can wait for: a latch.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Set once, never taken back. Clones are the same latch.
#[derive(Clone, Default)]
pub(crate) struct Latch(Arc<Flag>);

#[derive(Default)]
struct Flag {
    set: Mutex<bool>,
    waiters: Condvar,
}

impl Latch {
    pub(crate) fn new() -> Latch {
        Latch::default()
    }

    /// Sets it; whether it was this call that did.
    pub(crate) fn set(&self) -> bool {
        let was_set = std::mem::replace(&mut *lock(&self.0.set), true);
        self.0.waiters.notify_all();
        !was_set
    }

    pub(crate) fn is_set(&self) -> bool {
        *lock(&self.0.set)
    }

    /// Waits for it to be set, at most for `limit`; whether it is.
    pub(crate) fn wait(&self, limit: Duration) -> bool {
        self.wait_or(limit, || false)
    }

    /// Waits for it to be set, or for something else to become true, at most for `limit`; whether either has come. Whoever
    /// makes the other thing true has to [`wake`](Latch::wake).
    pub(crate) fn wait_or(&self, limit: Duration, mut other: impl FnMut() -> bool) -> bool {
        let waited = self.0.waiters.wait_timeout_while(lock(&self.0.set), limit, |set| !*set && !other());
        !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
    }

    /// Whether this is a clone of it.
    pub(crate) fn is(&self, other: &Latch) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Has those who wait look around.
    pub(crate) fn wake(&self) {
        // Under the lock, so that nobody is between looking and going to sleep.
        let _set = lock(&self.0.set);
        self.0.waiters.notify_all();
    }
}

impl fmt::Debug for Latch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latch").field("set", &self.is_set()).finish()
    }
}

/// Locks a mutex whose data is whole at all times, so that a panic of another thread does not matter.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
