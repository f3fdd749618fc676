//! The ways to take deliveries out of a consumer.

use std::iter::FusedIterator;
use std::time::Duration;

use super::Consumer;
use crate::delivery::Delivery;
use crate::error::Result;

/// Waits for each delivery; made by [`Consumer::iter`] and `for delivery in &consumer`.
///
/// `next` blocks until there is a delivery. `None` means that the consumer was stopped or closed, or that it has yielded a
/// fatal error; nothing comes after it.
#[derive(Debug)]
pub struct Iter<'a> {
    pub(super) consumer: &'a Consumer,
}

impl Iterator for Iter<'_> {
    type Item = Result<Delivery>;

    fn next(&mut self) -> Option<Result<Delivery>> {
        self.consumer.next()
    }
}

impl FusedIterator for Iter<'_> {}

/// Waits for each delivery and owns the consumer; made by `for delivery in consumer`. Dropping it closes the consumer.
///
/// `next` blocks until there is a delivery. `None` means that the consumer was stopped, or that it has yielded a fatal
/// error; nothing comes after it.
#[derive(Debug)]
pub struct IntoIter {
    pub(super) consumer: Consumer,
}

impl Iterator for IntoIter {
    type Item = Result<Delivery>;

    fn next(&mut self) -> Option<Result<Delivery>> {
        self.consumer.next()
    }
}

impl FusedIterator for IntoIter {}

/// Takes what is there; made by [`Consumer::try_iter`].
///
/// `next` never blocks. `None` means that nothing is there now, or that the server has yet to confirm the acknowledgement of an
/// entry that was handed out [for the last time](crate#what-is-a-delivery); `Some` may follow.
#[derive(Debug)]
pub struct TryIter<'a> {
    pub(super) consumer: &'a Consumer,
}

impl Iterator for TryIter<'_> {
    type Item = Result<Delivery>;

    fn next(&mut self) -> Option<Result<Delivery>> {
        self.consumer.try_next()
    }
}

/// Waits a limited time for each delivery; made by [`Consumer::timeout_iter`].
///
/// `next` blocks for the limit at most. `None` means that nothing came within it, or that the consumer has ended; after the
/// former, `Some` may follow.
#[derive(Debug)]
pub struct TimeoutIter<'a> {
    pub(super) consumer: &'a Consumer,
    pub(super) limit: Duration,
}

impl Iterator for TimeoutIter<'_> {
    type Item = Result<Delivery>;

    fn next(&mut self) -> Option<Result<Delivery>> {
        self.consumer.next_within(self.limit)
    }
}

impl<'a> IntoIterator for &'a Consumer {
    type Item = Result<Delivery>;
    type IntoIter = Iter<'a>;

    fn into_iter(self) -> Iter<'a> {
        self.iter()
    }
}

impl IntoIterator for Consumer {
    type Item = Result<Delivery>;
    type IntoIter = IntoIter;

    fn into_iter(self) -> IntoIter {
        IntoIter { consumer: self }
    }
}
