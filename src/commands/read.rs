//! Groups: creating them, reading as one of their consumers, acknowledging.

use std::time::Duration;

use super::entries::{Received, received};
use super::{conclude_refresh, encode_refresh, integer, push_id, receive_refresh};
use crate::connection::Connection;
use crate::endpoint::{ConsumerKey, StartId, StreamInput, milliseconds};
use crate::entry_id::EntryId;
use crate::error::Result;

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

/// Sends, in this order, acknowledgements of what is `done`, a refresh of the stream's expiry, and
/// `XREADGROUP GROUP group consumer COUNT count [BLOCK milliseconds] STREAMS stream >` for entries that no consumer of the
/// group has seen. The first two do not wait for the third. [`receive_acked`] and [`receive_read`] take the
/// replies.
pub(crate) fn send_read(
    connection: &mut Connection,
    key: &ConsumerKey,
    done: impl ExactSizeIterator<Item = EntryId>,
    count: usize,
    block: Option<Duration>,
    ttl: Option<Duration>,
) -> Result<()> {
    if done.len() > 0 {
        encode_ack(connection, key, done);
    }
    if let Some(ttl) = ttl {
        encode_refresh(connection, &key.stream_id, ttl);
    }
    let arguments = 9 + if block.is_some() { 2 } else { 0 };
    let mut command = connection
        .command("XREADGROUP", arguments)
        .arg("GROUP")
        .arg(&*key.group)
        .arg(&*key.consumer)
        .arg("COUNT")
        .number(u64::try_from(count).unwrap_or(u64::MAX).min(i64::MAX as u64));
    if let Some(block) = block {
        // BLOCK 0 would wait for ever.
        command = command.arg("BLOCK").number(milliseconds(block).max(1));
    }
    command.arg("STREAMS").arg(&*key.stream_id).arg(">");
    connection.send_blocking(block.unwrap_or_default())
}

/// The reply to the acknowledgements of [`send_read`], if there were any. It comes at once, however long the read waits.
pub(crate) fn receive_acked(connection: &mut Connection) -> Result<()> {
    receive_ack(connection).map(drop)
}

/// The other replies to [`send_read`], which was given the same `ttl`.
pub(crate) fn receive_read(connection: &mut Connection, key: &ConsumerKey, ttl: Option<Duration>) -> Result<Received> {
    let Some(ttl) = ttl else { return receive_entries(connection) };
    let refresh = match receive_refresh(connection) {
        Err(error) if connection.has_failed() => return Err(error),
        refresh => refresh,
    };
    let entries = receive_entries(connection)?;
    conclude_refresh(connection, &key.stream_id, ttl, refresh);
    Ok(entries)
}

fn receive_entries(connection: &mut Connection) -> Result<Received> {
    connection.receive()?.decode("XREADGROUP", received)
}

/// Encodes `XACK stream group id...`.
pub(super) fn encode_ack(connection: &mut Connection, key: &ConsumerKey, ids: impl ExactSizeIterator<Item = EntryId>) {
    let mut command = connection.command("XACK", 3 + ids.len()).arg(&*key.stream_id).arg(&*key.group);
    for id in ids {
        command = push_id(command, id);
    }
}

/// Acknowledges entries; how many of them were pending.
pub(crate) fn ack(
    connection: &mut Connection,
    key: &ConsumerKey,
    ids: impl ExactSizeIterator<Item = EntryId>,
) -> Result<u64> {
    encode_ack(connection, key, ids);
    connection.send()?;
    receive_ack(connection)
}

/// The reply to [`encode_ack`].
fn receive_ack(connection: &mut Connection) -> Result<u64> {
    connection.receive()?.decode("XACK", integer)
}

/// The longest single wait at the server. A longer `wait_timeout` is made of several, so that a connection which died
/// silently is noticed.
pub(crate) const LONGEST_BLOCK: Duration = Duration::from_secs(30);

/// How long the next read may wait at the server: not at all when no time is left, and never so long that the stream would
/// expire meanwhile.
pub(crate) fn next_block(left: Duration, ttl: Option<Duration>) -> Option<Duration> {
    let longest = ttl.map_or(LONGEST_BLOCK, |ttl| LONGEST_BLOCK.min(ttl / 2));
    Some(left.min(longest)).filter(|block| !block.is_zero())
}

/// Entries that were trimmed or deleted while pending can only be taken off the pending list.
pub(crate) fn acknowledge_deleted(connection: &mut Connection, key: &ConsumerKey, deleted: &[EntryId]) -> Result<()> {
    if let (Some(first), false) = (deleted.first(), deleted.is_empty()) {
        log::warn!(
            "{} entries of stream {} were trimmed or deleted while pending for group {}, the first of them {first}",
            deleted.len(),
            key.stream_id,
            key.group,
        );
        ack(connection, key, deleted.iter().copied())?;
    }
    Ok(())
}

/// The most entries that one call may ask for. The reply is bounded by [`max_reply`](crate::PoolParams::max_reply) besides.
pub(crate) const MOST_ENTRIES: usize = 1 << 20;
