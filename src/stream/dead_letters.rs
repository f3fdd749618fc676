//! Reading dead letters back, and giving them another chance.

use super::{StepStream, check_count};
use crate::commands;
use crate::delivery::DEAD_LETTER_FIELDS;
use crate::endpoint::StreamOutput;
use crate::entry::Entry;
use crate::entry_id::EntryId;
use crate::error::{Error, Result};

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
    fn from_entry(entry: Entry) -> Option<DeadLetter> {
        let own_fields = entry.fields().count().checked_sub(DEAD_LETTER_FIELDS.len())?;
        let mut origin = entry.fields().skip(own_fields).zip(DEAD_LETTER_FIELDS).map(|((name, value), expected)| {
            (name == expected.as_bytes()).then(|| String::from_utf8_lossy(value).into_owned())
        });
        let mut next = || origin.next().flatten();
        let (stream_id, group, consumer) = (next()?, next()?, next()?);
        let (origin_id, deliveries, reason) = (next()?.parse().ok()?, next()?.parse().ok()?, next()?);
        drop(origin);
        Some(DeadLetter { entry, own_fields, stream_id, group, consumer, origin_id, deliveries, reason })
    }
}

impl StepStream {
    /// The oldest dead letters, up to `max` (`XRANGE`). Entries that are no dead letters are left out.
    ///
    /// Waits at most `socket_timeout` for the server.
    pub fn dead_letters(&self, output: &StreamOutput, max: usize) -> Result<Vec<DeadLetter>> {
        output.check()?;
        check_count(max)?;
        let mut connection = self.pool.get()?;
        connection.command("XRANGE", 6).arg(&*output.stream_id).arg("-").arg("+").arg("COUNT").number(max as u64);
        let entries = connection.request()?.decode("XRANGE", commands::entries)?;
        Ok(entries.into_iter().filter_map(DeadLetter::from_entry).collect())
    }

    /// Publishes a dead letter's original fields to the stream it came from and deletes it from the dead letter stream, in
    /// one step at the server (`XADD`, `XDEL`): it is in one of the two at any time. Returns its new id.
    ///
    /// Waits at most `socket_timeout` for the server.
    ///
    /// # Errors
    /// [`Error::NoSuchEntry`] when it is not in the dead letter stream any more; nothing is published then.
    pub fn requeue(&self, output: &StreamOutput, dead_letter: &DeadLetter) -> Result<EntryId> {
        output.check()?;
        let origin = StreamOutput::new(dead_letter.stream_id());
        let fields: Vec<_> = dead_letter.fields().collect();
        commands::requeue(&mut *self.pool.get()?, output, dead_letter.id(), &origin, &fields)?
            .ok_or_else(|| Error::NoSuchEntry { stream_id: output.stream_id.to_string(), id: dead_letter.id() })
    }
}
