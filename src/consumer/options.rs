//! What can be chosen about a consumer, and what it counts.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::time::Duration;

/// When [`Delivery::ack`](crate::Delivery::ack) of a consumer's delivery returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum AckMode {
    /// At once. Acknowledgements travel together, with the next read or on their own, and are repeated across reconnects
    /// until the server has confirmed them. This is the default, with `max` 256 and `delay` 5 ms.
    ///
    /// An entry whose acknowledgement was not confirmed before the process ended comes again.
    Queued {
        /// This many are sent without waiting for more.
        max: usize,
        /// The longest time that one waits for others.
        delay: Duration,
    },
    /// When the server has confirmed it: one round trip through the pool for each entry.
    Confirmed,
}

impl Default for AckMode {
    fn default() -> AckMode {
        AckMode::Queued { max: 256, delay: Duration::from_millis(5) }
    }
}

/// What a consumer does when its group is gone: the stream was deleted, has expired, or the group was destroyed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnGroupLoss {
    /// Creates the group again (`XGROUP CREATE ... MKSTREAM`), to go on behind the last entry this consumer saw, or at the
    /// input's [`StartId`](crate::StartId) when it saw none (`New` is what was new when it started). The default.
    ///
    /// With the group, the server has forgotten what was pending: what is in a handler here can be finished, but what was
    /// given back, or fails, does not come again.
    #[default]
    Recreate,
    /// Ends the loop with the error.
    Fail,
}

/// How long to wait between attempts to reach the server again: twice as long after each, up to a limit, less a random
/// part of up to a half, so that many clients do not come back at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    pub(super) first: Duration,
    pub(super) longest: Duration,
}

impl Backoff {
    /// Waits `first` before the second attempt, and never more than `longest`.
    pub const fn new(first: Duration, longest: Duration) -> Backoff {
        Backoff { first, longest }
    }

    /// The wait before attempt number `attempt`, counted from 0.
    pub(super) fn wait(&self, attempt: u32) -> Duration {
        let doubled = 2_u32.checked_pow(attempt).map_or(self.longest, |factor| self.first.saturating_mul(factor));
        let full = doubled.min(self.longest);
        // The standard library's own source of randomness: good enough to spread clients.
        let random = RandomState::new().build_hasher().finish() as u32;
        full - (full / 2).mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

/// 50 ms at first, 1 s at most: a consumer goes on within a second of the server's return.
impl Default for Backoff {
    fn default() -> Backoff {
        Backoff::new(Duration::from_millis(50), Duration::from_secs(1))
    }
}

/// What a consumer has done, and where it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerStats {
    /// Deliveries that went into the channel.
    pub received: u64,
    /// Acknowledgements that the server has confirmed.
    pub acked: u64,
    /// Entries taken over from other consumers, or taken again after `release`, `retry_after` or `leave`.
    pub claimed: u64,
    /// Entries given back by `release` and `retry_after`.
    pub released: u64,
    /// Entries that went to the dead letter stream.
    pub dead_lettered: u64,
    /// Entries that were trimmed or deleted while they were pending.
    pub trimmed: u64,
    /// Entries that another consumer took over although they were queued or in a handler here.
    pub taken_over: u64,
    /// Entries that were trimmed or deleted before any consumer of the group saw them, since this consumer started: the
    /// length limit is too small, or the group too slow. Looked for once a second, by each consumer of the group; servers
    /// from 7.0 know.
    pub missed: u64,
    /// Connections made after the first.
    pub reconnects: u64,
    /// Groups created again after they were lost.
    pub groups_recreated: u64,
    /// Deliveries in the channel that nobody has asked for yet.
    pub queued: usize,
    /// Entries that were handed out, or are in the channel, and are not settled or not confirmed yet.
    pub in_flight: usize,
    /// Age of the oldest of them.
    pub oldest_unacked: Option<Duration>,
    /// Time since the server last answered a read.
    pub last_read: Option<Duration>,
    /// The last failure, in words, with its causes.
    pub last_error: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_differs_from_one_time_to_the_next() {
        let waits: std::collections::HashSet<_> = (0..32).map(|_| Backoff::default().wait(3)).collect();
        assert!(waits.len() > 1, "{waits:?}");
    }

    #[test]
    fn backoff_doubles_up_to_its_limit_less_at_most_a_half() {
        let backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(1));
        for (attempt, full) in
            [(0, 50), (1, 100), (4, 800), (5, 1000), (6, 1000), (31, 1000), (32, 1000), (u32::MAX, 1000)]
        {
            let wait = backoff.wait(attempt);
            assert!(
                wait <= Duration::from_millis(full) && wait >= Duration::from_millis(full / 2),
                "{attempt}: {wait:?}"
            );
        }
    }
}
