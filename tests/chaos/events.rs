//! What goes wrong: each kind of event in turn, in an order of chance, and written down.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::thread;
use std::time::{Duration, Instant};

use crate::common::{Direction, Proxy, Server};
use crate::journal;
use crate::lines::Network;
use crate::messages::Lane;
use crate::processes::Processes;
use crate::removals::{self, Removals};
use crate::tools::{Random, now, say};

/// After so long of it, consumers come back to the server before it goes on.
const REST_AFTER: Duration = Duration::from_secs(2);
/// Nobody takes that long to come back.
const LONGEST_REST: Duration = Duration::from_secs(30);
/// A lease that is not renewed is half of `claim_idle` old at most when a fault begins. What lasts for longer than this may
/// outlast it.
const LEASES_HOLD: Duration = Duration::from_millis(Lane::Orders.claim_idle().as_millis() as u64 / 2 - 500);
/// How often a run tells where it is.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Kinds of events that break connections, and how long a connection may take to break after one, in milliseconds.
const BREAKING: [&str; 8] = [
    "server killed",
    "all clients killed",
    "one client killed",
    "cut within bytes",
    "reset",
    "closed",
    "swallowed",
    "turned away",
];
const UNTIL_IT_BREAKS: u64 = 200;

type Happen<'run> = fn(&mut Torturer<'run>, Duration) -> Option<String>;

/// Tortures the server, the lines and the consumers.
pub(crate) struct Torturer<'run> {
    pub(crate) server: &'run Server,
    pub(crate) network: &'run Network,
    pub(crate) processes: &'run Processes<'run>,
    pub(crate) removals: &'run Removals,
    pub(crate) history: &'run History,
    pub(crate) random: Random,
    /// When consumers were last known to be in reach of the server.
    pub(crate) rested: u64,
}

impl<'run> Torturer<'run> {
    const KINDS: [(&'static str, Happen<'run>); 18] = [
        ("server killed", Self::kill_server),
        ("server stopped", Self::stop_server),
        ("all clients killed", Self::kill_clients),
        ("one client killed", Self::kill_client),
        ("writes paused", Self::pause_writes),
        ("out of memory", Self::exhaust_memory),
        ("cut within bytes", Self::cut),
        ("reset", Self::reset),
        ("closed", Self::close),
        ("drip", Self::drip),
        ("delay", Self::delay),
        ("swallowed", Self::swallow),
        ("turned away", Self::turn_away),
        ("process killed", Self::kill_process),
        ("process restarted", Self::restart_process),
        ("group destroyed", Self::destroy_group),
        ("stream deleted", Self::delete_stream),
        ("stream trimmed", Self::trim_stream),
    ];

    /// One event after the other, each kind before any comes again, for so long and until each has come `wanted` times.
    pub(crate) fn torture(&mut self, duration: Duration, wanted: usize, progress: &dyn Fn() -> String) {
        let (started, mut told) = (Instant::now(), Instant::now());
        self.begin();
        let mut deck: Vec<usize> = Vec::new();
        while started.elapsed() < duration || self.history.fewest(&Self::KINDS.map(|(kind, _)| kind)) < wanted {
            if deck.is_empty() {
                deck = self.shuffled();
            }
            let (kind, happen) = Self::KINDS[deck.pop().unwrap_or_default()];
            // Faults of the lines pile up at times.
            if self.random.one_in(2) {
                self.network.heal();
            }
            if now() - self.rested > REST_AFTER.as_millis() as u64 {
                self.rest();
            }
            let (from, pause) = (now(), Duration::from_millis(self.random.between(20, 900)));
            if let Some(story) = happen(self, pause) {
                self.history.note(kind, from, story);
            }
            if told.elapsed() >= TELL_EVERY {
                told = Instant::now();
                let (at, of) = (started.elapsed().as_secs(), duration.as_secs());
                say(&format!("{at:4} of {of} s: {kind}; {}, {} events", progress(), self.history.len()));
            }
            thread::sleep(Duration::from_millis(self.random.between(20, 300)));
        }
        self.rest();
    }

    /// Ends the faults of the lines, and waits until consumers are back.
    fn rest(&mut self) {
        self.network.heal();
        let started = Instant::now();
        while journal::is_any_troubled() && started.elapsed() < LONGEST_REST {
            thread::sleep(Duration::from_millis(5));
        }
        let rested = now();
        if rested - self.rested > LEASES_HOLD.as_millis() as u64 {
            self.history.lapses.lock().unwrap().push((self.rested, rested));
        }
        self.rested = rested;
    }

    fn shuffled(&mut self) -> Vec<usize> {
        let mut deck: Vec<usize> = (0..Self::KINDS.len()).collect();
        for last in (1..deck.len()).rev() {
            deck.swap(last, self.random.below(last + 1));
        }
        deck
    }

    /// What every run is to have, whatever its seed: messages without an answer, and messages that cannot be sent.
    fn begin(&mut self) {
        let pause = Duration::from_millis(900);
        let from = now();
        self.network.proxies.iter().for_each(|(_, proxy)| proxy.swallow(Direction::ToClient, true));
        thread::sleep(pause);
        for (_, proxy) in &self.network.proxies {
            turn_away(proxy);
        }
        thread::sleep(pause);
        self.network.heal();
        self.history.note("all lines down", from, "every answer swallowed, then every connection turned away".into());
    }

    /// One of the lines, or at times all of them.
    fn lines(&mut self) -> (String, Vec<&'run Proxy>) {
        let all = &self.network.proxies;
        match self.random.below(all.len() + 1) {
            number if number < all.len() => (all[number].0.to_owned(), vec![&all[number].1]),
            _ => ("all lines".to_owned(), all.iter().map(|(_, proxy)| proxy).collect()),
        }
    }

    fn direction(&mut self) -> Direction {
        [Direction::ToServer, Direction::ToClient, Direction::Both][self.random.below(3)]
    }

    fn kill_server(&mut self, pause: Duration) -> Option<String> {
        self.server.kill();
        thread::sleep(pause / 2);
        let started = Instant::now();
        self.server.restart();
        Some(format!("back after {pause:?} and {:?} of loading", started.elapsed()))
    }

    fn stop_server(&mut self, pause: Duration) -> Option<String> {
        self.server.pause();
        thread::sleep(pause);
        self.server.resume();
        Some(format!("for {pause:?}"))
    }

    fn kill_clients(&mut self, _: Duration) -> Option<String> {
        self.server.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        Some(String::new())
    }

    fn kill_client(&mut self, _: Duration) -> Option<String> {
        let clients = self.server.client_list();
        let client = clients.get(self.random.below(clients.len().max(1)))?;
        // It may have left by itself.
        let _ = self.server.try_command(&["CLIENT", "KILL", "ID", &client["id"]]);
        Some(format!("{} in {}", client["id"], client["cmd"]))
    }

    fn pause_writes(&mut self, pause: Duration) -> Option<String> {
        self.server.command(&["CLIENT", "PAUSE", &pause.as_millis().to_string(), "WRITE"]);
        // What this test does to the streams would wait as well.
        thread::sleep(pause);
        Some(format!("for {pause:?}"))
    }

    fn exhaust_memory(&mut self, pause: Duration) -> Option<String> {
        self.server.command(&["CONFIG", "SET", "maxmemory", "1mb"]);
        thread::sleep(pause);
        self.server.command(&["CONFIG", "SET", "maxmemory", "0"]);
        Some(format!("for {pause:?}"))
    }

    fn cut(&mut self, _: Duration) -> Option<String> {
        let ((name, lines), direction, bytes) = (self.lines(), self.direction(), self.random.below(3000));
        lines.iter().for_each(|proxy| proxy.cut_after(direction, bytes));
        Some(format!("{name} after {bytes} bytes {direction:?}"))
    }

    fn reset(&mut self, _: Duration) -> Option<String> {
        let (name, lines) = self.lines();
        lines.iter().for_each(|proxy| proxy.reset());
        Some(name)
    }

    fn close(&mut self, _: Duration) -> Option<String> {
        let (name, lines) = self.lines();
        lines.iter().for_each(|proxy| proxy.close());
        Some(name)
    }

    fn drip(&mut self, pause: Duration) -> Option<String> {
        let ((name, lines), direction, bytes) = (self.lines(), self.direction(), 1 + self.random.below(400));
        let every = Duration::from_millis(self.random.between(1, 10));
        lines.iter().for_each(|proxy| proxy.drip(direction, bytes, every));
        thread::sleep(pause);
        Some(format!("{name}, {bytes} bytes each {every:?} {direction:?} for {pause:?} at least"))
    }

    fn delay(&mut self, pause: Duration) -> Option<String> {
        let ((name, lines), direction) = (self.lines(), self.direction());
        let delay = Duration::from_millis(self.random.between(1, 150));
        lines.iter().for_each(|proxy| proxy.delay(direction, delay));
        thread::sleep(pause);
        Some(format!("{name}, {delay:?} {direction:?} for {pause:?} at least"))
    }

    fn swallow(&mut self, pause: Duration) -> Option<String> {
        let ((name, lines), direction) = (self.lines(), self.direction());
        lines.iter().for_each(|proxy| proxy.swallow(direction, true));
        thread::sleep(pause);
        self.network.heal();
        Some(format!("{name} {direction:?} for {pause:?}"))
    }

    fn turn_away(&mut self, pause: Duration) -> Option<String> {
        let (name, lines) = self.lines();
        lines.into_iter().for_each(turn_away);
        thread::sleep(pause);
        self.network.heal();
        Some(format!("{name} for {pause:?}"))
    }

    fn kill_process(&mut self, _: Duration) -> Option<String> {
        Some(self.processes.kill_one(&mut self.random))
    }

    fn restart_process(&mut self, _: Duration) -> Option<String> {
        Some(self.processes.restart_one(&mut self.random))
    }

    fn destroy_group(&mut self, _: Duration) -> Option<String> {
        removals::destroy_group(self.server, self.removals)
    }

    fn delete_stream(&mut self, _: Duration) -> Option<String> {
        removals::delete_stream(self.server, self.removals)
    }

    fn trim_stream(&mut self, _: Duration) -> Option<String> {
        removals::trim_stream(self.server, self.removals, &mut self.random)
    }
}

/// Closes connections as soon as they are made. The port stays taken: another program's server could get it otherwise.
fn turn_away(proxy: &Proxy) {
    proxy.close_new(true);
    proxy.reset();
}

/// The events so far.
#[derive(Default)]
pub(crate) struct History {
    events: Mutex<Vec<Event>>,
    /// When some consumer was, or may have been, out of reach for longer than leases of the orders hold.
    pub(crate) lapses: Mutex<Vec<(u64, u64)>>,
}

#[derive(Clone)]
pub(crate) struct Event {
    kind: &'static str,
    pub(crate) from: u64,
    pub(crate) until: u64,
    pub(crate) story: String,
}

impl History {
    fn note(&self, kind: &'static str, from: u64, story: String) {
        let story = format!("{kind} {story}");
        self.events.lock().unwrap().push(Event { kind, from, until: now(), story });
    }

    pub(crate) fn len(&self) -> usize {
        self.events.lock().unwrap().len()
    }

    /// How often each kind has come.
    pub(crate) fn counts(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for event in self.events.lock().unwrap().iter() {
            *counts.entry(event.kind).or_default() += 1;
        }
        counts
    }

    fn fewest(&self, kinds: &[&'static str]) -> usize {
        let counts = self.counts();
        kinds.iter().map(|kind| counts.get(kind).copied().unwrap_or_default()).min().unwrap_or_default()
    }

    /// Whether connections may have broken in a span of time.
    pub(crate) fn may_have_broken(&self, from: u64, until: u64) -> bool {
        let events = self.between(from.saturating_sub(UNTIL_IT_BREAKS), until);
        events.iter().any(|event| BREAKING.contains(&event.kind))
    }

    pub(crate) fn between(&self, from: u64, until: u64) -> Vec<Event> {
        let events = self.events.lock().unwrap();
        events.iter().filter(|event| event.from <= until && event.until >= from).cloned().collect()
    }
}
