//! Entries that were delivered before: finding them, taking them for another hand-out, keeping them, and giving them back.
//!
//! The server's count of deliveries is what a dead letter limit compares, so only a hand-out may raise it. `XCLAIM` and
//! `XAUTOCLAIM` raise it themselves, unless they are told `JUSTID`; here they always are, and `RETRYCOUNT` writes the count.
//! Who owns an entry is checked in the same step that writes: see <https://redis.io/docs/latest/commands/xclaim/>.

use std::time::Duration;

use super::entries::entries;
use super::pending::{PendingEntry, pending_entry};
use super::progress::{StreamProgress, decode_progress};
use super::{decode_id, integer, push_id};
use crate::connection::Connection;
use crate::endpoint::{ConsumerKey, milliseconds};
use crate::entry::Entry;
use crate::entry_id::EntryId;
use crate::error::{Error, Result};
use crate::resp::{Cursor, Malformed};

/// Where the stream and the group stand, and which pending entries have lain idle for long enough, at most `ARGV[5]` of them
/// from `ARGV[4]` rows of the pending list that begin at `ARGV[3]`. An entry without an owner was given up by its consumer
/// (`XNACK`), and may be taken at once.
const LOOK_AROUND: &str = "\
local function map(list)
  local properties={}
  for i=1,#list,2 do properties[list[i]]=list[i+1] end
  return properties
end
local function progress()
  local stream,groups=redis.pcall('XINFO','STREAM',KEYS[1]),redis.pcall('XINFO','GROUPS',KEYS[1])
  if stream.err or groups.err then return false end
  stream=map(stream)
  if not stream['entries-added'] then return false end
  for _,list in ipairs(groups) do
    local group=map(list)
    if group['name']==ARGV[1] then
      local first=stream['first-entry']
      return {stream['length'],first and first[1] or '',stream['last-generated-id'],stream['max-deleted-entry-id'],
        stream['entries-added'],group['last-delivered-id'],group['entries-read'] or ''}
    end
  end
  return false
end
local idle,wanted=tonumber(ARGV[2]),tonumber(ARGV[5])
local found,next={},''
if wanted>0 then
  local rows=redis.call('XPENDING',KEYS[1],ARGV[1],ARGV[3],'+',ARGV[4])
  for _,row in ipairs(rows) do
    if row[3]>=idle or row[2]=='' then
      if #found==wanted then next=row[1] break end
      found[#found+1]=row
    end
  end
  if next=='' and #rows==tonumber(ARGV[4]) then next='('..rows[#rows][1] end
end
return {progress(),next,found}";

/// Takes each entry that is as it was found, writes the count of its next hand-out, and returns those taken and those that
/// the stream no longer holds.
const TAKE: &str = "\
local taken,deleted={},{}
for i=3,#ARGV,5 do
  local id=ARGV[i]
  local row=redis.call('XPENDING',KEYS[1],ARGV[1],id,id,1)[1]
  if row and row[2]==ARGV[i+1] and row[4]==tonumber(ARGV[i+2]) and (row[2]=='' or row[3]>=tonumber(ARGV[i+4])) then
    local claimed=redis.call('XCLAIM',KEYS[1],ARGV[1],ARGV[2],0,id,'RETRYCOUNT',ARGV[i+3],'JUSTID')
    if #claimed>0 then taken[#taken+1]=id else deleted[#deleted+1]=id end
  end
end
return {taken,deleted}";

/// Sets the idle time of the entries that are still pending for this consumer, or only looks. Returns those that are
/// pending for others, and those that are not pending.
const KEEP: &str = "\
local others,settled={},{}
for i=4,#ARGV do
  local row=redis.call('XPENDING',KEYS[1],ARGV[1],ARGV[i],ARGV[i],1)[1]
  if not row then settled[#settled+1]=ARGV[i]
  elseif row[2]~=ARGV[2] then others[#others+1]=ARGV[i]
  elseif ARGV[3]~='' then redis.call('XCLAIM',KEYS[1],ARGV[1],ARGV[2],0,ARGV[i],'IDLE',ARGV[3],'JUSTID') end
end
return {others,settled}";

/// Sets the idle time and the count of the entries that are still this delivery: owner and count are what they were.
const GIVE_BACK: &str = "\
local given=0
for i=4,#ARGV,3 do
  local row=redis.call('XPENDING',KEYS[1],ARGV[1],ARGV[i],ARGV[i],1)[1]
  if row and row[2]==ARGV[2] and row[4]==tonumber(ARGV[i+1]) then
    redis.call('XCLAIM',KEYS[1],ARGV[1],ARGV[2],0,ARGV[i],'IDLE',ARGV[3],'RETRYCOUNT',ARGV[i+2],'JUSTID')
    given=given+1
  end
end
return given";

/// The most rows of the pending list that one command looks through: what the server does in about a millisecond.
const ROWS_AT_ONCE: u64 = 2_000;

/// Where a search through the pending list goes on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct SearchPosition(Vec<u8>);

impl SearchPosition {
    /// The next search begins at the start of the list.
    pub(crate) fn is_at_start(&self) -> bool {
        self.0.is_empty()
    }

    fn argument(&self) -> &[u8] {
        if self.is_at_start() { b"-" } else { &self.0 }
    }
}

/// What [`look_around`] sees.
#[derive(Debug)]
pub(crate) struct Sight {
    /// `None`: the server does not have the counters, or keeps them from this user.
    pub(crate) progress: Option<StreamProgress>,
    pub(crate) next: SearchPosition,
    pub(crate) idle: Vec<PendingEntry>,
}

/// Asks, in one command, for a stream's and a group's counters, and for up to `wanted` entries that have been pending for
/// `min_idle` without a sign of life. It touches none of them.
pub(crate) fn look_around(
    connection: &mut Connection,
    consumer: &ConsumerKey,
    min_idle: Duration,
    from: &SearchPosition,
    wanted: usize,
) -> Result<Sight> {
    connection
        .command("EVAL", 9)
        .arg(LOOK_AROUND)
        .arg("1")
        .arg(&*consumer.stream_id)
        .arg(&*consumer.group)
        .number(milliseconds(min_idle))
        .arg(from.argument())
        .number(ROWS_AT_ONCE)
        .number(wanted as u64);
    connection.request()?.decode("EVAL", |reply| {
        if reply.array()? != Some(3) {
            return Err("not the counters, a position and a list of pending entries");
        }
        Ok(Sight {
            progress: decode_progress(reply)?,
            next: SearchPosition(reply.bytes()?.to_vec()),
            idle: list(reply, pending_entry)?,
        })
    })
}

/// A pending entry that is to be handed out again.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    /// As it was seen: if it has changed by the time it is to be taken, it is left alone.
    pub(crate) pending: PendingEntry,
    /// The idle time that it must have had to be taken.
    pub(crate) min_idle: Duration,
    /// The number of its next hand-out, which becomes the server's count.
    pub(crate) next_hand_out: u64,
}

impl Candidate {
    pub(crate) fn id(&self) -> EntryId {
        self.pending.id
    }

    /// Whether it is to be claimed, and not just read again.
    pub(crate) fn is_claim(&self) -> bool {
        !self.min_idle.is_zero()
    }
}

/// The outcome of [`take`].
#[derive(Debug, Default)]
pub(crate) struct Taken {
    /// Each with the number of its hand-out.
    pub(crate) entries: Vec<(Entry, u64)>,
    /// Of these only the place in the pending list is left, or not even that.
    pub(crate) deleted: Vec<EntryId>,
}

/// Makes entries this consumer's and marks their next hand-out, those that are still as they were found, and reads their
/// contents (`XCLAIM` in a script, `XRANGE`), in one round trip.
pub(crate) fn take(connection: &mut Connection, consumer: &ConsumerKey, candidates: &[Candidate]) -> Result<Taken> {
    let mut command = connection
        .command("EVAL", 6 + 5 * candidates.len())
        .arg(TAKE)
        .arg("1")
        .arg(&*consumer.stream_id)
        .arg(&*consumer.group)
        .arg(&*consumer.consumer);
    for candidate in candidates {
        command = push_id(command, candidate.id())
            .arg(&candidate.pending.owner)
            .number(candidate.pending.deliveries)
            .number(candidate.next_hand_out)
            .number(milliseconds(candidate.min_idle));
    }
    drop(command);
    encode_contents(connection, &consumer.stream_id, candidates.iter().map(Candidate::id));
    connection.send()?;
    let outcome = connection.receive()?.decode("EVAL", |reply| {
        if reply.array()? != Some(2) {
            return Err("not two lists of ids");
        }
        Ok((list(reply, decode_id)?, list(reply, decode_id)?))
    });
    let contents = receive_contents(connection, candidates.len())?;
    let (taken_ids, deleted) = outcome?;
    let mut taken = Taken { entries: Vec::with_capacity(taken_ids.len()), deleted };
    let mut taken_ids = taken_ids.into_iter().peekable();
    // The script keeps the order in which it was asked.
    for (candidate, content) in candidates.iter().zip(contents) {
        if taken_ids.next_if_eq(&candidate.id()).is_some() {
            match content {
                Some(entry) => taken.entries.push((entry, candidate.next_hand_out)),
                None => taken.deleted.push(candidate.id()),
            }
        }
    }
    Ok(taken)
}

/// The contents of these entries, in one round trip (`XRANGE`); none for those that the stream no longer holds.
pub(crate) fn contents(connection: &mut Connection, stream_id: &str, ids: &[EntryId]) -> Result<Vec<Option<Entry>>> {
    encode_contents(connection, stream_id, ids.iter().copied());
    connection.send()?;
    receive_contents(connection, ids.len())
}

fn encode_contents(connection: &mut Connection, stream_id: &str, ids: impl Iterator<Item = EntryId>) {
    for id in ids {
        push_id(push_id(connection.command("XRANGE", 4).arg(stream_id), id), id);
    }
}

fn receive_contents(connection: &mut Connection, count: usize) -> Result<Vec<Option<Entry>>> {
    let mut contents = Vec::with_capacity(count);
    let mut refusal = None;
    // All replies are taken, so that none is left for the next command.
    for _ in 0..count {
        match connection.receive()?.decode("XRANGE", entries) {
            Ok(mut entries) => contents.push(entries.pop()),
            Err(error @ Error::Server { .. }) => refusal = Some(error),
            Err(error) => return Err(error),
        }
    }
    refusal.map_or(Ok(contents), Err)
}

/// What [`keep`] and [`look_after`] learn about entries that are not, or no longer, pending for this consumer.
#[derive(Debug, Default)]
pub(crate) struct NotOurs {
    /// Pending for another consumer.
    pub(crate) taken_over: Vec<EntryId>,
    /// Pending for nobody: acknowledged, or lost with the group.
    pub(crate) settled: Vec<EntryId>,
}

/// Makes entries look as if they had just been delivered, those that are pending for this consumer, so that nobody claims
/// them. The others are left alone and returned.
pub(crate) fn keep(connection: &mut Connection, consumer: &ConsumerKey, ids: &[EntryId]) -> Result<NotOurs> {
    find_not_ours(connection, consumer, b"0", ids)
}

/// As [`keep`], but touches none of them.
pub(crate) fn look_after(connection: &mut Connection, consumer: &ConsumerKey, ids: &[EntryId]) -> Result<NotOurs> {
    find_not_ours(connection, consumer, b"", ids)
}

fn find_not_ours(connection: &mut Connection, consumer: &ConsumerKey, idle: &[u8], ids: &[EntryId]) -> Result<NotOurs> {
    let mut command = connection
        .command("EVAL", 7 + ids.len())
        .arg(KEEP)
        .arg("1")
        .arg(&*consumer.stream_id)
        .arg(&*consumer.group)
        .arg(&*consumer.consumer)
        .arg(idle);
    for id in ids {
        command = push_id(command, *id);
    }
    drop(command);
    connection.request()?.decode("EVAL", |reply| {
        if reply.array()? != Some(2) {
            return Err("not two lists of ids");
        }
        Ok(NotOurs { taken_over: list(reply, decode_id)?, settled: list(reply, decode_id)? })
    })
}

/// A delivery that is given back: its entry, the server's count, and the count that it goes back with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GivenBack {
    pub(crate) id: EntryId,
    pub(crate) deliveries: u64,
    pub(crate) counted: u64,
}

/// Makes entries look as if they had lain idle for `idle`, and writes their counts, those that are still these deliveries:
/// with `claim_idle`, the next who looks takes them. How many there were.
pub(crate) fn give_back(
    connection: &mut Connection,
    consumer: &ConsumerKey,
    idle: Duration,
    deliveries: &[GivenBack],
) -> Result<u64> {
    let mut command = connection
        .command("EVAL", 7 + 3 * deliveries.len())
        .arg(GIVE_BACK)
        .arg("1")
        .arg(&*consumer.stream_id)
        .arg(&*consumer.group)
        .arg(&*consumer.consumer)
        .number(milliseconds(idle));
    for delivery in deliveries {
        command = push_id(command, delivery.id).number(delivery.deliveries).number(delivery.counted);
    }
    drop(command);
    connection.request()?.decode("EVAL", integer)
}

/// Makes entries pending for this consumer as after their first delivery, whether or not they are pending now
/// (`XCLAIM ... FORCE`).
pub(crate) fn make_pending(connection: &mut Connection, consumer: &ConsumerKey, ids: &[EntryId]) -> Result<()> {
    let mut command = connection
        .command("XCLAIM", 9 + ids.len())
        .arg(&*consumer.stream_id)
        .arg(&*consumer.group)
        .arg(&*consumer.consumer)
        .arg("0");
    for id in ids {
        command = push_id(command, *id);
    }
    command.arg("RETRYCOUNT").arg("1").arg("FORCE").arg("JUSTID");
    connection.request()?.decode("XCLAIM", |_| Ok(()))
}

fn list<'a, T>(
    reply: &mut Cursor<'a>,
    mut element: impl FnMut(&mut Cursor<'a>) -> Result<T, Malformed>,
) -> Result<Vec<T>, Malformed> {
    let count = reply.array()?.unwrap_or_default();
    (0..count).map(|_| element(reply)).collect()
}
