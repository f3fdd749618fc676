//! One parameter from text: what URLs and environment variables have in common.

use std::str::FromStr;
use std::time::Duration;

use super::{Pem, PoolParams, Protocol};

/// Sets one field from text. The error is the reason, without the text, which may be a secret.
///
/// The fields of TLS are set on the present `TlsParams` only: whether there are any is for the caller to decide.
pub(super) fn set(params: &mut PoolParams, field: &str, text: &str) -> Result<(), String> {
    match field {
        "host" => params.host = text.to_owned(),
        "port" => params.port = number(text)?,
        "unix_socket" => params.unix_socket = Some(text.into()),
        "username" => params.username = Some(text.to_owned()),
        "password" => params.password = Some(text.to_owned()),
        "db" => params.db = number(text)?,
        "socket_timeout" => params.socket_timeout = seconds(text)?,
        "socket_connect_timeout" => params.socket_connect_timeout = seconds(text)?,
        "socket_keep_idle" => params.socket_keep_idle = seconds(text)?,
        "socket_keep_alive" => params.socket_keep_alive = seconds(text)?,
        "socket_keep_cnt" => params.socket_keep_cnt = number(text)?,
        "health_check_interval" => params.health_check_interval = seconds(text)?,
        "max_connections" => params.max_connections = number(text)?,
        "connection_available_timeout" => params.connection_available_timeout = seconds(text)?,
        "protocol" => params.protocol = protocol(text)?,
        "client_name" => params.client_name = text.to_owned(),
        "max_reply" => params.max_reply = number(text)?,
        _ => set_tls(params, field, text)?,
    }
    params.fault(field).map_or(Ok(()), Err)
}

fn set_tls(params: &mut PoolParams, field: &str, text: &str) -> Result<(), String> {
    let Some(tls) = &mut params.tls else {
        return Err("needs TLS".to_owned());
    };
    match field {
        "ca_certs" => tls.ca_certs = Some(pem(text)?),
        "client_cert" => tls.client_cert = Some(pem(text)?),
        "client_key" => tls.client_key = Some(pem(text)?),
        "client_key_password" => tls.client_key_password = Some(text.to_owned()),
        "cert_requested" => tls.danger_accept_invalid_certs = !truth(text)?,
        "server_name" => tls.server_name = Some(text.to_owned()),
        _ => return Err("is not known".to_owned()),
    }
    Ok(())
}

fn pem(text: &str) -> Result<Pem, String> {
    if text.is_empty() { Err("is empty; give the path of a PEM file".to_owned()) } else { Ok(Pem::from(text)) }
}

pub(super) fn truth(text: &str) -> Result<bool, String> {
    match text {
        "1" => Ok(true),
        "0" => Ok(false),
        _ if text.eq_ignore_ascii_case("true") => Ok(true),
        _ if text.eq_ignore_ascii_case("false") => Ok(false),
        _ => Err("must be true, false, 1 or 0".to_owned()),
    }
}

fn protocol(text: &str) -> Result<Protocol, String> {
    match text {
        "2" | "resp2" => Ok(Protocol::Resp2),
        "3" | "resp3" => Ok(Protocol::Resp3),
        _ => Err("must be 2 or 3".to_owned()),
    }
}

fn number<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "must be a whole number in its range".to_owned())
}

fn seconds(text: &str) -> Result<Duration, String> {
    text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).ok_or_else(|| {
        "must be a number of seconds, such as 30 or 0.5, neither negative nor beyond what a clock can count".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_may_be_fractions_and_nothing_odd() {
        for (text, millis) in [("30", 30_000), ("0.5", 500), (".25", 250), ("1e3", 1_000_000), ("0", 0), ("0.1", 100)] {
            assert_eq!(seconds(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", " ", "-1", "-0.001", "NaN", "inf", "infinity", "1e300", "30s", "1,5", "0x10", " 1"] {
            assert!(seconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn truth_has_four_spellings() {
        for (text, value) in
            [("true", true), ("True", true), ("1", true), ("false", false), ("FALSE", false), ("0", false)]
        {
            assert_eq!(truth(text), Ok(value), "{text}");
        }
        for text in ["", "yes", "no", "on", "2"] {
            assert!(truth(text).is_err(), "{text}");
        }
    }
}
