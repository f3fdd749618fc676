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

/// An error reply to one of this crate's own commands as an error. What went wrong within a script is told as if its
/// command had been sent without one.
pub(crate) fn redis_error(text: &[u8]) -> RedisError {
    let text = without_secrets(text);
    let text = without_script(&text);
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
pub(crate) fn server_error(text: &[u8]) -> Result<Value, Malformed> {
    let text = without_secrets(text);
    let reply = format!("!{}\r\n{text}\r\n", text.len());
    redis::parse_redis_value(reply.as_bytes()).map_err(|_| "an error line that cannot be read")
}

/// A number without a bound. What the value holds depends on the `redis` crate's feature `num-bigint`, which any other crate
/// in the build may turn on: only the crate's own parser knows.
pub(super) fn big_number(line: &[u8]) -> Result<Value, Malformed> {
    let reply = [b"(", line, b"\r\n"].concat();
    redis::parse_redis_value(&reply).map_err(|_| "a big number that cannot be read")
}

/// How Redis 6.2 and 7.0 begin to say that a script's user lacks a permission.
const WITHHELD: &str = "The user executing the script ";
/// And how later versions do.
const ACL_FAILURE: &str = "ERR ACL failure in script: ";

/// What a command within a script was answered with, where the server puts that behind words of its own, as Redis 6.2 does;
/// else the line as it is:
///
/// ```text
/// ERR Error running script (call to f_3c..): @user_script:1: WRONGTYPE Operation against a key holding ..
/// ERR Error running script (call to f_3c..): @user_script:1: @user_script: 1: -READONLY You can't write against ..
/// ```
pub(crate) fn answer_within_script(line: &[u8]) -> &[u8] {
    let answer = || {
        let rest = line.strip_prefix(b"ERR Error running script (call to f_")?;
        let call_end = rest.iter().position(|byte| !byte.is_ascii_hexdigit())?;
        let rest = place_in_script(rest.get(call_end..)?.strip_prefix(b"): ")?)?;
        // What the server refuses to call at all names the place twice.
        let rest = place_in_script(rest).unwrap_or(rest);
        let answer = rest.strip_prefix(b"-").unwrap_or(rest);
        (has_code(answer) || answer.starts_with(WITHHELD.as_bytes())).then_some(answer)
    };
    answer().unwrap_or(line)
}

/// What follows a place in a script: `@user_script:1: `, or with a space before the number.
fn place_in_script(text: &[u8]) -> Option<&[u8]> {
    let rest = text.strip_prefix(b"@user_script:")?;
    let rest = rest.strip_prefix(b" ").unwrap_or(rest);
    let line_end = rest.iter().position(|byte| !byte.is_ascii_digit()).filter(|digits| *digits > 0)?;
    rest.get(line_end..)?.strip_prefix(b": ")
}

/// Whether a line begins with an error code, as replies do, and not with a sentence.
fn has_code(line: &[u8]) -> bool {
    let code = line.split(|byte| *byte == b' ').next().unwrap_or_default();
    code.len() > 1 && code.iter().all(u8::is_ascii_uppercase)
}

/// A refusal within a script as if the command had been sent without one: Redis 6.2 puts the script before it, later
/// versions put it behind, and a permission that the command lacks has no code there.
fn without_script(text: &str) -> Cow<'_, str> {
    let answer = std::str::from_utf8(answer_within_script(text.as_bytes())).unwrap_or(text);
    let answer = match answer.rsplit_once(" script: ") {
        Some((before, script)) if names_script(script) => before,
        _ => answer,
    };
    if let Some(withheld) = answer.strip_prefix(ACL_FAILURE) {
        return Cow::Owned(format!("NOPERM {withheld}"));
    }
    match answer.strip_prefix("ERR ").unwrap_or(answer).strip_prefix(WITHHELD) {
        Some(withheld) => Cow::Owned(format!("NOPERM this user {withheld}")),
        None => Cow::Borrowed(answer),
    }
}

/// `3c.., on @user_script:1.`; Valkey 9 leaves out the first part.
fn names_script(text: &str) -> bool {
    let place = match text.split_once(", ") {
        Some((sha1, place)) if sha1.bytes().all(|byte| byte.is_ascii_hexdigit()) => place,
        _ => text,
    };
    let line = place.strip_prefix("on @user_script:").and_then(|rest| rest.strip_suffix('.'));
    line.is_some_and(|line| !line.is_empty() && line.bytes().all(|byte| byte.is_ascii_digit()))
}

fn without_secrets(text: &[u8]) -> Cow<'_, str> {
    without_arguments(without_user(String::from_utf8_lossy(text)))
}

/// Since version 7.2 a server that withholds something says from whom. Whose connection it is stays out of errors.
fn without_user(text: Cow<'_, str>) -> Cow<'_, str> {
    // An aborted transaction repeats a refusal behind words of its own.
    let named = ["NOPERM User ", "ERR ACL failure in script: User "]
        .into_iter()
        .find_map(|refusal| Some((text.find(refusal)?, refusal)))
        .filter(|(at, _)| *at == 0 || text.starts_with("EXECABORT"));
    let withheld = named.and_then(|(at, refusal)| {
        let (before, rest) = (text.get(..at)?, text.get(at + refusal.len()..)?);
        let (_, rest) = rest.split_once(" has no permission")?;
        Some(format!("{before}{}this user has no permission{rest}", refusal.strip_suffix("User ")?))
    });
    withheld.map_or(text, Cow::Owned)
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

    /// The lines of Redis 6.2, 7.0, 7.2 to 8.0, and Valkey 9, in this order.
    const WITHIN_SCRIPT: [(&str, &str); 19] = [
        ("ERR Error running script (call to f_3c0f): @user_script:1: WRONGTYPE Operation", "WRONGTYPE Operation"),
        (
            "ERR Error running script (call to f_3c0f): @user_script:12: NOGROUP No such key 's'",
            "NOGROUP No such key 's'",
        ),
        ("ERR Error running script (call to f_3c0f): @user_script:1: ERR no such key", "ERR no such key"),
        ("ERR Error running script (call to f_3c0f): @user_script:1: @user_script: 1: -OOM command", "OOM command"),
        ("ERR Error running script (call to f_3c0f): @user_script:1: @user_script: 1: -READONLY You", "READONLY You"),
        ("ERR Error running script (call to f_3c0f): @user_script:1: @user_script: 1: -MISCONF it's", "MISCONF it's"),
        (
            "ERR Error running script (call to f_3c0f): @user_script:1: @user_script: 1: \
             The user executing the script can't run this command or subcommand",
            "NOPERM this user can't run this command or subcommand",
        ),
        ("WRONGTYPE Operation script: bf0feec1ef, on @user_script:1.", "WRONGTYPE Operation"),
        ("ERR no such key script: 98e4d3c930, on @user_script:12.", "ERR no such key"),
        (
            "ERR The user executing the script can't access at least one of the keys script: 5a, on @user_script:1.",
            "NOPERM this user can't access at least one of the keys",
        ),
        (
            "ERR ACL failure in script: User ann has no permissions to run the 'xadd' command script: bf, on @user_script:1.",
            "NOPERM this user has no permissions to run the 'xadd' command",
        ),
        (
            "ERR ACL failure in script: No permissions to access a key script: 5a, on @user_script:1.",
            "NOPERM No permissions to access a key",
        ),
        ("OOM command not allowed script: on @user_script:1.", "OOM command not allowed"),
        (
            "ERR ACL failure in script: User ann has no permissions to run the 'xadd' command script: on @user_script:1.",
            "NOPERM this user has no permissions to run the 'xadd' command",
        ),
        // Of these no command is to blame, or they only look so.
        (
            "ERR Error running script (call to f_3c0f): @user_script:1: user_script:1: READONLY is nil",
            "ERR Error running script (call to f_3c0f): @user_script:1: user_script:1: READONLY is nil",
        ),
        ("ERR Error running script (call to f_3c0f", "ERR Error running script (call to f_3c0f"),
        (
            "ERR Error running script (call to f_3c0f): @user_script:",
            "ERR Error running script (call to f_3c0f): @user_script:",
        ),
        ("NOGROUP No such key 'a script: on @user_script:1.'", "NOGROUP No such key 'a script: on @user_script:1.'"),
        ("ERR read the script: then on @user_script:1.", "ERR read the script: then on @user_script:1."),
    ];

    #[test]
    fn what_a_command_within_a_script_is_answered_with_is_told_as_without_one() {
        for (line, answer) in WITHIN_SCRIPT {
            let (ours, plain) = (redis_error(line.as_bytes()), redis_error(answer.as_bytes()));
            assert_eq!(
                (ours.kind(), ours.code(), ours.detail()),
                (plain.kind(), plain.code(), plain.detail()),
                "{line}"
            );
        }
    }

    #[test]
    fn a_users_own_scripts_are_answered_in_the_servers_words_without_the_users_name() {
        for (line, _) in WITHIN_SCRIPT {
            let told = format!("{:?}", server_error(line.as_bytes()).unwrap());
            assert!(told.contains("script") && !told.contains("ann"), "{told}");
        }
    }

    #[test]
    fn an_aborted_transaction_does_not_name_the_user_either() {
        let line = b"EXECABORT Transaction discarded because of: NOPERM User bobby has no permissions to run 'get'";
        let error = redis_error(line);
        assert_eq!((error.code(), error.to_string().contains("bobby")), (Some("EXECABORT"), false));
        assert!(error.detail().is_some_and(|text| text.ends_with("NOPERM this user has no permissions to run 'get'")));
        // Somebody's key may be called anything.
        let line = b"ERR no key NOPERM User bobby has no permissions";
        assert!(redis_error(line).detail().is_some_and(|text| text.contains("bobby")));
    }
}
