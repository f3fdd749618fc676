//! How to reach the server: connection and pool parameters, from code, a URL or the environment.

mod checks;
mod environment;
mod setters;
mod setting;
mod tls;
mod url;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::error::Result;

#[cfg(feature = "tls")]
pub(crate) use tls::PemSource;
pub use tls::{Pem, TlsParams};

/// Where the server is, who we are, and how long everything may take.
///
/// Every field is public and has a setter of the same name, to be chained:
///
/// ```
/// use std::time::Duration;
/// use step_redis::{PoolParams, TlsParams};
///
/// let params = PoolParams::new("redis.example.com", 6379)
///     .username("user")
///     .password("secret")
///     .tls(TlsParams::new().ca_certs("/path/to/ca.pem"))
///     .socket_timeout(Duration::from_secs(5));
/// # assert_eq!(params.port, 6379);
/// ```
///
/// What is not set keeps its default:
///
/// ```
/// use std::time::Duration;
/// use step_redis::{PoolParams, Protocol};
///
/// let params = PoolParams::default();
/// assert_eq!(params.host, "127.0.0.1");
/// assert_eq!(params.port, 6379);
/// assert_eq!(params.unix_socket, None);
/// assert_eq!(params.username, None);
/// assert_eq!(params.password, None);
/// assert_eq!(params.db, 0);
/// assert_eq!(params.socket_timeout, Duration::from_secs(30));
/// assert_eq!(params.socket_connect_timeout, Duration::from_secs(30));
/// assert_eq!(params.socket_keep_idle, Duration::from_secs(30));
/// assert_eq!(params.socket_keep_alive, Duration::from_secs(30));
/// assert_eq!(params.socket_keep_cnt, 5);
/// assert_eq!(params.tls, None);
/// assert_eq!(params.health_check_interval, Duration::from_secs(20));
/// assert_eq!(params.max_connections, 10);
/// assert_eq!(params.connection_available_timeout, Duration::from_secs(2));
/// assert_eq!(params.protocol, Protocol::Resp3);
/// assert_eq!(params.client_name, "step-redis");
/// assert_eq!(params.max_reply, 64 * 1024 * 1024);
/// ```
///
/// The values are checked when a pool is made from them, by [`StepPool::new`](crate::StepPool::new) and
/// [`StepPool::connect`](crate::StepPool::connect), before any socket is opened; the first one that cannot be used is
/// an [`Error::Params`](crate::Error::Params) which names the field.
///
/// `Debug` shows neither the user name nor any password.
#[derive(Clone, PartialEq)]
#[non_exhaustive]
#[must_use]
pub struct PoolParams {
    /// The host name or IP address of the server; an IPv6 address without brackets. Every address that a name resolves
    /// to is tried. Default: `127.0.0.1`.
    pub host: String,

    /// The TCP port of the server, with or without TLS. Default: 6379.
    pub port: u16,

    /// The path of the server's Unix socket. When set, `host`, `port` and the keepalive fields are not used, and `tls`
    /// must not be set. Default: none.
    pub unix_socket: Option<PathBuf>,

    /// The ACL user to log in as; needs a `password`, too (an empty one for a user without). It is never printed,
    /// logged or put in an error. Default: none, which is the server's user `default`.
    pub username: Option<String>,

    /// The password of `username`, or of the user `default`. It is never printed, logged or put in an error. Default:
    /// none, and then nothing is sent to log in.
    pub password: Option<String>,

    /// The number of the database, chosen by `SELECT` on each new connection. Default: 0, for which nothing is sent.
    pub db: i64,

    /// How long the whole reply to a command may take, from the request's first byte to the reply's last, not for each
    /// part of it. A blocking read gets its own waiting time on top. When it runs out, the call fails with
    /// [`Error::Timeout`](crate::Error::Timeout) and the connection is closed. From 1 ms to 24 hours. Default: 30
    /// seconds.
    pub socket_timeout: Duration,

    /// How long making a connection may take in total: looking up the name, trying every address, the TLS handshake,
    /// the login, `SELECT` and a first `PING`. From 1 ms to 24 hours. Default: 30 seconds.
    pub socket_connect_timeout: Duration,

    /// How long a TCP connection is silent before the system sends the first keepalive probe (`TCP_KEEPIDLE`). Whole
    /// seconds, 1 to 32767. Default: 30 seconds.
    ///
    /// Together, the three keepalive fields are how soon a peer that vanished without a word is noticed:
    /// `socket_keep_idle + socket_keep_alive * socket_keep_cnt`, which is 3 minutes with the defaults. The same bound
    /// is used for data that was sent and not acknowledged (`TCP_USER_TIMEOUT`), where the system has it.
    pub socket_keep_idle: Duration,

    /// The time between two keepalive probes that were not answered (`TCP_KEEPINTVL`). Whole seconds, 1 to 32767.
    /// Default: 30 seconds.
    pub socket_keep_alive: Duration,

    /// How many keepalive probes in a row must stay without an answer before the connection counts as lost
    /// (`TCP_KEEPCNT`). From 1 to 127. Default: 5.
    pub socket_keep_cnt: u32,

    /// TLS, and with which certificates. Needs the crate's feature `tls`, which is on by default. Default: none, which
    /// is plain TCP.
    pub tls: Option<TlsParams>,

    /// How long a connection may have been idle in the pool and still be handed out unseen; one that was idle for
    /// longer answers a `PING` first, or is replaced. Zero sends a `PING` at every checkout, [`Duration::MAX`] never
    /// sends one. Default: 20 seconds.
    pub health_check_interval: Duration,

    /// How many connections the pool opens at most. A consumer's own reading connection is not among them. From 1 to
    /// 65535. Default: 10.
    pub max_connections: u32,

    /// How long a checkout waits for a connection when all of them are in use, before it fails with
    /// [`Error::PoolExhausted`](crate::Error::PoolExhausted). From 1 ms to 24 hours. Default: 2 seconds.
    pub connection_available_timeout: Duration,

    /// The version of the protocol to speak. Default: [`Protocol::Resp3`].
    pub protocol: Protocol,

    /// The name of each connection, by which `CLIENT LIST` shows it at the server. Printable ASCII without spaces; when
    /// it is empty, no name is set. Default: `step-redis`.
    pub client_name: String,

    /// The longest reply that is accepted, in bytes: what a connection takes of the memory at most, beside a small
    /// constant. A command whose reply is longer fails with [`Error::ReplyTooLarge`](crate::Error::ReplyTooLarge), as
    /// soon as the length is known, and the connection is closed. From 64 KiB to 2 GiB - 1. Default: 64 MiB.
    pub max_reply: usize,
}

/// Keep the values in step with the example of [`PoolParams`] and the field docs.
impl Default for PoolParams {
    fn default() -> PoolParams {
        PoolParams {
            host: "127.0.0.1".to_owned(),
            port: 6379,
            unix_socket: None,
            username: None,
            password: None,
            db: 0,
            socket_timeout: Duration::from_secs(30),
            socket_connect_timeout: Duration::from_secs(30),
            socket_keep_idle: Duration::from_secs(30),
            socket_keep_alive: Duration::from_secs(30),
            socket_keep_cnt: 5,
            tls: None,
            health_check_interval: Duration::from_secs(20),
            max_connections: 10,
            connection_available_timeout: Duration::from_secs(2),
            protocol: Protocol::Resp3,
            client_name: "step-redis".to_owned(),
            max_reply: 64 * 1024 * 1024,
        }
    }
}

impl PoolParams {
    /// The server at this host and port; the rest has its defaults.
    pub fn new(host: impl Into<String>, port: u16) -> PoolParams {
        PoolParams { host: host.into(), port, ..PoolParams::default() }
    }

    /// The server at this Unix socket; the rest has its defaults.
    pub fn unix(path: impl Into<PathBuf>) -> PoolParams {
        PoolParams { unix_socket: Some(path.into()), ..PoolParams::default() }
    }

    /// Reads a URL, in the forms that the `redis` crate and redis-py know:
    ///
    /// - `redis://[user[:password]@]host[:port][/db]`, or `valkey://`;
    /// - `rediss://...`, or `valkeys://`: the same with TLS;
    /// - `unix:///path[?db=0&username=...&password=...]`, or `redis+unix://`, `valkey+unix://`.
    ///
    /// In the user name, the password and the query, characters with a meaning in URLs are percent-encoded. The query
    /// sets the rest:
    ///
    /// | Key | Sets |
    /// |---|---|
    /// | `db` | [`db`](PoolParams::db) |
    /// | `username` or `user` | [`username`](PoolParams::username) |
    /// | `password` or `pass` | [`password`](PoolParams::password) |
    /// | `socket_timeout` | [`socket_timeout`](PoolParams::socket_timeout), in seconds |
    /// | `socket_connect_timeout` | [`socket_connect_timeout`](PoolParams::socket_connect_timeout), in seconds |
    /// | `socket_keep_idle` | [`socket_keep_idle`](PoolParams::socket_keep_idle), in seconds |
    /// | `socket_keep_alive` | [`socket_keep_alive`](PoolParams::socket_keep_alive), in seconds |
    /// | `socket_keep_cnt` | [`socket_keep_cnt`](PoolParams::socket_keep_cnt) |
    /// | `health_check_interval` | [`health_check_interval`](PoolParams::health_check_interval), in seconds |
    /// | `max_connections` | [`max_connections`](PoolParams::max_connections) |
    /// | `connection_available_timeout` or `timeout` | [`connection_available_timeout`](PoolParams::connection_available_timeout), in seconds |
    /// | `protocol` | [`protocol`](PoolParams::protocol): `2` or `3` |
    /// | `client_name` | [`client_name`](PoolParams::client_name) |
    /// | `max_reply` | [`max_reply`](PoolParams::max_reply), in bytes |
    /// | `ssl_ca_certs` | [`TlsParams::ca_certs`], a path |
    /// | `ssl_certfile` | [`TlsParams::client_cert`], a path |
    /// | `ssl_keyfile` | [`TlsParams::client_key`], a path |
    /// | `ssl_keyfile_password` or `ssl_password` | [`TlsParams::client_key_password`] |
    /// | `ssl_cert_reqs` | `required`, or `none` for [`TlsParams::danger_accept_invalid_certs`] |
    /// | `ssl_server_name` | [`TlsParams::server_name`] |
    ///
    /// Seconds may be fractions, such as `0.5`. The `ssl_` keys need a URL with TLS. A key that is not in the table, or
    /// that is given twice, is refused: a misspelt timeout must not go unnoticed.
    ///
    /// # Errors
    ///
    /// [`Error::Params`](crate::Error::Params) names the key or the part of the URL, never its value. Whether the
    /// values fit together is checked when a pool is made, so that setters may complete what a URL began.
    ///
    /// # Example
    ///
    /// ```
    /// use std::time::Duration;
    /// use step_redis::PoolParams;
    ///
    /// let params = PoolParams::from_url("redis://user:p%40ss@redis.example.com/2?socket_timeout=0.5")?;
    /// assert_eq!(params.password.as_deref(), Some("p@ss"));
    /// assert_eq!(params.db, 2);
    /// assert_eq!(params.socket_timeout, Duration::from_millis(500));
    /// # Ok::<(), step_redis::Error>(())
    /// ```
    pub fn from_url(url: &str) -> Result<PoolParams> {
        url::parse(url)
    }

    /// Reads environment variables whose names begin with `prefix` and an underscore: for the prefix `STEP_REDIS`, the
    /// host is in `STEP_REDIS_HOST`.
    ///
    /// `_URL` comes first, as for [`from_url`](PoolParams::from_url); each other variable overrides its part of it:
    ///
    /// - `_HOST`, `_PORT`, `_UNIX_SOCKET`, `_USERNAME`, `_PASSWORD`, `_DB`, `_PROTOCOL` (`2` or `3`), `_CLIENT_NAME`;
    /// - `_SOCKET_TIMEOUT`, `_SOCKET_CONNECT_TIMEOUT`, `_SOCKET_KEEP_IDLE`, `_SOCKET_KEEP_ALIVE`,
    ///   `_HEALTH_CHECK_INTERVAL`, `_CONNECTION_AVAILABLE_TIMEOUT` in seconds, which may be fractions;
    /// - `_SOCKET_KEEP_CNT`, `_MAX_CONNECTIONS`, `_MAX_REPLY` in bytes;
    /// - `_SSL_ENABLE` (`true`, `false`, `1` or `0`), `_SSL_CA_CERTS_FILE`, `_SSL_CLIENT_CERT_FILE`,
    ///   `_SSL_CLIENT_KEY_FILE`, `_SSL_CLIENT_KEY_FILE_PASSWORD`, `_SSL_CERT_REQUESTED` (`false` is
    ///   [`TlsParams::danger_accept_invalid_certs`]), `_SSL_SERVER_NAME`.
    ///
    /// A variable that is not set or empty leaves the default, or what the URL says. `_HOST` replaces a Unix socket of
    /// the URL and `_UNIX_SOCKET` replaces its host; both at once are refused. `_SSL_ENABLE=false` leaves the other
    /// `_SSL_` variables unread; they are refused when nothing says whether to use TLS, and so is `false` together with
    /// a URL that asks for TLS, since the password would travel unencrypted.
    ///
    /// # Errors
    ///
    /// [`Error::Params`](crate::Error::Params) names the variable, never its value. A value that is not Unicode is an
    /// error, too. Whether the values fit together is checked when a pool is made.
    ///
    /// # Example
    ///
    /// ```no_run
    /// use step_redis::{PoolParams, StepPool};
    ///
    /// let pool = StepPool::connect(PoolParams::from_env("STEP_REDIS")?)?;
    /// # Ok::<(), step_redis::Error>(())
    /// ```
    pub fn from_env(prefix: &str) -> Result<PoolParams> {
        environment::read(prefix, |name| std::env::var_os(name))
    }

    /// The server's address for errors and logs: `host:port`, or the path of the Unix socket. No credentials.
    pub(crate) fn address(&self) -> Arc<str> {
        match &self.unix_socket {
            Some(path) => path.to_string_lossy().into(),
            None if self.host.contains(':') => format!("[{}]:{}", self.host, self.port).into(),
            None => format!("{}:{}", self.host, self.port).into(),
        }
    }
}

impl fmt::Debug for PoolParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A URL in the wrong place is refused by the checks, but it may be shown before, and with it what is in it.
        let is_url = checks::may_be_url(&self.host);
        let host: &dyn fmt::Debug = if is_url { &Redacted } else { &self.host };
        let is_url = self.unix_socket.as_deref().is_some_and(checks::may_be_url_of_socket);
        let unix_socket: &dyn fmt::Debug = if is_url { &Redacted } else { &self.unix_socket };
        f.debug_struct("PoolParams")
            .field("host", host)
            .field("port", &self.port)
            .field("unix_socket", unix_socket)
            .field("username", &Redacted::of(&self.username))
            .field("password", &Redacted::of(&self.password))
            .field("db", &self.db)
            .field("socket_timeout", &self.socket_timeout)
            .field("socket_connect_timeout", &self.socket_connect_timeout)
            .field("socket_keep_idle", &self.socket_keep_idle)
            .field("socket_keep_alive", &self.socket_keep_alive)
            .field("socket_keep_cnt", &self.socket_keep_cnt)
            .field("tls", &self.tls)
            .field("health_check_interval", &self.health_check_interval)
            .field("max_connections", &self.max_connections)
            .field("connection_available_timeout", &self.connection_available_timeout)
            .field("protocol", &self.protocol)
            .field("client_name", &self.client_name)
            .field("max_reply", &self.max_reply)
            .finish()
    }
}

/// The version of the protocol that is spoken with the server.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Protocol {
    /// RESP2, which every server understands. The login is `AUTH`.
    Resp2,
    /// RESP3, for Redis 6.0 and later. The protocol and the login are one command, `HELLO`. The default.
    #[default]
    Resp3,
}

/// Stands for a secret in `Debug`: shows whether there is one.
struct Redacted;

impl Redacted {
    fn of(secret: &Option<String>) -> Option<Redacted> {
        secret.as_ref().map(|_| Redacted)
    }
}

impl fmt::Debug for Redacted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_address_names_the_server_and_nobody_else() {
        let address = |params: PoolParams| params.username("someone").password("hidden").address().to_string();
        assert_eq!(address(PoolParams::new("host", 1)), "host:1");
        assert_eq!(address(PoolParams::new("::1", 1)), "[::1]:1");
        assert_eq!(address(PoolParams::unix("/run/redis.sock")), "/run/redis.sock");
    }

    #[test]
    fn debug_shows_that_there_is_a_secret_and_not_which() {
        let tls = TlsParams::new()
            .ca_certs("/ca.pem")
            .client_key(Pem::bytes("-----BEGIN PRIVATE KEY-----\nhidden"))
            .client_key_password("hidden");
        let shown = format!("{:#?}", PoolParams::new("host", 1).username("hidden").password("hidden").tls(tls));
        assert!(!shown.contains("hidden"), "{shown}");
        assert!(!shown.contains("BEGIN"), "{shown}");
        for part in ["\"host\"", "username: Some(", "password: Some(", "***", "/ca.pem", "<34 bytes>"] {
            assert!(shown.contains(part), "{part} is not in {shown}");
        }
        assert!(format!("{:?}", PoolParams::default()).contains("password: None"));
        // What belongs in `from_url` and was put in the place of the host.
        for url in ["redis://user:hidden@host", "user:hidden@host", "unix:///path?password=hidden"] {
            let shown = format!("{:?} {:?}", PoolParams::new(url, 1), PoolParams::unix("redis://:hidden@host"));
            assert!(!shown.contains("hidden"), "{shown}");
        }
    }
}
