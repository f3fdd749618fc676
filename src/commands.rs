//! The stream commands that more than one part of the crate issues, one function each, on one connection.
//!
//! What must hold between two steps (a key is a stream, an entry is still ours, a copy is written before the original goes)
//! is a small script: the server runs it as one step, and `MULTI` would go on after a step that failed.
//! See <https://redis.io/docs/latest/develop/programmability/eval-intro/>.

mod add;
mod expiry;
mod pending;
mod progress;
mod read;
mod redelivery;
mod server;

use redis::ServerErrorKind;

use crate::entry_id::EntryId;
use crate::error::Error;
use crate::resp::{Command, Cursor, Malformed, Token};

pub(crate) use add::{Buried, bury, dead_letter, encode_add, receive_id, requeue};
pub(crate) use expiry::{conclude_refresh, encode_refresh, receive_refresh, refresh, set_expiry};
pub(crate) use pending::{
    PendingEntry, autoclaim, delete_consumer_without_pending, delivery_counts, group_exists, own_pending,
};
pub(crate) use progress::StreamProgress;
pub(crate) use read::{ack, create_group, receive_acked, receive_read, send_read};
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

fn is_forbidden(error: &Error) -> bool {
    matches!(error, Error::Server { source, .. } if source.kind() == redis::ErrorKind::Server(ServerErrorKind::NoPerm))
}
