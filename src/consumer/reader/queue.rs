//! The channel as the reader sees it: how many deliveries wait in it, and how many bytes.

use std::collections::VecDeque;
use std::thread;

use crossbeam_channel::{Sender, TrySendError};

use super::Stopped;
use crate::delivery::Delivery;
use crate::error::Result;

/// The sending end of the channel. Nobody tells when a delivery is taken, but the channel knows how many are left, and they
/// leave in the order in which they came.
pub(super) struct Queue {
    channel: Sender<Result<Delivery>>,
    /// The sizes of the last deliveries sent, at least of those that are in the channel.
    sizes: VecDeque<usize>,
    /// Their sum.
    bytes: usize,
    /// How many items it has sent.
    sent: u64,
}

impl Queue {
    pub(super) fn new(channel: Sender<Result<Delivery>>) -> Queue {
        Queue { channel, sizes: VecDeque::new(), bytes: 0, sent: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.channel.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.channel.is_empty()
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    /// The bytes of the deliveries that nobody has taken.
    pub(super) fn bytes(&mut self) -> usize {
        for _ in self.channel.len()..self.sizes.len() {
            self.bytes -= self.sizes.pop_front().unwrap_or_default();
        }
        self.bytes
    }

    /// Puts an item into the channel, and waits for room if there is none; `about_to_wait` is called before.
    pub(super) fn send(
        &mut self,
        item: Result<Delivery>,
        size: usize,
        about_to_wait: impl FnOnce(),
    ) -> Result<(), Stopped> {
        if let Some(item) = self.try_send(item)? {
            // Let the handlers run before going to sleep: each place they make would wake this thread for a single entry,
            // and where there is one core for both, it would run at once and go to sleep again.
            thread::yield_now();
            if let Some(item) = self.try_send(item)? {
                about_to_wait();
                self.channel.send(item).map_err(|_| Stopped)?;
            }
        }
        self.sent += 1;
        self.sizes.push_back(size);
        self.bytes += size;
        // It is looked at seldom where entries are small.
        if self.sizes.len() > 2 * self.channel.capacity().unwrap_or_default() {
            self.bytes();
        }
        Ok(())
    }

    /// Gives the item back when the channel is full.
    fn try_send(&self, item: Result<Delivery>) -> Result<Option<Result<Delivery>>, Stopped> {
        match self.channel.try_send(item) {
            Ok(()) => Ok(None),
            Err(TrySendError::Full(item)) => Ok(Some(item)),
            Err(TrySendError::Disconnected(_)) => Err(Stopped),
        }
    }
}
