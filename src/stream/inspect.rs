//! What the server knows about a stream, its groups and their pending entries.

use redis::Value;

use super::StepStream;
use crate::connection::Connection;
use crate::endpoint::StreamInput;
use crate::entry::EntryId;
use crate::error::{Error, Result};

/// A group's entries that were delivered and not acknowledged.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Pending {
    /// How many there are.
    pub total: u64,
    /// The one with the lowest id.
    pub first_id: Option<EntryId>,
    /// The one with the greatest id.
    pub last_id: Option<EntryId>,
    /// Consumers that have any.
    pub consumers: Vec<ConsumerPending>,
}

/// One consumer's share of the pending entries.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConsumerPending {
    /// The consumer's name.
    pub name: String,
    /// How many entries are pending for it.
    pub count: u64,
}

/// What the server knows about a stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamInfo {
    /// How many entries it holds.
    pub length: u64,
    /// Its first entry.
    pub first_id: Option<EntryId>,
    /// The greatest id it ever had.
    pub last_id: EntryId,
    /// How many entries were ever added; servers from 7.0 know.
    pub entries_added: Option<u64>,
    /// Its consumer groups.
    pub groups: Vec<GroupInfo>,
}

/// What the server knows about a consumer group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct GroupInfo {
    /// The group's name.
    pub name: String,
    /// How many consumers it has.
    pub consumers: u64,
    /// How many entries were delivered and not acknowledged.
    pub pending: u64,
    /// The last entry that was delivered to the group.
    pub last_delivered_id: EntryId,
    /// How many entries the group has read; servers from 7.0 know, unless entries were deleted out of order.
    pub entries_read: Option<u64>,
    /// How many entries the group has not read yet; under the same condition.
    pub lag: Option<u64>,
}

impl StepStream {
    /// How many entries are pending in the input's group, and for whom (`XPENDING`).
    ///
    /// Waits at most `socket_timeout` for the server.
    pub fn pending(&self, input: &StreamInput) -> Result<Pending> {
        const UNEXPECTED: &str = "not a count, two ids and a list of consumers";
        input.check()?;
        let mut connection = self.pool.get()?;
        connection.command("XPENDING", 3).arg(&*input.stream_id).arg(&*input.group);
        connection.send()?;
        let Value::Array(parts) = value(&mut connection, "XPENDING")? else {
            return Err(Error::reply("XPENDING", UNEXPECTED));
        };
        let [total, first, last, consumers] = parts.as_slice() else {
            return Err(Error::reply("XPENDING", UNEXPECTED));
        };
        let mut pending = Pending {
            total: number(total).unwrap_or_default(),
            first_id: id(first),
            last_id: id(last),
            consumers: Vec::new(),
        };
        if let Value::Array(consumers) = consumers {
            for consumer in consumers {
                let Value::Array(pair) = consumer else { return Err(Error::reply("XPENDING", UNEXPECTED)) };
                let [name, count] = pair.as_slice() else { return Err(Error::reply("XPENDING", UNEXPECTED)) };
                let count = number(count).ok_or(Error::reply("XPENDING", UNEXPECTED))?;
                pending.consumers.push(ConsumerPending { name: text(name), count });
            }
        }
        Ok(pending)
    }

    /// The stream's length, ids and groups (`XINFO STREAM`, `XINFO GROUPS`, one round trip).
    ///
    /// Waits at most `socket_timeout` for the server.
    ///
    /// # Errors
    /// [`Error::Server`] with `ERR no such key` when there is no such stream.
    pub fn info(&self, stream_id: &str) -> Result<StreamInfo> {
        stream_info(&mut *self.pool.get()?, stream_id)
    }
}

/// The same on any connection.
pub(crate) fn stream_info(connection: &mut Connection, stream_id: &str) -> Result<StreamInfo> {
    const UNEXPECTED: &str = "not a list of properties";
    connection.command("XINFO", 3).arg("STREAM").arg(stream_id);
    connection.command("XINFO", 3).arg("GROUPS").arg(stream_id);
    connection.send()?;
    let stream = value(connection, "XINFO STREAM");
    if connection.is_failed() {
        return stream.map(|_| StreamInfo::default());
    }
    let groups = value(connection, "XINFO GROUPS");
    let (stream, groups) = (stream?, groups?);

    let stream = Properties::of(&stream).ok_or(Error::reply("XINFO STREAM", UNEXPECTED))?;
    let mut info = StreamInfo {
        length: stream.number("length").ok_or(Error::reply("XINFO STREAM", "no length"))?,
        first_id: stream.get("first-entry").and_then(first_of).and_then(id),
        last_id: stream.get("last-generated-id").and_then(id).unwrap_or_default(),
        entries_added: stream.number("entries-added"),
        groups: Vec::new(),
    };
    let Value::Array(groups) = &groups else { return Err(Error::reply("XINFO GROUPS", UNEXPECTED)) };
    for group in groups {
        let group = Properties::of(group).ok_or(Error::reply("XINFO GROUPS", UNEXPECTED))?;
        info.groups.push(GroupInfo {
            name: group.get("name").map(text).unwrap_or_default(),
            consumers: group.number("consumers").unwrap_or_default(),
            pending: group.number("pending").unwrap_or_default(),
            last_delivered_id: group.get("last-delivered-id").and_then(id).unwrap_or_default(),
            entries_read: group.number("entries-read"),
            lag: group.number("lag"),
        });
    }
    Ok(info)
}

/// Names and values: a map in RESP3, a flat array in RESP2.
struct Properties<'a>(Vec<(&'a Value, &'a Value)>);

impl<'a> Properties<'a> {
    fn of(value: &'a Value) -> Option<Properties<'a>> {
        match value {
            Value::Map(pairs) => Some(Properties(pairs.iter().map(|(name, value)| (name, value)).collect())),
            Value::Array(flat) => {
                Some(Properties(flat.chunks_exact(2).filter_map(|pair| Some((pair.first()?, pair.last()?))).collect()))
            }
            _ => None,
        }
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.0.iter().find(|(key, _)| text(key) == name).map(|(_, value)| *value)
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.get(name).and_then(number)
    }
}

fn value(connection: &mut Connection, command: &'static str) -> Result<Value> {
    connection.receive()?.value()?.extract_error().map_err(|error| Error::server(command, error))
}

fn number(value: &Value) -> Option<u64> {
    match value {
        Value::Int(number) => u64::try_from(*number).ok(),
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

fn id(value: &Value) -> Option<EntryId> {
    match value {
        Value::BulkString(bytes) => EntryId::from_bytes(bytes),
        Value::SimpleString(text) => EntryId::from_bytes(text.as_bytes()),
        _ => None,
    }
}

fn first_of(value: &Value) -> Option<&Value> {
    match value {
        Value::Array(items) => items.first(),
        _ => None,
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        _ => String::new(),
    }
}
