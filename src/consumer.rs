//! The consumer: a thread that reads, a channel that holds, an iterator that hands out.

mod acks;
mod builder;
mod claimable;
mod in_flight;
mod iter;
mod keeper;
mod leases;
mod loss;
mod options;
mod reader;
mod request_size;
mod shared;
mod takers;

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, TryRecvError};

use crate::deadline::Deadline;
use crate::delivery::Delivery;
use crate::error::{Error, Result, with_causes};
use reader::Leftover;
use shared::Shared;
use takers::WaitingTaker;

pub use builder::ConsumerBuilder;
pub use iter::{IntoIter, Iter, TimeoutIter, TryIter};
pub use options::{AckMode, Backoff, ConsumerStats, OnGroupLoss};

/// Reads a stream as one consumer of a group, in a thread of its own, and hands out what comes.
///
/// Made by [`StepStream::consumer`](crate::StepStream::consumer). Two threads belong to it, each with a connection of its
/// own outside the pool: the reader waits for entries, the keeper sends acknowledgements and renews leases.
///
/// ```no_run
/// # use step_redis::{PoolParams, StepPool, StepStream, StreamInput};
/// # fn handle(order: &str) -> Result<(), Box<dyn std::error::Error>> { Ok(()) }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let stream = StepStream::new(StepPool::connect(PoolParams::default())?);
/// let consumer = stream.consumer(StreamInput::new("orders", "billing")).spawn()?;
/// for delivery in &consumer {
///     let delivery = delivery?;
///     handle(delivery.text()?)?; // an error drops the delivery: the entry stays pending and comes again
///     delivery.ack()?;
/// }
/// consumer.close()?;
/// # Ok(())
/// # }
/// ```
///
/// # What comes, and in which order
///
/// First what is pending under this consumer's name already, from before a restart; then new entries; and in between,
/// entries that other consumers left idle for [`claim_idle`](crate::StreamInput::claim_idle), which is looked for at least
/// once a second where the line allows it. The same happens after every reconnect, except for what is in flight here.
/// Entries that have only one hand-out left come when no other is queued. Entries that are queued or in a handler here are
/// kept fresh at the server, so that nobody claims them however long the handler takes.
///
/// # What is pending
///
/// At most `prefetch + 2 * batch + 1` entries are pending for this consumer that nobody has asked for yet, and of those in
/// memory at most [`prefetch_bytes`](ConsumerBuilder::prefetch_bytes) and one reply. When the process is killed, those count
/// as delivered once although no handler saw them; see [what a delivery is](crate#what-is-a-delivery).
///
/// # What ends it
///
/// [`StopHandle::stop`] ends the loop: what was prefetched is still handed out, then `None`. [`close`](Consumer::close)
/// and dropping it end everything. So does a fatal error, which the loop yields once: credentials or permissions that are
/// refused, a key that holds something else than a stream, a group that is lost under [`OnGroupLoss::Fail`]. A lost
/// connection is none: the reader connects again, for as long as it takes.
///
/// Dropping a consumer closes it, with the same bound, and logs what [`close`](Consumer::close) would return as an error.
#[derive(Debug)]
pub struct Consumer {
    shared: Arc<Shared>,
    receiver: Receiver<Result<Delivery>>,
    threads: Option<Threads>,
}

#[derive(Debug)]
struct Threads {
    reader: JoinHandle<Leftover>,
    keeper: JoinHandle<()>,
}

impl Consumer {
    /// Waits for each delivery, until the consumer is stopped or fails: `for delivery in &consumer`.
    pub fn iter(&self) -> Iter<'_> {
        Iter { consumer: self }
    }

    /// Takes the deliveries that are there, without waiting.
    pub fn try_iter(&self) -> TryIter<'_> {
        TryIter { consumer: self }
    }

    /// Waits at most `limit` for each delivery.
    pub fn timeout_iter(&self, limit: Duration) -> TimeoutIter<'_> {
        TimeoutIter { consumer: self, limit }
    }

    /// The channel itself, for `crossbeam_channel::select!` and for worker threads that share the consumer.
    ///
    /// What is taken from it directly stays pending when it is dropped, whatever
    /// [`on_drop`](ConsumerBuilder::on_drop) says; choose otherwise with [`Delivery::on_drop`]. Receivers can be cloned,
    /// and each delivery goes to one of them. A clone keeps yielding what is in the channel after a stop; it ends when the
    /// consumer is closed.
    pub fn receiver(&self) -> &Receiver<Result<Delivery>> {
        &self.receiver
    }

    /// A handle that stops this consumer from any thread.
    pub fn stop_handle(&self) -> StopHandle {
        StopHandle { shared: Arc::clone(&self.shared) }
    }

    /// This consumer's name in the group, given or generated.
    pub fn name(&self) -> &str {
        &self.shared.key.consumer
    }

    /// What it has done so far, and where it stands. Waits for nothing.
    pub fn stats(&self) -> ConsumerStats {
        self.shared.stats(self.receiver.len())
    }

    /// A handle that tells the statistics from any thread, and after the consumer has ended.
    pub fn stats_handle(&self) -> StatsHandle {
        StatsHandle { shared: Arc::clone(&self.shared), receiver: self.receiver.clone() }
    }

    /// Stops the reader, sends the acknowledgements that are queued, and joins the threads. Deliveries that nobody has
    /// taken are offered to the other consumers at once. A consumer with a generated name and nothing pending is removed
    /// from the group.
    ///
    /// Waits at most [`close_timeout`](ConsumerBuilder::close_timeout) for the acknowledgements and a tenth of a second for
    /// the threads, even when the server hangs.
    ///
    /// Deliveries that are still held outlive the consumer: they are acknowledged through the pool. Nobody keeps them fresh
    /// any more, so after `claim_idle` another consumer may take them over.
    ///
    /// # Errors
    /// [`Error::AcksUnconfirmed`] when the server did not confirm all acknowledgements in time: those entries come again.
    /// The fatal error that ended the consumer, if no iterator has yielded it. A [`StatsHandle`] tells the statistics then.
    pub fn close(mut self) -> Result<ConsumerStats> {
        self.end()?;
        Ok(self.stats())
    }

    fn next(&self) -> Option<Result<Delivery>> {
        self.take(None)
    }

    fn next_within(&self, limit: Duration) -> Option<Result<Delivery>> {
        self.take(Instant::now().checked_add(limit))
    }

    /// Takes the next delivery that is still one; waits for it if none is there.
    fn take(&self, until: Option<Instant>) -> Option<Result<Delivery>> {
        loop {
            let item = match self.receiver.try_recv() {
                Ok(item) => item,
                Err(TryRecvError::Disconnected) => return None,
                Err(TryRecvError::Empty) => {
                    let _waiting = WaitingTaker::new(&self.shared);
                    let came = match until {
                        Some(until) => self.receiver.recv_deadline(until).ok(),
                        None => self.receiver.recv().ok(),
                    };
                    let Some(item) = came else {
                        self.shared.note_came_by();
                        return None;
                    };
                    item
                }
            };
            self.shared.note_taken();
            self.shared.wait_for_last_acks(until);
            if let Some(item) = self.hand_out(item) {
                return Some(item);
            }
        }
    }

    fn try_next(&self) -> Option<Result<Delivery>> {
        loop {
            if self.shared.awaits_last_acks() {
                return None;
            }
            let Ok(item) = self.receiver.try_recv() else {
                self.shared.note_came_by();
                return None;
            };
            self.shared.note_taken();
            if let Some(item) = self.hand_out(item) {
                return Some(item);
            }
        }
    }

    /// From here on the drop policy is in force. `None`: another consumer has taken the entry over while it was queued.
    fn hand_out(&self, item: Result<Delivery>) -> Option<Result<Delivery>> {
        match item {
            Ok(delivery) if self.shared.in_flight.is_void(&delivery.receipt()) => None,
            item => Some(item.map(|delivery| delivery.on_drop(self.shared.settings.on_drop))),
        }
    }

    /// Does what `close` and Drop have in common; the second time, nothing.
    fn end(&mut self) -> Result<()> {
        let Some(threads) = self.threads.take() else { return Ok(()) };
        let shared = &self.shared;
        let limit = Deadline::after(shared.settings.close_timeout);
        shared.stop();
        shared.begin_closing();
        let mut queued = Vec::new();
        let mut failure = Ok(());
        // The reader may be waiting for room in the channel. This makes room, and ends when the reader does.
        for item in &self.receiver {
            match item {
                Ok(delivery) => queued.push(delivery.receipt()),
                Err(error) => failure = Err(error),
            }
        }
        let mut leftover = self.join(threads.reader, "reader").unwrap_or_default();
        leftover.not_enqueued.splice(..0, queued);
        // Done already, unless it panicked.
        shared.reader.ended.set();
        shared.join_stopper();
        shared.end_keeper(leftover);
        if !shared.keeper_ended.wait(limit.left()) {
            shared.keeper_interrupter.interrupt();
        }
        self.join(threads.keeper, "keeper");

        // What is acknowledged from now on goes through the pool; what came before must have been confirmed.
        shared.acks.close();
        match shared.acks.len() {
            0 => failure,
            // A failure that nobody has seen tells why, too.
            count => failure.and(Err(Error::AcksUnconfirmed { count })),
        }
    }

    fn join<T>(&self, thread: JoinHandle<T>, name: &str) -> Option<T> {
        let joined = thread.join();
        if joined.is_err() {
            log::error!("the {name} of consumer {} panicked", self.shared.key.consumer);
        }
        joined.ok()
    }
}

impl Drop for Consumer {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            log::warn!("consumer {}: {}", self.shared.key.consumer, with_causes(&error));
        }
    }
}

/// Tells the statistics of a [`Consumer`] from any thread; made by [`Consumer::stats_handle`].
#[derive(Clone, Debug)]
pub struct StatsHandle {
    shared: Arc<Shared>,
    receiver: Receiver<Result<Delivery>>,
}

impl StatsHandle {
    /// What the consumer has done so far, and where it stands, or where it stood at its end. Waits for nothing.
    pub fn stats(&self) -> ConsumerStats {
        self.shared.stats(self.receiver.len())
    }
}

/// Stops a [`Consumer`] from any thread, such as a Ctrl-C handler's.
#[derive(Clone, Debug)]
pub struct StopHandle {
    shared: Arc<Shared>,
}

impl StopHandle {
    /// Ends the consumer's loop: the reader is woken within milliseconds, what it has read is still handed out, and then
    /// the iterators end. On a slow line the reader is waited for as long as two connects took, so that what is on its way
    /// arrives, but no longer than half of [`close_timeout`](ConsumerBuilder::close_timeout). Returns at once; a second call
    /// does nothing.
    pub fn stop(&self) {
        self.shared.stop();
    }
}
