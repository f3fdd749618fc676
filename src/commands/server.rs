//! The server itself: which run of it this is, and other connections to it.

use super::entries::entries;
use super::integer;
use super::read::{encode_ack, receive_acked};
use crate::connection::Connection;
use crate::deadline::Deadline;
use crate::endpoint::ConsumerKey;
use crate::entry::Entry;
use crate::entry_id::EntryId;
use crate::error::{Error, Result};

/// Only the line that is wanted: all of `INFO server` is a long reply for a slow line.
const RUN_ID: &str = "return string.match(redis.call('INFO','server'),'run_id:(%x+)') or ''";

/// What names one run of the server (`INFO server`, in a script): client ids begin again with the next. `None`: it does not
/// tell this user.
pub(crate) fn run_id(connection: &mut Connection) -> Result<Option<Box<str>>> {
    connection.command("EVAL", 3).arg(RUN_ID).arg("0");
    let told = connection.request()?.decode("EVAL", |reply| {
        let run_id = std::str::from_utf8(reply.bytes()?).unwrap_or_default();
        Ok(Some(run_id).filter(|run_id| !run_id.is_empty()).map(Into::into))
    });
    match told {
        Err(Error::Server { .. }) if connection.is_reusable() => Ok(None),
        told => told,
    }
}

/// Closes another connection of this consumer at the server, whatever it waits for (`CLIENT KILL`, or else
/// `CLIENT UNBLOCK`). `false`: the server allows this user neither, or it could not be unblocked: its read may be yet to come.
pub(crate) fn end_client(connection: &mut Connection, consumer: &ConsumerKey, client_id: u64) -> Result<bool> {
    connection.command("CLIENT", 4).arg("KILL").arg("ID").number(client_id);
    match connection.request()?.decode("CLIENT KILL", integer) {
        Ok(_) => return Ok(true),
        Err(Error::Server { .. }) if connection.is_reusable() => {}
        Err(error) => return Err(error),
    }
    let deadline = connection.command_deadline();
    match unblock(connection, consumer, client_id, deadline) {
        Err(Error::Server { .. }) if connection.is_reusable() => Ok(false),
        unblocked => unblocked,
    }
}

/// Wakes a blocked read of this consumer on another connection: it ends as if its time were up (`CLIENT UNBLOCK`). `false`:
/// it was not blocked.
///
/// While a server holds back what writes (`CLIENT PAUSE ... WRITE`, a failover), a read that is held back looks blocked, and
/// Redis up to 7.0 ends itself when it is to unblock one. So something that writes, if nothing worth the name, goes ahead in
/// the same packet: it is held back as well, and with it what follows on this connection.
pub(crate) fn unblock(
    connection: &mut Connection,
    consumer: &ConsumerKey,
    client_id: u64,
    deadline: Deadline,
) -> Result<bool> {
    encode_ack(connection, consumer, std::iter::once(EntryId::MIN));
    connection.command("CLIENT", 3).arg("UNBLOCK").number(client_id);
    connection.send_until(deadline)?;
    match receive_acked(connection) {
        Err(error) if connection.has_failed() => return Err(error),
        _ => {}
    }
    Ok(connection.receive()?.decode("CLIENT UNBLOCK", integer)? == 1)
}

/// The id of the last entry that a stream holds (`XREVRANGE`); `None` if it holds none.
pub(crate) fn last_entry_id(connection: &mut Connection, stream_id: &str) -> Result<Option<EntryId>> {
    connection.command("XREVRANGE", 6).arg(stream_id).arg("+").arg("-").arg("COUNT").arg("1");
    let entries = connection.request()?.decode("XREVRANGE", entries)?;
    Ok(entries.first().map(Entry::id))
}
