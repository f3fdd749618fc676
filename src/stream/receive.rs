//! Receiving: new entries, and those that other consumers left behind.

use std::sync::Arc;
use std::time::Duration;

use super::{StepStream, check_count};
use crate::commands;
use crate::connection::Connection;
use crate::delivery::{Delivery, PoolSettler, Settle, by_settler};
use crate::endpoint::{Member, StreamInput};
use crate::entry::{Entry, EntryId};
use crate::error::Result;
use crate::net::Deadline;

/// The longest single wait at the server. A longer `wait_timeout` is made of several, so that a connection which died
/// silently is noticed.
pub(crate) const LONGEST_BLOCK: Duration = Duration::from_secs(30);

impl StepStream {
    /// Waits for the next entry that no consumer of the group has seen (`XREADGROUP ... >`), and refreshes the stream's
    /// expiry if the input has one. `None`: nothing came.
    ///
    /// Waits at most `wait_timeout`, and then `socket_timeout` for the server to say so; once more `socket_timeout` only
    /// where entries were trimmed while they were pending. It holds a connection of the pool for that long: a pool needs
    /// one for each thread that receives, and more for those that publish.
    ///
    /// Entries that were delivered before and not acknowledged are not received again; [`claim`](StepStream::claim) takes
    /// them over.
    ///
    /// # Errors
    /// [`Error::Server`](crate::Error::Server) with `NOGROUP` when the stream or the group does not exist
    /// ([`is_group_missing`](crate::Error::is_group_missing)), or with `UNBLOCKED` when the stream was deleted during the
    /// wait.
    pub fn receive(&self, input: &StreamInput) -> Result<Option<Delivery>> {
        Ok(self.receive_batch(input, 1)?.pop())
    }

    /// Waits as [`receive`](StepStream::receive) does for the first entry, and takes up to `max` of those that are there.
    pub fn receive_batch(&self, input: &StreamInput, max: usize) -> Result<Vec<Delivery>> {
        self.read_new(&[], input, max)
    }

    fn read_new(&self, done: &[EntryId], input: &StreamInput, max: usize) -> Result<Vec<Delivery>> {
        input.check()?;
        check_count(max)?;
        let member = input.member();
        let mut connection = self.pool.get()?;
        let wait = Deadline::after(input.wait_timeout);
        let mut done = done;
        loop {
            let block = next_block(wait.left(), input.ttl);
            commands::send_read(&mut connection, &member, done, max, block, input.ttl)?;
            let acked = if done.is_empty() { Ok(()) } else { commands::receive_acked(&mut connection) };
            if connection.is_failed() {
                return acked.map(|()| Vec::new());
            }
            let received = commands::receive_read(&mut connection, &member, input.ttl);
            let received = acked.and(received)?;
            done = &[];
            if received.entries.is_empty() && received.gone.is_empty() && !wait.left().is_zero() {
                continue;
            }
            acknowledge_gone(&mut connection, &member, &received.gone)?;
            drop(connection);
            return Ok(self.deliveries(input, member, received.entries));
        }
    }

    /// Acknowledges what is done and receives the next batch, in one round trip (`XACK`, `XREADGROUP`): the fastest way to
    /// go through a stream without a [`Consumer`](crate::Consumer). The first call has nothing to acknowledge:
    ///
    /// ```no_run
    /// # use step_redis::{PoolParams, StepPool, StepStream, StreamInput};
    /// # fn handle(payload: &[u8]) {}
    /// # let stream = StepStream::new(StepPool::connect(PoolParams::default())?);
    /// let input = StreamInput::new("orders", "billing");
    /// let mut batch = Vec::new();
    /// loop {
    ///     batch = stream.ack_and_receive_batch(batch, &input, 512)?;
    ///     batch.iter().for_each(|delivery| handle(delivery.payload()));
    /// #   break;
    /// }
    /// # Ok::<(), step_redis::Error>(())
    /// ```
    ///
    /// Deliveries in `done` that come from somewhere else are acknowledged where they belong, first. It waits as
    /// [`receive`](StepStream::receive) does; the acknowledgements do not wait for new entries to come.
    ///
    /// # Errors
    /// Those of [`receive`](StepStream::receive) and of [`Delivery::ack`]. What was not acknowledged stays pending.
    pub fn ack_and_receive_batch(&self, done: Vec<Delivery>, input: &StreamInput, max: usize) -> Result<Vec<Delivery>> {
        let member = input.member();
        let mut acks = Vec::new();
        for (settler, ids) in by_settler(done) {
            if settler.shares_group_with(&self.pool, &member) {
                acks.extend(ids);
            } else {
                settler.ack_batch(&ids)?;
            }
        }
        self.read_new(&acks, input, max)
    }

    /// Takes over up to `max` entries that were delivered to any consumer of the group and lay idle for `min_idle`
    /// (`XAUTOCLAIM`), with the server's count of their deliveries (`XPENDING`). Does not wait for entries to come.
    ///
    /// Entries that were trimmed from the stream while they were pending are acknowledged and left out.
    ///
    /// Waits at most four times `socket_timeout` for the server, each step at most once: a long pending list is searched in
    /// several steps, of which none begins after `socket_timeout`, so that the search ends within twice that; then what was
    /// trimmed is acknowledged, and the deliveries are counted.
    pub fn claim(&self, input: &StreamInput, min_idle: Duration, max: usize) -> Result<Vec<Delivery>> {
        input.check()?;
        check_count(max)?;
        let member = input.member();
        let mut connection = self.pool.get()?;
        let search = connection.command_deadline();
        let (mut entries, mut gone) = (Vec::new(), Vec::new());
        let mut start = EntryId::MIN;
        loop {
            let claimed = commands::autoclaim(&mut connection, &member, min_idle, start, max - entries.len())?;
            entries.extend(claimed.entries);
            gone.extend(claimed.gone);
            start = claimed.next;
            if entries.len() >= max || start == EntryId::MIN || search.left().is_zero() {
                break;
            }
        }
        acknowledge_gone(&mut connection, &member, &gone)?;
        let counts = commands::delivery_counts(&mut connection, &member, entries.iter())?;
        drop(connection);
        // An entry without a count is no longer ours: someone took it over between the two steps.
        let entries = entries.into_iter().zip(counts).filter_map(|(entry, count)| Some((entry, count?))).collect();
        Ok(self.deliveries(input, member, entries))
    }

    fn deliveries(&self, input: &StreamInput, member: Member, entries: Vec<(Entry, u64)>) -> Vec<Delivery> {
        let settler: Arc<dyn Settle> = Arc::new(PoolSettler::new(self.pool.clone(), member, input));
        entries.into_iter().map(|(entry, count)| Delivery::new(entry, count, Arc::clone(&settler))).collect()
    }
}

/// How long the next read may wait at the server: not at all when no time is left, and never so long that the stream would
/// expire meanwhile.
pub(crate) fn next_block(left: Duration, ttl: Option<Duration>) -> Option<Duration> {
    let longest = ttl.map_or(LONGEST_BLOCK, |ttl| LONGEST_BLOCK.min(ttl / 2));
    Some(left.min(longest)).filter(|block| !block.is_zero())
}

/// Entries that were trimmed or deleted while pending can only be taken off the pending list.
pub(crate) fn acknowledge_gone(connection: &mut Connection, member: &Member, gone: &[EntryId]) -> Result<()> {
    if let (Some(first), false) = (gone.first(), gone.is_empty()) {
        log::warn!(
            "{} entries of stream {} were trimmed or deleted while pending for group {}, the first of them {first}",
            gone.len(),
            member.stream_id,
            member.group,
        );
        commands::ack(connection, member, gone)?;
    }
    Ok(())
}
