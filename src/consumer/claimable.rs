//! What the keeper has found for the reader to claim.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::commands::PendingEntry;
use crate::latch::lock;

/// Entries that lay idle for too long when the keeper looked.
#[derive(Debug, Default)]
pub(super) struct Claimable {
    found: Mutex<Vec<PendingEntry>>,
    /// There are some: for a reader that looks before each request.
    any: AtomicBool,
}

impl Claimable {
    pub(super) fn put(&self, found: Vec<PendingEntry>) {
        self.any.store(!found.is_empty(), Ordering::SeqCst);
        *lock(&self.found) = found;
    }

    pub(super) fn is_any(&self) -> bool {
        self.any.load(Ordering::SeqCst)
    }

    pub(super) fn take(&self) -> Vec<PendingEntry> {
        let found = std::mem::take(&mut *lock(&self.found));
        self.any.store(false, Ordering::SeqCst);
        found
    }

    pub(super) fn clear(&self) {
        drop(self.take());
    }
}
