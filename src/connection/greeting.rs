//! Making a connection: socket, TLS, and the greeting that proves it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use redis::RedisError;

use super::Connection;
use crate::deadline::Deadline;
use crate::error::{ConnectStep, Error, Result};
use crate::latch::lock;
use crate::log_later::log_later;
use crate::net::{Interrupter, LastGood, Socket, is_hang_up};
use crate::params::{PoolParams, Protocol};
use crate::resp::{Token, redis_error};

/// The first byte of an alert, by which a TLS port answers to what is no TLS.
const TLS_ALERT: u8 = 0x15;

/// Opens connections with one set of checked parameters. The TLS configuration is built once, so sessions are resumed.
#[derive(Debug)]
pub(crate) struct Connector {
    params: PoolParams,
    address: Arc<str>,
    last_good: LastGood,
    #[cfg(feature = "tls")]
    tls: Option<(Arc<rustls::ClientConfig>, rustls::pki_types::ServerName<'static>)>,
    #[cfg(feature = "tls")]
    warned: std::sync::atomic::AtomicBool,
}

impl Connector {
    /// Checks the parameters and reads the certificates; opens no socket.
    pub(crate) fn new(params: PoolParams) -> Result<Connector> {
        params.validate()?;
        Ok(Connector {
            address: params.address(),
            last_good: LastGood::default(),
            #[cfg(feature = "tls")]
            tls: match &params.tls {
                Some(tls) => Some((crate::tls::client_config(tls)?, crate::tls::server_name(tls, &params.host)?)),
                None => None,
            },
            #[cfg(feature = "tls")]
            warned: Default::default(),
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
        self.connect_within(self.params.socket_connect_timeout, interrupter)
    }

    /// The same, within `limit` or `socket_connect_timeout`, whichever is shorter.
    pub(crate) fn connect_within(&self, limit: Duration, interrupter: &Interrupter) -> Result<Connection> {
        self.connect_observed(limit, interrupter, &Progress::default())
    }

    /// The same, while others can see how far it has come.
    pub(crate) fn connect_observed(
        &self,
        limit: Duration,
        interrupter: &Interrupter,
        progress: &Progress,
    ) -> Result<Connection> {
        let deadline = Deadline::after(limit.min(self.params.socket_connect_timeout));
        let socket = Socket::open(&self.params, &self.address, &self.last_good, deadline, interrupter)?;
        // Whoever accepts a connection need not be a server that can be used.
        self.greet(socket, deadline, progress).inspect_err(|_| self.last_good.forget())
    }

    /// TLS and the greeting.
    fn greet(&self, socket: Socket, deadline: Deadline, progress: &Progress) -> Result<Connection> {
        #[cfg(feature = "tls")]
        let socket = match (&self.tls, &self.params.tls) {
            (Some((config, name)), Some(tls)) => {
                progress.reaches(ConnectStep::TlsHandshake);
                if !self.warned.swap(true, std::sync::atomic::Ordering::Relaxed) {
                    crate::tls::warn_if_dangerous(tls, &self.address);
                }
                socket.start_tls(Arc::clone(config), name.clone()).map_err(|error| {
                    Error::connect(&self.address, ConnectStep::TlsHandshake, crate::tls::explain_handshake(error, tls))
                })?
            }
            _ => socket,
        };
        let mut connection = Connection::new(socket, Arc::clone(&self.address), &self.params);
        connection.last_good = self.last_good.clone();
        progress.reaches(ConnectStep::Hello);
        connection.greet(&self.params, deadline)?;
        log_later!(Debug, "connected to {}", self.address);
        Ok(connection)
    }
}

/// The step that an attempt to connect has reached. Looking up the name counts as part of opening the socket.
#[derive(Debug)]
pub(crate) struct Progress(Mutex<ConnectStep>);

impl Default for Progress {
    fn default() -> Progress {
        Progress(Mutex::new(ConnectStep::Open))
    }
}

impl Progress {
    fn reaches(&self, step: ConnectStep) {
        *lock(&self.0) = step;
    }

    pub(crate) fn step(&self) -> ConnectStep {
        *lock(&self.0)
    }
}

impl Connection {
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
        self.send_until(deadline).map_err(|error| self.greeting_failed(params, first, error))?;
        for step in steps {
            let answer = self.receive().and_then(|reply| match (step, reply.token()?) {
                (Greeting::Id, Token::Int(id)) => Ok(Answer::Id(u64::try_from(id).ok())),
                // Both are conveniences, and an ACL may withhold them.
                (Greeting::Id | Greeting::Name, _) => Ok(Answer::Fine),
                // An ACL may withhold this one too, and only who is let in is told so.
                (Greeting::Ping, Token::Error(line)) if line.starts_with(b"NOPERM") => Ok(Answer::Fine),
                (_, Token::Error(line)) => Ok(Answer::Refused(without_credentials(line, credentials))),
                (Greeting::Ping, Token::Simple(b"PONG")) | (Greeting::Hello | Greeting::Select, _) => Ok(Answer::Fine),
                (Greeting::Ping, _) => Err(reply.malformed("an answer to PING that is not PONG")),
            });
            match answer {
                Ok(Answer::Fine) => {}
                Ok(Answer::Id(id)) => self.client_id = id,
                Ok(Answer::Refused(refusal)) => return Err(refused(&self.address, step.step(), params, refusal)),
                Err(error) => return Err(self.greeting_failed(params, step.step(), error)),
            }
        }
        Ok(())
    }

    fn greeting_failed(&self, params: &PoolParams, step: ConnectStep, error: Error) -> Error {
        let may_want_tls = params.tls.is_none() && params.unix_socket.is_none();
        match error {
            Error::Timeout { limit, .. } => {
                let expired = std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no answer within {limit:?}"));
                Error::connect(&self.address, step, expired)
            }
            #[cfg(feature = "tls")]
            Error::Lost { source, .. } if crate::tls::explain::is_verdict(&source) => {
                Error::Connect { address: Arc::clone(&self.address), step: ConnectStep::TlsHandshake, source }
            }
            Error::Lost { source, .. } if may_want_tls && is_hang_up(&source) => {
                Error::connect(&self.address, step, HungUp(source))
            }
            Error::Lost { source, .. } => Error::Connect { address: Arc::clone(&self.address), step, source },
            Error::ReplyTooLarge { .. } => Error::connect(&self.address, step, error),
            Error::Protocol { .. } if may_want_tls && self.replies.first() == Some(TLS_ALERT) => {
                Error::connect(&self.address, step, WantsTls)
            }
            Error::Protocol { reason, .. } => {
                let not_redis =
                    std::io::Error::other(format!("the peer does not speak RESP as a Redis server does: {reason}"));
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

/// What a step of the greeting was answered with.
enum Answer {
    Fine,
    Id(Option<u64>),
    Refused(RedisError),
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
fn refused(address: &Arc<str>, step: ConnectStep, params: &PoolParams, source: RedisError) -> Error {
    let says_hello = step == ConnectStep::Hello && params.protocol == Protocol::Resp3;
    let reason = match (source.code(), step) {
        (Some("NOAUTH"), _) => "the server demands a password; set `password`, and `username` if it has users",
        (Some("WRONGPASS"), _) => "the username or the password is wrong, or the user is disabled",
        (Some("ERR"), ConnectStep::Hello)
            if source.detail().is_some_and(|text| text.contains("without any password")) =>
        {
            "the server has no password set but one was given; remove `password`"
        }
        (Some("NOPROTO"), _) if says_hello => return Error::connect(address, step, NoResp3(source)),
        (Some("ERR"), _) if says_hello && source.detail().is_some_and(|text| text.contains("unknown command")) => {
            return Error::connect(address, step, NoResp3(source));
        }
        _ if source.kind() == redis::ErrorKind::AuthenticationFailed && params.password.is_some() => {
            "the username or the password is wrong, or the user is disabled"
        }
        _ => return Error::connect(address, step, source),
    };
    Error::Auth { address: Arc::clone(address), reason, source: Arc::new(source) }
}

/// `HELLO` came with Redis 6.0.
#[derive(Debug, thiserror::Error)]
#[error("the server does not speak RESP3; set `protocol` to `Protocol::Resp2`")]
struct NoResp3(#[source] RedisError);

/// What a TLS port does to a client without TLS, as a rule.
#[derive(Debug, thiserror::Error)]
#[error("the server hung up at once: it may want TLS on this port (`tls`, or `rediss://`), or be about to stop")]
struct HungUp(#[source] Arc<std::io::Error>);

/// What it does if it is polite.
#[derive(Debug, thiserror::Error)]
#[error("the server speaks TLS on this port: set `tls`, or write `rediss://`")]
struct WantsTls;
