//! Dead letters: what is in one, and the fields that tell where it came from, written and read.

use crate::entry::Entry;
use crate::entry_id::EntryId;

/// The names of the fields that follow an entry's own in the dead letter stream, in this order.
const ORIGIN_FIELDS: [&str; 6] =
    ["origin-stream", "origin-group", "origin-consumer", "origin-id", "deliveries", "reason"];

/// Where an entry came from, and why it was given up on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin<'a> {
    pub(crate) stream_id: &'a str,
    pub(crate) group: &'a str,
    pub(crate) consumer: &'a [u8],
    pub(crate) id: EntryId,
    pub(crate) deliveries: u64,
    pub(crate) reason: &'a str,
}

impl Origin<'_> {
    /// Has the fields written that follow an entry's own.
    pub(crate) fn with_fields<T>(&self, write: impl FnOnce(&[(&[u8], &[u8])]) -> T) -> T {
        let (id, deliveries) = (self.id.to_string(), self.deliveries.to_string());
        let values = [
            self.stream_id.as_bytes(),
            self.group.as_bytes(),
            self.consumer,
            id.as_bytes(),
            deliveries.as_bytes(),
            self.reason.as_bytes(),
        ];
        let fields: Vec<_> = ORIGIN_FIELDS.iter().zip(values).map(|(name, value)| (name.as_bytes(), value)).collect();
        write(&fields)
    }
}

/// An entry that was given up on: what it held, where it came from, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeadLetter {
    entry: Entry,
    own_fields: usize,
    stream_id: String,
    group: String,
    consumer: String,
    origin_id: EntryId,
    deliveries: u64,
    reason: String,
}

impl DeadLetter {
    /// Its id in the dead letter stream.
    pub fn id(&self) -> EntryId {
        self.entry.id()
    }

    /// The original fields as `(name, value)`, in order, repeats included.
    pub fn fields(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.entry.fields().take(self.own_fields)
    }

    /// The value of the first original field with this name.
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        self.fields().find(|(field, _)| *field == name.as_bytes()).map(|(_, value)| value)
    }

    /// The value of the original field `message`; empty when there is no such field.
    pub fn payload(&self) -> &[u8] {
        self.field("message").unwrap_or_default()
    }

    /// The stream it came from.
    pub fn stream_id(&self) -> &str {
        &self.stream_id
    }

    /// The group whose consumer gave up on it.
    pub fn group(&self) -> &str {
        &self.group
    }

    /// The consumer that gave up on it.
    pub fn consumer(&self) -> &str {
        &self.consumer
    }

    /// Its id in the stream it came from.
    pub fn origin_id(&self) -> EntryId {
        self.origin_id
    }

    /// How often it was delivered.
    pub fn deliveries(&self) -> u64 {
        self.deliveries
    }

    /// Why it was given up on.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// `None` when the entry was not written by a dead-lettering consumer.
    pub(crate) fn from_entry(entry: Entry) -> Option<DeadLetter> {
        let own_fields = entry.fields().count().checked_sub(ORIGIN_FIELDS.len())?;
        let mut origin = entry.fields().skip(own_fields).zip(ORIGIN_FIELDS).map(|((name, value), expected)| {
            (name == expected.as_bytes()).then(|| String::from_utf8_lossy(value).into_owned())
        });
        let mut next = || origin.next().flatten();
        let (stream_id, group, consumer) = (next()?, next()?, next()?);
        let (origin_id, deliveries, reason) = (next()?.parse().ok()?, next()?.parse().ok()?, next()?);
        drop(origin);
        Some(DeadLetter { entry, own_fields, stream_id, group, consumer, origin_id, deliveries, reason })
    }
}
