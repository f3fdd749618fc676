//! `PoolParams` from a URL. The `redis` crate takes the URL apart; the query is ours.

use redis::{ConnectionAddr, IntoConnectionInfo};

use super::checks::host_fault;
use super::{PoolParams, TlsParams, setting};
use crate::error::{Error, Result};

const SCHEMES: [&str; 7] = ["redis", "rediss", "valkey", "valkeys", "unix", "redis+unix", "valkey+unix"];

/// The keys of the query, each with the field that it sets. Keep the table of [`PoolParams::from_url`] in step.
const KEYS: [(&str, &str); 17] = [
    ("db", "db"),
    ("username", "username"),
    ("user", "username"),
    ("password", "password"),
    ("pass", "password"),
    ("socket_timeout", "socket_timeout"),
    ("socket_connect_timeout", "socket_connect_timeout"),
    ("socket_keep_idle", "socket_keep_idle"),
    ("socket_keep_alive", "socket_keep_alive"),
    ("socket_keep_cnt", "socket_keep_cnt"),
    ("health_check_interval", "health_check_interval"),
    ("max_connections", "max_connections"),
    ("connection_available_timeout", "connection_available_timeout"),
    ("timeout", "connection_available_timeout"),
    ("protocol", "protocol"),
    ("client_name", "client_name"),
    ("max_reply", "max_reply"),
];

/// The same for the keys which only a URL with TLS may have.
const TLS_KEYS: [(&str, &str); 7] = [
    ("ssl_ca_certs", "ca_certs"),
    ("ssl_certfile", "client_cert"),
    ("ssl_keyfile", "client_key"),
    ("ssl_keyfile_password", "client_key_password"),
    ("ssl_password", "client_key_password"),
    ("ssl_cert_reqs", "cert_requested"),
    ("ssl_server_name", "server_name"),
];

pub(super) fn parse(text: &str) -> Result<PoolParams> {
    let mut url = redis::parse_redis_url(text).ok_or_else(|| Error::params("url", unreadable(text)))?;
    if url.fragment().is_some() {
        return Err(Error::params(
            "url",
            "has a `#`, which must be written %23 in a password; `ssl_cert_reqs=none` is how to write `#insecure`",
        ));
    }
    // `redis://user:pass?word@host` has the host `user`, and its query is the rest of the password.
    if url.query().is_some_and(|query| query.contains('@')) {
        return Err(Error::params(
            "url",
            "has an `@` behind a `?`: in a password before the host, `?` is written %3F, and in the query, `@` is written %40",
        ));
    }
    let query: Vec<(String, String)> = url.query_pairs().into_owned().collect();
    let incomplete = |part: &str| !part.is_empty() && !part.contains('=');
    if url.query().is_some_and(|query| query.split('&').any(incomplete)) {
        return Err(Error::params(
            "url",
            "a part of the query is not of the form key=value; in a value, `&` is written %26, and in a password before \
             the host, `?` is written %3F",
        ));
    }
    url.set_query(None);

    let encrypted = matches!(url.scheme(), "rediss" | "valkeys");
    if encrypted {
        // The parser knows these schemes only when it is built with a TLS library of its own.
        url.set_scheme("redis").map_err(|()| Error::params("url", unreadable(text)))?;
    }
    let mut set = Vec::new();
    if matches!(url.scheme(), "redis" | "valkey") {
        let host = url.host_str().unwrap_or_default();
        if let Some(reason) = host_fault(host.trim_start_matches('[').trim_end_matches(']')) {
            return Err(Error::params("host", reason));
        }
        let db = url.path().trim_matches('/');
        if !db.is_empty() {
            db.parse::<i64>().map_err(|_| Error::params("db", "is no number: nothing else may follow the host"))?;
            set.push("db");
        }
    } else if !url.username().is_empty() || url.password().is_some() {
        return Err(Error::params("url", "for a Unix socket, `username` and `password` belong in the query"));
    }

    let unix = url.scheme().ends_with("unix");
    let info = url.into_connection_info().map_err(|_| match unix {
        true => Error::params("unix_socket", "is no absolute path: write it after three slashes, as in unix:///path"),
        false => Error::params("url", "the user name or the password is not UTF-8"),
    })?;
    let mut params = match info.addr() {
        ConnectionAddr::Tcp(host, port) => PoolParams::new(host, *port),
        ConnectionAddr::Unix(path) => PoolParams::unix(path),
        _ => return Err(Error::params("url", unreadable(text))),
    };
    params.db = info.redis_settings().db();
    params.username = info.redis_settings().username().map(str::to_owned);
    params.password = info.redis_settings().password().map(str::to_owned);
    params.tls = encrypted.then(TlsParams::new);
    for field in ["port", "unix_socket", "db", "tls"] {
        params.fault(field).map_or(Ok(()), |reason| Err(Error::params(field, reason)))?;
    }
    set.extend(params.username.is_some().then_some("username"));
    set.extend(params.password.is_some().then_some("password"));
    read_query(&mut params, &query, set)?;
    Ok(params)
}

/// `set` has the fields that were set before the query.
fn read_query(params: &mut PoolParams, query: &[(String, String)], mut set: Vec<&'static str>) -> Result<()> {
    let mut after_secret = false;
    for (key, text) in query {
        let plain = KEYS.iter().find(|(known, _)| known == key);
        let Some(&(key, field)) = plain.or_else(|| TLS_KEYS.iter().find(|(known, _)| known == key)) else {
            return Err(unknown(key, after_secret));
        };
        if plain.is_none() && params.tls.is_none() {
            return Err(Error::params(key, "needs a URL with TLS, rediss:// or valkeys://"));
        }
        if set.contains(&field) {
            return Err(Error::params(key, "is given twice"));
        }
        set.push(field);
        // Percent-encoded bytes that are not UTF-8 arrive as this character.
        if text.contains('\u{FFFD}') {
            return Err(Error::params(key, "is not UTF-8"));
        }
        let text = match (key, text.as_str()) {
            ("ssl_cert_reqs", "required") => "true",
            ("ssl_cert_reqs", "none") => "false",
            ("ssl_cert_reqs", _) => return Err(Error::params(key, "must be `required` or `none`")),
            (_, text) => text,
        };
        setting::set(params, field, text).map_err(|reason| Error::params(key, reason))?;
        after_secret = matches!(field, "username" | "password" | "client_key_password");
    }
    Ok(())
}

/// The name of an unknown key helps to find the mistake, unless it is the rest of a secret with an `&` in it.
fn unknown(key: &str, after_secret: bool) -> Error {
    let is_name = key.len() <= 40 && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if !is_name {
        return Error::params("url", "the query has a key that is not known; in a value, `&` is written %26");
    }
    if after_secret {
        let reason = "an unknown key follows the user name or a password; in a value, `&` is written %26";
        return Error::params("url", reason);
    }
    let known: Vec<&str> = KEYS.iter().chain(&TLS_KEYS).map(|(known, _)| *known).collect();
    Error::params(key.to_owned(), format!("is not known; the keys are {}", known.join(", ")))
}

fn unreadable(text: &str) -> String {
    let scheme = text.trim_start().split(':').next().unwrap_or_default().to_ascii_lowercase();
    if SCHEMES.contains(&scheme.as_str()) {
        "is not of the form redis://[user[:password]@]host[:port][/db] or unix:///path; in the user name and the password, \
         characters such as / : @ ? # are percent-encoded"
            .to_owned()
    } else {
        format!("must begin with one of {}, and ://", SCHEMES.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::params::Protocol;

    fn url(text: &str) -> PoolParams {
        parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn hosts_users_and_databases() {
        let new = PoolParams::new;
        let table = [
            ("redis://host", new("host", 6379)),
            ("REDIS://host/", new("host", 6379)),
            ("valkey://host:1", new("host", 1)),
            ("redis://127.0.0.1:1/3", new("127.0.0.1", 1).db(3)),
            ("redis://[::1]:1", new("::1", 1)),
            ("redis://[2001:db8::2]", new("2001:db8::2", 6379)),
            ("redis://:pw@host", new("host", 6379).password("pw")),
            ("redis://user:pw@host:1/2", new("host", 1).username("user").password("pw").db(2)),
            ("redis://user@host", new("host", 6379).username("user")),
            ("redis://u%40:p%3A%2F%3F%23%25%20@host", new("host", 6379).username("u@").password("p:/?#% ")),
            ("redis://:%C3%A4@host", new("host", 6379).password("ä")),
            ("redis://host?db=4", new("host", 6379).db(4)),
            ("redis://host?username=a%26b&password=c%3Dd", new("host", 6379).username("a&b").password("c=d")),
            ("unix:///run/redis.sock", PoolParams::unix("/run/redis.sock")),
            ("redis+unix:///a%20b.sock?db=1", PoolParams::unix("/a b.sock").db(1)),
            ("valkey+unix:///s?user=u&pass=p", PoolParams::unix("/s").username("u").password("p")),
        ];
        for (text, expected) in table {
            assert_eq!(url(text), expected, "{text}");
        }
    }

    #[test]
    fn every_plain_key_of_the_query() {
        let text = "redis://host?socket_timeout=0.5&socket_connect_timeout=1.5&socket_keep_idle=3&socket_keep_alive=4\
                    &socket_keep_cnt=5&health_check_interval=0&max_connections=7&connection_available_timeout=8&protocol=2\
                    &client_name=me&max_reply=65536";
        let expected = PoolParams::new("host", 6379)
            .socket_timeout(Duration::from_millis(500))
            .socket_connect_timeout(Duration::from_millis(1500))
            .socket_keep_idle(Duration::from_secs(3))
            .socket_keep_alive(Duration::from_secs(4))
            .socket_keep_cnt(5)
            .health_check_interval(Duration::ZERO)
            .max_connections(7)
            .connection_available_timeout(Duration::from_secs(8))
            .protocol(Protocol::Resp2)
            .client_name("me")
            .max_reply(65_536);
        assert_eq!(url(text), expected);
        assert_eq!(url("redis://host?timeout=8").connection_available_timeout, Duration::from_secs(8));
    }

    #[cfg(feature = "tls")]
    #[test]
    fn every_key_of_tls() {
        for scheme in ["rediss", "valkeys"] {
            assert_eq!(url(&format!("{scheme}://host")).tls, Some(TlsParams::new()));
        }
        let text = "rediss://host?ssl_ca_certs=/ca.pem&ssl_certfile=/cert.pem&ssl_keyfile=%2Fkey.pem&ssl_password=pw\
                    &ssl_cert_reqs=none&ssl_server_name=other";
        let expected = TlsParams::new()
            .ca_certs("/ca.pem")
            .client_cert("/cert.pem")
            .client_key("/key.pem")
            .client_key_password("pw")
            .danger_accept_invalid_certs(true)
            .server_name("other");
        assert_eq!(url(text).tls, Some(expected.clone()));
        let text = text.replace("ssl_password", "ssl_keyfile_password").replace("=none", "=required");
        assert_eq!(url(&text).tls, Some(expected.danger_accept_invalid_certs(false)));
        for bad in ["ssl_cert_reqs=optional", "ssl_cert_reqs=", "ssl_ca_certs=", "ssl_check_hostname=false"] {
            let key = bad.split('=').next();
            assert_eq!(refused(&format!("rediss://host?{bad}")).as_deref(), key, "{bad}");
        }
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn a_url_with_tls_needs_the_feature() {
        assert_eq!(refused("rediss://host").as_deref(), Some("tls"));
    }

    /// The field that is named; nothing of the URL may be in the error but names.
    fn refused(text: &str) -> Option<String> {
        let error = parse(text).err()?;
        let shown = format!("{error} {error:?}");
        for secret in ["hidden", "//host"] {
            assert!(!shown.contains(secret), "{text}: {shown}");
        }
        match error {
            Error::Params { field, .. } => Some(field.into_owned()),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn what_is_refused_is_named() {
        let table = [
            ("", "url"),
            ("hidden", "url"),
            ("http://user:hidden@host", "url"),
            ("redis://:hid/den@host", "url"),
            ("redis://:hidden", "url"),
            ("redis://:hidden#x@host", "url"),
            ("redis://host#insecure", "url"),
            ("redis://host:99999", "url"),
            ("redis://:%FFhidden@host", "url"),
            ("redis://", "host"),
            ("redis:///1", "host"),
            ("redis:host", "host"),
            ("redis://0.0.0.0", "host"),
            ("redis://[::]", "host"),
            ("redis://host:0", "port"),
            ("redis://user:1/hidden@host", "db"),
            ("redis://user:1?hidden@host", "url"),
            ("redis://user:1?hidden=x@host", "url"),
            ("redis://user:1?x=hidden@host", "url"),
            ("redis://user:1?password=hidden@host", "url"),
            ("redis://user:1?x&hidden=y@host", "url"),
            ("redis://user?hidden=1@host", "url"),
            ("unix:///s?password=hidden@host", "url"),
            ("redis://host/x", "db"),
            ("redis://host/1/2", "db"),
            ("redis://host/-1", "db"),
            ("redis://host/99999999999999999999", "db"),
            ("redis://host?db=x", "db"),
            ("redis://host/1?db=1", "db"),
            ("redis://:hidden@host?password=hidden", "password"),
            ("redis://hidden@host?user=hidden", "user"),
            ("redis://host?password=hidden&pass=hidden", "pass"),
            ("redis://host?password=%FFhidden", "password"),
            ("redis://host?username=", "username"),
            ("redis://host?password=a&hidden=b", "url"),
            ("redis://host?password=a&hidden", "url"),
            ("redis://host?hidden%20words=1", "url"),
            ("redis://host?socket_timeuot=1", "socket_timeuot"),
            ("redis://host?socket_timeout=1&socket_timeout=1", "socket_timeout"),
            ("redis://host?timeout=1&connection_available_timeout=1", "connection_available_timeout"),
            ("redis://host?socket_timeout=0", "socket_timeout"),
            ("redis://host?socket_timeout=-1", "socket_timeout"),
            ("redis://host?socket_timeout=NaN", "socket_timeout"),
            ("redis://host?socket_timeout=inf", "socket_timeout"),
            ("redis://host?socket_timeout=1e99", "socket_timeout"),
            ("redis://host?socket_keep_idle=1.5", "socket_keep_idle"),
            ("redis://host?max_connections=0", "max_connections"),
            ("redis://host?max_connections=-1", "max_connections"),
            ("redis://host?protocol=4", "protocol"),
            ("redis://host?client_name=two+words", "client_name"),
            ("redis://host?max_reply=0", "max_reply"),
            ("redis://host?max_reply=64M", "max_reply"),
            ("redis://host?ssl_ca_certs=/ca.pem", "ssl_ca_certs"),
            ("redis://host?ssl_password=hidden", "ssl_password"),
            ("unix:///s?ssl_cert_reqs=none", "ssl_cert_reqs"),
            ("unix://relative/s", "unix_socket"),
            ("unix:s", "unix_socket"),
            ("unix://user:hidden@localhost/s", "url"),
        ];
        for (text, field) in table {
            assert_eq!(refused(text).as_deref(), Some(field), "{text}");
        }
    }
}
