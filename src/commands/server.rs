//! The server itself: which run of it this is, and other connections to it.

use super::integer;
use crate::connection::Connection;
use crate::entry::{self, EntryId};
use crate::error::{Error, Result};
use crate::net::Deadline;
use crate::resp::Token;

/// What names one run of the server (`INFO server`): client ids begin again with the next. `None`: it does not tell this
/// user.
pub(crate) fn run_id(connection: &mut Connection) -> Result<Option<Box<str>>> {
    connection.command("INFO", 2).arg("server");
    let told = connection.request()?.decode("INFO", |reply| {
        let text = match reply.next()? {
            Token::Bulk(text) | Token::Verbatim(text) => std::str::from_utf8(text).unwrap_or_default(),
            _ => return Err("something else where a text belongs"),
        };
        Ok(text.lines().find_map(|line| line.strip_prefix("run_id:")).map(|id| id.trim().into()))
    });
    match told {
        Err(Error::Server { .. }) if !connection.is_broken() => Ok(None),
        told => told,
    }
}

/// Closes another connection at the server, whatever it waits for (`CLIENT KILL`, or else `CLIENT UNBLOCK`). `false`: the
/// server allows this user neither.
pub(crate) fn end_client(connection: &mut Connection, client_id: u64) -> Result<bool> {
    connection.command("CLIENT", 4).arg("KILL").arg("ID").number(client_id);
    match connection.request()?.decode("CLIENT KILL", integer) {
        Ok(_) => return Ok(true),
        Err(Error::Server { .. }) if !connection.is_broken() => {}
        Err(error) => return Err(error),
    }
    let deadline = connection.command_deadline();
    match unblock(connection, client_id, deadline) {
        Ok(_) => Ok(true),
        Err(Error::Server { .. }) if !connection.is_broken() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Wakes another connection's blocked read: it ends as if its time were up (`CLIENT UNBLOCK`). `false`: it was not blocked.
pub(crate) fn unblock(connection: &mut Connection, client_id: u64, deadline: Deadline) -> Result<bool> {
    connection.command("CLIENT", 3).arg("UNBLOCK").number(client_id);
    connection.send_until(deadline)?;
    Ok(connection.receive()?.decode("CLIENT UNBLOCK", integer)? == 1)
}

/// The id of the last entry that a stream holds (`XREVRANGE`); `None` if it holds none.
pub(crate) fn last_entry_id(connection: &mut Connection, stream_id: &str) -> Result<Option<EntryId>> {
    connection.command("XREVRANGE", 6).arg(stream_id).arg("+").arg("-").arg("COUNT").arg("1");
    let entries = connection.request()?.decode("XREVRANGE", entry::entries)?;
    Ok(entries.first().map(entry::Entry::id))
}
