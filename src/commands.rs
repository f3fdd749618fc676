//! The stream commands that more than one part of the crate issues, one function each, on one connection.
//!
//! What must hold between two steps (a key is a stream, an entry is still ours, a copy is written before the original goes)
//! is a small script: the server runs it as one step, and `MULTI` would go on after a step that failed.
//! See <https://redis.io/docs/latest/develop/programmability/eval-intro/>.

mod adding;
mod expiry;
mod pending;
mod position;
mod reading;

use redis::ServerErrorKind;

use crate::entry::EntryId;
use crate::error::Error;
use crate::resp::{Command, Cursor, Malformed, Token};

pub(crate) use adding::{dead_letter, encode_add, receive_id, requeue};
pub(crate) use expiry::{conclude_refresh, encode_refresh, receive_refresh, refresh};
pub(crate) use pending::{
    autoclaim, claim, delete_consumer_without_pending, delivery_counts, missing_from_stream, own_pending, set_idle,
};
pub(crate) use position::{StreamPosition, position};
pub(crate) use reading::{ack, create_group, receive_acked, receive_read, send_read, unblock};

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

fn is_forbidden(error: &Error) -> bool {
    matches!(error, Error::Server { source, .. } if source.kind() == redis::ErrorKind::Server(ServerErrorKind::NoPerm))
}
