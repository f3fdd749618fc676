//! What the server knows about a stream, its groups and their pending entries: the types, and the decoders of the replies.

use super::{optional_id, optional_number};
use crate::connection::Connection;
use crate::endpoint::ConsumerKey;
use crate::entry_id::EntryId;
use crate::error::Result;
use crate::resp::{Cursor, Malformed, Token};

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

/// A stream's length, ids and groups (`XINFO STREAM`, `XINFO GROUPS`), in one round trip.
pub(crate) fn stream_info(connection: &mut Connection, stream_id: &str) -> Result<StreamInfo> {
    connection.command("XINFO", 3).arg("STREAM").arg(stream_id);
    connection.command("XINFO", 3).arg("GROUPS").arg(stream_id);
    connection.send()?;
    let stream = connection.receive()?.decode("XINFO STREAM", stream);
    let groups = connection.receive()?.decode("XINFO GROUPS", groups);
    // Without a stream there are no groups either; the former is the one to tell of.
    let (stream, groups) = (stream?, groups?);
    Ok(StreamInfo { groups, ..stream })
}

/// How many entries are pending in a group, and for whom (`XPENDING`).
pub(crate) fn pending_summary(connection: &mut Connection, key: &ConsumerKey) -> Result<Pending> {
    connection.command("XPENDING", 3).arg(&*key.stream_id).arg(&*key.group);
    connection.request()?.decode("XPENDING", pending)
}

fn pending(reply: &mut Cursor<'_>) -> Result<Pending, Malformed> {
    const UNEXPECTED: Malformed = "not a count, two ids and a list of consumers";
    if reply.array()? != Some(4) {
        return Err(UNEXPECTED);
    }
    let mut pending = Pending {
        total: optional_number(reply)?.unwrap_or_default(),
        first_id: optional_id(reply)?,
        last_id: optional_id(reply)?,
        consumers: Vec::new(),
    };
    for _ in 0..reply.array()?.unwrap_or_default() {
        if reply.array()? != Some(2) {
            return Err(UNEXPECTED);
        }
        pending
            .consumers
            .push(ConsumerPending { name: text(reply)?, count: optional_number(reply)?.ok_or(UNEXPECTED)? });
    }
    Ok(pending)
}

fn stream(reply: &mut Cursor<'_>) -> Result<StreamInfo, Malformed> {
    let (mut info, mut length) = (StreamInfo::default(), None);
    properties(reply, |name, value| {
        match name {
            b"length" => length = optional_number(value)?,
            b"first-entry" => info.first_id = first_id(value)?,
            b"last-generated-id" => info.last_id = optional_id(value)?.unwrap_or_default(),
            b"entries-added" => info.entries_added = optional_number(value)?,
            _ => {}
        }
        Ok(())
    })?;
    info.length = length.ok_or("no length")?;
    Ok(info)
}

fn groups(reply: &mut Cursor<'_>) -> Result<Vec<GroupInfo>, Malformed> {
    let mut groups = Vec::new();
    for _ in 0..reply.array()?.unwrap_or_default() {
        let mut group = GroupInfo::default();
        properties(reply, |name, value| {
            match name {
                b"name" => group.name = text(value)?,
                b"consumers" => group.consumers = optional_number(value)?.unwrap_or_default(),
                b"pending" => group.pending = optional_number(value)?.unwrap_or_default(),
                b"last-delivered-id" => group.last_delivered_id = optional_id(value)?.unwrap_or_default(),
                b"entries-read" => group.entries_read = optional_number(value)?,
                b"lag" => group.lag = optional_number(value)?,
                _ => {}
            }
            Ok(())
        })?;
        groups.push(group);
    }
    Ok(groups)
}

/// Names and values: a map in RESP3, a flat array in RESP2. The values may be left unread.
fn properties<'a>(
    reply: &mut Cursor<'a>,
    mut property: impl FnMut(&[u8], &mut Cursor<'a>) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let count = match reply.next()? {
        Token::Map(pairs) => pairs,
        Token::Array(elements) if elements % 2 == 0 => elements / 2,
        _ => return Err("not a list of properties"),
    };
    for _ in 0..count {
        let name = reply.bytes()?;
        property(name, &mut reply.clone())?;
        reply.skip()?;
    }
    Ok(())
}

/// The id of an entry, or null where there is none.
fn first_id(reply: &mut Cursor<'_>) -> Result<Option<EntryId>, Malformed> {
    match reply.array()? {
        Some(1..) => optional_id(reply),
        _ => Ok(None),
    }
}

fn text(reply: &mut Cursor<'_>) -> Result<String, Malformed> {
    Ok(String::from_utf8_lossy(reply.bytes()?).into_owned())
}
