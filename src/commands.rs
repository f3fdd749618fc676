//! The stream commands that more than one part of the crate issues, one function each, on one connection.
//!
//! What must hold between two steps (a key is a stream, an entry is still ours, a copy is written before the original goes)
//! is a small script: the server runs it as one step, and `MULTI` would go on after a step that failed.
//! See <https://redis.io/docs/latest/develop/programmability/eval-intro/>.

use std::time::Duration;

use redis::ServerErrorKind;

use crate::connection::Connection;
use crate::endpoint::{Member, Retention, StartId, StreamInput, StreamOutput, milliseconds};
use crate::entry::{self, Claimed, Delivered, Entry, EntryId, Message};
use crate::error::{Error, Result};
use crate::resp::{Command, Token};

/// Sets the expiry of KEYS[1] only if it is a stream: an `EXPIRE` sent blindly behind an `XADD` that is refused with
/// WRONGTYPE would put a lifetime on somebody else's data.
const EXPIRE_STREAM: &str =
    "if redis.call('TYPE',KEYS[1]).ok=='stream' then return redis.call('PEXPIRE',KEYS[1],ARGV[1]) end return 0";

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

/// Copies to the dead letter stream, then acknowledges, if the entry is still pending for this consumer. A copy that is
/// refused ends the script before the acknowledgement.
const DEAD_LETTER: &str = "\
if #redis.call('XPENDING',KEYS[1],ARGV[1],ARGV[3],ARGV[3],1,ARGV[2])==0 then return false end
local id=redis.call('XADD',KEYS[2],unpack(ARGV,4))
redis.call('XACK',KEYS[1],ARGV[1],ARGV[3])
return id";

/// Puts a dead letter back to its origin, then deletes it, if it is still there.
const REQUEUE: &str = "\
if #redis.call('XRANGE',KEYS[1],ARGV[1],ARGV[1])==0 then return false end
local id=redis.call('XADD',KEYS[2],unpack(ARGV,2))
redis.call('XDEL',KEYS[1],ARGV[1])
return id";

/// Lua's `unpack` puts its results on a stack of 8,000 places; messages with more fields than this take two steps.
const MAX_SCRIPT_FIELDS: usize = 3_000;

/// Creates the group, and the stream if there is none, and sets the stream's expiry in the same round trip. `false`: it was
/// there.
pub(crate) fn create_group(connection: &mut Connection, input: &StreamInput, start: StartId) -> Result<bool> {
    connection
        .command("XGROUP", 6)
        .arg("CREATE")
        .arg(&*input.stream_id)
        .arg(&*input.group)
        .arg(start.argument())
        .arg("MKSTREAM");
    if let Some(ttl) = input.ttl {
        encode_refresh(connection, &input.stream_id, ttl);
    }
    connection.send()?;
    let created = match connection.receive()?.decode("XGROUP CREATE", |_| Ok(true)) {
        Err(error) if error.code() == Some("BUSYGROUP") => Ok(false),
        created => created,
    };
    if let Some(ttl) = input.ttl {
        let refresh = receive_refresh(connection);
        conclude_refresh(connection, &input.stream_id, ttl, refresh);
    }
    created
}

/// Which entries `XREADGROUP` asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadFrom {
    /// Entries that no consumer of the group has seen (`>`).
    New,
    /// This consumer's own pending entries behind this id.
    OwnPending(EntryId),
}

/// Encodes `XREADGROUP GROUP group consumer COUNT count [BLOCK milliseconds] STREAMS stream id`.
pub(crate) fn encode_read(
    connection: &mut Connection,
    member: &Member,
    count: usize,
    block: Option<Duration>,
    from: ReadFrom,
) {
    let arguments = 9 + if block.is_some() { 2 } else { 0 };
    let mut command = connection
        .command("XREADGROUP", arguments)
        .arg("GROUP")
        .arg(&*member.group)
        .arg(&*member.consumer)
        .arg("COUNT")
        .number(count as u64);
    if let Some(block) = block {
        // BLOCK 0 would wait for ever.
        command = command.arg("BLOCK").number(milliseconds(block).max(1));
    }
    let command = command.arg("STREAMS").arg(&*member.stream_id);
    match from {
        ReadFrom::New => drop(command.arg(">")),
        ReadFrom::OwnPending(after) => drop(push_id(command, after)),
    }
}

/// Reads entries, waiting for `block` at most, and refreshes the stream's expiry in the same round trip, before the wait.
pub(crate) fn read(
    connection: &mut Connection,
    member: &Member,
    count: usize,
    block: Option<Duration>,
    from: ReadFrom,
    ttl: Option<Duration>,
) -> Result<Vec<Delivered>> {
    let Some(ttl) = ttl else {
        encode_read(connection, member, count, block, from);
        connection.send_until(connection.blocking_deadline(block.unwrap_or_default()))?;
        return receive_entries(connection);
    };
    encode_refresh(connection, &member.stream_id, ttl);
    encode_read(connection, member, count, block, from);
    connection.send_until(connection.blocking_deadline(block.unwrap_or_default()))?;
    let refresh = match receive_refresh(connection) {
        Err(error) if connection.is_failed() => return Err(error),
        refresh => refresh,
    };
    let entries = receive_entries(connection)?;
    conclude_refresh(connection, &member.stream_id, ttl, refresh);
    Ok(entries)
}

/// The reply to [`encode_read`].
pub(crate) fn receive_entries(connection: &mut Connection) -> Result<Vec<Delivered>> {
    connection.receive()?.decode("XREADGROUP", entry::delivered)
}

/// Encodes `XACK stream group id...`.
pub(crate) fn encode_ack(connection: &mut Connection, member: &Member, ids: &[EntryId]) {
    let mut command =
        connection.command("XACK", 3 + ids.len()).arg(&*member.stream_id).arg(&*member.group);
    for id in ids {
        command = push_id(command, *id);
    }
}

/// Acknowledges entries; how many of them were pending.
pub(crate) fn ack(connection: &mut Connection, member: &Member, ids: &[EntryId]) -> Result<u64> {
    encode_ack(connection, member, ids);
    connection.request()?.decode("XACK", integer)
}

/// Encodes the refreshing of a stream's expiry. [`receive_refresh`] takes the reply.
pub(crate) fn encode_refresh(connection: &mut Connection, stream_id: &str, ttl: Duration) {
    connection.command("EVAL", 5).arg(EXPIRE_STREAM).arg("1").arg(stream_id).number(milliseconds(ttl));
}

/// What came of refreshing a stream's expiry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refresh {
    Done,
    /// There is no such stream.
    NoStream,
    /// The server's ACL forbids this user to run scripts.
    NoScripts,
}

/// The reply to [`encode_refresh`].
pub(crate) fn receive_refresh(connection: &mut Connection) -> Result<Refresh> {
    match connection.receive()?.decode("EVAL", integer) {
        Ok(0) => Ok(Refresh::NoStream),
        Ok(_) => Ok(Refresh::Done),
        Err(error) if is_forbidden(&error) => Ok(Refresh::NoScripts),
        Err(error) => Err(error),
    }
}

/// Refreshes a stream's expiry; whether there is such a stream.
pub(crate) fn refresh(connection: &mut Connection, stream_id: &str, ttl: Duration) -> Result<bool> {
    encode_refresh(connection, stream_id, ttl);
    connection.send()?;
    let refresh = receive_refresh(connection)?;
    finish_refresh(connection, stream_id, ttl, refresh)
}

/// Where scripts are forbidden, two plain commands do it, at the cost of their round trips. Only for a connection that is
/// owed no reply.
fn finish_refresh(connection: &mut Connection, stream_id: &str, ttl: Duration, refresh: Refresh) -> Result<bool> {
    if refresh != Refresh::NoScripts {
        return Ok(refresh == Refresh::Done);
    }
    connection.command("TYPE", 2).arg(stream_id);
    let is_stream = connection.request()?.decode("TYPE", |reply| Ok(reply.bytes()? == b"stream"))?;
    if !is_stream {
        return Ok(false);
    }
    connection.command("PEXPIRE", 3).arg(stream_id).number(milliseconds(ttl));
    Ok(connection.request()?.decode("PEXPIRE", integer)? == 1)
}

/// Takes the outcome of a refresh that went along with a command. The command has done its work, so a refresh that failed
/// is told, and does not make the command fail.
pub(crate) fn conclude_refresh(
    connection: &mut Connection,
    stream_id: &str,
    ttl: Duration,
    refresh: Result<Refresh>,
) {
    let finished = refresh.and_then(|refresh| finish_refresh(connection, stream_id, ttl, refresh));
    if let Err(error) = finished {
        log::warn!("the expiry of stream {stream_id} was not refreshed: {error}");
    }
}

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
        (0..count).map(|_| EntryId::from_bytes(reply.bytes()?).ok_or("an entry id that is none")).collect()
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
    push_id(command, start).arg("COUNT").number(count as u64);
    connection.request()?.decode("XAUTOCLAIM", entry::claimed)
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
        let count = connection.receive()?.decode("XPENDING", |reply| {
            match reply.array()? {
                None | Some(0) => return Ok(None),
                Some(_) => {}
            }
            if reply.array()? != Some(4) {
                return Err("a pending entry that is not id, consumer, idle time and deliveries");
            }
            reply.skip()?;
            reply.skip()?;
            reply.skip()?;
            integer(reply).map(Some)
        });
        match count {
            Ok(count) => counts.push(count),
            Err(error @ Error::Server { .. }) => refusal = Some(error),
            Err(error) => return Err(error),
        }
    }
    refusal.map_or(Ok(counts), Err)
}

/// Encodes `XADD stream [MAXLEN|MINID ...] * field value ...`.
pub(crate) fn encode_add(connection: &mut Connection, output: &StreamOutput, message: &Message<'_>) {
    let arguments = 3 + retention_arguments(output.retention) + 2 * message.len();
    let mut command = connection.command("XADD", arguments).arg(&*output.stream_id);
    push_add(&mut command, output, |command| {
        message.for_each_field(|name, value| {
            command.push(name);
            command.push(value);
        });
    });
}

/// The reply to [`encode_add`].
pub(crate) fn receive_id(connection: &mut Connection, command: &'static str) -> Result<EntryId> {
    connection.receive()?.decode(command, |reply| {
        EntryId::from_bytes(reply.bytes()?).ok_or("an entry id that is not milliseconds-sequence")
    })
}

/// Copies an entry to the dead letter stream and acknowledges it. `None`: it was no longer this consumer's, and nothing was
/// done.
pub(crate) fn dead_letter(
    connection: &mut Connection,
    member: &Member,
    entry_id: EntryId,
    output: &StreamOutput,
    fields: &[(&[u8], &[u8])],
) -> Result<Option<EntryId>> {
    if fields.len() > MAX_SCRIPT_FIELDS {
        let id = add_fields(connection, output, fields)?;
        ack(connection, member, &[entry_id])?;
        return Ok(Some(id));
    }
    let arguments = 8 + retention_arguments(output.retention) + 1 + 2 * fields.len();
    let command = connection
        .command("EVAL", arguments)
        .arg(DEAD_LETTER)
        .arg("2")
        .arg(&*member.stream_id)
        .arg(&*output.stream_id)
        .arg(&*member.group)
        .arg(&*member.consumer);
    let mut command = push_id(command, entry_id);
    push_add(&mut command, output, |command| push_fields(command, fields));
    drop(command);
    optional_id(connection)
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
    optional_id(connection)
}

fn add_fields(connection: &mut Connection, output: &StreamOutput, fields: &[(&[u8], &[u8])]) -> Result<EntryId> {
    let arguments = 3 + retention_arguments(output.retention) + 2 * fields.len();
    let mut command = connection.command("XADD", arguments).arg(&*output.stream_id);
    push_add(&mut command, output, |command| push_fields(command, fields));
    drop(command);
    connection.send()?;
    receive_id(connection, "XADD")
}

fn optional_id(connection: &mut Connection) -> Result<Option<EntryId>> {
    connection.request()?.decode("EVAL", |reply| match reply.next()? {
        Token::Nil => Ok(None),
        Token::Bulk(id) | Token::Simple(id) => {
            EntryId::from_bytes(id).map(Some).ok_or("an entry id that is not milliseconds-sequence")
        }
        _ => Err("something else where an entry id belongs"),
    })
}

fn retention_arguments(retention: Retention) -> usize {
    if retention == Retention::All { 0 } else { 3 }
}

/// The arguments of `XADD` behind the key: what to keep, `*`, and the fields.
fn push_add(command: &mut Command<'_>, output: &StreamOutput, fields: impl FnOnce(&mut Command<'_>)) {
    match output.retention {
        Retention::All => {}
        Retention::ApproximateLength(entries) => push_retention(command, ["MAXLEN", "~"], &entries.to_string()),
        Retention::ExactLength(entries) => push_retention(command, ["MAXLEN", "="], &entries.to_string()),
        Retention::MinId(id) => push_retention(command, ["MINID", "="], &id.to_string()),
    }
    command.push(b"*");
    fields(command);
}

fn push_retention(command: &mut Command<'_>, how: [&str; 2], threshold: &str) {
    for argument in how {
        command.push(argument.as_bytes());
    }
    command.push(threshold.as_bytes());
}

fn push_fields(command: &mut Command<'_>, fields: &[(&[u8], &[u8])]) {
    for (name, value) in fields {
        command.push(name);
        command.push(value);
    }
}

fn push_id(mut command: Command<'_>, id: EntryId) -> Command<'_> {
    let mut text = Vec::with_capacity(24);
    id.write_to(&mut text);
    command.push(&text);
    command
}

fn integer(reply: &mut crate::resp::Cursor<'_>) -> Result<u64, crate::resp::Malformed> {
    match reply.next()? {
        Token::Int(number) => u64::try_from(number).map_err(|_| "a negative number"),
        _ => Err("something else where a number belongs"),
    }
}

fn is_forbidden(error: &Error) -> bool {
    matches!(error, Error::Server { source, .. } if source.kind() == redis::ErrorKind::Server(ServerErrorKind::NoPerm))
}
