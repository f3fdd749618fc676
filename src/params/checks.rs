//! What each parameter may be, before any socket is opened.

use std::net::Ipv6Addr;
use std::path::Path;
use std::time::Duration;

use super::PoolParams;
use crate::error::{Error, Result};
use crate::resp::LONGEST_REPLY;

const SHORTEST_TIMEOUT: Duration = Duration::from_millis(1);
// Far beyond any use, and far from where adding to an `Instant` or converting to milliseconds overflows.
const LONGEST_TIMEOUT: Duration = Duration::from_secs(24 * 60 * 60);
// Linux refuses more.
const LONGEST_KEEPALIVE: Duration = Duration::from_secs(32_767);
const MOST_PROBES: u32 = 127;
// One client address has no more ports, and the pool reserves memory for all of them.
const MOST_CONNECTIONS: u32 = 65_535;
// An error line may be this long, and the answer to `HELLO` lists the server's modules.
const SHORTEST_REPLY_LIMIT: usize = 64 * 1024;
// The room in `sockaddr_un`, less the final NUL.
const LONGEST_SOCKET_PATH: usize = if cfg!(any(target_os = "linux", target_os = "android")) { 107 } else { 103 };

const FIELDS: [&str; 15] = [
    "host",
    "port",
    "unix_socket",
    "username",
    "db",
    "socket_timeout",
    "socket_connect_timeout",
    "socket_keep_idle",
    "socket_keep_alive",
    "socket_keep_cnt",
    "tls",
    "max_connections",
    "connection_available_timeout",
    "client_name",
    "max_reply",
];

impl PoolParams {
    /// Whether a pool can be made from these values, all of them by themselves and together.
    pub(crate) fn validate(&self) -> Result<()> {
        if let Some((field, reason)) = FIELDS.into_iter().find_map(|field| Some((field, self.fault(field)?))) {
            return Err(Error::params(field, reason));
        }
        if self.username.is_some() && self.password.is_none() {
            return Err(Error::params("password", "is missing: a `username` needs one, be it empty"));
        }
        if let Some(tls) = &self.tls {
            if self.unix_socket.is_some() {
                return Err(Error::params("tls", "cannot be used with a Unix socket"));
            }
            if let Some((field, reason)) = tls.fault() {
                return Err(Error::params(field, reason));
            }
        }
        Ok(())
    }

    /// What is wrong with the value of one field, looked at by itself.
    pub(super) fn fault(&self, field: &str) -> Option<String> {
        match field {
            "host" if self.unix_socket.is_none() => host_fault(&self.host).map(str::to_owned),
            "port" if self.unix_socket.is_none() && self.port == 0 => Some("cannot be 0".to_owned()),
            "unix_socket" => {
                let path = self.unix_socket.as_ref()?;
                let length = path.as_os_str().len();
                if cfg!(not(unix)) {
                    return Some("this system has no Unix sockets".to_owned());
                }
                if may_be_url_of_socket(path) {
                    return Some("is no path; a URL is read by `PoolParams::from_url`".to_owned());
                }
                match length {
                    0 => Some("is empty".to_owned()),
                    1..=LONGEST_SOCKET_PATH => None,
                    _ => Some(format!("has {length} bytes; the system takes {LONGEST_SOCKET_PATH} at most")),
                }
            }
            "username" if self.username.as_ref().is_some_and(String::is_empty) => {
                Some("is empty; leave it out for the server's user `default`".to_owned())
            }
            "db" if self.db < 0 => Some("cannot be negative".to_owned()),
            "socket_timeout" => timeout_fault(self.socket_timeout),
            "socket_connect_timeout" => timeout_fault(self.socket_connect_timeout),
            "socket_keep_idle" => keepalive_fault(self.socket_keep_idle),
            "socket_keep_alive" => keepalive_fault(self.socket_keep_alive),
            "socket_keep_cnt" => count_fault(self.socket_keep_cnt, MOST_PROBES),
            "tls" if self.tls.is_some() && cfg!(not(feature = "tls")) => Some(
                "this program was built without TLS; turn on the crate's feature: `step-redis` with `features = [\"tls\"]`"
                    .to_owned(),
            ),
            "max_connections" => count_fault(self.max_connections, MOST_CONNECTIONS),
            "connection_available_timeout" => timeout_fault(self.connection_available_timeout),
            // The server refuses it, too, but only once we are connected.
            "client_name" if !self.client_name.bytes().all(|byte| byte.is_ascii_graphic()) => {
                Some("may have printable ASCII characters only, and no spaces".to_owned())
            }
            "max_reply" if !(SHORTEST_REPLY_LIMIT..=LONGEST_REPLY).contains(&self.max_reply) => {
                Some(format!("must be from {SHORTEST_REPLY_LIMIT} to {LONGEST_REPLY} bytes"))
            }
            _ => None,
        }
    }
}

/// Whether this may be, or hold, a URL with credentials in it.
pub(super) fn may_be_url(host: &str) -> bool {
    host.contains(['/', '@'])
}

/// The same for the path of a socket.
pub(super) fn may_be_url_of_socket(path: &Path) -> bool {
    path.to_string_lossy().contains("://")
}

pub(super) fn host_fault(host: &str) -> Option<&'static str> {
    if host.is_empty() {
        return Some("is empty");
    }
    if host == "0.0.0.0" || host == "::" {
        return Some("is an address to listen on, not one to connect to");
    }
    if may_be_url(host) {
        return Some("is no host name or IP address; a URL is read by `PoolParams::from_url`");
    }
    if host.contains(|c: char| c.is_whitespace() || c.is_control()) {
        return Some("is no host name or IP address: it contains a space or a control character");
    }
    if host.starts_with('[') {
        return Some("an IPv6 address is given without brackets");
    }
    // What follows a `%` is the zone, which only the system understands.
    let address = host.split('%').next().unwrap_or_default();
    if host.contains(':') && address.parse::<Ipv6Addr>().is_err() {
        return Some("is no host name or IP address; the port is a parameter of its own");
    }
    None
}

fn timeout_fault(limit: Duration) -> Option<String> {
    if limit.is_zero() {
        return Some("is zero, which would fail at once; give at least 1 ms".to_owned());
    }
    if limit < SHORTEST_TIMEOUT {
        return Some("is shorter than 1 ms".to_owned());
    }
    (limit > LONGEST_TIMEOUT).then(|| "is longer than 24 hours".to_owned())
}

fn keepalive_fault(time: Duration) -> Option<String> {
    let fits = time.subsec_nanos() == 0 && !time.is_zero() && time <= LONGEST_KEEPALIVE;
    (!fits).then(|| format!("must be whole seconds, from 1 to {}", LONGEST_KEEPALIVE.as_secs()))
}

fn count_fault(count: u32, most: u32) -> Option<String> {
    (count == 0 || count > most).then(|| format!("must be from 1 to {most}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::params::TlsParams;

    fn field_of(params: &PoolParams) -> Option<String> {
        match params.validate() {
            Err(Error::Params { field, reason }) => {
                assert!(!reason.contains("hidden"), "{reason}");
                Some(field.into_owned())
            }
            Err(other) => panic!("{other:?}"),
            Ok(()) => None,
        }
    }

    #[test]
    fn the_defaults_are_good() {
        PoolParams::default().validate().unwrap();
        PoolParams::unix("/run/redis.sock").host("").port(0).validate().unwrap();
    }

    #[test]
    fn each_bad_value_is_refused_by_its_name() {
        let new = || PoolParams::new("host", 1);
        let (zero, micro, long) = (Duration::ZERO, Duration::from_micros(999), Duration::from_secs(86_401));
        let table = [
            (new().host(""), "host"),
            (new().host("a b"), "host"),
            (new().host("host:6379"), "host"),
            (new().host("[::1]"), "host"),
            (new().host("redis://hidden@host"), "host"),
            (new().host("redis://user:hidden@host:6379/0"), "host"),
            (PoolParams::unix("unix:///path?password=hidden"), "unix_socket"),
            (new().host("0.0.0.0"), "host"),
            (new().host("::"), "host"),
            (new().port(0), "port"),
            (PoolParams::unix(""), "unix_socket"),
            (PoolParams::unix("x".repeat(200)), "unix_socket"),
            (new().username("").password("hidden"), "username"),
            (new().username("hidden"), "password"),
            (new().db(-1), "db"),
            (new().socket_timeout(zero), "socket_timeout"),
            (new().socket_timeout(micro), "socket_timeout"),
            (new().socket_timeout(long), "socket_timeout"),
            (new().socket_timeout(Duration::MAX), "socket_timeout"),
            (new().socket_connect_timeout(zero), "socket_connect_timeout"),
            (new().socket_connect_timeout(long), "socket_connect_timeout"),
            (new().socket_keep_idle(zero), "socket_keep_idle"),
            (new().socket_keep_idle(Duration::from_millis(1500)), "socket_keep_idle"),
            (new().socket_keep_idle(Duration::from_secs(32_768)), "socket_keep_idle"),
            (new().socket_keep_alive(zero), "socket_keep_alive"),
            (new().socket_keep_cnt(0), "socket_keep_cnt"),
            (new().socket_keep_cnt(128), "socket_keep_cnt"),
            (new().max_connections(0), "max_connections"),
            (new().max_connections(u32::MAX), "max_connections"),
            (new().connection_available_timeout(zero), "connection_available_timeout"),
            (new().connection_available_timeout(long), "connection_available_timeout"),
            (new().client_name("two words"), "client_name"),
            (new().max_reply(0), "max_reply"),
            (new().max_reply(65_535), "max_reply"),
            (new().max_reply(usize::MAX), "max_reply"),
            (new().client_name("line\n"), "client_name"),
            (new().client_name("naïve"), "client_name"),
            (PoolParams::unix("/run/redis.sock").tls(TlsParams::new()), "tls"),
        ];
        for (params, field) in table {
            assert_eq!(field_of(&params).as_deref(), Some(field), "{params:?}");
        }
    }

    #[test]
    fn what_looks_odd_and_is_good() {
        let new = || PoolParams::new("host", 1);
        let table = [
            new().host("::1"),
            new().host("fe80::1%eth0"),
            new().host("under_score.example"),
            new().username("user").password(""),
            new().password("only"),
            new().client_name(""),
            new().health_check_interval(Duration::ZERO),
            new().health_check_interval(Duration::MAX),
            new().socket_timeout(Duration::from_millis(1)),
            new().socket_keep_idle(Duration::from_secs(32_767)).socket_keep_cnt(127),
        ];
        for params in table {
            assert_eq!(field_of(&params), None, "{params:?}");
        }
    }

    #[cfg(feature = "tls")]
    #[test]
    fn a_fault_of_the_tls_parameters_is_found() {
        let params = PoolParams::new("host", 1).tls(TlsParams::new().client_cert("cert.pem"));
        assert_eq!(field_of(&params).as_deref(), Some("tls.client_key"));
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn without_the_feature_the_error_names_it() {
        let error = PoolParams::new("host", 1).tls(TlsParams::new()).validate().unwrap_err();
        assert!(error.to_string().contains("features = [\"tls\"]"), "{error}");
    }
}
