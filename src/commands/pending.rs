//! The pending list: what was delivered and not acknowledged, who has it, and for how long.

use std::time::Duration;

use super::{integer, push_id};
use crate::connection::Connection;
use crate::endpoint::{Member, milliseconds};
use crate::entry::{self, Claimed, Entry, EntryId};
use crate::error::{Error, Result};
use crate::resp::{Cursor, Malformed};

/// Sets the idle time of those ids that are still pending for this consumer, and returns them. The others were taken over,
/// and must not be stolen back.
const SET_IDLE_OF_OWN: &str = "\
local own={}
for i=4,#ARGV do
  if #redis.call('XPENDING',KEYS[1],ARGV[1],ARGV[i],ARGV[i],1,ARGV[2])>0 then
    redis.call('XCLAIM',KEYS[1],ARGV[1],ARGV[2],0,ARGV[i],'IDLE',ARGV[3],'JUSTID')
    own[#own+1]=ARGV[i]
  end
end
return own";

/// Deleting a consumer deletes its pending entries too, so only one without any may go.
const DELETE_CONSUMER_WITHOUT_PENDING: &str = "\
if #redis.call('XPENDING',KEYS[1],ARGV[1],'-','+',1,ARGV[2])>0 then return 0 end
redis.call('XGROUP','DELCONSUMER',KEYS[1],ARGV[1],ARGV[2])
return 1";

/// Makes entries look as if they had lain idle for `idle`, those that still belong to this consumer: zero keeps them from
/// being claimed, `claim_idle` offers them to the next who asks. Returns those that do.
pub(crate) fn set_idle(
    connection: &mut Connection,
    member: &Member,
    idle: Duration,
    ids: &[EntryId],
) -> Result<Vec<EntryId>> {
    let mut command = connection
        .command("EVAL", 7 + ids.len())
        .arg(SET_IDLE_OF_OWN)
        .arg("1")
        .arg(&*member.stream_id)
        .arg(&*member.group)
        .arg(&*member.consumer)
        .number(milliseconds(idle));
    for id in ids {
        command = push_id(command, *id);
    }
    drop(command);
    connection.request()?.decode("EVAL", |reply| {
        let count = reply.array()?.unwrap_or_default();
        (0..count).map(|_| id(reply)).collect()
    })
}

/// Takes over up to `count` entries that lay idle for `min_idle` at any consumer, searching the pending list from `start`
/// (`XAUTOCLAIM`).
pub(crate) fn autoclaim(
    connection: &mut Connection,
    member: &Member,
    min_idle: Duration,
    start: EntryId,
    count: usize,
) -> Result<Claimed> {
    let command = connection
        .command("XAUTOCLAIM", 8)
        .arg(&*member.stream_id)
        .arg(&*member.group)
        .arg(&*member.consumer)
        .number(milliseconds(min_idle));
    // The server sets memory aside for so many; what is missing comes with the next step.
    push_id(command, start).arg("COUNT").number(count.min(MOST_CLAIMED) as u64);
    let mut claimed = connection.request()?.decode("XAUTOCLAIM", entry::claimed)?;
    if claimed.holes > 0 {
        claimed.gone.extend(find_holes(connection, member, claimed.holes)?);
    }
    Ok(claimed)
}

/// The most entries that one `XAUTOCLAIM` asks for.
const MOST_CLAIMED: usize = 10_000;

/// The ids of pending entries of this consumer whose content is gone, `count` of them.
fn find_holes(connection: &mut Connection, member: &Member, count: usize) -> Result<Vec<EntryId>> {
    let (mut holes, mut after) = (Vec::new(), EntryId::MIN);
    while holes.len() < count {
        let page = own_pending(connection, member, after, 128)?;
        let Some(last) = page.last() else { break };
        after = last.id;
        let ids: Vec<EntryId> = page.iter().map(|pending| pending.id).collect();
        holes.extend(missing_from_stream(connection, &member.stream_id, &ids)?);
    }
    Ok(holes)
}

/// How often the server has delivered each of these entries of this consumer, in one round trip. An entry that is no longer
/// this consumer's has no count.
pub(crate) fn delivery_counts<'a>(
    connection: &mut Connection,
    member: &Member,
    ids: impl Iterator<Item = &'a Entry> + Clone,
) -> Result<Vec<Option<u64>>> {
    let mut asked = 0;
    for entry in ids {
        let command = connection.command("XPENDING", 7).arg(&*member.stream_id).arg(&*member.group);
        push_id(push_id(command, entry.id()), entry.id()).arg("1").arg(&*member.consumer);
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
#[derive(Clone, Copy, Debug)]
pub(crate) struct PendingEntry {
    pub(crate) id: EntryId,
    pub(crate) idle: Duration,
    pub(crate) deliveries: u64,
}

/// Up to `count` pending entries of this consumer behind `after`, without touching them (`XPENDING`).
pub(crate) fn own_pending(
    connection: &mut Connection,
    member: &Member,
    after: EntryId,
    count: usize,
) -> Result<Vec<PendingEntry>> {
    connection
        .command("XPENDING", 7)
        .arg(&*member.stream_id)
        .arg(&*member.group)
        .arg(format!("({after}"))
        .arg("+")
        .number(count as u64)
        .arg(&*member.consumer);
    connection.request()?.decode("XPENDING", |reply| {
        let count = reply.array()?.unwrap_or_default();
        (0..count).map(|_| pending_entry(reply)).collect()
    })
}

/// Delivers these entries to this consumer once more, those that still lay idle for `min_idle` (`XCLAIM`): one that
/// somebody has taken meanwhile is not, and neither is one that was trimmed.
pub(crate) fn claim(
    connection: &mut Connection,
    member: &Member,
    min_idle: Duration,
    ids: &[EntryId],
) -> Result<Vec<Entry>> {
    let mut command = connection
        .command("XCLAIM", 5 + ids.len())
        .arg(&*member.stream_id)
        .arg(&*member.group)
        .arg(&*member.consumer)
        .number(milliseconds(min_idle));
    for id in ids {
        command = push_id(command, *id);
    }
    drop(command);
    connection.request()?.decode("XCLAIM", entry::entries)
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
pub(crate) fn delete_consumer_without_pending(connection: &mut Connection, member: &Member) -> Result<bool> {
    connection
        .command("EVAL", 6)
        .arg(DELETE_CONSUMER_WITHOUT_PENDING)
        .arg("1")
        .arg(&*member.stream_id)
        .arg(&*member.group)
        .arg(&*member.consumer);
    Ok(connection.request()?.decode("EVAL", integer)? == 1)
}

fn pending_entry(reply: &mut Cursor<'_>) -> Result<PendingEntry, Malformed> {
    if reply.array()? != Some(4) {
        return Err("a pending entry that is not id, consumer, idle time and deliveries");
    }
    let id = id(reply)?;
    reply.skip()?;
    Ok(PendingEntry { id, idle: Duration::from_millis(integer(reply)?), deliveries: integer(reply)? })
}

fn id(reply: &mut Cursor<'_>) -> Result<EntryId, Malformed> {
    EntryId::from_bytes(reply.bytes()?).ok_or("an entry id that is not milliseconds-sequence")
}
