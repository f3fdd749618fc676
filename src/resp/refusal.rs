//! Error replies, as the `redis` crate has them.

use std::borrow::Cow;

use redis::ServerErrorKind::{self, *};
use redis::{ErrorKind, RedisError, Value};

use super::Malformed;

/// The codes that have a kind of their own.
const KINDS: [(&str, ServerErrorKind); 14] = [
    ("ERR", ResponseError),
    ("EXECABORT", ExecAbort),
    ("LOADING", BusyLoading),
    ("NOSCRIPT", NoScript),
    ("MOVED", Moved),
    ("ASK", Ask),
    ("TRYAGAIN", TryAgain),
    ("CLUSTERDOWN", ClusterDown),
    ("CROSSSLOT", CrossSlot),
    ("MASTERDOWN", MasterDown),
    ("READONLY", ReadOnly),
    ("NOTBUSY", NotBusy),
    ("NOSUB", NoSub),
    ("NOPERM", NoPerm),
];

/// An error reply as an error.
pub(crate) fn redis_error(text: &[u8]) -> RedisError {
    let text = without_secrets(text);
    let (code, detail) = match text.split_once(' ') {
        Some((code, detail)) => (code, Some(detail.to_owned())),
        None => (&*text, None),
    };
    match (KINDS.iter().find(|(known, _)| *known == code), detail) {
        (Some((code, kind)), Some(detail)) => RedisError::from((ErrorKind::Server(*kind), *code, detail)),
        (Some((code, kind)), None) => RedisError::from((ErrorKind::Server(*kind), *code)),
        (None, detail) => redis::make_extension_error(code.to_owned(), detail),
    }
}

/// An error reply as a value. Its kind cannot be built from outside the `redis` crate: the crate's own parser makes it of the
/// text, here as a string with a length, which may contain line ends. Nothing else needs that parser, which is large: a
/// program that sends no commands of its own does not have it in it.
pub(super) fn server_error(text: &[u8]) -> Result<Value, Malformed> {
    let text = without_secrets(text);
    let reply = format!("!{}\r\n{text}\r\n", text.len());
    redis::parse_redis_value(reply.as_bytes()).map_err(|_| "an error line that cannot be read")
}

fn without_secrets(text: &[u8]) -> Cow<'_, str> {
    without_arguments(without_user(String::from_utf8_lossy(text)))
}

/// Since version 7.2 a server that withholds something says from whom. Whose connection it is stays out of errors.
fn without_user(text: Cow<'_, str>) -> Cow<'_, str> {
    let named = text.strip_prefix("NOPERM User ").and_then(|rest| rest.split_once(" has no permission"));
    match named {
        Some((_, rest)) => Cow::Owned(format!("NOPERM this user has no permission{rest}")),
        None => text,
    }
}

/// A server repeats the arguments of a command that it does not know, and payloads are among them. The command's name stays.
fn without_arguments(text: Cow<'_, str>) -> Cow<'_, str> {
    match text.split_once(", with args beginning with") {
        Some((kept, _)) if kept.starts_with("ERR unknown command") => Cow::Owned(kept.to_owned()),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes that have no kind, among them those that this crate asks for.
    const OTHERS: [&str; 11] = [
        "BUSYGROUP",
        "MISCONF",
        "NOAUTH",
        "NOGROUP",
        "NOREPLICAS",
        "OOM",
        "UNBLOCKED",
        "WRONGPASS",
        "WRONGTYPE",
        "",
        "err",
    ];

    #[test]
    fn an_error_is_what_the_redis_crate_makes_of_it() {
        for code in KINDS.map(|(code, _)| code).into_iter().chain(OTHERS) {
            for text in [format!("{code} what  is wrong"), format!("{code} "), code.to_owned()] {
                let theirs = server_error(text.as_bytes()).and_then(|value| value.extract_error().err().ok_or("none"));
                let (ours, theirs) = (redis_error(text.as_bytes()), theirs.unwrap());
                assert_eq!((ours.kind(), ours.code()), (theirs.kind(), theirs.code()), "{text}");
                assert_eq!(ours.detail(), theirs.detail(), "{text}");
            }
        }
    }
}
