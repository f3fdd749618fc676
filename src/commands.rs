//! The stream commands that more than one part of the crate issues, one function each, on one connection.
//!
//! What must hold between two steps (a key is a stream, an entry is still ours, a copy is written before the original goes)
//! is a small script: the server runs it as one step, and `MULTI` would go on after a step that failed.
//! See <https://redis.io/docs/latest/develop/programmability/eval-intro/>.

mod add;
mod dead_letters;
mod entries;
mod expiry;
mod info;
mod pending;
mod progress;
mod read;
mod redelivery;
mod server;

use redis::ServerErrorKind;

use crate::entry_id::EntryId;
use crate::error::Error;
use crate::resp::{Command, Cursor, Malformed, Token};

pub(crate) use add::{check_message, conclude_add, encode_add, receive_id};
pub(crate) use dead_letters::{Buried, bury, dead_letter, requeue};
pub(crate) use entries::{Received, entries};
#[cfg(any(fuzzing, test))]
pub(crate) use entries::{claimed, received};
pub(crate) use expiry::{conclude_refresh, encode_refresh, receive_refresh, refresh, set_expiry};
pub use info::{ConsumerPending, GroupInfo, Pending, StreamInfo};
pub(crate) use info::{pending_summary, stream_info};
pub(crate) use pending::{
    PendingEntry, autoclaim, delete_consumer_without_pending, delivery_counts, group_exists, own_pending,
};
pub(crate) use progress::StreamProgress;
pub(crate) use read::{
    MOST_ENTRIES, ack, acknowledge_deleted, create_group, next_block, receive_acked, receive_read, send_read,
};
pub(crate) use redelivery::{
    Candidate, GivenBack, NotOurs, SearchPosition, contents, give_back, keep, look_after, look_around, make_pending,
    take,
};
pub(crate) use server::{end_client, last_entry_id, run_id, unblock};

fn push_id(mut command: Command<'_>, id: EntryId) -> Command<'_> {
    command.push(id.format(&mut [0; EntryId::LONGEST]));
    command
}

fn integer(reply: &mut Cursor<'_>) -> Result<u64, Malformed> {
    match reply.next()? {
        Token::Int(number) => u64::try_from(number).map_err(|_| "a negative number"),
        _ => Err("something else where a number belongs"),
    }
}

fn decode_id(reply: &mut Cursor<'_>) -> Result<EntryId, Malformed> {
    EntryId::from_bytes(reply.bytes()?).ok_or("an entry id that is not milliseconds-sequence")
}

/// A number, where a server that does not know it says null or nothing.
fn optional_number(reply: &mut Cursor<'_>) -> Result<Option<u64>, Malformed> {
    match reply.next()? {
        Token::Int(number) => Ok(u64::try_from(number).ok()),
        Token::Bulk(text) | Token::Simple(text) => {
            Ok(std::str::from_utf8(text).ok().and_then(|text| text.parse().ok()))
        }
        Token::Nil => Ok(None),
        _ => Err("something else where a number belongs"),
    }
}

/// An id, or null or nothing where there is none.
fn optional_id(reply: &mut Cursor<'_>) -> Result<Option<EntryId>, Malformed> {
    match reply.next()? {
        Token::Bulk(id) | Token::Simple(id) => Ok(EntryId::from_bytes(id)),
        Token::Nil => Ok(None),
        _ => Err("something else where an entry id belongs"),
    }
}

fn is_forbidden(error: &Error) -> bool {
    matches!(error, Error::Server { source, .. } if source.kind() == redis::ErrorKind::Server(ServerErrorKind::NoPerm))
}
