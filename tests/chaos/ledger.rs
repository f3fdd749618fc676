//! The ledger: what publishers were told, what handlers had, and how consumers ended. It counts and judges nothing.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use step_redis::{ConsumerStats, EntryId, Error, Result};

use crate::messages::{Lane, Name};

/// What a caller was told about a message.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Told {
    Confirmed(EntryId),
    Unknown,
    NotSent,
    /// The server has no memory for it.
    OutOfMemory,
}

impl Told {
    pub(crate) fn of(result: &Result<EntryId>) -> Told {
        match result {
            Ok(id) => Told::Confirmed(*id),
            Err(error) => Told::of_failure(error),
        }
    }

    pub(crate) fn id(self) -> Option<EntryId> {
        match self {
            Told::Confirmed(id) => Some(id),
            _ => None,
        }
    }

    pub(crate) fn is_refusal(self) -> bool {
        matches!(self, Told::NotSent | Told::OutOfMemory)
    }

    pub(crate) fn of_failure(error: &Error) -> Told {
        match error.code() {
            Some("OOM") => Told::OutOfMemory,
            _ if error.is_outcome_unknown() => Told::Unknown,
            _ => Told::NotSent,
        }
    }
}

/// What a handler did with what it got. The flag: whether it was told that this succeeded.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Outcome {
    /// The handler's process was killed first.
    Unfinished,
    /// It was killed while it acknowledged: the server may have heard of it.
    Acking,
    Acked(bool),
    Released(bool),
    Retried(bool),
    Dropped,
    Panicked,
    DeadLettered(bool),
}

impl Outcome {
    pub(crate) fn is_done(self) -> bool {
        matches!(self, Outcome::Acked(_) | Outcome::Acking)
    }
}

/// One hand-out of an entry to a handler.
#[derive(Debug, Clone, Copy)]
pub(crate) struct HandOut {
    /// By the number of the consumer's life.
    pub(crate) life: usize,
    pub(crate) id: EntryId,
    /// What `delivery_count()` said.
    pub(crate) number: u64,
    pub(crate) at: u64,
    pub(crate) outcome: Outcome,
}

/// One consumer from its start to its end. The next one may have the same name.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    pub(crate) consumer: String,
    pub(crate) lane: Lane,
    pub(crate) ending: Option<Ending>,
    pub(crate) handed_out: u64,
    /// Acknowledgements that `ack()` took without an error.
    pub(crate) acks: u64,
    /// `release()` and `retry_after()` without an error.
    pub(crate) releases: u64,
    /// Handlers that dropped what they had, or panicked: what becomes of it is the setting's choice.
    pub(crate) drops: u64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum How {
    Closed,
    Dropped,
    Killed,
}

/// How a consumer ended.
#[derive(Debug, Clone)]
pub(crate) struct Ending {
    pub(crate) how: How,
    pub(crate) from: u64,
    pub(crate) until: u64,
    /// How many acknowledgements the server may not have: what `close()` said, or what the statistics say where there is no
    /// `close()`.
    pub(crate) unconfirmed: u64,
    /// What it held may not have gone back to the server as it came: each such entry has one hand-out counted that did not
    /// happen.
    pub(crate) troubled: bool,
    pub(crate) stats: Stats,
}

/// The statistics that are compared, in the order in which a child process writes them.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Stats {
    pub(crate) received: u64,
    pub(crate) acked: u64,
    pub(crate) released: u64,
    pub(crate) dead_lettered: u64,
    pub(crate) trimmed: u64,
    pub(crate) taken_over: u64,
    pub(crate) missed: u64,
    pub(crate) reconnects: u64,
    pub(crate) groups_recreated: u64,
}

impl From<&ConsumerStats> for Stats {
    fn from(stats: &ConsumerStats) -> Stats {
        Stats {
            received: stats.received,
            acked: stats.acked,
            released: stats.released,
            dead_lettered: stats.dead_lettered,
            trimmed: stats.trimmed,
            taken_over: stats.taken_over,
            missed: stats.missed,
            reconnects: stats.reconnects,
            groups_recreated: stats.groups_recreated,
        }
    }
}

impl Stats {
    pub(crate) fn fields(&self) -> [u64; 9] {
        let Stats { received, acked, released, dead_lettered, trimmed, taken_over, missed, reconnects, .. } = *self;
        [received, acked, released, dead_lettered, trimmed, taken_over, missed, reconnects, self.groups_recreated]
    }

    pub(crate) fn from_fields(fields: [u64; 9]) -> Stats {
        let [received, acked, released, dead_lettered, trimmed, taken_over, missed, reconnects, groups_recreated] =
            fields;
        Stats { received, acked, released, dead_lettered, trimmed, taken_over, missed, reconnects, groups_recreated }
    }
}

#[derive(Default)]
pub(crate) struct Ledger {
    told: Mutex<BTreeMap<Name, Told>>,
    hand_outs: Mutex<HashMap<Name, Vec<HandOut>>>,
    lives: Mutex<Vec<Life>>,
    pub(crate) confirmed: AtomicU64,
    pub(crate) done: AtomicU64,
}

impl Ledger {
    pub(crate) fn tell(&self, results: Vec<(Name, Told)>) {
        let confirmed = results.iter().filter(|(_, told)| matches!(told, Told::Confirmed(_))).count();
        self.confirmed.fetch_add(confirmed as u64, Ordering::Relaxed);
        self.told.lock().unwrap().extend(results);
    }

    /// A consumer begins to live; its number.
    pub(crate) fn begin_life(&self, consumer: &str, lane: Lane) -> usize {
        let mut lives = self.lives.lock().unwrap();
        let consumer = consumer.to_owned();
        lives.push(Life { consumer, lane, ending: None, handed_out: 0, acks: 0, releases: 0, drops: 0 });
        lives.len() - 1
    }

    pub(crate) fn hand_out(&self, life: usize, name: Name, id: EntryId, number: u64, at: u64) {
        self.lives.lock().unwrap()[life].handed_out += 1;
        let hand_out = HandOut { life, id, number, at, outcome: Outcome::Unfinished };
        self.hand_outs.lock().unwrap().entry(name).or_default().push(hand_out);
    }

    pub(crate) fn settle(&self, life: usize, name: Name, outcome: Outcome) {
        let mut hand_outs = self.hand_outs.lock().unwrap();
        let last = hand_outs.get_mut(&name).and_then(|all| all.iter_mut().rfind(|hand_out| hand_out.life == life));
        last.expect("what is settled was handed out").outcome = outcome;
        drop(hand_outs);
        let life = &mut self.lives.lock().unwrap()[life];
        match outcome {
            Outcome::Acked(accepted) => {
                life.acks += u64::from(accepted);
                self.done.fetch_add(1, Ordering::Relaxed);
            }
            Outcome::Released(true) | Outcome::Retried(true) => life.releases += 1,
            Outcome::Dropped | Outcome::Panicked => life.drops += 1,
            _ => {}
        }
    }

    pub(crate) fn end_life(&self, life: usize, ending: Ending) {
        self.lives.lock().unwrap()[life].ending = Some(ending);
    }

    /// What `ack()` has taken in this life.
    pub(crate) fn acks(&self, life: usize) -> u64 {
        self.lives.lock().unwrap()[life].acks
    }

    /// All that was written down, once nobody writes any more.
    pub(crate) fn close(&self) -> Books {
        let mut hand_outs = std::mem::take(&mut *self.hand_outs.lock().unwrap());
        for all in hand_outs.values_mut() {
            // What child processes wrote down came later.
            all.sort_by_key(|hand_out| hand_out.at);
        }
        let told = std::mem::take(&mut *self.told.lock().unwrap());
        Books { told, hand_outs, lives: std::mem::take(&mut *self.lives.lock().unwrap()) }
    }
}

/// The ledger when all is over.
pub(crate) struct Books {
    pub(crate) told: BTreeMap<Name, Told>,
    pub(crate) hand_outs: HashMap<Name, Vec<HandOut>>,
    pub(crate) lives: Vec<Life>,
}

impl Books {
    pub(crate) fn hand_outs(&self, name: Name) -> &[HandOut] {
        self.hand_outs.get(&name).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn endings(&self, lane: Lane) -> impl Iterator<Item = (&Life, &Ending)> {
        let lives = self.lives.iter().filter(move |life| life.lane == lane);
        lives.filter_map(|life| life.ending.as_ref().map(|ending| (life, ending)))
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ending { how, unconfirmed, troubled, stats, .. } = self;
        let trouble = if *troubled { ", in trouble" } else { "" };
        write!(f, "{how:?}{trouble}, {unconfirmed} acknowledgements unconfirmed, {stats:?}, until {}", self.until)
    }
}
