//! One run: a server, its lines, publishers, consumers in this process and in others, and what goes wrong meanwhile.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use step_redis::{EntryId, StatsHandle};

use crate::common::{Certificates, Server, wait_until};
use crate::consumers::{Control, Job, Record};
use crate::content::{self, Content};
use crate::events::{History, Torturer};
use crate::ledger::{Ledger, Outcome};
use crate::lines::Network;
use crate::messages::{Lane, Name};
use crate::processes::Processes;
use crate::publishers::Publishers;
use crate::removals::Removals;
use crate::report;
use crate::tools::{Random, now, say};
use crate::verdict::{Evidence, Totals};

/// Consumers in this process: of each lane, with the number of its line.
const CONSUMERS: [(Lane, u16); 5] =
    [(Lane::Orders, 0), (Lane::Orders, 1), (Lane::Orders, 3), (Lane::Shifting, 0), (Lane::Shifting, 2)];
/// A consumer in one of so many lives has a generated name.
const NAMELESS: usize = 5;
/// How long it may take until everything is settled once all is well again.
const SETTLED: Duration = Duration::from_secs(90);

pub(crate) struct World {
    server: Server,
    network: Network,
    seed: u64,
    history: History,
    removals: Removals,
    ledger: Ledger,
    control: Control,
    /// Publishers end.
    quiet: AtomicBool,
}

impl World {
    pub(crate) fn new(server: Server, certificates: Option<&Certificates>, seed: u64) -> World {
        let network = Network::new(&server, certificates);
        for lane in Lane::ALL {
            network.line(0).stream().create_input_stream(&lane.input()).unwrap();
        }
        World {
            server,
            network,
            seed,
            history: History::default(),
            removals: Removals::default(),
            ledger: Ledger::default(),
            control: Control::default(),
            quiet: AtomicBool::new(false),
        }
    }

    /// Runs everything for so long and until each kind of event has come `wanted` times, and then lets everything settle.
    pub(crate) fn run(&self, duration: Duration, wanted: usize) {
        let processes = Processes::start(&self.ledger, &self.network, self.server.directory(), self.seed);
        thread::scope(|scope| {
            let publishers = scope.spawn(|| self.publishers().run());
            for (number, (lane, line)) in CONSUMERS.into_iter().enumerate() {
                scope.spawn(move || self.consume(number, lane, line));
            }
            // Whatever fails here, the others are told to end.
            let tortured = catch_unwind(AssertUnwindSafe(|| {
                self.torturer(&processes).torture(duration, wanted, &|| self.progress());
                self.quiet.store(true, Ordering::SeqCst);
                publishers.join().unwrap_or_else(|panic| resume_unwind(panic));
                let settling = Instant::now();
                self.control.calm.store(true, Ordering::SeqCst);
                processes.calm();
                wait_until(SETTLED, || content::is_settled(&self.server));
                say(&format!("settled after {:?}; {}", settling.elapsed(), self.progress()));
                processes.finish();
            }));
            for flag in [&self.quiet, &self.control.calm, &self.control.ended] {
                flag.store(true, Ordering::SeqCst);
            }
            tortured.unwrap_or_else(|panic| {
                report::last_events(&self.history, &self.server);
                say(&format!("the run was not finished; CHAOS_SEED={}", self.seed));
                resume_unwind(panic)
            });
        });
    }

    fn torturer<'run>(&'run self, processes: &'run Processes<'run>) -> Torturer<'run> {
        Torturer {
            server: &self.server,
            network: &self.network,
            processes,
            removals: &self.removals,
            history: &self.history,
            random: Random::new(self.seed ^ 1 << 50),
            rested: now(),
        }
    }

    fn publishers(&self) -> Publishers<'_> {
        Publishers { network: &self.network, ledger: &self.ledger, seed: self.seed, quiet: &self.quiet }
    }

    fn progress(&self) -> String {
        let (confirmed, done) = (&self.ledger.confirmed, &self.ledger.done);
        let (confirmed, done) = (confirmed.load(Ordering::Relaxed), done.load(Ordering::Relaxed));
        format!("{confirmed} confirmed, {done} handled (without what living processes handle)")
    }

    /// Consumes under one name, with a new consumer every now and then.
    fn consume(&self, number: usize, lane: Lane, line: u16) {
        let mut random = Random::new(self.seed ^ (number as u64) << 41 ^ 1 << 51);
        let (stream, name) = (self.network.line(line).stream(), format!("consumer-{number}"));
        while !self.control.ended.load(Ordering::SeqCst) {
            let consumer = (!random.one_in(NAMELESS)).then_some(name.as_str());
            let job = Job { lane, stream: &stream, consumer, control: &self.control };
            let Some(consumer) = job.start(&mut random) else {
                thread::sleep(Duration::from_millis(20));
                continue;
            };
            let life = self.ledger.begin_life(consumer.name(), lane);
            let record = Entering { ledger: &self.ledger, life };
            let time = Duration::from_millis(random.between(1000, 12_000));
            let ending = job.work(consumer, &record, &mut random, time);
            self.ledger.end_life(life, ending);
        }
    }

    /// Judges what has happened, and fails with the stories of what went wrong. Everything is to have come `wanted` times.
    pub(crate) fn judge(self, wanted: u64) -> Server {
        let (books, content) = (self.ledger.close(), Content::of(&self.server));
        let (removals, history) = (&self.removals, &self.history);
        let lapses = std::mem::take(&mut *history.lapses.lock().unwrap());
        let evidence = Evidence { books: &books, content: &content, removals, history, lapses };
        let (totals, findings) = evidence.judge();
        report::table(&evidence, &totals, &self.network);
        if !findings.is_empty() {
            report::tell(&findings, &evidence);
            panic!("{} findings; CHAOS_SEED={}", findings.len(), self.seed);
        }
        let large = content.entries.keys().filter(|name| name.is_large()).count() as u64;
        let Totals { confirmed, unknown, not_sent, out_of_memory, buried, .. } = totals;
        let counts = [confirmed, unknown, not_sent, out_of_memory, buried, large];
        assert!(counts.iter().all(|count| *count >= wanted), "the run has proven too little: {counts:?}");
        for kind in ["acked", "released", "to be retried", "dropped", "panicked", "given up"] {
            let count = totals.hand_outs.get(kind).copied().unwrap_or_default();
            assert!(count >= wanted, "too few hand-outs were {kind}: {count}");
        }
        self.server
    }
}

/// A life of a consumer in this process, which goes right into the ledger.
struct Entering<'run> {
    ledger: &'run Ledger,
    life: usize,
}

impl Record for Entering<'_> {
    fn handed_out(&self, name: Name, id: EntryId, number: u64) {
        self.ledger.hand_out(self.life, name, id, number, now());
    }

    fn settled(&self, name: Name, outcome: Outcome, _: &StatsHandle) {
        self.ledger.settle(self.life, name, outcome);
    }

    fn acks(&self) -> u64 {
        self.ledger.acks(self.life)
    }
}
