//! The expiry of streams, and of nothing else.

use std::time::Duration;

use super::{integer, is_forbidden};
use crate::connection::Connection;
use crate::endpoint::milliseconds;
use crate::error::Result;
use crate::log_later::log_later;

/// Gives KEYS[1] at least ARGV[1] milliseconds to live, only if it is a stream: an `EXPIRE` sent blindly behind an `XADD`
/// that is refused with WRONGTYPE would put a lifetime on somebody else's data. A longer lifetime stays: it is that of
/// another reader or publisher. (`EXPIRE ... GT` came with Redis 7.0, and never sets the first lifetime.)
const EXTEND_STREAM: &str = "\
if redis.call('TYPE',KEYS[1]).ok~='stream' then return 0 end
local left=redis.call('PTTL',KEYS[1])
if left<0 or left<tonumber(ARGV[1]) then redis.call('PEXPIRE',KEYS[1],ARGV[1]) end
return 1";
/// Sets the expiry of KEYS[1], whatever it was, only if it is a stream.
const EXPIRE_STREAM: &str =
    "if redis.call('TYPE',KEYS[1]).ok=='stream' then return redis.call('PEXPIRE',KEYS[1],ARGV[1]) end return 0";

/// Whether a longer lifetime than the one asked for stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Longer {
    Stays,
    IsReplaced,
}

/// Encodes the refreshing of a stream's expiry. [`receive_refresh`] takes the reply.
pub(crate) fn encode_refresh(connection: &mut Connection, stream_id: &str, ttl: Duration) {
    encode_script(connection, EXTEND_STREAM, stream_id, ttl);
}

fn encode_script(connection: &mut Connection, script: &str, stream_id: &str, ttl: Duration) {
    connection.command("EVAL", 5).arg(script).arg("1").arg(stream_id).number(milliseconds(ttl));
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
    expire(connection, EXTEND_STREAM, stream_id, ttl, Longer::Stays)
}

/// Sets a stream's expiry, which may be shorter than it was; whether there is such a stream.
pub(crate) fn set_expiry(connection: &mut Connection, stream_id: &str, ttl: Duration) -> Result<bool> {
    expire(connection, EXPIRE_STREAM, stream_id, ttl, Longer::IsReplaced)
}

fn expire(connection: &mut Connection, script: &str, stream_id: &str, ttl: Duration, longer: Longer) -> Result<bool> {
    encode_script(connection, script, stream_id, ttl);
    connection.send()?;
    let refresh = receive_refresh(connection)?;
    finish_refresh(connection, stream_id, ttl, refresh, longer)
}

/// Where scripts are forbidden, plain commands do it, at the cost of their round trips, within the time that the call has
/// left. Only for a connection that is owed no reply.
fn finish_refresh(
    connection: &mut Connection,
    stream_id: &str,
    ttl: Duration,
    refresh: Refresh,
    longer: Longer,
) -> Result<bool> {
    if refresh != Refresh::NoScripts {
        return Ok(refresh == Refresh::Done);
    }
    connection.command("TYPE", 2).arg(stream_id);
    let is_stream = connection.request_in_time_left()?.decode("TYPE", |reply| Ok(reply.bytes()? == b"stream"))?;
    if !is_stream {
        return Ok(false);
    }
    if longer == Longer::Stays {
        connection.command("PTTL", 2).arg(stream_id);
        // A negative number means that there is no lifetime.
        let left = connection.request_in_time_left()?.decode("PTTL", |reply| Ok(integer(reply).unwrap_or_default()))?;
        if left >= milliseconds(ttl) {
            return Ok(true);
        }
    }
    connection.command("PEXPIRE", 3).arg(stream_id).number(milliseconds(ttl));
    Ok(connection.request_in_time_left()?.decode("PEXPIRE", integer)? == 1)
}

/// Takes the outcome of a refresh that went along with a command. The command has done its work, so a refresh that failed
/// is told, and does not make the command fail.
pub(crate) fn conclude_refresh(connection: &mut Connection, stream_id: &str, ttl: Duration, refresh: Result<Refresh>) {
    let finished = refresh.and_then(|refresh| finish_refresh(connection, stream_id, ttl, refresh, Longer::Stays));
    if let Err(error) = finished {
        log_later!(Warn, "the expiry of stream {stream_id} was not refreshed: {error}");
    }
}
