//! The handlers as far as they are seen: who waits for a delivery, and how many were taken.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use super::shared::Shared;

/// Who waits for a delivery in an iterator, and who wants to know what handlers do.
#[derive(Debug, Default)]
pub(super) struct Takers {
    waiting: AtomicUsize,
    /// How many items iterators have taken out of the channel.
    taken: AtomicU64,
    /// An iterator has found nothing, and did not stay to wait.
    came_by: AtomicBool,
    /// This many threads want to know what handlers do.
    pub(super) watchers: AtomicUsize,
}

impl Takers {
    /// Whether somebody asks for a delivery and has none yet, out of `sent` that went into the channel: who takes from the
    /// receiver is not seen here.
    pub(super) fn is_any_waiting(&self, sent: u64) -> bool {
        // In this order: whoever has taken something does not count as waiting by the time that it counts as taken.
        self.all_taken(sent) && (self.waiting.load(Ordering::SeqCst) > 0 || self.came_by.swap(false, Ordering::SeqCst))
    }

    /// Whether all deliveries went to iterators, so that a handler that is free will be seen.
    pub(super) fn are_all_seen(&self, sent: u64) -> bool {
        sent > 0 && self.all_taken(sent)
    }

    fn all_taken(&self, sent: u64) -> bool {
        self.taken.load(Ordering::SeqCst) >= sent
    }

    /// An iterator has taken something.
    pub(super) fn note_taken(&self) {
        self.came_by.store(false, Ordering::SeqCst);
        self.taken.fetch_add(1, Ordering::SeqCst);
    }

    /// An iterator has found nothing.
    pub(super) fn note_came_by(&self) {
        self.came_by.store(true, Ordering::SeqCst);
    }
}

/// Somebody waits for a delivery, until this is dropped.
pub(super) struct WaitingTaker<'a>(&'a Shared);

impl<'a> WaitingTaker<'a> {
    pub(super) fn new(shared: &'a Shared) -> WaitingTaker<'a> {
        shared.takers.waiting.fetch_add(1, Ordering::SeqCst);
        shared.note_handler();
        WaitingTaker(shared)
    }
}

impl Drop for WaitingTaker<'_> {
    fn drop(&mut self) {
        self.0.takers.waiting.fetch_sub(1, Ordering::SeqCst);
    }
}
