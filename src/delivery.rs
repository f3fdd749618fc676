//! The guard around an entry that was delivered and is not acknowledged yet.

mod settle;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::entry::Entry;
use crate::entry_id::EntryId;
use crate::error::Result;
pub(crate) use settle::{PoolSettler, Receipt, Settle, Settlement};

/// An entry that the server has delivered to this consumer and expects an acknowledgement for.
///
/// **Dropping a delivery acknowledges nothing.** The entry stays pending, and comes again: to this consumer when it starts
/// again, or to another one once it lay idle for [`claim_idle`](crate::StreamInput::claim_idle). So an early return with `?` and a
/// panic in the handler are safe. [`on_drop`](Delivery::on_drop) chooses otherwise.
///
/// The methods that end a delivery consume it: [`ack`](Delivery::ack) when the work is done,
/// [`release`](Delivery::release) and [`retry_after`](Delivery::retry_after) to have it done again,
/// [`dead_letter`](Delivery::dead_letter) to give up on it, [`leave`](Delivery::leave) to do nothing. `ack` of a consumer's
/// delivery is queued and waits for nothing, unless its [`AckMode`](crate::AckMode) says otherwise. Everything else issues
/// a command through the pool: it waits at most `connection_available_timeout` for a connection and then `socket_timeout` for
/// the answer; `release` and `retry_after` of a consumer's delivery wait for a renewal of leases that is under way, at most
/// `socket_timeout` more. When it fails, the entry stays pending; it is never lost.
///
/// A delivery owns its data and can be sent to another thread.
///
/// ```no_run
/// # use step_redis::{PoolParams, StepPool, StepStream, StreamInput};
/// # fn handle(order: &str) -> Result<(), Box<dyn std::error::Error>> { Ok(()) }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let stream = StepStream::new(StepPool::connect(PoolParams::default())?);
/// let input = StreamInput::new("orders", "billing");
/// while let Some(delivery) = stream.receive(&input)? {
///     handle(delivery.text()?)?; // an error drops the delivery here: the entry stays pending
///     delivery.ack()?;
/// }
/// # Ok(())
/// # }
/// ```
#[must_use = "a delivery that is dropped stays pending; acknowledge it with `ack()`"]
pub struct Delivery {
    entry: Entry,
    deliveries: u64,
    /// See [`Receipt`].
    generation: u64,
    on_drop: OnDrop,
    settled: bool,
    settler: Arc<dyn Settle>,
}

/// What dropping a [`Delivery`] does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum OnDrop {
    /// Nothing: the entry stays pending and comes again. The default.
    #[default]
    Leave,
    /// As [`Delivery::release`]: the entry may be taken by anyone at once. Dropping then waits for the server as `release`
    /// does, while unwinding from a panic too; a failure is logged, and the entry stays pending.
    Release,
    /// As [`Delivery::ack`], except while the thread is panicking: then the entry stays pending. Dropping then waits as long
    /// as `ack` does; a failure is logged, and the entry stays pending.
    ///
    /// With this, `?` in a handler acknowledges an entry that nobody has processed.
    Ack,
}

impl Delivery {
    pub(crate) fn new(entry: Entry, deliveries: u64, generation: u64, settler: Arc<dyn Settle>) -> Delivery {
        Delivery { entry, deliveries, generation, on_drop: OnDrop::Leave, settled: false, settler }
    }

    pub(crate) fn receipt(&self) -> Receipt {
        Receipt { id: self.entry.id(), deliveries: self.deliveries, generation: self.generation }
    }

    /// The entry's id.
    pub fn id(&self) -> EntryId {
        self.entry.id()
    }

    /// The stream that the entry is in.
    pub fn stream_id(&self) -> &str {
        self.settler.stream_id()
    }

    /// The entry itself.
    pub fn entry(&self) -> &Entry {
        &self.entry
    }

    /// The value of the field `message`; empty when there is no such field.
    pub fn payload(&self) -> &[u8] {
        self.entry.payload()
    }

    /// The payload as text.
    ///
    /// # Errors
    /// [`Error::NotUtf8`](crate::Error::NotUtf8); the delivery can still be acknowledged.
    pub fn text(&self) -> Result<&str> {
        self.entry.text()
    }

    /// The value of the first field with this name.
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        self.entry.field(name)
    }

    /// All fields as `(name, value)`, in the publisher's order, repeats included.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entry.fields()
    }

    /// How often the entry has been handed out, this time included: 1 the first time. The server keeps the count, so it
    /// outlives this process; see [what a delivery is](crate#what-is-a-delivery).
    pub fn delivery_count(&self) -> u64 {
        self.deliveries
    }

    /// Chooses what dropping this delivery does.
    pub fn on_drop(mut self, on_drop: OnDrop) -> Delivery {
        self.on_drop = on_drop;
        self
    }

    /// Acknowledges the entry: it is done and does not come again (`XACK`).
    ///
    /// An entry that somebody else has acknowledged in the meantime is fine too. If another consumer has taken over what a
    /// [`Consumer`](crate::Consumer) handed out, nothing is acknowledged and no error returned: the entry is that consumer's
    /// to finish.
    ///
    /// # Errors
    /// Those of a command through the pool. The entry stays pending and comes again.
    pub fn ack(self) -> Result<()> {
        self.end(Settlement::Ack)
    }

    /// Acknowledges many entries at once, one command for those of one receive or one consumer (`XACK`). It waits as
    /// [`ack`](Delivery::ack) does, once for each command.
    ///
    /// # Errors
    /// Those of a command through the pool, the first if there are several. The entries of a command that failed stay
    /// pending and come again; the other commands are sent all the same.
    pub fn ack_batch(deliveries: impl IntoIterator<Item = Delivery>) -> Result<()> {
        let mut outcome = Ok(());
        for (settler, deliveries) in by_settler(deliveries) {
            let acked = settler.ack_batch(&receipts(&deliveries));
            conclude_ack(deliveries, acked.is_ok());
            outcome = outcome.and(acked);
        }
        outcome
    }

    /// Offers the entry to everyone at once, this consumer included (`XCLAIM` with the idle time set to `claim_idle`).
    /// Does nothing if another consumer has taken it over.
    ///
    /// # Errors
    /// Those of a command through the pool. The entry stays pending.
    pub fn release(self) -> Result<()> {
        self.end(Settlement::Release)
    }

    /// Has the entry come again after `delay`, not before. The server keeps the time, so it holds after this process has
    /// ended, for every consumer but one that starts under the same name: that one gets back all it had at once. Issues
    /// `XCLAIM` with the idle time set to `claim_idle - delay`. Does nothing if another consumer has taken it over.
    ///
    /// # Errors
    /// [`Error::Params`](crate::Error::Params) when `delay` is longer than [`claim_idle`](crate::StreamInput::claim_idle), which is the longest time the
    /// server can keep; those of a command through the pool. The entry stays pending.
    pub fn retry_after(self, delay: Duration) -> Result<()> {
        self.end(Settlement::RetryAfter(delay))
    }

    /// Gives up on the entry: copies it to the dead letter stream, with its origin and the reason, and acknowledges it, in
    /// one step at the server. Does nothing if another consumer has taken it over.
    ///
    /// # Errors
    /// [`Error::Params`](crate::Error::Params) when no dead letter stream is named ([`StreamInput::dead_letter`](crate::StreamInput::dead_letter)); those of a command through
    /// the pool. The entry stays pending.
    pub fn dead_letter(self, reason: &str) -> Result<()> {
        self.end(Settlement::DeadLetter(reason))
    }

    /// Leaves the entry pending, as dropping the delivery does by default, whatever [`on_drop`](Delivery::on_drop) says.
    pub fn leave(self) {
        // Leaving sends nothing that could fail.
        let _ = self.end(Settlement::Leave);
    }

    fn end(mut self, settlement: Settlement<'_>) -> Result<()> {
        self.settled = true;
        self.settler.settle(self.receipt(), &self.entry, settlement)
    }
}

/// Deliveries, apart for each place they came from, in their order. None is settled yet: if the iterator panics, each is
/// dropped as any other delivery.
pub(crate) fn by_settler(deliveries: impl IntoIterator<Item = Delivery>) -> Vec<(Arc<dyn Settle>, Vec<Delivery>)> {
    let mut groups: Vec<(Arc<dyn Settle>, Vec<Delivery>)> = Vec::new();
    for delivery in deliveries {
        match groups.last_mut() {
            Some((settler, group)) if Arc::ptr_eq(settler, &delivery.settler) => group.push(delivery),
            _ => groups.push((Arc::clone(&delivery.settler), vec![delivery])),
        }
    }
    groups
}

/// What names these deliveries.
pub(crate) fn receipts(deliveries: &[Delivery]) -> Vec<Receipt> {
    deliveries.iter().map(Delivery::receipt).collect()
}

/// Deliveries whose acknowledgement has been sent: settled if it was accepted, pending still if it was not.
pub(crate) fn conclude_ack(deliveries: Vec<Delivery>, accepted: bool) {
    for mut delivery in deliveries {
        if accepted {
            delivery.settled = true;
        } else {
            delivery.leave();
        }
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        let settlement = match self.on_drop {
            OnDrop::Release => Settlement::Release,
            OnDrop::Ack if !std::thread::panicking() => Settlement::Ack,
            OnDrop::Ack | OnDrop::Leave => Settlement::Leave,
        };
        if let Err(error) = self.settler.settle(self.receipt(), &self.entry, settlement) {
            log::warn!("entry {} of {} stays pending: {error}", self.entry.id(), self.settler.stream_id());
        }
    }
}

impl fmt::Debug for Delivery {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Delivery")
            .field("stream_id", &self.stream_id())
            .field("entry", &self.entry)
            .field("delivery_count", &self.deliveries)
            .field("on_drop", &self.on_drop)
            .finish()
    }
}
