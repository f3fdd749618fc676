//! A connection as the `redis` crate's own is: what its commands, pipelines and typed methods stand on.

use redis::{Cmd, ConnectionLike, ErrorKind, RedisError, RedisResult, Value};

use super::Connection;
use super::state::Request;
use crate::params::Protocol;
use crate::resp::{Cursor, error_value};

/// Which commands the server answers, by `CLIENT REPLY`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Answers {
    #[default]
    All,
    AllButTheNext,
    None,
}

impl ConnectionLike for Connection {
    fn req_command(&mut self, command: &Cmd) -> RedisResult<Value> {
        let packed = command.get_packed_command();
        if command.is_no_response() { self.send_unawaited(command, &packed) } else { self.req_packed_command(&packed) }
    }

    fn req_packed_command(&mut self, command: &[u8]) -> RedisResult<Value> {
        if command.is_empty() || command == b"*0\r\n" {
            return Err(empty_command());
        }
        let request = self.pass_on(command);
        let is_answered = self.is_answered(command);
        if is_answered {
            // Several commands have several replies, though only one is asked for here.
            self.owed += request.commands.max(1);
        }
        self.send()?;
        if is_answered { self.receive_for(&request, 0) } else { Ok(Value::Nil) }
    }

    fn req_packed_commands(&mut self, commands: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        if commands.is_empty() || answered_commands(commands).is_some_and(|answered| answered < offset + count) {
            return Err(empty_command());
        }
        if self.answers != Answers::All {
            let silenced = "the server was told not to answer (CLIENT REPLY), and a pipeline waits for answers";
            return Err(RedisError::from((ErrorKind::Client, silenced)));
        }
        let request = self.pass_on(commands);
        self.owed += request.commands.max(offset + count);
        self.send()?;
        // All replies are read even when one is an error, so that none is left for the next command.
        let mut queued = Vec::with_capacity(offset);
        for number in 0..offset {
            queued.push(self.receive_for(&request, number)?);
        }
        let mut values = Vec::with_capacity(count);
        for number in offset..offset + count {
            values.push(self.receive_for(&request, number)?);
        }
        match queued.iter().position(is_error) {
            None => Ok(values),
            Some(first) => Err(aborted(queued, first, values.pop())),
        }
    }

    fn get_db(&self) -> i64 {
        self.db
    }

    fn check_connection(&mut self) -> bool {
        if self.answers == Answers::None {
            return self.is_open() && self.socket.has_data().is_ok();
        }
        let deadline = self.command_deadline();
        self.is_open() && self.ping(deadline).is_ok()
    }

    fn is_open(&self) -> bool {
        !self.broken && self.write_failure.is_none()
    }
}

impl Connection {
    /// Appends what somebody else has encoded, and takes note of what it may leave behind.
    fn pass_on(&mut self, commands: &[u8]) -> Request {
        // Any time may have passed since the connection was lent.
        self.looked_at = false;
        self.request.extend_from_slice(commands);
        self.loan.sending(commands, self.db)
    }

    fn receive_for(&mut self, request: &Request, number: usize) -> RedisResult<Value> {
        let value = self.receive_value()?;
        self.loan.answered(request, number, &value);
        Ok(value)
    }

    /// Sends a command whose answer, if there will be one, nobody waits for.
    fn send_unawaited(&mut self, command: &Cmd, packed: &[u8]) -> RedisResult<Value> {
        if packed.is_empty() {
            return Err(empty_command());
        }
        let is_answered = self.is_answered(packed) && !self.is_confirmed_by_pushes(command);
        self.pass_on(packed);
        self.send()?;
        self.unawaited += usize::from(is_answered);
        Ok(Value::Nil)
    }

    /// Whether the server answers this command, which is to be sent now.
    fn is_answered(&mut self, command: &[u8]) -> bool {
        let (is_answered, afterwards) = match (self.answers, client_reply(command)) {
            (_, Some(Answers::All)) => (true, Answers::All),
            (Answers::None, Some(Answers::AllButTheNext)) => (false, Answers::None),
            (_, Some(silence)) => (false, silence),
            (Answers::All, None) => (true, Answers::All),
            (Answers::AllButTheNext, None) => (false, Answers::All),
            (Answers::None, None) => (false, Answers::None),
        };
        self.answers = afterwards;
        is_answered
    }

    /// Whether this is a subscription, which RESP3 confirms by pushes, one for each channel, and by no reply.
    fn is_confirmed_by_pushes(&self, command: &Cmd) -> bool {
        const NAMES: [&[u8]; 6] =
            [b"SUBSCRIBE", b"PSUBSCRIBE", b"SSUBSCRIBE", b"UNSUBSCRIBE", b"PUNSUBSCRIBE", b"SUNSUBSCRIBE"];
        let is_subscription = |name: &[u8]| NAMES.iter().any(|known| known.eq_ignore_ascii_case(name));
        self.protocol == Protocol::Resp3
            && matches!(command.args_iter().next(), Some(redis::Arg::Simple(name)) if is_subscription(name))
    }
}

/// What a `CLIENT REPLY` asks for.
fn client_reply(command: &[u8]) -> Option<Answers> {
    const START: &[u8] = b"*3\r\n$6\r\nCLIENT\r\n$5\r\nREPLY\r\n";
    let (start, mode) = command.split_at_checked(START.len())?;
    if !start.eq_ignore_ascii_case(START) {
        return None;
    }
    let modes: [(&[u8], Answers); 3] = [
        (b"$2\r\nON\r\n", Answers::All),
        (b"$3\r\nOFF\r\n", Answers::None),
        (b"$4\r\nSKIP\r\n", Answers::AllButTheNext),
    ];
    modes.into_iter().find(|(known, _)| known.eq_ignore_ascii_case(mode)).map(|(_, answers)| answers)
}

/// How many of these commands the server answers: it passes over an empty one in silence. `None` when they are not encoded as
/// the `redis` crate does.
fn answered_commands(commands: &[u8]) -> Option<usize> {
    let mut cursor = Cursor::new(commands);
    let mut answered = 0;
    while !cursor.is_at_end() {
        let arguments = cursor.array().ok()??;
        for _ in 0..arguments {
            cursor.bytes().ok()?;
        }
        answered += usize::from(arguments > 0);
    }
    Some(answered)
}

/// What the `redis` crate itself refuses without sending it.
fn empty_command() -> RedisError {
    RedisError::from((ErrorKind::Client, "empty command"))
}

fn is_error(value: &Value) -> bool {
    matches!(value, Value::ServerError(_))
}

/// The error of a transaction in which a command could not be queued: `EXECABORT`, with every cause at its place behind the
/// `MULTI`. Only a pipeline of the `redis` crate makes an error of several, so one that has these replies is asked for it.
fn aborted(mut queued: Vec<Value>, first: usize, exec: Option<Value>) -> RedisError {
    if first == 0 {
        // Without a `MULTI` there was no transaction: what came behind it was carried out at once.
        return queued.swap_remove(0).extract_error().err().unwrap_or_else(unexplained);
    }
    let abort = match exec {
        Some(Value::ServerError(error)) if error.code() == "EXECABORT" => Value::ServerError(error),
        _ => match error_value(b"EXECABORT Transaction discarded because of previous errors.") {
            Ok(abort) => abort,
            Err(reason) => return RedisError::from((ErrorKind::Parse, reason)),
        },
    };
    if let Some(multi) = queued.first_mut() {
        *multi = abort;
    }
    redis::pipe().query::<()>(&mut Replies(queued)).err().unwrap_or_else(unexplained)
}

fn unexplained() -> RedisError {
    RedisError::from((ErrorKind::UnexpectedReturnType, "a transaction that was refused without an error"))
}

/// Has these replies to whatever it is sent.
struct Replies(Vec<Value>);

impl ConnectionLike for Replies {
    fn req_packed_command(&mut self, _: &[u8]) -> RedisResult<Value> {
        Ok(self.0.pop().unwrap_or(Value::Nil))
    }

    fn req_packed_commands(&mut self, _: &[u8], _: usize, _: usize) -> RedisResult<Vec<Value>> {
        Ok(std::mem::take(&mut self.0))
    }

    fn get_db(&self) -> i64 {
        0
    }

    fn check_connection(&mut self) -> bool {
        true
    }

    fn is_open(&self) -> bool {
        true
    }
}
