//! Notices entries that a length limit or a deletion took away before anyone in the group saw them.

use crate::commands::StreamProgress;
use crate::entry_id::EntryId;

/// Compares what the server tells from time to time. It needs the counters that Redis has since 7.0.
///
/// `entries-added - entries-read` is what the group has not read, including what is gone. Where the number of unread entries
/// that are still there is known too (all of them, or none), the difference is what was missed.
#[derive(Debug, Default)]
pub(super) struct LossWatch {
    /// What the counters showed as missed when they were last looked at, and before that; none: not looked at yet.
    shown: Option<u64>,
    /// The greatest deleted id that was noticed, and how many entries had been removed by then.
    deleted: Option<(EntryId, u64)>,
}

impl LossWatch {
    /// How many entries were missed since the last look.
    pub(super) fn look(&mut self, now: &StreamProgress) -> u64 {
        let removed = now.entries_added.saturating_sub(now.length);
        let by_counters = self.missed_by_counters(now);
        let by_deletion = self.missed_by_deletion(now, removed);
        by_counters.max(by_deletion)
    }

    fn missed_by_counters(&mut self, now: &StreamProgress) -> u64 {
        if now.length == now.entries_added {
            // Nothing was ever removed.
            self.shown = Some(0);
            return 0;
        }
        let nothing_unread = now.last_delivered >= now.last_id;
        let all_unread = now.first_id.is_some_and(|first| first > now.last_delivered);
        let Some(read) = now.entries_read.filter(|_| nothing_unread || all_unread || now.length == 0) else { return 0 };
        let unread_there = if nothing_unread { 0 } else { now.length };
        let shown = now.entries_added.saturating_sub(read).saturating_sub(unread_there);
        // What was gone before this consumer looked for the first time is not news.
        let before = self.shown.replace(shown).unwrap_or(shown);
        shown.saturating_sub(before)
    }

    /// An id was deleted that lies ahead of what the group has read.
    fn missed_by_deletion(&mut self, now: &StreamProgress, removed: u64) -> u64 {
        let before = self.deleted.replace((now.max_deleted, removed));
        match before {
            Some((max_deleted, removed_before)) if now.max_deleted > max_deleted.max(now.last_delivered) => {
                // Deletions are the only removals as long as nothing is trimmed; one of them lay ahead for certain.
                if now.first_id.is_some_and(|first| first <= now.last_delivered) {
                    removed.saturating_sub(removed_before).max(1)
                } else {
                    1
                }
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> EntryId {
        EntryId::new(number, 0)
    }

    /// A stream with entries `first..=last`, of which the group has read those up to `delivered`.
    fn position(first: u64, last: u64, delivered: u64, read: Option<u64>) -> StreamProgress {
        StreamProgress {
            length: last + 1 - first,
            first_id: (last >= first).then(|| id(first)),
            last_id: id(last),
            max_deleted: EntryId::MIN,
            entries_added: last,
            last_delivered: id(delivered),
            entries_read: read,
        }
    }

    #[test]
    fn trimming_what_was_read_is_no_loss() {
        let mut watch = LossWatch::default();
        assert_eq!(watch.look(&position(1, 100, 100, Some(100))), 0);
        assert_eq!(watch.look(&position(101, 110, 100, Some(100))), 0);
        assert_eq!(watch.look(&position(111, 120, 120, Some(120))), 0);
    }

    #[test]
    fn trimming_what_was_not_read_is_counted_once() {
        let mut watch = LossWatch::default();
        assert_eq!(watch.look(&position(1, 100, 100, Some(100))), 0);
        // 101 to 140 went unread.
        assert_eq!(watch.look(&position(141, 150, 100, Some(100))), 40);
        assert_eq!(watch.look(&position(141, 150, 100, Some(100))), 0);
        assert_eq!(watch.look(&position(146, 155, 100, Some(100))), 5);
        // The group reads on, and the counter goes on from where it stood.
        assert_eq!(watch.look(&position(146, 155, 155, Some(110))), 0);
    }

    #[test]
    fn trimming_is_noticed_by_a_watch_that_saw_the_group_only_in_the_middle_of_the_stream() {
        let mut watch = LossWatch::default();
        assert_eq!(watch.look(&position(1, 0, 0, None)), 0);
        assert_eq!(watch.look(&position(1, 20, 3, Some(3))), 0);
        assert_eq!(watch.look(&position(16, 20, 3, Some(3))), 12);
        assert_eq!(watch.look(&position(16, 20, 3, Some(3))), 0);
    }

    #[test]
    fn deleting_an_entry_ahead_is_a_loss_and_one_behind_is_none() {
        let mut watch = LossWatch::default();
        let mut now = position(1, 10, 5, Some(5));
        assert_eq!(watch.look(&now), 0);
        (now.max_deleted, now.length) = (id(3), 9);
        assert_eq!(watch.look(&now), 0);
        (now.max_deleted, now.length) = (id(8), 7);
        assert_eq!(watch.look(&now), 2);
        assert_eq!(watch.look(&now), 0);
    }

    #[test]
    fn what_was_gone_before_is_not_news() {
        let mut watch = LossWatch::default();
        assert_eq!(watch.look(&position(91, 100, 0, Some(0))), 0);
    }
}
