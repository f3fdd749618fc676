//! `XADD`.

use super::{conclude_refresh, receive_refresh};
use crate::connection::Connection;
use crate::endpoint::{AddStart, Retention, StreamOutput};
use crate::entry::{Message, PAYLOAD_FIELD};
use crate::entry_id::EntryId;
use crate::error::{Error, Result};
use crate::resp::{Command, Token, header, push_argument};

/// Encodes `XADD stream [MAXLEN|MINID ...] * field value ...`. What is the same for all messages to a stream is encoded once.
pub(crate) fn encode_add(request: &mut Vec<u8>, output: &StreamOutput, message: &Message<'_>) {
    let start = output.add_start.get_or_init(|| encode_start(output));
    if let Some(payload) = message.payload() {
        request.extend_from_slice(&start.with_payload);
        push_argument(request, payload);
        return;
    }
    header(request, b'*', start.arguments + 2 * message.len());
    request.extend_from_slice(&start.without_fields);
    message.for_each_field(|name, value| {
        push_argument(request, name);
        push_argument(request, value);
    });
}

fn encode_start(output: &StreamOutput) -> AddStart {
    let arguments = 3 + retention_arguments(output.retention);
    let mut without_fields = Vec::new();
    let command = Command::part(&mut without_fields, arguments);
    push_add(&mut command.arg("XADD").arg(&*output.stream_id), output, |_| {});
    let mut with_payload = Vec::new();
    header(&mut with_payload, b'*', arguments + 2);
    with_payload.extend_from_slice(&without_fields);
    push_argument(&mut with_payload, PAYLOAD_FIELD);
    AddStart { with_payload, without_fields, arguments }
}

/// The reply to [`encode_add`].
pub(crate) fn receive_id(connection: &mut Connection, command: &'static str) -> Result<EntryId> {
    connection
        .receive()?
        .decode_string(command, |id| EntryId::from_bytes(id).ok_or("an entry id that is not milliseconds-sequence"))
}

pub(super) fn add_fields(
    connection: &mut Connection,
    output: &StreamOutput,
    fields: &[(&[u8], &[u8])],
) -> Result<EntryId> {
    let arguments = 3 + retention_arguments(output.retention) + 2 * fields.len();
    let mut command = connection.command("XADD", arguments).arg(&*output.stream_id);
    push_add(&mut command, output, |command| push_fields(command, fields));
    drop(command);
    connection.send()?;
    receive_id(connection, "XADD")
}

pub(super) fn optional_new_id(connection: &mut Connection) -> Result<Option<EntryId>> {
    connection.request()?.decode("EVAL", |reply| match reply.next()? {
        Token::Nil => Ok(None),
        Token::Bulk(id) | Token::Simple(id) => {
            EntryId::from_bytes(id).map(Some).ok_or("an entry id that is not milliseconds-sequence")
        }
        _ => Err("something else where an entry id belongs"),
    })
}

pub(super) fn retention_arguments(retention: Retention) -> usize {
    if retention == Retention::All { 0 } else { 3 }
}

/// The arguments of `XADD` behind the key: what to keep, `*`, and the fields.
pub(super) fn push_add(command: &mut Command<'_>, output: &StreamOutput, fields: impl FnOnce(&mut Command<'_>)) {
    match output.retention {
        Retention::All => {}
        Retention::ApproximateLength(entries) => push_retention(command, ["MAXLEN", "~"], &entries.to_string()),
        Retention::ExactLength(entries) => push_retention(command, ["MAXLEN", "="], &entries.to_string()),
        Retention::MinId(id) => push_retention(command, ["MINID", "="], &id.to_string()),
    }
    command.push(b"*");
    fields(command);
}

fn push_retention(command: &mut Command<'_>, how: [&str; 2], threshold: &str) {
    for argument in how {
        command.push(argument.as_bytes());
    }
    command.push(threshold.as_bytes());
}

pub(super) fn push_fields(command: &mut Command<'_>, fields: &[(&[u8], &[u8])]) {
    for (name, value) in fields {
        command.push(name);
        command.push(value);
    }
}

/// Takes the reply to the refresh that went along, if one did.
pub(crate) fn conclude_add(connection: &mut Connection, output: &StreamOutput) {
    if let (Some(ttl), false) = (output.ttl, connection.has_failed()) {
        let refresh = receive_refresh(connection);
        conclude_refresh(connection, &output.stream_id, ttl, refresh);
    }
}

pub(crate) fn check_message(message: &Message<'_>) -> Result<()> {
    if message.len() == 0 {
        return Err(Error::params("message", "no field; an entry needs at least one"));
    }
    Ok(())
}
