//! The locks of what is checked in every order of its steps: those of `std`, or with `--cfg step_redis_loom` those of loom, which tries
//! all orders (`make model`).

use std::sync::PoisonError;

#[cfg(step_redis_loom)]
pub(crate) use loom::sync::{Condvar, Mutex, MutexGuard};
#[cfg(not(step_redis_loom))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard};

/// Locks a mutex whose data is whole at all times, so that a panic of another thread does not matter.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
