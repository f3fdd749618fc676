//! One connection: requests and replies under deadlines, and the flag that retires it after any failure.

mod commands;
mod greeting;
mod reply;
mod state;
mod unasked;

use std::fmt;
use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;

use crate::deadline::Deadline;
use crate::error::{Error, Result};
use crate::log_later::log_later;
use crate::net::{Interrupter, LastGood, Socket, is_deadline, is_hang_up};
use crate::params::{PoolParams, Protocol};
use crate::resp::{Command, Token, Unacceptable, answer_within_script, redis_error};

use commands::Answers;
pub(crate) use greeting::{Connector, Progress};
pub(crate) use reply::Reply;
use reply::ReplyBuffer;
use state::LoanState;

/// A socket's empty send buffer takes so much without waiting: Linux gives it 4 KiB at the very least.
const SURELY_BUFFERED: usize = 2 * 1024;
/// Buffers that grew beyond this for one long request or reply shrink back afterwards.
const KEPT_SIZE: usize = 1024 * 1024;

/// A connection to the server, as [`StepPool::get`](crate::StepPool::get) lends it.
///
/// It implements [`redis::ConnectionLike`], so every `redis::Cmd`, `redis::Pipeline` and typed `redis::Commands` method
/// works on it. Each call waits at most `socket_timeout` for all of its replies together; a command that makes the server
/// wait (`BLPOP`, `XREAD BLOCK`) must be told to wait for less. Commands that change what replies mean (`SUBSCRIBE`,
/// `MONITOR`, `CLIENT REPLY`) do not belong on a pooled connection. One that is not
/// [as it was lent](crate::PooledConnection) serves nobody else.
///
/// After an I/O error, a timeout or a reply that is not RESP the connection is broken for good and leaves the pool.
pub struct Connection {
    socket: Socket,
    address: Arc<str>,
    socket_timeout: Duration,
    protocol: Protocol,
    db: i64,
    client_id: Option<u64>,
    /// Commands that were encoded and not yet sent; kept for its capacity.
    request: Vec<u8>,
    replies: ReplyBuffer,
    /// Replies that the server still owes. A connection that is given back with any is not used again.
    owed: usize,
    /// How many of them are for commands that have left.
    under_way: usize,
    /// Whether the peer has ever answered. What comes before the first request is its word on the connection.
    greeted: bool,
    /// The socket was looked at a moment ago, for the request that is to be sent now.
    looked_at: bool,
    /// Replies that will come and that nobody waits for.
    unawaited: usize,
    answers: Answers,
    /// Writing has failed. What the peer said before can be read still, and when that is over, this is what happened.
    write_failure: Option<(std::io::Error, bool)>,
    /// The server's reason for reading no further requests.
    refusal: Option<Box<str>>,
    broken: bool,
    /// The server said that it is not, or not now, the one to talk to.
    retired: bool,
    /// The address that the next connection would be tried at first.
    last_good: LastGood,
    last_used: Instant,
    loan: LoanState,
}

impl Connection {
    fn new(socket: Socket, address: Arc<str>, params: &PoolParams) -> Connection {
        Connection {
            socket,
            address,
            socket_timeout: params.socket_timeout,
            protocol: params.protocol,
            db: params.db,
            client_id: None,
            request: Vec::new(),
            replies: ReplyBuffer::new(params.max_reply),
            owed: 0,
            under_way: 0,
            greeted: false,
            looked_at: false,
            unawaited: 0,
            answers: Answers::All,
            write_failure: None,
            refusal: None,
            broken: false,
            retired: false,
            last_good: LastGood::default(),
            last_used: Instant::now(),
            loan: LoanState::default(),
        }
    }

    /// Ends this connection's blocking calls from another thread, for as long as the loan lasts: once the connection has
    /// been given back, it does nothing any more.
    pub fn interrupter(&self) -> Interrupter {
        self.loan.interrupter(&self.socket)
    }

    /// The same without regard to the loan.
    pub(crate) fn socket_interrupter(&self) -> Interrupter {
        self.socket.interrupter()
    }

    /// The id by which the server knows this connection (`CLIENT ID`), if it told.
    pub fn id(&self) -> Option<u64> {
        self.client_id
    }

    /// Whether it has failed: no more replies will come.
    pub(crate) fn has_failed(&self) -> bool {
        self.broken
    }

    /// Whether it may be used again: it has not failed, the server is not failing over, and nobody left in the middle of a
    /// request.
    pub(crate) fn is_reusable(&self) -> bool {
        !self.broken
            && !self.retired
            && self.write_failure.is_none()
            && self.answers == Answers::All
            && self.owed == 0
            && self.request.is_empty()
            && !self.has_reply_too_many()
    }

    /// Ordinary commands wait no longer than this from now on.
    pub(crate) fn limit_socket_timeout(&mut self, limit: Duration) {
        self.socket_timeout = self.socket_timeout.min(limit);
    }

    /// The bound on an ordinary command, from now on.
    pub(crate) fn command_deadline(&self) -> Deadline {
        Deadline::after(self.socket_timeout)
    }

    /// Starts to encode a command of `arguments` arguments, its name among them, behind those already encoded. Exactly one
    /// reply is owed for it.
    pub(crate) fn command(&mut self, name: &str, arguments: usize) -> Command<'_> {
        self.owed += 1;
        Command::new(&mut self.request, arguments).arg(name)
    }

    /// Takes commands that were encoded elsewhere; one reply is owed for each.
    pub(crate) fn append(&mut self, commands: usize, encode: impl FnOnce(&mut Vec<u8>)) {
        self.owed += commands;
        encode(&mut self.request);
    }

    /// The bytes that are encoded and not yet sent.
    pub(crate) fn unsent(&self) -> usize {
        self.request.len()
    }

    /// Sends all that was encoded, in one write if the system takes it. The replies are due within `socket_timeout`.
    pub(crate) fn send(&mut self) -> Result<()> {
        self.send_blocking(Duration::ZERO)
    }

    /// As [`send`](Connection::send), when the server may hold back a reply for `wait`.
    pub(crate) fn send_blocking(&mut self, wait: Duration) -> Result<()> {
        // All that was sent before has been answered, so the system's buffer is empty.
        let short = self.under_way == 0 && self.request.len() <= SURELY_BUFFERED;
        self.socket.start_deadline(wait.saturating_add(self.socket_timeout), short);
        self.write_request()
    }

    /// As [`send`](Connection::send), with this deadline for the replies, which may have begun earlier.
    pub(crate) fn send_until(&mut self, deadline: Deadline) -> Result<()> {
        self.socket.set_deadline(deadline);
        self.write_request()
    }

    /// The replies that are owed are due within `socket_timeout` from now: for a caller who let time pass since they were
    /// asked for.
    pub(crate) fn renew_deadline(&mut self) {
        self.socket.set_deadline(self.command_deadline());
    }

    fn write_request(&mut self) -> Result<()> {
        if self.write_failure.is_some() && self.under_way > 0 {
            // Nothing leaves any more, and the replies that stand before this one's still have to be read.
            self.request_has_left();
            return Ok(());
        }
        if self.broken || self.write_failure.is_some() {
            // A reply that comes late would be taken for this request's.
            let failed_before =
                std::io::Error::new(std::io::ErrorKind::NotConnected, "the connection has failed before");
            return Err(self.failed(failed_before, false));
        }
        let looked_at = std::mem::take(&mut self.looked_at);
        if self.under_way == 0 && self.greeted && !looked_at {
            self.set_unasked_aside()?;
        }
        self.last_used = self.socket.deadline().started();
        let mut sent = 0;
        while let Some(rest) = self.request.get(sent..).filter(|rest| !rest.is_empty()) {
            match self.socket.write(rest) {
                Ok(0) => return Err(self.failed(std::io::ErrorKind::WriteZero.into(), sent > 0 || self.under_way > 0)),
                Ok(written) => sent += written,
                Err(error) => return self.write_failed(error, sent > 0 || self.under_way > 0),
            }
        }
        if let Err(error) = self.socket.flush() {
            return self.write_failed(error, true);
        }
        self.request_has_left();
        Ok(())
    }

    fn request_has_left(&mut self) {
        self.under_way = self.owed;
        self.request.clear();
        self.request.shrink_to(KEPT_SIZE);
    }

    /// A peer that refuses a request while it is still being written says why and hangs up. Then what it said is the answer,
    /// and to receive it is all that is left to do.
    fn write_failed(&mut self, error: std::io::Error, outcome_unknown: bool) -> Result<()> {
        if !is_hang_up(&error) || !self.socket.has_data().unwrap_or(false) {
            return Err(self.failed(error, outcome_unknown));
        }
        self.write_failure = Some((error, outcome_unknown));
        self.request_has_left();
        Ok(())
    }

    /// Waits for the next reply until the deadline that [`send`](Connection::send) was given.
    pub(crate) fn receive(&mut self) -> Result<Reply<'_>> {
        let (start, end) = self.take_reply()?;
        Ok(self.reply(start, end))
    }

    fn reply(&mut self, start: usize, end: usize) -> Reply<'_> {
        Reply {
            address: &self.address,
            bytes: self.replies.bytes(start, end),
            broken: &mut self.broken,
            retired: &mut self.retired,
        }
    }

    /// The same as the `redis` crate's value.
    fn receive_value(&mut self) -> Result<Value> {
        let (start, end) = self.take_reply()?;
        if let Some(string) = self.replies.take_long_string(start, end) {
            return Ok(Value::BulkString(string));
        }
        self.reply(start, end).value()
    }

    /// Waits for the next reply: where it lies in the buffer.
    fn take_reply(&mut self) -> Result<(usize, usize)> {
        let (start, end) = loop {
            match self.replies.next() {
                // A push stands between replies and answers nothing.
                Ok(Some((start, _))) if self.replies.byte(start) == Some(b'>') => {
                    log_later!(Trace, "{}: a push message is set aside", self.address);
                }
                Ok(Some(_)) if self.unawaited > 0 => self.unawaited -= 1,
                Ok(Some(reply)) => break reply,
                Ok(None) => match self.replies.fill(&mut self.socket) {
                    Ok(0) => return Err(self.ended(std::io::ErrorKind::UnexpectedEof.into())),
                    Ok(_) => {}
                    Err(error) => return Err(self.ended(error)),
                },
                Err(reason) => return Err(self.unacceptable(reason)),
            }
        };
        self.owed = self.owed.saturating_sub(1);
        self.under_way = self.under_way.saturating_sub(1);
        self.greeted = true;
        if self.replies.byte(start) == Some(b'-') {
            self.note_error(start, end);
        }
        Ok((start, end))
    }

    /// Sends what was encoded and waits for the only reply, both within `socket_timeout`.
    pub(crate) fn request(&mut self) -> Result<Reply<'_>> {
        self.send()?;
        self.receive()
    }

    /// As [`request`](Connection::request), within what is left of the deadline of the request before: for what is part of
    /// the same call.
    pub(crate) fn request_in_time_left(&mut self) -> Result<Reply<'_>> {
        self.send_until(self.socket.deadline())?;
        self.receive()
    }

    /// `PING`, answered within the deadline.
    pub(crate) fn ping(&mut self, deadline: Deadline) -> Result<()> {
        self.command("PING", 1);
        self.send_until(deadline)?;
        let reply = self.receive()?;
        match reply.token()? {
            Token::Simple(b"PONG") => Ok(()),
            Token::Error(line) => Err(Error::server("PING", redis_error(line))),
            _ => Err(reply.malformed("an answer to PING that is not PONG")),
        }
    }

    /// Ends a loan: whether the connection is fit to be lent again. Gives back what a long reply has taken.
    pub(crate) fn end_loan(&mut self) -> bool {
        self.replies.release();
        self.looked_at = false;
        self.loan.end() && self.is_reusable()
    }

    /// How long it has not been used.
    pub(crate) fn idle_since(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last_used)
    }

    /// It is never used again. Whoever still holds it need not keep the memory as well.
    fn retire(&mut self) {
        self.broken = true;
        self.request = Vec::new();
        self.replies.abandon();
    }

    /// Keeps in mind what an error means for the connection itself.
    fn note_error(&mut self, start: usize, end: usize) {
        let line = self.replies.bytes(start, end);
        if is_failing_over(line) {
            self.retired = true;
            self.last_good.forget();
        }
        if line.starts_with(b"-ERR Protocol error") {
            self.refusal = Some(String::from_utf8_lossy(line).trim_matches(['-', '\r', '\n']).into());
            self.retired = true;
        }
    }

    /// No more replies will come.
    fn ended(&mut self, error: std::io::Error) -> Error {
        if let Some(refusal) = self.refusal.take() {
            // The server has read nothing behind the request that it refused.
            let reason = format!("the server refused a request before this one and hung up: {refusal}");
            return self.failed(std::io::Error::new(std::io::ErrorKind::ConnectionAborted, reason), false);
        }
        let (error, outcome_unknown) = self.write_failure.take().unwrap_or((error, true));
        self.failed(error, outcome_unknown)
    }

    fn failed(&mut self, error: std::io::Error, outcome_unknown: bool) -> Error {
        self.retire();
        let address = Arc::clone(&self.address);
        if is_deadline(&error) {
            Error::Timeout { address, limit: self.socket.deadline().limit(), outcome_unknown }
        } else {
            Error::Lost { address, outcome_unknown, source: Arc::new(error) }
        }
    }

    fn unacceptable(&mut self, reason: Unacceptable) -> Error {
        self.retire();
        let address = Arc::clone(&self.address);
        match reason {
            Unacceptable::Malformed(reason) => Error::Protocol { address, reason },
            Unacceptable::TooLarge => Error::ReplyTooLarge { address, limit: self.replies.limit() },
        }
    }
}

/// Without the buffers, which hold payloads and, for a moment, credentials.
impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("address", &self.address)
            .field("client_id", &self.client_id)
            .field("db", &self.db)
            .field("owed", &self.owed)
            .field("broken", &self.broken)
            .finish_non_exhaustive()
    }
}

/// Whether this is an error by which a server tells that another one is, or will be, the master: the next connection may
/// lead there.
fn is_failing_over(reply: &[u8]) -> bool {
    const CODES: [&[u8]; 5] = [b"READONLY ", b"LOADING ", b"MASTERDOWN ", b"CLUSTERDOWN ", b"UNBLOCKED force"];
    let Some(line) = reply.strip_prefix(b"-") else { return false };
    let answer = answer_within_script(line);
    CODES.iter().any(|code| answer.starts_with(code))
}

#[cfg(test)]
mod tests {
    use redis::ConnectionLike;

    use super::*;

    #[test]
    fn a_failed_connection_that_is_held_takes_no_memory_however_often_it_is_tried() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let params = PoolParams::new("127.0.0.1", listener.local_addr().unwrap().port());
        let deadline = Deadline::after(params.socket_timeout);
        let socket =
            Socket::open(&params, &params.address(), &Default::default(), deadline, &Interrupter::new()).unwrap();
        let mut connection = Connection::new(socket, params.address(), &params);
        drop(listener);
        let request = redis::cmd("SET").arg("key").arg(vec![b'x'; KEPT_SIZE]).get_packed_command();
        for _ in 0..20 {
            assert!(connection.req_packed_command(&request).unwrap_err().is_io_error());
            assert!(connection.req_packed_commands(&request.repeat(2), 0, 2).unwrap_err().is_io_error());
            assert_eq!(connection.request.capacity(), 0);
        }
    }
}
