//! How much the next request asks for: less after a failure, and what memory and the line allow.

use std::time::Duration;

use crate::error::Error;

/// What the first request asks for at most: nothing is known about the entries' sizes yet.
const FIRST: usize = 16;
/// How much a request may grow over the one before it.
const GROWTH: usize = 4;
/// A reply that takes longer than this part of its time limit is no reason to ask for more.
const SLOW: u32 = 8;
/// Entries that are expected to take more than this part of the longest reply are not asked for together: they may be
/// larger than those before.
const REPLY_MARGIN: usize = 2;

/// How many entries a request asks for.
///
/// A request that fails for want of time, or because its reply is too long, is followed by one for a single entry: a line
/// that carries one entry in time makes progress. Then it grows again, as long as replies come fast, and as far as they
/// stay well below the longest that is accepted, going by the sizes of those before.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestSize {
    most: usize,
    /// What the entries of one reply should take at most.
    most_bytes: usize,
    now: usize,
    /// What an entry of the last replies took, on average; 0: none was seen.
    entry_bytes: usize,
}

impl RequestSize {
    /// For entries, `most` of them at a time, and replies of up to `max_reply` bytes.
    pub(super) fn new(most: usize, max_reply: usize) -> RequestSize {
        RequestSize { most, most_bytes: max_reply / REPLY_MARGIN, now: most.min(FIRST), entry_bytes: 0 }
    }

    /// For requests whose size is known before: they begin with the most.
    pub(super) fn full(most: usize) -> RequestSize {
        RequestSize { most, most_bytes: usize::MAX, now: most, entry_bytes: 0 }
    }

    /// How many entries to ask for now.
    pub(super) fn now(&self) -> usize {
        self.within(usize::MAX)
    }

    /// How many entries to ask for when `room` bytes are left for them: one at least.
    pub(super) fn within(&self, room: usize) -> usize {
        let fitting = room.min(self.most_bytes).checked_div(self.entry_bytes).unwrap_or(usize::MAX);
        self.now.min(fitting).max(1)
    }

    /// What `entries` more are expected to take.
    pub(super) fn bytes_of(&self, entries: usize) -> usize {
        entries.saturating_mul(self.entry_bytes)
    }

    /// It cannot ask for less.
    pub(super) fn is_smallest(&self) -> bool {
        self.now == 1
    }

    /// A request was answered with this many entries of this many bytes. `took` includes what it waited for them.
    pub(super) fn answered(&mut self, entries: usize, bytes: usize, took: Duration, limit: Duration) {
        if let Some(average) = bytes.checked_div(entries) {
            // A short reply of small entries says little about the ones before it.
            self.entry_bytes = average.max(self.entry_bytes - self.entry_bytes / 4);
        }
        if entries >= self.now && took <= limit / SLOW {
            self.now = self.now.saturating_mul(GROWTH).min(self.most);
        }
    }

    /// The reply did not come in time, or was too long. Other failures, as one to connect, have nothing to do with sizes.
    pub(super) fn note_failure(&mut self, error: &Error) {
        if matches!(error, Error::Timeout { .. } | Error::ReplyTooLarge { .. }) {
            self.now = 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn late() -> Error {
        Error::Timeout { address: "server".into(), limit: LIMIT, outcome_unknown: true }
    }

    const LIMIT: Duration = Duration::from_secs(30);

    #[test]
    fn a_failure_leads_to_a_single_entry_and_success_back_to_the_most() {
        let mut size = RequestSize::full(128);
        size.note_failure(&late());
        assert!(size.is_smallest());
        let mut asked = Vec::new();
        for _ in 0..5 {
            asked.push(size.now());
            size.answered(size.now(), 100 * size.now(), Duration::from_millis(1), LIMIT);
        }
        assert_eq!(asked, [1, 4, 16, 64, 128]);
    }

    #[test]
    fn replies_that_are_slow_or_not_full_are_no_reason_to_ask_for_more() {
        let mut size = RequestSize::full(128);
        size.note_failure(&late());
        size.answered(1, 100, LIMIT / 4, LIMIT);
        assert_eq!(size.now(), 1);
        size.answered(1, 100, LIMIT / 10, LIMIT);
        size.answered(3, 300, Duration::ZERO, LIMIT);
        assert_eq!(size.now(), 4);
    }

    #[test]
    fn large_entries_are_asked_for_in_the_numbers_that_fit() {
        let mut size = RequestSize::new(128, 64 << 20);
        assert_eq!(size.within(8 << 20), FIRST);
        size.answered(FIRST, FIRST << 20, Duration::ZERO, LIMIT);
        assert_eq!(size.within(8 << 20), 8);
        assert_eq!(size.within(10), 1, "one always");
        assert_eq!(size.bytes_of(3), 3 << 20);
        // Small ones let it grow again, step by step.
        for _ in 0..60 {
            size.answered(size.within(8 << 20), 100 * size.within(8 << 20), Duration::ZERO, LIMIT);
        }
        assert_eq!(size.within(8 << 20), 128);
    }

    #[test]
    fn no_reply_is_asked_for_that_would_probably_be_too_long() {
        let mut size = RequestSize::new(128, 4 << 20);
        size.note_failure(&late());
        for _ in 0..5 {
            size.answered(size.now(), size.now() << 20, Duration::ZERO, LIMIT);
            assert!(size.now() <= 2, "{}", size.now());
        }
        assert_eq!(size.now(), 2);
    }
}
