//! Receiving: new entries, and those that other consumers left behind.

use std::sync::Arc;
use std::time::Duration;

use super::{StepStream, check_count};
use crate::commands::{self, GivenBack};
use crate::connection::Connection;
use crate::deadline::Deadline;
use crate::delivery::{Delivery, PoolSettler, Receipt, Settle, by_settler, conclude_ack, receipts};
use crate::endpoint::{ConsumerKey, StreamInput};
use crate::entry::Entry;
use crate::entry_id::EntryId;
use crate::error::Result;

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

    fn read_new(&self, done: &[Receipt], input: &StreamInput, max: usize) -> Result<Vec<Delivery>> {
        input.check()?;
        check_count(max)?;
        let key = input.consumer_key();
        let mut connection = self.pool.get()?;
        let wait = Deadline::after(input.wait_timeout);
        let mut done = done;
        loop {
            let block = commands::next_block(wait.left(), input.ttl);
            let acks = done.iter().map(|receipt| receipt.id);
            commands::send_read(&mut connection, &key, acks, max, block, input.ttl)?;
            let acked = if done.is_empty() { Ok(()) } else { commands::receive_acked(&mut connection) };
            if connection.has_failed() {
                return acked.map(|()| Vec::new());
            }
            let received = commands::receive_read(&mut connection, &key, input.ttl);
            if let (Err(refusal), Ok(received)) = (&acked, &received) {
                log::debug!("what came along with a refused XACK is given back: {refusal}");
                give_back_unread(&mut connection, &key, input, &received.entries);
            }
            let received = acked.and(received)?;
            done = &[];
            if received.entries.is_empty() && received.deleted.is_empty() && !wait.left().is_zero() {
                continue;
            }
            commands::acknowledge_deleted(&mut connection, &key, &received.deleted)?;
            drop(connection);
            return Ok(self.deliveries(input, key, received.entries));
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
    /// Those of [`receive`](StepStream::receive) and of [`Delivery::ack`]. What was not acknowledged stays pending. Entries
    /// that came along with a refused acknowledgement are given back: [`claim`](StepStream::claim) finds them at once, and
    /// they do not count as delivered.
    pub fn ack_and_receive_batch(&self, done: Vec<Delivery>, input: &StreamInput, max: usize) -> Result<Vec<Delivery>> {
        let key = input.consumer_key();
        let mut along = Vec::new();
        for (settler, deliveries) in by_settler(done) {
            if settler.shares_group_with(&self.pool, &key) {
                along.extend(deliveries);
            } else {
                let acked = settler.ack_batch(&receipts(&deliveries));
                conclude_ack(deliveries, acked.is_ok());
                acked?;
            }
        }
        let received = self.read_new(&receipts(&along), input, max);
        conclude_ack(along, received.is_ok());
        received
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
        let key = input.consumer_key();
        let mut connection = self.pool.get()?;
        let search = connection.command_deadline();
        let (mut entries, mut deleted) = (Vec::new(), Vec::new());
        let mut start = EntryId::MIN;
        loop {
            let claimed = commands::autoclaim(&mut connection, &key, min_idle, start, max - entries.len())?;
            entries.extend(claimed.entries);
            deleted.extend(claimed.deleted);
            start = claimed.next;
            if entries.len() >= max || start == EntryId::MIN || search.left().is_zero() {
                break;
            }
        }
        commands::acknowledge_deleted(&mut connection, &key, &deleted)?;
        let counts = commands::delivery_counts(&mut connection, &key, entries.iter())?;
        drop(connection);
        // An entry without a count is no longer ours: someone took it over between the two steps.
        let entries = entries.into_iter().zip(counts).filter_map(|(entry, count)| Some((entry, count?))).collect();
        Ok(self.deliveries(input, key, entries))
    }

    fn deliveries(&self, input: &StreamInput, key: ConsumerKey, entries: Vec<(Entry, u64)>) -> Vec<Delivery> {
        let settler: Arc<dyn Settle> = Arc::new(PoolSettler::new(self.pool.clone(), key, input));
        entries.into_iter().map(|(entry, count)| Delivery::new(entry, count, 0, Arc::clone(&settler))).collect()
    }
}

/// Entries that were read for the first time and that nobody will see: offered to everyone at once, and uncounted.
fn give_back_unread(connection: &mut Connection, key: &ConsumerKey, input: &StreamInput, entries: &[(Entry, u64)]) {
    if entries.is_empty() {
        return;
    }
    let given_back: Vec<_> =
        entries.iter().map(|(entry, _)| GivenBack { id: entry.id(), deliveries: 1, counted: 0 }).collect();
    if let Err(error) = commands::give_back(connection, key, input.claim_idle, &given_back) {
        log::warn!("{} entries of stream {} stay pending unread: {error}", entries.len(), key.stream_id);
    }
}
