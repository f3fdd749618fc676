//! Server and network are tortured at random while programs publish and consume, and every entry is counted.
//!
//! At the end each confirmed message was handled at least once, none is in the stream more often than it was sent, nothing is
//! pending, no call has hung, and every thread, connection and descriptor is gone.
//!
//! `CHAOS_MINUTES` says how long (a sixth of a minute if unset), `CHAOS_SEED` repeats the decisions of an earlier run. The
//! seed is printed; after a failure, so is the history of faults.

#[path = "common/mod.rs"]
mod common;
#[path = "chaos/tools.rs"]
mod tools;
#[path = "chaos/torture.rs"]
mod torture;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::{Proxy, Reply, Server, open_descriptors, thread_count, threads_named, wait_until};
use step_redis::{
    AckMode, Backoff, Delivery, Error, OnDrop, PoolParams, Publisher, Result, StepPool, StepStream, StreamInput,
    StreamOutput,
};
use tools::{Random, say, setting};
use torture::{History, Torturer};

const STREAM: &str = "orders";
const GROUP: &str = "group";
const CONSUMERS: usize = 3;
/// How many confirmed messages may be left to be handled before the publishers wait.
const BACKLOG: usize = 5000;
const LIMIT: Duration = Duration::from_millis(500);
const CLAIM_IDLE: Duration = Duration::from_secs(1);
/// No call takes longer: every bound below is far shorter, and the machine may be busy.
const HUNG: Duration = Duration::from_secs(8);
/// How long it may take until everything is settled once all is well again.
const SETTLED: Duration = Duration::from_secs(60);

#[test]
fn every_entry_is_accounted_for() {
    let seed = setting("CHAOS_SEED").unwrap_or_else(|| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
        u64::from(now.subsec_nanos()) << 20 | u64::from(std::process::id())
    });
    let minutes: f64 = setting("CHAOS_MINUTES").unwrap_or(1.0 / 6.0);
    say(&format!("CHAOS_SEED={seed} CHAOS_MINUTES={minutes}"));

    let server = Server::builder().append_only().start();
    let before = Resources::of(&server);
    let world = World::new(server, seed);
    world.run(Duration::from_secs_f64(minutes * 60.0));
    world.check_entries();
    let server = world.end();
    wait_until(SETTLED, || threads_named("step-redis") == 0 && server.connected_clients() == 0);
    wait_until(SETTLED, || Resources::of(&server) == before);
}

/// What must be as it was before.
#[derive(Debug, PartialEq)]
struct Resources {
    threads: usize,
    descriptors: usize,
}

impl Resources {
    fn of(server: &Server) -> Resources {
        // The test's own connection is open in any case.
        server.command(&["PING"]);
        Resources { threads: thread_count(), descriptors: open_descriptors() }
    }
}

/// What a caller was told about a message.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Told {
    Confirmed,
    Unknown,
    NotSent,
}

impl Told {
    fn of<T>(result: &Result<T>) -> Told {
        match result {
            Ok(_) => Told::Confirmed,
            Err(error) if error.is_outcome_unknown() => Told::Unknown,
            Err(_) => Told::NotSent,
        }
    }
}

struct World {
    server: Server,
    proxy: Proxy,
    stream: StepStream,
    seed: u64,
    history: History,
    /// Publishers end.
    quiet: AtomicBool,
    /// Handlers no longer fail.
    calm: AtomicBool,
    /// Consumers end.
    ended: AtomicBool,
    told: Mutex<BTreeMap<String, Told>>,
    confirmed: AtomicUsize,
    handled: Mutex<BTreeSet<String>>,
}

impl World {
    fn new(server: Server, seed: u64) -> World {
        let proxy = Proxy::start(server.port());
        let params = PoolParams::new("127.0.0.1", proxy.port())
            .socket_timeout(LIMIT)
            .socket_connect_timeout(LIMIT)
            .connection_available_timeout(LIMIT)
            .health_check_interval(LIMIT);
        let stream = StepStream::new(StepPool::connect(params).unwrap());
        stream.create_input_stream(&StreamInput::new(STREAM, GROUP)).unwrap();
        World {
            server,
            proxy,
            stream,
            seed,
            history: History::new(seed),
            quiet: AtomicBool::new(false),
            calm: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            told: Mutex::default(),
            confirmed: AtomicUsize::new(0),
            handled: Mutex::default(),
        }
    }

    /// Runs publishers, consumers and faults for so long, and then lets everything settle.
    fn run(&self, duration: Duration) {
        let shared = self.stream.publisher(StreamOutput::new(STREAM));
        let expiring = self.stream.publisher(StreamOutput::new(STREAM).ttl(Duration::from_secs(3600)));
        thread::scope(|scope| {
            let mut publishers = Vec::new();
            for number in 0..2 {
                publishers.push(scope.spawn(move || self.publish_one_by_one(number)));
                publishers.push(scope.spawn(move || self.publish_batches(number)));
                for (name, publisher) in [("shared", &shared), ("expiring", &expiring)] {
                    publishers.push(scope.spawn(move || self.publish_together(name, number, publisher)));
                }
            }
            for number in 0..CONSUMERS {
                scope.spawn(move || self.consume(number));
            }
            // Whatever fails here, the others are told to end.
            let tortured = catch_unwind(AssertUnwindSafe(|| {
                self.torturer().torture(duration);
                self.quiet.store(true, Ordering::SeqCst);
                self.calm.store(true, Ordering::SeqCst);
                // Only then is it known what was confirmed.
                publishers.into_iter().for_each(|publisher| publisher.join().unwrap());
                wait_until(SETTLED, || self.is_settled());
            }));
            for flag in [&self.quiet, &self.calm, &self.ended] {
                flag.store(true, Ordering::SeqCst);
            }
            tortured.unwrap_or_else(|panic| resume_unwind(panic));
        });
    }

    fn torturer(&self) -> Torturer<'_> {
        Torturer { server: &self.server, proxy: &self.proxy, history: &self.history, random: self.random(1) }
    }

    fn publish_one_by_one(&self, number: usize) {
        let mut random = self.random(100 + number);
        let output = StreamOutput::new(STREAM);
        self.publish(&format!("plain-{number}"), &mut random, |text| {
            vec![(text.to_owned(), Told::of(&self.stream.publish(&output, text)))]
        });
    }

    fn publish_together(&self, name: &str, number: usize, publisher: &Publisher) {
        let mut random = self.random(200 + number);
        self.publish(&format!("{name}-{number}"), &mut random, |text| {
            vec![(text.to_owned(), Told::of(&publisher.publish(text)))]
        });
    }

    fn publish_batches(&self, number: usize) {
        let mut random = self.random(300 + number);
        let mut sizes = self.random(310 + number);
        let output = StreamOutput::new(STREAM);
        self.publish(&format!("batch-{number}"), &mut random, |text| {
            let texts: Vec<String> = (0..1 + sizes.below(300)).map(|at| format!("{text}/{at}")).collect();
            let told = match self.stream.publish_batch(&output, texts.iter().map(String::as_str)) {
                Ok(ids) => vec![Told::Confirmed; ids.len()],
                Err(error) => {
                    let otherwise = Told::of(&Err::<(), _>(error.clone()));
                    let mut told: Vec<Told> = match &error {
                        Error::Batch { published, .. } => {
                            published.iter().map(|id| if id.is_some() { Told::Confirmed } else { otherwise }).collect()
                        }
                        _ => vec![otherwise; texts.len()],
                    };
                    // These were not even taken from the iterator.
                    told.resize(texts.len(), Told::NotSent);
                    told
                }
            };
            texts.into_iter().zip(told).collect()
        });
    }

    fn publish(&self, name: &str, random: &mut Random, mut send: impl FnMut(&str) -> Vec<(String, Told)>) {
        for number in 0.. {
            // So much is never left to be handled that settling takes for ever.
            while self.backlog() > BACKLOG && !self.quiet.load(Ordering::SeqCst) {
                thread::sleep(Duration::from_millis(20));
            }
            if self.quiet.load(Ordering::SeqCst) {
                break;
            }
            let started = Instant::now();
            let results = send(&format!("{name}-{number}"));
            assert!(started.elapsed() < HUNG, "{name} took {:?}", started.elapsed());
            let failed = results.iter().any(|(_, told)| *told != Told::Confirmed);
            let confirmed = results.iter().filter(|(_, told)| *told == Told::Confirmed).count();
            self.confirmed.fetch_add(confirmed, Ordering::SeqCst);
            self.told.lock().unwrap().extend(results);
            thread::sleep(Duration::from_millis(random.between(1, if failed { 40 } else { 8 })));
        }
    }

    /// Consumes under one name, with a new consumer every now and then.
    fn consume(&self, number: usize) {
        let mut random = self.random(400 + number);
        let input = StreamInput::new(STREAM, GROUP)
            .consumer(format!("consumer-{number}"))
            .wait_timeout(Duration::from_millis(300))
            .claim_idle(CLAIM_IDLE);
        while !self.ended.load(Ordering::SeqCst) {
            let builder = self
                .stream
                .consumer(input.clone())
                .prefetch(1 + random.below(300))
                .batch(1 + random.below(150))
                .on_drop(if random.one_in(2) { OnDrop::Leave } else { OnDrop::Release })
                .ack_mode(if number == 0 { AckMode::Confirmed } else { AckMode::default() })
                .backoff(Backoff::new(Duration::from_millis(10), Duration::from_millis(300)))
                .close_timeout(LIMIT);
            let Ok(consumer) = builder.spawn() else {
                thread::sleep(Duration::from_millis(20));
                continue;
            };
            let replaced_after = Duration::from_millis(random.between(500, 8000));
            let started = Instant::now();
            while started.elapsed() < replaced_after && !self.ended.load(Ordering::SeqCst) {
                for delivery in consumer.timeout_iter(Duration::from_millis(50)).take(64) {
                    let delivery = delivery.expect("no error ends the loop");
                    let handled = catch_unwind(AssertUnwindSafe(|| self.handle(delivery, &mut random)));
                    // A handler's panic is part of the game, an assertion's is not.
                    handled.unwrap_or_else(|panic| {
                        if !panic.is::<Thrown>() {
                            resume_unwind(panic)
                        }
                    });
                }
            }
            let closing = Instant::now();
            // Dropping it does the same, and what is unconfirmed comes again.
            if random.one_in(2) {
                let _ = consumer.close();
            } else {
                drop(consumer);
            }
            assert!(closing.elapsed() < HUNG, "closing took {:?}", closing.elapsed());
        }
    }

    fn handle(&self, delivery: Delivery, random: &mut Random) {
        let text = delivery.text().expect("what was published was text").to_owned();
        let chance = if self.calm.load(Ordering::SeqCst) { 999 } else { random.below(1000) };
        let started = Instant::now();
        match chance {
            0..40 => drop(delivery),
            40..80 => drop(delivery.release()),
            80..120 => drop(delivery.retry_after(Duration::from_millis(random.between(0, 900)))),
            120..150 => resume_unwind(Box::new(Thrown)),
            150..152 => {
                // Longer than others would wait, were it not kept fresh.
                thread::sleep(CLAIM_IDLE + CLAIM_IDLE / 2);
                self.done(text, delivery);
            }
            _ => self.done(text, delivery),
        }
        assert!(started.elapsed() < HUNG, "a delivery took {:?}", started.elapsed());
    }

    fn done(&self, text: String, delivery: Delivery) {
        self.handled.lock().unwrap().insert(text);
        // When it fails, the entry comes again.
        let _ = delivery.ack();
    }

    /// Everything was read and is acknowledged.
    fn is_settled(&self) -> bool {
        let pending = self.server.command(&["XPENDING", STREAM, GROUP]).array()[0].int();
        let groups = self.server.command(&["XINFO", "GROUPS", STREAM]);
        let group = groups.array()[0].array();
        let value = |name: &str| {
            let at = group.iter().position(|item| *item == Reply::Bulk(name.as_bytes().to_vec()));
            group[at.expect("a group says where it stands") + 1].text()
        };
        let last = self.server.command(&["XREVRANGE", STREAM, "+", "-", "COUNT", "1"]);
        let read = last.array().first().is_none_or(|entry| entry.array()[0].text() == value("last-delivered-id"));
        pending == 0 && read
    }

    fn check_entries(&self) {
        let (told, handled) = (self.told.lock().unwrap(), self.handled.lock().unwrap());
        let found = self.content();
        for (text, told) in told.iter() {
            let (found, handled) = (found.get(text).copied().unwrap_or_default(), handled.contains(text));
            let right = match told {
                Told::Confirmed => found == 1 && handled,
                Told::Unknown => found <= 1 && handled == (found == 1),
                Told::NotSent => found == 0 && !handled,
            };
            assert!(right, "{text} was told {told:?}, is in the stream {found} times, handled: {handled}");
        }
        assert!(found.keys().all(|text| told.contains_key(text)), "somebody published what nobody sent");
        let count = |wanted: Told| told.values().filter(|told| **told == wanted).count();
        let (confirmed, unknown, not_sent) = (count(Told::Confirmed), count(Told::Unknown), count(Told::NotSent));
        say(&format!(
            "{confirmed} confirmed, {unknown} of unknown outcome, {not_sent} not sent, {} faults",
            self.history.len()
        ));
        assert!(confirmed > 0 && unknown > 0 && not_sent > 0, "the run has proven too little");
    }

    /// How often each message is in the stream.
    fn content(&self) -> BTreeMap<String, usize> {
        let mut found = BTreeMap::new();
        let mut from = "-".to_owned();
        loop {
            let page = self.server.command(&["XRANGE", STREAM, &from, "+", "COUNT", "10000"]);
            let Some(last) = page.array().last() else { return found };
            from = format!("({}", last.array()[0].text());
            for entry in page.array() {
                *found.entry(entry.array()[1].array()[1].text()).or_default() += 1;
            }
        }
    }

    /// How many confirmed messages are left to be handled, about.
    fn backlog(&self) -> usize {
        self.confirmed.load(Ordering::SeqCst).saturating_sub(self.handled.lock().unwrap().len())
    }

    /// Ends all but the server.
    fn end(self) -> Server {
        self.server
    }

    fn random(&self, stream: usize) -> Random {
        Random::new(self.seed ^ (stream as u64) << 40)
    }
}

/// What a failing handler throws.
struct Thrown;
