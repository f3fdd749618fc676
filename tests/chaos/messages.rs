//! What is published: each message has a name of its own, which tells its fate, and a content that can be checked.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use step_redis::{StreamInput, StreamOutput};

pub(crate) const GROUP: &str = "group";
/// Callers from this number on publish to the shifting stream.
pub(crate) const FIRST_SHIFTING_CALLER: u16 = 100;
/// One message in so many fails whenever it is handled.
const POISON_EVERY: u32 = 50;
/// One message in so many is large.
const LARGE_EVERY: u32 = 200;

/// The two streams of a run, each with a group, consumers and publishers of its own, at one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lane {
    /// Nothing is ever removed from it, and `claim_idle` is longer than any fault lasts: every count is exact.
    Orders,
    /// Its group is destroyed, it is trimmed and deleted, and leases run out while faults last.
    Shifting,
}

impl Lane {
    pub(crate) const ALL: [Lane; 2] = [Lane::Orders, Lane::Shifting];

    pub(crate) fn stream(self) -> &'static str {
        match self {
            Lane::Orders => "orders",
            Lane::Shifting => "shifting",
        }
    }

    pub(crate) fn dead(self) -> &'static str {
        match self {
            Lane::Orders => "orders:dead",
            Lane::Shifting => "shifting:dead",
        }
    }

    pub(crate) fn max_deliveries(self) -> u64 {
        match self {
            Lane::Orders => 4,
            Lane::Shifting => 5,
        }
    }

    pub(crate) const fn claim_idle(self) -> Duration {
        match self {
            Lane::Orders => Duration::from_secs(10),
            Lane::Shifting => Duration::from_secs(1),
        }
    }

    pub(crate) fn input(self) -> StreamInput {
        StreamInput::new(self.stream(), GROUP)
            .wait_timeout(Duration::from_millis(300))
            .claim_idle(self.claim_idle())
            .dead_letter(StreamOutput::new(self.dead()))
    }
}

/// The name of a message: who published it, and its place among the messages of that caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Name {
    pub(crate) caller: u16,
    pub(crate) number: u32,
}

impl Name {
    pub(crate) fn lane(self) -> Lane {
        if self.caller < FIRST_SHIFTING_CALLER { Lane::Orders } else { Lane::Shifting }
    }

    /// Whether every handler fails with it.
    pub(crate) fn is_poison(self) -> bool {
        self.number % POISON_EVERY == 7
    }

    /// From 16 to 255 KiB; the rest is tiny.
    pub(crate) fn is_large(self) -> bool {
        self.number % LARGE_EVERY == 33
    }

    fn filler(self) -> (usize, char) {
        let length = if self.is_large() { (16 + self.number as usize * 7919 % 240) * 1024 } else { 10 };
        (length, char::from(b'a' + (self.number % 26) as u8))
    }

    /// The message: the name, a colon, and a filler that follows from the name.
    pub(crate) fn text(self) -> String {
        let (length, letter) = self.filler();
        let mut text = format!("{self}:");
        text.extend(std::iter::repeat_n(letter, length));
        text
    }

    /// The name of a message that has come back whole.
    pub(crate) fn of(payload: &[u8]) -> Result<Name, String> {
        let text = std::str::from_utf8(payload).map_err(|error| error.to_string())?;
        let name: Name = text.split(':').next().unwrap_or_default().parse()?;
        if text == name.text() { Ok(name) } else { Err(format!("{name} has come back with another content")) }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.caller, self.number)
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Name, String> {
        let parts =
            text.split_once('.').and_then(|(caller, number)| Some((caller.parse().ok()?, number.parse().ok()?)));
        let (caller, number) = parts.ok_or_else(|| format!("{text:?} is no message of this run"))?;
        Ok(Name { caller, number })
    }
}
