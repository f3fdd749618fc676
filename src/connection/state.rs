//! What a borrower leaves behind on a connection: read from the commands that pass through `redis::ConnectionLike`, and from
//! what they were answered with.
//!
//! In doubt a connection is not as it was lent: to open another one costs little, a stranger's transaction everything.

use std::sync::OnceLock;

use redis::Value;

use crate::net::{Interrupter, Socket};

/// What must end with a loan.
#[derive(Debug, Default)]
pub(super) struct LoanState {
    /// All interrupters that were asked for are clones of this one.
    interrupter: OnceLock<Interrupter>,
    in_transaction: bool,
    watching: bool,
    in_other_db: bool,
    /// Something that no command takes back for certain: login, mode, subscription, or what cannot be read.
    changed: bool,
}

/// What a request may change, by the number of the reply that tells whether it did.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) commands: usize,
    effects: Vec<(usize, Effect)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Effect {
    Begin,
    /// `EXEC` or `DISCARD`.
    End,
    Watch,
    Unwatch,
    Select {
        own: bool,
    },
    /// `CLIENT REPLY`. Sent alone, the connection itself keeps count of what is answered.
    Silence,
    Change,
}

impl LoanState {
    pub(super) fn interrupter(&self, socket: &Socket) -> Interrupter {
        self.interrupter.get_or_init(|| socket.interrupter()).clone()
    }

    /// Ends the loan: whether the connection is as it was lent. Interrupters hit nothing from now on.
    pub(super) fn end(&mut self) -> bool {
        let interrupted = self.interrupter.take().is_some_and(|interrupter| interrupter.end());
        !(interrupted || self.in_transaction || self.watching || self.in_other_db || self.changed)
    }

    /// Takes note of what is about to be sent. The worst is assumed until the replies tell otherwise.
    pub(super) fn sending(&mut self, bytes: &[u8], own_db: i64) -> Request {
        let Some(request) = read(bytes, own_db) else {
            self.changed = true;
            return Request::default();
        };
        for (_, effect) in &request.effects {
            self.assume(*effect);
        }
        request
    }

    fn assume(&mut self, effect: Effect) {
        match effect {
            Effect::Begin => self.in_transaction = true,
            Effect::Watch => self.watching = true,
            Effect::Select { own } => self.in_other_db |= !own,
            Effect::Silence | Effect::Change => self.changed = true,
            Effect::End | Effect::Unwatch => {}
        }
    }

    /// The reply of this number came.
    pub(super) fn answered(&mut self, request: &Request, number: usize, reply: &Value) {
        let Some((_, effect)) = request.effects.iter().find(|(position, _)| *position == number) else { return };
        match (effect, reply) {
            // In a transaction it is queued, and its end is what counts.
            (Effect::Unwatch, Value::Okay) => self.watching = false,
            (Effect::Select { own }, Value::Okay) => self.in_other_db = !own,
            // Refused, the transaction is over all the same if it is said to be discarded.
            (Effect::End, Value::ServerError(refusal)) if refusal.code() != "EXECABORT" => {}
            (Effect::End, _) => (self.in_transaction, self.watching) = (false, false),
            // In the order of the replies: it may follow the end of another.
            (effect, _) => self.assume(*effect),
        }
    }
}

/// The commands of a request; none if the server may understand it otherwise than we do, as an inline command.
fn read(mut bytes: &[u8], own_db: i64) -> Option<Request> {
    let mut request = Request::default();
    while !bytes.is_empty() {
        let arguments = number(&mut bytes, b'*').filter(|arguments| *arguments > 0)?;
        let name = argument(&mut bytes)?;
        let first = if arguments > 1 { argument(&mut bytes)? } else { b"" };
        for _ in 2..arguments {
            argument(&mut bytes)?;
        }
        if let Some(effect) = effect(name, first, own_db) {
            request.effects.push((request.commands, effect));
        }
        request.commands += 1;
    }
    if request.commands == 1 {
        request.effects.retain(|(_, effect)| *effect != Effect::Silence);
    }
    Some(request)
}

/// What the command does to its connection; none for nearly all of them.
fn effect(name: &[u8], first: &[u8], own_db: i64) -> Option<Effect> {
    let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
    let is_one_of = |others: &[&str]| others.iter().any(|other| is(other));
    let effect = match name.len() {
        4 if is("EXEC") => Effect::End,
        4 if is_one_of(&["AUTH", "QUIT", "SYNC"]) => Effect::Change,
        5 if is("MULTI") => Effect::Begin,
        5 if is("WATCH") => Effect::Watch,
        5 if is_one_of(&["HELLO", "RESET", "PSYNC"]) => Effect::Change,
        6 if is("SELECT") => {
            Effect::Select { own: std::str::from_utf8(first).is_ok_and(|db| db.parse() == Ok(own_db)) }
        }
        6 if is("CLIENT") && first.eq_ignore_ascii_case(b"REPLY") => Effect::Silence,
        6 if is("CLIENT") && !only_asks(first) => Effect::Change,
        // Its subcommand DEBUG is a mode.
        6 if is("ASKING") || is("SCRIPT") && first.eq_ignore_ascii_case(b"DEBUG") => Effect::Change,
        7 if is("DISCARD") => Effect::End,
        7 if is("UNWATCH") => Effect::Unwatch,
        7 if is("MONITOR") => Effect::Change,
        8 if is_one_of(&["READONLY", "REPLCONF", "SHUTDOWN"]) => Effect::Change,
        9 if is_one_of(&["READWRITE", "SUBSCRIBE"]) => Effect::Change,
        10..=12 if is_one_of(&["PSUBSCRIBE", "SSUBSCRIBE", "UNSUBSCRIBE", "PUNSUBSCRIBE", "SUNSUBSCRIBE"]) => {
            Effect::Change
        }
        _ => return None,
    };
    Some(effect)
}

/// Whether a subcommand of `CLIENT` changes nothing about the connection that sends it; most of those to come will.
fn only_asks(subcommand: &[u8]) -> bool {
    const ASKING: [&str; 11] =
        ["ID", "INFO", "LIST", "GETNAME", "GETREDIR", "TRACKINGINFO", "KILL", "PAUSE", "UNPAUSE", "UNBLOCK", "HELP"];
    ASKING.iter().any(|asking| subcommand.eq_ignore_ascii_case(asking.as_bytes()))
}

/// Takes one argument off the front.
fn argument<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let length = number(bytes, b'$')?;
    let (argument, rest) = bytes.split_at_checked(length)?;
    *bytes = rest.strip_prefix(b"\r\n")?;
    Some(argument)
}

/// Takes a header off the front: its number, written as the server takes it.
fn number(bytes: &mut &[u8], kind: u8) -> Option<usize> {
    let digits = bytes.strip_prefix(&[kind])?;
    let end = digits.iter().position(|byte| *byte == b'\r').filter(|end| (1..10).contains(end))?;
    let (digits, rest) = digits.split_at_checked(end)?;
    *bytes = rest.strip_prefix(b"\r\n")?;
    if digits.first() == Some(&b'0') && digits.len() > 1 {
        return None;
    }
    digits.iter().try_fold(0, |number, digit| digit.is_ascii_digit().then(|| number * 10 + usize::from(digit - b'0')))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn effects(bytes: &[u8]) -> Option<(usize, Vec<(usize, Effect)>)> {
        read(bytes, 3).map(|request| (request.commands, request.effects))
    }

    #[test]
    fn commands_are_found_wherever_they_stand() {
        let plain = redis::cmd("SET").arg("MULTI").arg("*1\r\n$5\r\nMULTI\r\n").get_packed_command();
        assert_eq!(effects(&plain), Some((1, vec![])));
        let mut pipe = redis::pipe();
        pipe.set("key", "x".repeat(100_000)).cmd("wAtCh").arg("key").cmd("exec").cmd("SELECT").arg(3);
        let expected = vec![(1, Effect::Watch), (2, Effect::End), (3, Effect::Select { own: true })];
        assert_eq!(effects(&pipe.get_packed_pipeline()), Some((4, expected)));
        pipe.atomic();
        assert_eq!(
            effects(&pipe.get_packed_pipeline()).map(|(count, found)| (count, found[0].1)),
            Some((6, Effect::Begin))
        );
        assert_eq!(effects(b""), Some((0, vec![])));
    }

    #[test]
    fn what_the_server_may_read_otherwise_is_not_read() {
        for bytes in [
            &b"PING\r\n"[..],
            b"\r\n*1\r\n$4\r\nPING\r\n",
            b"*0\r\n",
            b"*-1\r\n",
            b"*1\r\n$4\r\nPING",
            b"*1\r\n$4\r\nPINGxx",
            b"*1\r\n$04\r\nPING\r\n",
            b"*+1\r\n$4\r\nPING\r\n",
            b"*1\n$4\r\nPING\r\n",
            b"*2\r\n$4\r\nPING\r\n",
            b"*1\r\n$5\r\nPING\r\n",
            b"*1\r\n$99999999999999999999\r\nPING\r\n",
            b"*1\r\n$4\r\nPING\r\nMULTI\r\n",
        ] {
            assert_eq!(effects(bytes), None, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn refused_the_end_of_a_transaction_ends_it_only_if_it_is_said_to() {
        let refusal = |line: &[u8]| redis::parse_redis_value(line).unwrap();
        for (reply, ended) in [
            (Value::Array(vec![]), true),
            (Value::Nil, true),
            (refusal(b"-EXECABORT Transaction discarded because of: no\r\n"), true),
            (refusal(b"-NOPERM this user has no permissions\r\n"), false),
        ] {
            let mut state = LoanState::default();
            let begin = state.sending(&redis::cmd("MULTI").get_packed_command(), 0);
            state.answered(&begin, 0, &Value::Okay);
            let end = state.sending(&redis::cmd("EXEC").get_packed_command(), 0);
            state.answered(&end, 0, &reply);
            assert_eq!(state.end(), ended, "{reply:?}");
        }
    }
}
