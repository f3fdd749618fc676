//! One error type for the whole crate, and the questions a caller asks of it.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use redis::{ErrorKind, RedisError, ServerErrorKind};

use crate::entry_id::{EntryId, ParseEntryIdError};

/// A `Result` whose error is [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// The cause kept behind an error; shared, so that one failure can be reported to several callers.
pub(crate) type Cause = Arc<dyn StdError + Send + Sync>;

/// Everything that can go wrong, one variant for each thing a caller would do differently.
///
/// `Display` tells this layer's part only; [`source`](StdError::source) leads to the cause. No variant ever carries a
/// password, key material or a payload. Cloning is cheap: causes are shared.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A parameter cannot be used as it is. Nothing was sent or opened; correct the parameter.
    #[error("bad parameter `{field}`: {reason}")]
    Params {
        /// The field, URL key or environment variable.
        field: Cow<'static, str>,
        /// What is wrong with it, and what would be right.
        reason: String,
    },

    /// The TLS configuration cannot be built. Nothing was opened; correct the file or the parameter that is named.
    #[error("TLS set-up, {item}: {reason}")]
    Tls {
        /// The parameter, and the file where there is one.
        item: Box<str>,
        /// What is wrong, and what to do about it.
        reason: String,
        /// What the library below said, if it said anything.
        source: Option<Cause>,
    },

    /// No connection could be made. Retry later unless [`Error::is_retryable`] says no.
    #[error("cannot connect to {address}: {step} failed")]
    Connect {
        /// `host:port`, or the path of the Unix socket.
        address: Arc<str>,
        /// How far it got.
        step: ConnectStep,
        /// Why.
        source: Cause,
    },

    /// The server does not let us in. Correct `username` and `password`; trying again does not help.
    #[error("cannot connect to {address}: {reason}")]
    Auth {
        /// `host:port`, or the path of the Unix socket.
        address: Arc<str>,
        /// Whether credentials are missing, wrong, or not expected.
        reason: &'static str,
        /// The server's own words.
        source: Arc<RedisError>,
    },

    /// No pooled connection became free in time. Give connections back sooner, raise `max_connections`, or, when there
    /// is a `source`, see why no new one could be made.
    #[error(
        "no connection within {waited:?}: {connections} of at most {max} connections are open, {in_use} of them held"
    )]
    PoolExhausted {
        /// How long the call waited.
        waited: Duration,
        /// How many connections exist.
        connections: u32,
        /// How many of them are held by callers.
        in_use: u32,
        /// The pool's bound.
        max: u32,
        /// The last failure to make a new connection, or to find an idle one alive, if one of them failed.
        source: Option<Arc<Error>>,
    },

    /// The connection broke. It is never used again; the next call opens another.
    /// See [`Error::is_outcome_unknown`] before repeating a publish.
    #[error("the connection to {address} was lost{}", outcome(*.outcome_unknown))]
    Lost {
        /// `host:port`, or the path of the Unix socket.
        address: Arc<str>,
        /// Whether a request had left, so that the server may have carried it out.
        outcome_unknown: bool,
        /// What the operating system or TLS reported.
        source: Arc<io::Error>,
    },

    /// The whole reply did not arrive in time. The connection is never used again; the next call opens another.
    /// See [`Error::is_outcome_unknown`] before repeating a publish.
    #[error("no whole reply from {address} within {limit:?}{}", outcome(*.outcome_unknown))]
    Timeout {
        /// `host:port`, or the path of the Unix socket.
        address: Arc<str>,
        /// The bound that was exceeded.
        limit: Duration,
        /// Whether a request had left, so that the server may have carried it out.
        outcome_unknown: bool,
    },

    /// A reply is longer than [`max_reply`](crate::PoolParams::max_reply), and was not read to its end. The connection is
    /// never used again; the next call opens another. Ask for less at once, or raise the parameter.
    ///
    /// The request had left, so [its outcome is unknown](Error::is_outcome_unknown): a read, for one, has delivered entries.
    #[error("a reply from {address} is longer than `max_reply`, which is {limit} bytes; the outcome is unknown")]
    ReplyTooLarge {
        /// `host:port`, or the path of the Unix socket.
        address: Arc<str>,
        /// The bound that was exceeded, in bytes.
        limit: usize,
    },

    /// A single entry is longer than [`max_reply`](crate::PoolParams::max_reply), so that it cannot be read at all. It stays
    /// pending: raise the parameter, or delete and acknowledge the entry (`XDEL`, `XACK`).
    #[error(
        "entry {id} of stream {stream_id} is longer than `max_reply`, which is {limit} bytes; raise it or delete the entry"
    )]
    EntryTooLarge {
        /// The stream's key.
        stream_id: Box<str>,
        /// The entry.
        id: EntryId,
        /// The bound that was exceeded, in bytes.
        limit: usize,
    },

    /// The peer sent bytes that are not a RESP reply: it is no Redis server, or the connection is corrupt.
    /// The connection is never used again.
    #[error("{address} sent bytes that are not valid RESP: {reason}")]
    Protocol {
        /// `host:port`, or the path of the Unix socket.
        address: Arc<str>,
        /// What was wrong with them.
        reason: &'static str,
    },

    /// The server understood the request and refused it; [`Error::code`] says how. The connection stays usable.
    #[error("the server answered {command} with {}", code_of(.source))]
    Server {
        /// The command that was refused.
        command: &'static str,
        /// The server's own words.
        source: RedisError,
    },

    /// A valid reply that does not fit the command: most likely a proxy or a server this crate does not know. What the
    /// server did with the request [is unknown](Error::is_outcome_unknown).
    #[error("unexpected reply to {command}: {reason}")]
    Reply {
        /// The command that was answered.
        command: &'static str,
        /// What was expected.
        reason: &'static str,
    },

    /// A batch was published in part. `published` has one item for each message that was taken from the iterator, in
    /// order: its id, or `None` where the server did not confirm it.
    #[error(
        "the batch was published in part: {} of {} messages confirmed",
        .published.iter().flatten().count(),
        .published.len()
    )]
    Batch {
        /// The ids of the confirmed messages, by position.
        published: Arc<[Option<EntryId>]>,
        /// Why the others are not confirmed.
        source: Arc<Error>,
    },

    /// A consumer was closed before the server confirmed all acknowledgements. Those entries are pending and come again.
    #[error("{count} acknowledgements were not confirmed before the consumer closed; those entries come again")]
    AcksUnconfirmed {
        /// How many acknowledgements.
        count: usize,
    },

    /// The system has no thread to give.
    #[error("a thread cannot be started")]
    Thread {
        /// What the operating system reported.
        source: Arc<io::Error>,
    },

    /// The entry is not in the stream any more: somebody was faster, or it was trimmed.
    #[error("stream {stream_id} has no entry {id}")]
    NoSuchEntry {
        /// The stream.
        stream_id: String,
        /// The entry.
        id: EntryId,
    },

    /// The payload is not UTF-8. [`Delivery::payload`](crate::Delivery::payload) still has the bytes.
    #[error("the payload of entry {id} is not UTF-8")]
    NotUtf8 {
        /// The entry.
        id: EntryId,
        /// Where the text stops being UTF-8.
        source: std::str::Utf8Error,
    },
}

/// How far a connection attempt got before it failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectStep {
    /// Looking up the host name.
    Resolve,
    /// Opening the TCP or Unix socket.
    Open,
    /// The TLS handshake.
    TlsHandshake,
    /// `HELLO` or `AUTH`: protocol and credentials.
    Hello,
    /// `SELECT`: the database number.
    Select,
    /// The first `PING`.
    Ping,
}

impl fmt::Display for ConnectStep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConnectStep::Resolve => "looking up the host name",
            ConnectStep::Open => "opening the socket",
            ConnectStep::TlsHandshake => "the TLS handshake",
            ConnectStep::Hello => "the greeting (HELLO or AUTH)",
            ConnectStep::Select => "selecting the database (SELECT)",
            ConnectStep::Ping => "the first PING",
        })
    }
}

impl Error {
    /// Whether the same call may succeed later without anything being corrected: the network, a full pool, a server that
    /// is starting, failing over or out of memory. False for parameters, certificates, credentials, permissions and types.
    ///
    /// For a publish, look at [`is_outcome_unknown`](Error::is_outcome_unknown) first: repeating may publish twice.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Lost { .. }
            | Error::Timeout { .. }
            | Error::ReplyTooLarge { .. }
            | Error::Protocol { .. }
            | Error::Thread { .. } => true,
            Error::PoolExhausted { source, .. } => source.as_ref().is_none_or(|error| error.is_retryable()),
            Error::Batch { source, .. } => source.is_retryable(),
            Error::Server { source, .. } => is_passing(source),
            Error::Connect { source, .. } => {
                match refusal(source) {
                    Some(refused) => is_passing(refused),
                    // A certificate that is not accepted now is not accepted later.
                    None => source
                        .downcast_ref::<io::Error>()
                        .is_none_or(|error| error.kind() != io::ErrorKind::InvalidData),
                }
            }
            Error::Params { .. }
            | Error::Tls { .. }
            | Error::Auth { .. }
            | Error::Reply { .. }
            | Error::NoSuchEntry { .. }
            | Error::EntryTooLarge { .. }
            | Error::AcksUnconfirmed { .. }
            | Error::NotUtf8 { .. } => false,
        }
    }

    /// Whether a time limit ran out: connect, command or checkout.
    pub fn is_timeout(&self) -> bool {
        match self {
            Error::Timeout { .. } | Error::PoolExhausted { .. } => true,
            Error::Batch { source, .. } => source.is_timeout(),
            Error::Connect { source, .. } => {
                source.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::TimedOut)
            }
            _ => false,
        }
    }

    /// Whether the server may or may not have carried the request out: it had left when the connection failed, or was
    /// answered with something that says neither. Nothing is ever sent again by itself: the caller decides whether a message
    /// may be published twice.
    pub fn is_outcome_unknown(&self) -> bool {
        match self {
            Error::Lost { outcome_unknown, .. } | Error::Timeout { outcome_unknown, .. } => *outcome_unknown,
            Error::ReplyTooLarge { .. } | Error::Protocol { .. } | Error::Reply { .. } => true,
            Error::Batch { source, .. } => source.is_outcome_unknown(),
            _ => false,
        }
    }

    /// The server's error code, such as `WRONGTYPE` or `OOM`, when the server refused.
    pub fn code(&self) -> Option<&str> {
        match self {
            Error::Server { source, .. } => source.code(),
            Error::Auth { source, .. } => source.code(),
            Error::Connect { source, .. } => refusal(source).and_then(RedisError::code),
            Error::Batch { source, .. } => source.code(),
            _ => None,
        }
    }

    /// Whether the stream or its consumer group does not exist (`NOGROUP`): create it with
    /// [`StepStream::create_input_stream`](crate::StepStream::create_input_stream).
    pub fn is_group_missing(&self) -> bool {
        self.code() == Some("NOGROUP")
    }

    /// Whether there is no such key (`ERR no such key`), which is said by commands that do not create one.
    pub(crate) fn is_key_missing(&self) -> bool {
        match self {
            Error::Server { source, .. } => {
                source.code() == Some("ERR") && source.detail().is_some_and(|text| text.starts_with("no such key"))
            }
            _ => false,
        }
    }

    /// Whether the key holds something else than a stream (`WRONGTYPE`).
    pub fn is_wrong_type(&self) -> bool {
        self.code() == Some("WRONGTYPE")
    }

    pub(crate) fn params(field: impl Into<Cow<'static, str>>, reason: impl Into<String>) -> Error {
        Error::Params { field: field.into(), reason: reason.into() }
    }

    pub(crate) fn connect(
        address: &Arc<str>,
        step: ConnectStep,
        source: impl StdError + Send + Sync + 'static,
    ) -> Error {
        Error::Connect { address: Arc::clone(address), step, source: Arc::new(source) }
    }

    pub(crate) fn server(command: &'static str, source: RedisError) -> Error {
        Error::Server { command, source }
    }

    pub(crate) fn reply(command: &'static str, reason: &'static str) -> Error {
        Error::Reply { command, reason }
    }
}

/// `redis::ConnectionLike` speaks `RedisError`; what its callers ask of one (`kind`, `code`, `is_timeout`,
/// `is_connection_refusal`, `retry_method`) is answered as for an error of that crate's own connection.
impl From<Error> for RedisError {
    fn from(error: Error) -> RedisError {
        match error {
            Error::Server { source, .. } => source,
            Error::Auth { source, .. } => RedisError::clone(&source),
            Error::Connect { ref source, .. } => match (refusal(source), io_kind(source)) {
                (Some(refused), _) => refused.clone(),
                // A certificate that is not accepted now is not accepted later.
                (None, Some(io::ErrorKind::InvalidData)) => {
                    RedisError::from((ErrorKind::Client, "the TLS handshake was ended", with_causes(&error)))
                }
                (None, Some(kind)) => io::Error::new(kind, error).into(),
                (None, None) => io::Error::other(error).into(),
            },
            Error::Lost { ref source, .. } => io::Error::new(source.kind(), error).into(),
            Error::Timeout { .. } | Error::PoolExhausted { .. } => {
                io::Error::new(io::ErrorKind::TimedOut, error).into()
            }
            Error::Protocol { address, reason } => RedisError::from((ErrorKind::Parse, reason, address.to_string())),
            Error::ReplyTooLarge { .. } => {
                RedisError::from((ErrorKind::Parse, "a reply is too long", error.to_string()))
            }
            Error::Params { .. } | Error::Tls { .. } => RedisError::from((
                ErrorKind::InvalidClientConfig,
                "the configuration cannot be used",
                with_causes(&error),
            )),
            Error::Reply { .. } => RedisError::from((
                ErrorKind::UnexpectedReturnType,
                "a reply does not fit its command",
                error.to_string(),
            )),
            other => io::Error::other(other).into(),
        }
    }
}

impl From<ParseEntryIdError> for Error {
    fn from(error: ParseEntryIdError) -> Error {
        Error::params("entry id", error.to_string())
    }
}

/// What the server said, if it is behind this cause.
fn refusal(cause: &Cause) -> Option<&RedisError> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(&**cause);
    while let Some(cause) = next {
        if let Some(refusal) = cause.downcast_ref() {
            return Some(refusal);
        }
        next = cause.source();
    }
    None
}

/// The kind of the system's error, if one is behind this cause.
fn io_kind(cause: &Cause) -> Option<io::ErrorKind> {
    let mut next: Option<&(dyn StdError + 'static)> = Some(&**cause);
    while let Some(cause) = next {
        let shared = || cause.downcast_ref::<Arc<io::Error>>().map(|error| &**error);
        if let Some(error) = cause.downcast_ref::<io::Error>().or_else(shared) {
            return Some(error.kind());
        }
        next = cause.source();
    }
    None
}

/// Server errors that go away by themselves or after a reconnect. `MOVED` and `ASK` do not: they name another server, and
/// the next connection leads to the same one again.
fn is_passing(error: &RedisError) -> bool {
    match error.kind() {
        // This one has no code of its own.
        ErrorKind::Server(ServerErrorKind::ResponseError) => {
            error.detail().is_some_and(|text| text.starts_with("max number of clients"))
        }
        ErrorKind::Server(kind) => matches!(
            kind,
            ServerErrorKind::BusyLoading
                | ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::ReadOnly
        ),
        _ => matches!(error.code(), Some("OOM" | "UNBLOCKED" | "BUSY" | "NOREPLICAS" | "MISCONF")),
    }
}

/// An error and its causes on one line, for logs.
pub(crate) fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // What a server says has its code in the first line already, and its kind adds nothing to that.
        if let Some(refusal) = error.downcast_ref::<RedisError>().filter(|refusal| refusal.code().is_some()) {
            return refusal.detail().map(|detail| format!("{text}: {detail}")).unwrap_or(text);
        }
        let said = error.to_string();
        // Some errors are their own cause.
        if !text.ends_with(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        cause = error.source();
    }
    text
}

fn outcome(unknown: bool) -> &'static str {
    if unknown { "; the request had left, so its outcome is unknown" } else { " before a request was sent" }
}

fn code_of(error: &RedisError) -> &str {
    error.code().unwrap_or("an error")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_stay_small_enough_to_return_by_value() {
        assert!(size_of::<Error>() <= 64, "{}", size_of::<Error>());
    }

    #[test]
    fn what_a_server_says_is_said_once() {
        for (answer, said) in [
            ("ERR no such key", "the server answered XINFO with ERR: no such key"),
            ("WRONGTYPE another kind", "the server answered XINFO with WRONGTYPE: another kind"),
            ("LOADING", "the server answered XINFO with LOADING"),
        ] {
            assert_eq!(with_causes(&Error::server("XINFO", crate::resp::redis_error(answer.as_bytes()))), said);
        }
    }

    #[test]
    fn the_cause_is_a_source_and_not_part_of_the_text() {
        let error = Error::Lost {
            address: "host:1".into(),
            outcome_unknown: true,
            source: Arc::new(io::Error::other("the cause")),
        };
        assert!(!error.to_string().contains("the cause"));
        assert!(with_causes(&error).ends_with(": the cause"));
        assert_eq!(error.source().map(ToString::to_string).as_deref(), Some("the cause"));
    }
}
