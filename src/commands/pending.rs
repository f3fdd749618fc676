//! The pending list: what was delivered and not acknowledged, who has it, and for how long.

use std::time::Duration;

use super::entries::{Claimed, claimed};
use super::{decode_id, integer, push_id};
use crate::connection::Connection;
use crate::endpoint::{ConsumerKey, milliseconds};
use crate::entry::Entry;
use crate::entry_id::EntryId;
use crate::error::{Error, Result};
use crate::resp::{Cursor, Malformed, Token};

/// Deleting a consumer deletes its pending entries too, so only one without any may go.
const DELETE_CONSUMER_WITHOUT_PENDING: &str = "\
if #redis.call('XPENDING',KEYS[1],ARGV[1],'-','+',1,ARGV[2])>0 then return 0 end
redis.call('XGROUP','DELCONSUMER',KEYS[1],ARGV[1],ARGV[2])
return 1";

/// Takes over up to `count` entries that lay idle for `min_idle` at any consumer, searching the pending list from `start`
/// (`XAUTOCLAIM`).
pub(crate) fn autoclaim(
    connection: &mut Connection,
    key: &ConsumerKey,
    min_idle: Duration,
    start: EntryId,
    count: usize,
) -> Result<Claimed> {
    let command = connection
        .command("XAUTOCLAIM", 8)
        .arg(&*key.stream_id)
        .arg(&*key.group)
        .arg(&*key.consumer)
        .number(milliseconds(min_idle));
    // The server sets memory aside for this many; what is missing comes with the next step.
    push_id(command, start).arg("COUNT").number(count.min(MOST_CLAIMED) as u64);
    let mut claimed = connection.request()?.decode("XAUTOCLAIM", claimed)?;
    if claimed.deleted_unnamed > 0 {
        claimed.deleted.extend(find_deleted(connection, key, claimed.deleted_unnamed)?);
    }
    Ok(claimed)
}

/// The most entries that one `XAUTOCLAIM` asks for.
const MOST_CLAIMED: usize = 10_000;

/// The ids of pending entries of this consumer that the stream no longer holds, `count` of them.
fn find_deleted(connection: &mut Connection, key: &ConsumerKey, count: usize) -> Result<Vec<EntryId>> {
    let (mut deleted, mut after) = (Vec::new(), EntryId::MIN);
    while deleted.len() < count {
        let page = own_pending(connection, key, after, 128)?;
        let Some(last) = page.last() else { break };
        after = last.id;
        let ids: Vec<EntryId> = page.iter().map(|pending| pending.id).collect();
        deleted.extend(missing_from_stream(connection, &key.stream_id, &ids)?);
    }
    Ok(deleted)
}

/// How often the server has delivered each of these entries of this consumer, in one round trip. An entry that is no longer
/// this consumer's has no count.
pub(crate) fn delivery_counts<'a>(
    connection: &mut Connection,
    key: &ConsumerKey,
    ids: impl Iterator<Item = &'a Entry> + Clone,
) -> Result<Vec<Option<u64>>> {
    let mut asked = 0;
    for entry in ids {
        let command = connection.command("XPENDING", 7).arg(&*key.stream_id).arg(&*key.group);
        push_id(push_id(command, entry.id()), entry.id()).arg("1").arg(&*key.consumer);
        asked += 1;
    }
    if asked == 0 {
        return Ok(Vec::new());
    }
    connection.send()?;
    let mut counts = Vec::with_capacity(asked);
    let mut refusal = None;
    for _ in 0..asked {
        let count = connection.receive()?.decode("XPENDING", |reply| match reply.array()? {
            None | Some(0) => Ok(None),
            Some(_) => Ok(Some(pending_entry(reply)?.deliveries)),
        });
        match count {
            Ok(count) => counts.push(count),
            Err(error @ Error::Server { .. }) => refusal = Some(error),
            Err(error) => return Err(error),
        }
    }
    refusal.map_or(Ok(counts), Err)
}

/// An entry of the pending list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PendingEntry {
    pub(crate) id: EntryId,
    /// The consumer that it is pending for.
    pub(crate) owner: Box<[u8]>,
    pub(crate) deliveries: u64,
}

/// Up to `count` pending entries of this consumer behind `after`, without touching them (`XPENDING`).
pub(crate) fn own_pending(
    connection: &mut Connection,
    key: &ConsumerKey,
    after: EntryId,
    count: usize,
) -> Result<Vec<PendingEntry>> {
    connection
        .command("XPENDING", 7)
        .arg(&*key.stream_id)
        .arg(&*key.group)
        .arg(format!("({after}"))
        .arg("+")
        .number(count as u64)
        .arg(&*key.consumer);
    connection.request()?.decode("XPENDING", |reply| {
        let count = reply.array()?.unwrap_or_default();
        (0..count).map(|_| pending_entry(reply)).collect()
    })
}

/// Which of these ids the stream no longer holds (`XRANGE`), in one round trip.
pub(crate) fn missing_from_stream(
    connection: &mut Connection,
    stream_id: &str,
    ids: &[EntryId],
) -> Result<Vec<EntryId>> {
    for id in ids {
        let command = connection.command("XRANGE", 6).arg(stream_id);
        push_id(push_id(command, *id), *id).arg("COUNT").arg("1");
    }
    connection.send()?;
    let mut missing = Vec::new();
    for id in ids {
        let found = connection.receive()?.decode("XRANGE", |reply| reply.array())?;
        if found.unwrap_or_default() == 0 {
            missing.push(*id);
        }
    }
    Ok(missing)
}

/// Removes this consumer from its group if no entry is pending for it; whether it did.
pub(crate) fn delete_consumer_without_pending(connection: &mut Connection, key: &ConsumerKey) -> Result<bool> {
    connection
        .command("EVAL", 6)
        .arg(DELETE_CONSUMER_WITHOUT_PENDING)
        .arg("1")
        .arg(&*key.stream_id)
        .arg(&*key.group)
        .arg(&*key.consumer);
    Ok(connection.request()?.decode("EVAL", integer)? == 1)
}

pub(super) fn pending_entry(reply: &mut Cursor<'_>) -> Result<PendingEntry, Malformed> {
    if reply.array()? != Some(4) {
        return Err("a pending entry that is not id, consumer, idle time and deliveries");
    }
    let (id, owner) = (decode_id(reply)?, reply.bytes()?.into());
    // The idle time: what it has to be is checked at the server, when the entry is taken.
    reply.skip()?;
    let deliveries = match reply.next()? {
        // In a script, the greatest count (which `XNACK` sets) becomes the least number.
        Token::Int(number) => u64::try_from(number).unwrap_or(i64::MAX as u64),
        _ => return Err("something else where a number belongs"),
    };
    Ok(PendingEntry { id, owner, deliveries })
}

/// Whether the stream and the group exist, for a user who may not create them (`XPENDING`).
pub(crate) fn group_exists(connection: &mut Connection, key: &ConsumerKey) -> Result<bool> {
    connection.command("XPENDING", 3).arg(&*key.stream_id).arg(&*key.group);
    match connection.request()?.decode("XPENDING", |_| Ok(true)) {
        Err(error) if error.is_group_missing() => Ok(false),
        exists => exists,
    }
}
