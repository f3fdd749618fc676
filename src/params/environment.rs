//! `PoolParams` from environment variables.

use std::ffi::OsString;

use super::{PoolParams, TlsParams, setting, url};
use crate::error::{Error, Result};

/// The ends of the variables' names, each with the field that it sets.
const VARIABLES: [(&str, &str); 17] = [
    ("HOST", "host"),
    ("PORT", "port"),
    ("UNIX_SOCKET", "unix_socket"),
    ("USERNAME", "username"),
    ("PASSWORD", "password"),
    ("DB", "db"),
    ("SOCKET_TIMEOUT", "socket_timeout"),
    ("SOCKET_CONNECT_TIMEOUT", "socket_connect_timeout"),
    ("SOCKET_KEEP_IDLE", "socket_keep_idle"),
    ("SOCKET_KEEP_ALIVE", "socket_keep_alive"),
    ("SOCKET_KEEP_CNT", "socket_keep_cnt"),
    ("HEALTH_CHECK_INTERVAL", "health_check_interval"),
    ("MAX_CONNECTIONS", "max_connections"),
    ("CONNECTION_AVAILABLE_TIMEOUT", "connection_available_timeout"),
    ("PROTOCOL", "protocol"),
    ("CLIENT_NAME", "client_name"),
    ("MAX_REPLY", "max_reply"),
];

const TLS_VARIABLES: [(&str, &str); 6] = [
    ("SSL_CA_CERTS_FILE", "ca_certs"),
    ("SSL_CLIENT_CERT_FILE", "client_cert"),
    ("SSL_CLIENT_KEY_FILE", "client_key"),
    ("SSL_CLIENT_KEY_FILE_PASSWORD", "client_key_password"),
    ("SSL_CERT_REQUESTED", "cert_requested"),
    ("SSL_SERVER_NAME", "server_name"),
];

/// `lookup` stands for the process environment, which tests cannot change safely.
pub(super) fn read(prefix: &str, lookup: impl Fn(&str) -> Option<OsString>) -> Result<PoolParams> {
    if prefix.is_empty() {
        return Err(Error::params("prefix", "is empty; the variables of other programs would be read"));
    }
    let name = |suffix: &str| format!("{prefix}_{suffix}");
    let value = |suffix: &str| -> Result<Option<String>> {
        let Some(value) = lookup(&name(suffix)).filter(|value| !value.is_empty()) else {
            return Ok(None);
        };
        value.into_string().map(Some).map_err(|_| Error::params(name(suffix), "is not Unicode"))
    };

    let mut params = match value("URL")? {
        None => PoolParams::default(),
        Some(text) => url::parse(&text).map_err(|error| match error {
            Error::Params { field, reason } if field == "url" => Error::params(name("URL"), reason),
            Error::Params { field, reason } => Error::params(name("URL"), format!("`{field}` {reason}")),
            other => other,
        })?,
    };
    match (value("HOST")?, value("UNIX_SOCKET")?) {
        (Some(_), Some(_)) => {
            let reason = format!("cannot be set together with {}", name("HOST"));
            return Err(Error::params(name("UNIX_SOCKET"), reason));
        }
        (Some(_), None) => params.unix_socket = None,
        _ => {}
    }
    for (suffix, field) in VARIABLES {
        let Some(text) = value(suffix)? else { continue };
        // Kubernetes sets such a variable for each service, named like it.
        if field == "port" && text.starts_with("tcp://") {
            let reason = "is no port number but what Kubernetes sets for a service of this name; use another prefix, or \
                          `enableServiceLinks: false`";
            return Err(Error::params(name(suffix), reason));
        }
        setting::set(&mut params, field, &text).map_err(|reason| Error::params(name(suffix), reason))?;
    }

    let enable = match value("SSL_ENABLE")? {
        None => None,
        Some(text) => Some(setting::truth(&text).map_err(|reason| Error::params(name("SSL_ENABLE"), reason))?),
    };
    match enable {
        Some(true) if params.tls.is_none() => {
            params.tls = Some(TlsParams::new());
            params.fault("tls").map_or(Ok(()), |reason| Err(Error::params(name("SSL_ENABLE"), reason)))?;
        }
        Some(false) if params.tls.is_some() => {
            let reason = format!("is false, but {} asks for TLS; correct one of them", name("URL"));
            return Err(Error::params(name("SSL_ENABLE"), reason));
        }
        Some(false) => return Ok(params),
        _ => {}
    }
    for (suffix, field) in TLS_VARIABLES {
        let Some(text) = value(suffix)? else { continue };
        if params.tls.is_none() {
            let reason = format!("is of no use without TLS; set {} to true, or to false", name("SSL_ENABLE"));
            return Err(Error::params(name(suffix), reason));
        }
        setting::set(&mut params, field, &text).map_err(|reason| Error::params(name(suffix), reason))?;
    }
    Ok(params)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::params::Protocol;

    fn read_from(variables: &[(&str, &str)]) -> Result<PoolParams> {
        read("APP", |name| {
            let suffix = name.strip_prefix("APP_").expect("only variables with the prefix are read");
            variables.iter().find(|(known, _)| *known == suffix).map(|(_, value)| value.into())
        })
    }

    #[test]
    fn nothing_set_is_the_default() {
        assert_eq!(read_from(&[]).unwrap(), PoolParams::default());
        let empty: Vec<_> = VARIABLES.iter().chain(&TLS_VARIABLES).map(|(suffix, _)| (*suffix, "")).collect();
        assert_eq!(read_from(&empty).unwrap(), PoolParams::default());
        assert_eq!(read_from(&[("URL", ""), ("SSL_ENABLE", "")]).unwrap(), PoolParams::default());
    }

    #[test]
    fn every_plain_variable() {
        let variables = [
            ("HOST", "host"),
            ("PORT", "1"),
            ("USERNAME", "user"),
            ("PASSWORD", "p w"),
            ("DB", "2"),
            ("SOCKET_TIMEOUT", "0.5"),
            ("SOCKET_CONNECT_TIMEOUT", "1.5"),
            ("SOCKET_KEEP_IDLE", "3"),
            ("SOCKET_KEEP_ALIVE", "4"),
            ("SOCKET_KEEP_CNT", "5"),
            ("HEALTH_CHECK_INTERVAL", "6"),
            ("MAX_CONNECTIONS", "7"),
            ("CONNECTION_AVAILABLE_TIMEOUT", "8"),
            ("PROTOCOL", "2"),
            ("CLIENT_NAME", "me"),
            ("MAX_REPLY", "65536"),
        ];
        let expected = PoolParams::new("host", 1)
            .username("user")
            .password("p w")
            .db(2)
            .socket_timeout(Duration::from_millis(500))
            .socket_connect_timeout(Duration::from_millis(1500))
            .socket_keep_idle(Duration::from_secs(3))
            .socket_keep_alive(Duration::from_secs(4))
            .socket_keep_cnt(5)
            .health_check_interval(Duration::from_secs(6))
            .max_connections(7)
            .connection_available_timeout(Duration::from_secs(8))
            .protocol(Protocol::Resp2)
            .client_name("me")
            .max_reply(65_536);
        assert_eq!(read_from(&variables).unwrap(), expected);
        assert_eq!(read_from(&[("UNIX_SOCKET", "/s")]).unwrap(), PoolParams::unix("/s"));
    }

    #[test]
    fn variables_override_the_url() {
        let url = ("URL", "redis://user:old@host:1/2?socket_timeout=5");
        let expected = PoolParams::new("host", 1).username("user").password("old").db(2);
        let expected = expected.socket_timeout(Duration::from_secs(5));
        assert_eq!(read_from(&[url]).unwrap(), expected);
        assert_eq!(read_from(&[url, ("PASSWORD", "new")]).unwrap(), expected.clone().password("new"));
        assert_eq!(read_from(&[url, ("DB", "3"), ("PORT", "4")]).unwrap(), expected.clone().db(3).port(4));
        assert_eq!(read_from(&[url, ("UNIX_SOCKET", "/s")]).unwrap(), expected.unix_socket("/s"));
        let socket = ("URL", "unix:///s");
        assert_eq!(read_from(&[socket, ("HOST", "other")]).unwrap(), PoolParams::new("other", 6379));
    }

    #[cfg(feature = "tls")]
    #[test]
    fn every_variable_of_tls() {
        let variables = [
            ("SSL_ENABLE", "true"),
            ("SSL_CA_CERTS_FILE", "/ca.pem"),
            ("SSL_CLIENT_CERT_FILE", "/cert.pem"),
            ("SSL_CLIENT_KEY_FILE", "/key.pem"),
            ("SSL_CLIENT_KEY_FILE_PASSWORD", "pw"),
            ("SSL_CERT_REQUESTED", "false"),
            ("SSL_SERVER_NAME", "other"),
        ];
        let expected = TlsParams::new()
            .ca_certs("/ca.pem")
            .client_cert("/cert.pem")
            .client_key("/key.pem")
            .client_key_password("pw")
            .danger_accept_invalid_certs(true)
            .server_name("other");
        assert_eq!(read_from(&variables).unwrap().tls, Some(expected.clone()));
        let mut by_url = variables;
        by_url[0] = ("URL", "rediss://host");
        assert_eq!(read_from(&by_url).unwrap().tls, Some(expected));
        assert_eq!(read_from(&[("SSL_ENABLE", "1")]).unwrap().tls, Some(TlsParams::new()));
        let verified = read_from(&[("URL", "rediss://host?ssl_cert_reqs=none"), ("SSL_CERT_REQUESTED", "1")]).unwrap();
        assert_eq!(verified.tls, Some(TlsParams::new()));
    }

    #[cfg(feature = "tls")]
    #[test]
    fn tls_is_never_dropped_in_silence() {
        assert_eq!(refused(&[("URL", "rediss://host"), ("SSL_ENABLE", "false")]), "APP_SSL_ENABLE");
    }

    #[cfg(not(feature = "tls"))]
    #[test]
    fn tls_needs_the_feature() {
        assert_eq!(refused(&[("SSL_ENABLE", "true")]), "APP_SSL_ENABLE");
    }

    #[test]
    fn tls_that_is_switched_off_needs_no_files() {
        let off = [("SSL_ENABLE", "False"), ("SSL_CA_CERTS_FILE", "/ca.pem"), ("SSL_CERT_REQUESTED", "maybe")];
        assert_eq!(read_from(&off).unwrap(), PoolParams::default());
    }

    fn refused(variables: &[(&str, &str)]) -> String {
        let error = read_from(variables).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hidden"), "{error:?}");
        match error {
            Error::Params { field, .. } => field.into_owned(),
            other => panic!("{variables:?}: {other:?}"),
        }
    }

    #[test]
    fn the_variable_is_named_and_its_value_is_not() {
        let table: [(&[(&str, &str)], &str); 16] = [
            (&[("PORT", "hidden")], "APP_PORT"),
            (&[("PORT", "0")], "APP_PORT"),
            (&[("PORT", "65536")], "APP_PORT"),
            (&[("PORT", "tcp://hidden:6379")], "APP_PORT"),
            (&[("HOST", "hidden:6379")], "APP_HOST"),
            (&[("HOST", "host"), ("UNIX_SOCKET", "/s")], "APP_UNIX_SOCKET"),
            (&[("DB", "hidden")], "APP_DB"),
            (&[("DB", "-1")], "APP_DB"),
            (&[("SOCKET_TIMEOUT", "0")], "APP_SOCKET_TIMEOUT"),
            (&[("SOCKET_KEEP_IDLE", "0.5")], "APP_SOCKET_KEEP_IDLE"),
            (&[("MAX_CONNECTIONS", "0")], "APP_MAX_CONNECTIONS"),
            (&[("URL", "hidden")], "APP_URL"),
            (&[("URL", "redis://:hidden@host?max_connections=0")], "APP_URL"),
            (&[("SSL_ENABLE", "hidden")], "APP_SSL_ENABLE"),
            (&[("SSL_CLIENT_KEY_FILE_PASSWORD", "hidden")], "APP_SSL_CLIENT_KEY_FILE_PASSWORD"),
            (&[("SSL_CERT_REQUESTED", "hidden")], "APP_SSL_CERT_REQUESTED"),
        ];
        for (variables, name) in table {
            assert_eq!(refused(variables), name);
        }
        let hint = read_from(&[("PORT", "tcp://10.0.0.1:6379")]).unwrap_err().to_string();
        assert!(hint.contains("Kubernetes"), "{hint}");
        let inner = read_from(&[("URL", "redis://host?max_connections=0")]).unwrap_err().to_string();
        assert!(inner.contains("max_connections"), "{inner}");
    }

    #[test]
    fn a_prefix_is_needed() {
        assert!(matches!(read("", |_| None), Err(Error::Params { field, .. }) if field == "prefix"));
    }

    #[cfg(unix)]
    #[test]
    fn a_value_that_is_not_unicode_is_refused() {
        use std::os::unix::ffi::OsStringExt;
        let error = read("APP", |name| (name == "APP_PASSWORD").then(|| OsString::from_vec(vec![0xFF]))).unwrap_err();
        assert!(matches!(&error, Error::Params { field, .. } if field == "APP_PASSWORD"), "{error}");
    }
}
