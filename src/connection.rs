//! One connection: greeting, requests and replies under deadlines, and the flag that retires it after any failure.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{ConnectionLike, RedisError, RedisResult, Value};

use crate::error::{ConnectStep, Error, Result};
use crate::net::{Deadline, IdleState, Interrupter, Socket, is_deadline};
use crate::params::{PoolParams, Protocol};
use crate::resp::{Command, Cursor, MAX_REPLY, Malformed, Scanner, Token, redis_error};

/// A connection that was used within this time is used again without a look at its socket.
const SURELY_ALIVE: Duration = Duration::from_millis(10);
/// How much is read at once at least.
const READ_SIZE: usize = 64 * 1024;
/// Buffers that grew beyond this for one long request or reply shrink back afterwards.
const KEPT_SIZE: usize = 1024 * 1024;

/// Opens connections with one set of checked parameters. The TLS configuration is built once, so sessions are resumed.
#[derive(Debug)]
pub(crate) struct Connector {
    params: PoolParams,
    address: Arc<str>,
    #[cfg(feature = "tls")]
    tls: Option<(Arc<rustls::ClientConfig>, rustls::pki_types::ServerName<'static>)>,
    #[cfg(feature = "tls")]
    warned: std::sync::Once,
}

impl Connector {
    /// Checks the parameters and reads the certificates; opens no socket.
    pub(crate) fn new(params: PoolParams) -> Result<Connector> {
        params.validate()?;
        Ok(Connector {
            address: params.address(),
            #[cfg(feature = "tls")]
            tls: match &params.tls {
                Some(tls) => Some((crate::tls::client_config(tls)?, crate::tls::server_name(tls, &params.host)?)),
                None => None,
            },
            #[cfg(feature = "tls")]
            warned: std::sync::Once::new(),
            params,
        })
    }

    pub(crate) fn params(&self) -> &PoolParams {
        &self.params
    }

    /// `host:port` or the socket's path.
    pub(crate) fn address(&self) -> &Arc<str> {
        &self.address
    }

    /// Opens and proves a connection; all of it, from the name lookup to the first `PING`, within
    /// `socket_connect_timeout`.
    pub(crate) fn connect(&self, interrupter: &Interrupter) -> Result<Connection> {
        let deadline = Deadline::after(self.params.socket_connect_timeout);
        let socket = Socket::open(&self.params, &self.address, deadline, interrupter)?;
        #[cfg(feature = "tls")]
        let socket = match &self.tls {
            None => socket,
            Some((config, name)) => {
                if let Some(tls) = &self.params.tls {
                    self.warned.call_once(|| crate::tls::warn_if_dangerous(tls, &self.address));
                }
                socket.start_tls(Arc::clone(config), name.clone()).map_err(|error| {
                    Error::connect(&self.address, ConnectStep::TlsHandshake, crate::tls::explain_handshake(error))
                })?
            }
        };
        let mut connection = Connection::new(socket, Arc::clone(&self.address), &self.params);
        connection.greet(&self.params, deadline)?;
        log::debug!("connected to {}", self.address);
        Ok(connection)
    }
}

/// A connection to the server, as [`StepPool::get`](crate::StepPool::get) lends it.
///
/// It implements [`redis::ConnectionLike`], so every `redis::Cmd`, `redis::Pipeline` and typed `redis::Commands` method
/// works on it. Each call waits at most `socket_timeout` for all of its replies together; a command that makes the server
/// wait (`BLPOP`, `XREAD BLOCK`) must be told to wait for less. Commands that change what replies mean (`SUBSCRIBE`,
/// `MONITOR`, `CLIENT REPLY`) do not belong on a pooled connection, and `SELECT` stays in force for its next user.
///
/// After an I/O error, a timeout or a reply that is not RESP the connection is broken for good and leaves the pool.
#[derive(Debug)]
pub struct Connection {
    socket: Socket,
    address: Arc<str>,
    socket_timeout: Duration,
    db: i64,
    client_id: Option<u64>,
    /// Commands that were encoded and not yet sent; kept for its capacity.
    request: Vec<u8>,
    replies: ReplyBuffer,
    /// Replies that the server still owes. A connection that is given back with any is not used again.
    owed: usize,
    broken: bool,
    last_used: Instant,
}

impl Connection {
    fn new(socket: Socket, address: Arc<str>, params: &PoolParams) -> Connection {
        Connection {
            socket,
            address,
            socket_timeout: params.socket_timeout,
            db: params.db,
            client_id: None,
            request: Vec::new(),
            replies: ReplyBuffer::default(),
            owed: 0,
            broken: false,
            last_used: Instant::now(),
        }
    }

    /// Ends this connection's blocking calls from another thread.
    pub fn interrupter(&self) -> Interrupter {
        self.socket.interrupter()
    }

    /// The id by which the server knows this connection (`CLIENT ID`), if it told.
    pub fn client_id(&self) -> Option<u64> {
        self.client_id
    }

    /// Whether it has failed: no more replies will come.
    pub(crate) fn is_failed(&self) -> bool {
        self.broken
    }

    /// Whether it must not be used by anyone else: it has failed, or somebody left in the middle of a request.
    pub(crate) fn is_broken(&self) -> bool {
        self.broken || self.owed > 0 || !self.request.is_empty()
    }

    /// The bound on an ordinary command, from now on.
    pub(crate) fn command_deadline(&self) -> Deadline {
        Deadline::after(self.socket_timeout)
    }

    /// The bound on a command that the server may hold back for `wait`.
    pub(crate) fn blocking_deadline(&self, wait: Duration) -> Deadline {
        Deadline::after(wait.saturating_add(self.socket_timeout))
    }

    /// Starts to encode a command of `arguments` arguments, its name among them, behind those already encoded. Exactly one
    /// reply is owed for it.
    pub(crate) fn command(&mut self, name: &str, arguments: usize) -> Command<'_> {
        self.owed += 1;
        Command::new(&mut self.request, arguments).arg(name)
    }

    /// Takes commands that were encoded elsewhere; one reply is owed for each.
    pub(crate) fn append(&mut self, encoded: &[u8], commands: usize) {
        self.owed += commands;
        self.request.extend_from_slice(encoded);
    }

    /// The bytes that are encoded and not yet sent.
    pub(crate) fn unsent(&self) -> usize {
        self.request.len()
    }

    /// Sends all that was encoded, in one write if the system takes it. The replies are due within `socket_timeout`.
    pub(crate) fn send(&mut self) -> Result<()> {
        self.send_until(self.command_deadline())
    }

    /// As [`send`](Connection::send), with this deadline for the replies.
    pub(crate) fn send_until(&mut self, deadline: Deadline) -> Result<()> {
        self.socket.set_deadline(deadline);
        self.last_used = deadline.started();
        let mut sent = 0;
        while let Some(rest) = self.request.get(sent..).filter(|rest| !rest.is_empty()) {
            match self.socket.write(rest) {
                Ok(0) => return Err(self.failed(std::io::ErrorKind::WriteZero.into(), sent > 0)),
                Ok(written) => sent += written,
                Err(error) => return Err(self.failed(error, sent > 0)),
            }
        }
        if let Err(error) = self.socket.flush() {
            return Err(self.failed(error, true));
        }
        self.request.clear();
        self.request.shrink_to(KEPT_SIZE);
        Ok(())
    }

    /// Waits for the next reply until the deadline that [`send`](Connection::send) was given.
    pub(crate) fn receive(&mut self) -> Result<Reply<'_>> {
        let (start, end) = loop {
            match self.replies.next() {
                // A push stands between replies and answers nothing.
                Ok(Some((start, _))) if self.replies.byte(start) == Some(b'>') => {
                    log::trace!("{}: a push message is set aside", self.address);
                }
                Ok(Some(reply)) => break reply,
                Ok(None) => match self.replies.fill(&mut self.socket) {
                    Ok(0) => return Err(self.failed(std::io::ErrorKind::UnexpectedEof.into(), true)),
                    Ok(_) => {}
                    Err(error) => return Err(self.failed(error, true)),
                },
                Err(malformed) => return Err(self.malformed(malformed)),
            }
        };
        self.owed = self.owed.saturating_sub(1);
        Ok(Reply { address: &self.address, bytes: self.replies.bytes(start, end), broken: &mut self.broken })
    }

    /// Sends what was encoded and waits for the only reply, both within `socket_timeout`.
    pub(crate) fn request(&mut self) -> Result<Reply<'_>> {
        self.send()?;
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

    /// Looks after a connection that may have lain idle, before it is used again: a server that ended meanwhile is noticed
    /// before a request is lost on it. After more than `health_check_interval` it must answer a `PING` by the deadline.
    pub(crate) fn check_after_idling(&mut self, health_check_interval: Duration, deadline: Deadline) -> Result<()> {
        let idle = self.last_used.elapsed();
        if idle < SURELY_ALIVE && !health_check_interval.is_zero() {
            return Ok(());
        }
        if idle > health_check_interval {
            return self.ping(deadline);
        }
        match self.socket.idle_state() {
            Ok(IdleState::Quiet) => Ok(()),
            Ok(IdleState::HasData) => self.ping(deadline),
            Err(error) => Err(self.failed(error, false)),
        }
    }

    fn failed(&mut self, error: std::io::Error, outcome_unknown: bool) -> Error {
        self.broken = true;
        let address = Arc::clone(&self.address);
        if is_deadline(&error) {
            Error::Timeout { address, limit: self.socket.deadline().limit(), outcome_unknown }
        } else {
            Error::Lost { address, outcome_unknown, source: Arc::new(error) }
        }
    }

    fn malformed(&mut self, reason: Malformed) -> Error {
        self.broken = true;
        Error::Protocol { address: Arc::clone(&self.address), reason }
    }

    /// Protocol, credentials, name, database and a `PING`, all in one round trip.
    fn greet(&mut self, params: &PoolParams, deadline: Deadline) -> Result<()> {
        let user = params.username.as_deref();
        let credentials = params.password.as_deref().map(|password| (user, password));
        let mut steps = Vec::with_capacity(5);
        match (params.protocol, credentials) {
            (Protocol::Resp3, None) => {
                self.command("HELLO", 2).arg("3");
                steps.push(Greeting::Hello);
            }
            (Protocol::Resp3, Some((user, password))) => {
                self.command("HELLO", 5).arg("3").arg("AUTH").arg(user.unwrap_or("default")).arg(password);
                steps.push(Greeting::Hello);
            }
            (Protocol::Resp2, Some((Some(user), password))) => {
                self.command("AUTH", 3).arg(user).arg(password);
                steps.push(Greeting::Hello);
            }
            (Protocol::Resp2, Some((None, password))) => {
                self.command("AUTH", 2).arg(password);
                steps.push(Greeting::Hello);
            }
            (Protocol::Resp2, None) => {}
        }
        if params.db != 0 {
            self.command("SELECT", 2).arg(params.db.to_string());
            steps.push(Greeting::Select);
        }
        self.command("PING", 1);
        self.command("CLIENT", 2).arg("ID");
        steps.extend([Greeting::Ping, Greeting::Id]);
        if !params.client_name.is_empty() {
            self.command("CLIENT", 3).arg("SETNAME").arg(&params.client_name);
            steps.push(Greeting::Name);
        }

        let first = steps.first().map_or(ConnectStep::Ping, Greeting::step);
        self.send_until(deadline).map_err(|error| self.greeting_failed(first, error))?;
        for step in steps {
            let address = Arc::clone(&self.address);
            let reply = match self.receive() {
                Ok(reply) => reply,
                Err(error) => return Err(self.greeting_failed(step.step(), error)),
            };
            match (step, reply.token()?) {
                (Greeting::Id, Token::Int(id)) => self.client_id = u64::try_from(id).ok(),
                // Both are conveniences, and an ACL may withhold them.
                (Greeting::Id | Greeting::Name, _) => {}
                (_, Token::Error(line)) => {
                    let refusal = without_credentials(line, credentials);
                    self.broken = true;
                    return Err(refused(&address, step.step(), credentials.is_some(), refusal));
                }
                (Greeting::Ping, Token::Simple(b"PONG")) | (Greeting::Hello | Greeting::Select, _) => {}
                (Greeting::Ping, _) => return Err(reply.malformed("an answer to PING that is not PONG")),
            }
        }
        Ok(())
    }

    fn greeting_failed(&self, step: ConnectStep, error: Error) -> Error {
        match error {
            Error::Timeout { limit, .. } => {
                let expired = std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no answer within {limit:?}"));
                Error::connect(&self.address, step, expired)
            }
            Error::Lost { source, .. } => Error::Connect { address: Arc::clone(&self.address), step, source },
            Error::Protocol { reason, .. } => {
                let not_redis = std::io::Error::other(format!("the peer does not speak RESP: {reason}"));
                Error::connect(&self.address, step, not_redis)
            }
            other => other,
        }
    }
}

/// The parts of the greeting, in the order of their replies.
#[derive(Clone, Copy, Debug)]
enum Greeting {
    Hello,
    Select,
    Ping,
    Id,
    Name,
}

impl Greeting {
    fn step(&self) -> ConnectStep {
        match self {
            Greeting::Hello => ConnectStep::Hello,
            Greeting::Select => ConnectStep::Select,
            Greeting::Ping | Greeting::Id | Greeting::Name => ConnectStep::Ping,
        }
    }
}

/// A server that does not know `HELLO` repeats its arguments in the error, the password among them.
fn without_credentials(line: &[u8], credentials: Option<(Option<&str>, &str)>) -> RedisError {
    let text = String::from_utf8_lossy(line);
    let repeats = |secret: &str| !secret.is_empty() && text.contains(secret);
    match credentials {
        Some((user, password)) if repeats(password) || user.is_some_and(repeats) => {
            let code = text.split(' ').next().unwrap_or("ERR");
            let unknown = if text.contains("unknown command") { "unknown command; " } else { "" };
            redis_error(format!("{code} {unknown}the rest is withheld, as it repeats the credentials").as_bytes())
        }
        _ => redis_error(line),
    }
}

/// The servers' codes differ by protocol for the same cause, so credentials get an error of their own.
fn refused(address: &Arc<str>, step: ConnectStep, credentials_given: bool, source: RedisError) -> Error {
    let reason = match (source.code(), step) {
        (Some("NOAUTH"), _) => "the server demands a password; set `password`, and `username` if it has users",
        (Some("WRONGPASS"), _) => "the username or the password is wrong, or the user is disabled",
        (Some("ERR"), ConnectStep::Hello)
            if source.detail().is_some_and(|text| text.contains("without any password")) =>
        {
            "the server has no password set but one was given; remove `password`"
        }
        (Some("ERR" | "NOPROTO"), ConnectStep::Hello) => {
            return Error::connect(address, step, NoResp3(source));
        }
        _ if source.kind() == redis::ErrorKind::AuthenticationFailed && credentials_given => {
            "the username or the password is wrong, or the user is disabled"
        }
        _ => return Error::connect(address, step, source),
    };
    Error::Auth { address: Arc::clone(address), reason, source }
}

/// `HELLO` came with Redis 6.0.
#[derive(Debug, thiserror::Error)]
#[error("the server does not speak RESP3; set `protocol` to `Protocol::Resp2`")]
struct NoResp3(#[source] RedisError);

/// One complete reply, still in the read buffer.
#[derive(Debug)]
pub(crate) struct Reply<'a> {
    address: &'a Arc<str>,
    bytes: &'a [u8],
    broken: &'a mut bool,
}

impl<'a> Reply<'a> {
    /// The first token, for replies that are one.
    pub(crate) fn token(&self) -> Result<Token<'a>> {
        Cursor::new(self.bytes).next().map_err(|reason| self.error(reason))
    }

    /// Decodes the reply, after a server's error has been turned into ours.
    pub(crate) fn decode<T>(
        self,
        command: &'static str,
        decode: impl FnOnce(&mut Cursor<'a>) -> Result<T, Malformed>,
    ) -> Result<T> {
        match self.token()? {
            Token::Error(line) | Token::BlobError(line) => Err(Error::server(command, redis_error(line))),
            _ => decode(&mut Cursor::new(self.bytes)).map_err(|reason| Error::reply(command, reason)),
        }
    }

    /// The reply as the `redis` crate's value; a server's error is a value too.
    pub(crate) fn value(self) -> Result<Value> {
        Cursor::new(self.bytes).value().map_err(|reason| self.malformed(reason))
    }

    /// Retires the connection: what came is no answer to what was asked.
    pub(crate) fn malformed(self, reason: Malformed) -> Error {
        *self.broken = true;
        self.error(reason)
    }

    fn error(&self, reason: Malformed) -> Error {
        Error::Protocol { address: Arc::clone(self.address), reason }
    }
}

/// What was read and not yet taken.
#[derive(Debug, Default)]
struct ReplyBuffer {
    /// Bytes `start..end` hold what was read; the rest is room.
    data: Vec<u8>,
    start: usize,
    end: usize,
    scanner: Scanner,
}

impl ReplyBuffer {
    /// Takes the next reply if it is complete: where it starts and ends.
    fn next(&mut self) -> Result<Option<(usize, usize)>, Malformed> {
        let unread = self.data.get(self.start..self.end).unwrap_or_default();
        if unread.len() > MAX_REPLY {
            return Err("a reply longer than 2 GiB");
        }
        let Some(length) = self.scanner.scan(unread)? else { return Ok(None) };
        let start = self.start;
        self.start += length;
        Ok(Some((start, self.start)))
    }

    /// Reads once, making room first: the room grows with what has arrived, never with what was announced.
    fn fill(&mut self, socket: &mut Socket) -> std::io::Result<usize> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            if self.data.len() > KEPT_SIZE {
                self.data = Vec::new();
            }
        } else if self.start > 0 && self.data.len() - self.end < READ_SIZE {
            self.data.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.data.len() - self.end < READ_SIZE / 2 {
            self.data.resize((self.data.len() * 2).max(READ_SIZE), 0);
        }
        let room = self.data.get_mut(self.end..).unwrap_or_default();
        let read = socket.read(room)?;
        self.end += read;
        Ok(read)
    }

    fn bytes(&self, start: usize, end: usize) -> &[u8] {
        self.data.get(start..end).unwrap_or_default()
    }

    fn byte(&self, at: usize) -> Option<u8> {
        self.data.get(at).copied()
    }
}

impl ConnectionLike for Connection {
    fn req_packed_command(&mut self, command: &[u8]) -> RedisResult<Value> {
        self.request.extend_from_slice(command);
        self.owed += 1;
        self.send()?;
        Ok(self.receive()?.value()?)
    }

    fn req_packed_commands(&mut self, commands: &[u8], offset: usize, count: usize) -> RedisResult<Vec<Value>> {
        self.request.extend_from_slice(commands);
        self.owed += offset + count;
        self.send()?;
        // All replies are read even when one is an error, so that none is left for the next command.
        let mut refusal = None;
        for _ in 0..offset {
            if let Err(error) = self.receive()?.value()?.extract_error() {
                refusal.get_or_insert(error);
            }
        }
        let mut values = Vec::with_capacity(count);
        for _ in 0..count {
            values.push(self.receive()?.value()?);
        }
        refusal.map_or(Ok(values), Err)
    }

    fn get_db(&self) -> i64 {
        self.db
    }

    fn check_connection(&mut self) -> bool {
        let deadline = self.command_deadline();
        !self.is_broken() && self.ping(deadline).is_ok()
    }

    fn is_open(&self) -> bool {
        !self.is_broken()
    }
}
