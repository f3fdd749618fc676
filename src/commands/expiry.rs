//! The expiry of streams, and of nothing else.

use std::time::Duration;

use super::{integer, is_forbidden};
use crate::connection::Connection;
use crate::endpoint::milliseconds;
use crate::error::Result;

/// Sets the expiry of KEYS[1] only if it is a stream: an `EXPIRE` sent blindly behind an `XADD` that is refused with
/// WRONGTYPE would put a lifetime on somebody else's data.
const EXPIRE_STREAM: &str =
    "if redis.call('TYPE',KEYS[1]).ok=='stream' then return redis.call('PEXPIRE',KEYS[1],ARGV[1]) end return 0";

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
pub(crate) fn conclude_refresh(connection: &mut Connection, stream_id: &str, ttl: Duration, refresh: Result<Refresh>) {
    let finished = refresh.and_then(|refresh| finish_refresh(connection, stream_id, ttl, refresh));
    if let Err(error) = finished {
        log::warn!("the expiry of stream {stream_id} was not refreshed: {error}");
    }
}
