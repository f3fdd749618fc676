//! Dead letters: moving entries to their stream, and back to where they came from.

use std::time::Duration;

use super::add::{add_fields, optional_new_id, push_add, push_fields, retention_arguments};
use super::pending::{PendingEntry, missing_from_stream, pending_entry};
use super::{ack, contents, integer, push_id, refresh};
use crate::connection::Connection;
use crate::dead_letter::Origin;
use crate::endpoint::{ConsumerKey, StreamOutput, milliseconds};
use crate::entry::Entry;
use crate::entry_id::EntryId;
use crate::error::Result;

/// Copies to the dead letter stream, then acknowledges, if the entry's owner and count are still as they were seen, and its
/// owner has not kept it fresh. A copy that is refused ends the script before the acknowledgement.
const DEAD_LETTER: &str = "\
local row=redis.call('XPENDING',KEYS[1],ARGV[1],ARGV[3],ARGV[3],1)[1]
if not row or row[2]~=ARGV[2] or row[4]~=tonumber(ARGV[4]) then return false end
if row[2]~='' and row[3]<tonumber(ARGV[5]) then return false end
local id=redis.call('XADD',KEYS[2],unpack(ARGV,6))
redis.call('XACK',KEYS[1],ARGV[1],ARGV[3])
return id";

/// The same with the content that the stream holds, which so need not travel. Says what it found where it does nothing.
const BURY: &str = "\
local id=ARGV[3]
local row=redis.call('XPENDING',KEYS[1],ARGV[1],id,id,1)[1]
if not row or row[2]~=ARGV[2] or row[4]~=tonumber(ARGV[4]) then return 'changed' end
if row[2]~='' and row[3]<tonumber(ARGV[5]) then return 'changed' end
local entry=redis.call('XRANGE',KEYS[1],id,id)[1]
if not entry then return 'deleted' end
if #entry[2]>2*tonumber(ARGV[6]) then return 'long' end
local arguments={}
for i=8,7+tonumber(ARGV[7]) do arguments[#arguments+1]=ARGV[i] end
for _,part in ipairs(entry[2]) do arguments[#arguments+1]=part end
for i=8+tonumber(ARGV[7]),#ARGV do arguments[#arguments+1]=ARGV[i] end
redis.call('XADD',KEYS[2],unpack(arguments))
redis.call('XACK',KEYS[1],ARGV[1],id)
return 'moved'";

/// Puts a dead letter back to its origin, then deletes it, if it is still there.
const REQUEUE: &str = "\
if #redis.call('XRANGE',KEYS[1],ARGV[1],ARGV[1])==0 then return false end
local id=redis.call('XADD',KEYS[2],unpack(ARGV,2))
redis.call('XDEL',KEYS[1],ARGV[1])
return id";

/// Lua's `unpack` puts its results on a stack of 8,000 places; messages with more fields than this take two steps.
const MAX_SCRIPT_FIELDS: usize = 3_000;

/// Copies an entry to the dead letter stream with its origin and the reason, and acknowledges it. `false`: it was no longer
/// as it was seen, another consumer's or delivered again, or has not lain idle for `min_idle`, and nothing was done.
pub(crate) fn dead_letter(
    connection: &mut Connection,
    key: &ConsumerKey,
    seen: &PendingEntry,
    min_idle: Duration,
    entry: &Entry,
    output: &StreamOutput,
    reason: &str,
) -> Result<bool> {
    origin(key, seen, reason).with_fields(|origin| {
        let mut fields: Vec<(&[u8], &[u8])> = entry.fields().collect();
        fields.extend(origin);
        let moved = move_with_fields(connection, key, seen, min_idle, output, &fields)?;
        if moved.is_some() {
            refresh_dead_letters(connection, output);
        }
        Ok(moved.is_some())
    })
}

/// The same for an entry whose content is not here: the server copies what the stream holds.
pub(crate) fn bury(
    connection: &mut Connection,
    key: &ConsumerKey,
    seen: &PendingEntry,
    min_idle: Duration,
    output: &StreamOutput,
    reason: &str,
) -> Result<Buried> {
    let buried = origin(key, seen, reason)
        .with_fields(|origin| move_in_script(connection, key, seen, min_idle, output, origin))?;
    match buried {
        Buried::Moved => refresh_dead_letters(connection, output),
        Buried::TooLong => {
            let content = contents(connection, &key.stream_id, &[seen.id])?.pop().flatten();
            let Some(entry) = content else { return Ok(Buried::Deleted) };
            let moved = dead_letter(connection, key, seen, min_idle, &entry, output, reason)?;
            return Ok(if moved { Buried::Moved } else { Buried::Changed });
        }
        Buried::Changed | Buried::Deleted => {}
    }
    Ok(buried)
}

fn refresh_dead_letters(connection: &mut Connection, output: &StreamOutput) {
    if let Some(ttl) = output.ttl
        && let Err(error) = refresh(connection, &output.stream_id, ttl)
    {
        log::warn!("the expiry of stream {} was not refreshed: {error}", output.stream_id);
    }
}

fn origin<'a>(key: &'a ConsumerKey, seen: &'a PendingEntry, reason: &'a str) -> Origin<'a> {
    let (stream_id, group) = (&*key.stream_id, &*key.group);
    Origin { stream_id, group, consumer: &seen.owner, id: seen.id, deliveries: seen.deliveries, reason }
}

/// Copies an entry to the dead letter stream and acknowledges it. `None`: it was no longer as it was seen, another consumer's
/// or delivered again, or has not lain idle for `min_idle`, and nothing was done.
fn move_with_fields(
    connection: &mut Connection,
    key: &ConsumerKey,
    seen: &PendingEntry,
    min_idle: Duration,
    output: &StreamOutput,
    fields: &[(&[u8], &[u8])],
) -> Result<Option<EntryId>> {
    if fields.len() > MAX_SCRIPT_FIELDS {
        if !is_unchanged(connection, key, seen)? {
            return Ok(None);
        }
        // Copied first: whatever comes between, the entry is in one of the two streams, or in both.
        let id = add_fields(connection, output, fields)?;
        ack(connection, key, std::iter::once(seen.id))?;
        return Ok(Some(id));
    }
    let arguments = 10 + retention_arguments(output.retention) + 1 + 2 * fields.len();
    let command = connection
        .command("EVAL", arguments)
        .arg(DEAD_LETTER)
        .arg("2")
        .arg(&*key.stream_id)
        .arg(&*output.stream_id)
        .arg(&*key.group)
        .arg(&seen.owner);
    let mut command = push_id(command, seen.id).number(seen.deliveries).number(milliseconds(min_idle));
    push_add(&mut command, output, |command| push_fields(command, fields));
    drop(command);
    optional_new_id(connection)
}

/// The outcome of [`bury`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Buried {
    Moved,
    /// It is no longer as it was seen: another consumer's, delivered again, or kept fresh.
    Changed,
    /// The stream no longer holds it.
    Deleted,
    /// It has too many fields for a script; nothing was done.
    TooLong,
}

/// Copies an entry from its stream to the dead letter stream, with these fields behind its own, and acknowledges it, if it is as
/// it was seen and has lain idle for `min_idle`. The content stays at the server.
fn move_in_script(
    connection: &mut Connection,
    key: &ConsumerKey,
    seen: &PendingEntry,
    min_idle: Duration,
    output: &StreamOutput,
    origin: &[(&[u8], &[u8])],
) -> Result<Buried> {
    let retention = retention_arguments(output.retention);
    let command = connection
        .command("EVAL", 12 + retention + 1 + 2 * origin.len())
        .arg(BURY)
        .arg("2")
        .arg(&*key.stream_id)
        .arg(&*output.stream_id)
        .arg(&*key.group)
        .arg(&seen.owner);
    let mut command = push_id(command, seen.id)
        .number(seen.deliveries)
        .number(milliseconds(min_idle))
        .number((MAX_SCRIPT_FIELDS - origin.len()) as u64)
        .number(retention as u64 + 1);
    push_add(&mut command, output, |command| push_fields(command, origin));
    drop(command);
    connection.request()?.decode("EVAL", |reply| match reply.bytes()? {
        b"moved" => Ok(Buried::Moved),
        b"changed" => Ok(Buried::Changed),
        b"deleted" => Ok(Buried::Deleted),
        b"long" => Ok(Buried::TooLong),
        _ => Err("something else where the outcome of a move belongs"),
    })
}

/// Puts a dead letter's fields back to its origin and deletes it. `None`: it was not there any more, and nothing was done.
pub(crate) fn requeue(
    connection: &mut Connection,
    dead_letters: &StreamOutput,
    id: EntryId,
    origin: &StreamOutput,
    fields: &[(&[u8], &[u8])],
) -> Result<Option<EntryId>> {
    if fields.len() > MAX_SCRIPT_FIELDS {
        if !missing_from_stream(connection, &dead_letters.stream_id, &[id])?.is_empty() {
            return Ok(None);
        }
        let new_id = add_fields(connection, origin, fields)?;
        push_id(connection.command("XDEL", 3).arg(&*dead_letters.stream_id), id);
        connection.request()?.decode("XDEL", integer)?;
        return Ok(Some(new_id));
    }
    let arguments = 6 + retention_arguments(origin.retention) + 1 + 2 * fields.len();
    let command = connection
        .command("EVAL", arguments)
        .arg(REQUEUE)
        .arg("2")
        .arg(&*dead_letters.stream_id)
        .arg(&*origin.stream_id);
    let mut command = push_id(command, id);
    push_add(&mut command, origin, |command| push_fields(command, fields));
    drop(command);
    optional_new_id(connection)
}

/// Whether the entry is still pending for the same consumer with the same count.
fn is_unchanged(connection: &mut Connection, key: &ConsumerKey, seen: &PendingEntry) -> Result<bool> {
    let command = connection.command("XPENDING", 6).arg(&*key.stream_id).arg(&*key.group);
    push_id(push_id(command, seen.id), seen.id).arg("1");
    connection.request()?.decode("XPENDING", |reply| match reply.array()? {
        None | Some(0) => Ok(false),
        Some(_) => {
            let now = pending_entry(reply)?;
            Ok(now.owner == seen.owner && now.deliveries == seen.deliveries)
        }
    })
}
