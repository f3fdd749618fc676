//! Where a stream and a group stand, as far as noticing losses needs it.

use crate::connection::Connection;
use crate::endpoint::Member;
use crate::entry::EntryId;
use crate::error::Result;
use crate::resp::{Cursor, Malformed, Token};

/// `XINFO STREAM` repeats the first and the last entry with their payloads; only ids and counters are sent here.
const POSITION: &str = "\
local function map(list)
  local properties={}
  for i=1,#list,2 do properties[list[i]]=list[i+1] end
  return properties
end
local stream=map(redis.call('XINFO','STREAM',KEYS[1]))
if not stream['entries-added'] then return false end
for _,list in ipairs(redis.call('XINFO','GROUPS',KEYS[1])) do
  local group=map(list)
  if group['name']==ARGV[1] then
    local first=stream['first-entry']
    return {stream['length'],first and first[1] or '',stream['last-generated-id'],stream['max-deleted-entry-id'],
      stream['entries-added'],group['last-delivered-id'],group['entries-read'] or ''}
  end
end
return false";

/// A stream's and a group's counters at one moment.
#[derive(Clone, Debug)]
pub(crate) struct StreamPosition {
    pub(crate) length: u64,
    pub(crate) first_id: Option<EntryId>,
    pub(crate) last_id: EntryId,
    pub(crate) max_deleted: EntryId,
    pub(crate) entries_added: u64,
    pub(crate) last_delivered: EntryId,
    pub(crate) entries_read: Option<u64>,
}

/// Asks for a stream's and a group's counters. `None`: the server does not have them, or the group is gone.
pub(crate) fn position(connection: &mut Connection, member: &Member) -> Result<Option<StreamPosition>> {
    connection.command("EVAL", 5).arg(POSITION).arg("1").arg(&*member.stream_id).arg(&*member.group);
    connection.request()?.decode("EVAL", |reply| {
        match reply.array()? {
            None => return Ok(None),
            Some(7) => {}
            Some(_) => return Err("not the seven properties that were asked for"),
        }
        Ok(Some(StreamPosition {
            length: number(reply)?.unwrap_or_default(),
            first_id: id(reply)?,
            last_id: id(reply)?.unwrap_or_default(),
            max_deleted: id(reply)?.unwrap_or_default(),
            entries_added: number(reply)?.unwrap_or_default(),
            last_delivered: id(reply)?.unwrap_or_default(),
            entries_read: number(reply)?,
        }))
    })
}

fn id(reply: &mut Cursor<'_>) -> Result<Option<EntryId>, Malformed> {
    Ok(EntryId::from_bytes(reply.bytes()?))
}

fn number(reply: &mut Cursor<'_>) -> Result<Option<u64>, Malformed> {
    match reply.next()? {
        Token::Int(number) => Ok(u64::try_from(number).ok()),
        Token::Bulk(_) | Token::Simple(_) | Token::Nil => Ok(None),
        _ => Err("something else where a number belongs"),
    }
}
