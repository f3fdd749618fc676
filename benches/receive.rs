//! How fast entries are consumed and acknowledged: `cargo bench --bench receive -- --help`.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use step_redis::{AckMode, Consumer, Delivery, StepStream};
use support::common::Server;
use support::raw::Raw;
use support::rounds::{Contender, Scenario, compare, contender, timed};
use support::session::{Cores, Session};
use support::ways;

const ABOUT: &str = "\
Consumes and acknowledges entries that are all there: on a raw socket, with the redis crate, and with step-redis.

  raw            a TcpStream with prebuilt requests: a read, one XACK for all it brought, the next read; each reply is
                 awaited and scanned in place
  raw pipelined  two reads under way, and the acknowledgements ride with the next read: the ceiling of one connection
  redis          the redis crate's own connection; the acknowledgements go with the next read in one pipe()";

const STREAM: &str = "bench";
const BATCH: usize = 128;
const LARGE_BATCH: usize = 1024;
const WORKERS: usize = 4;
const BY_BATCH: &str = "step-redis consumer, acks by batch";

fn main() {
    let session = Session::start("receive", ABOUT, &[Cores::One, Cores::Two]);
    let server = Server::start();
    for payload in session.payloads(&[100, 1024]) {
        everything(&session, server.port(), payload);
        one_by_one(&session, server.port(), payload);
    }
}

/// Fills the stream before each round of each contender.
struct Stage {
    port: u16,
    payload: Vec<u8>,
    count: usize,
}

impl Stage {
    /// A contender that consumes and acknowledges all of it.
    fn contender<'a>(&'a self, name: &'a str, mut consume: impl FnMut() + 'a) -> Contender<'a> {
        self.measured(name, move || timed(&mut consume))
    }

    /// The same, when the contender itself knows where it begins and ends.
    fn measured<'a>(&'a self, name: &'a str, mut consume: impl FnMut() -> Duration + 'a) -> Contender<'a> {
        contender(name, move || {
            let mut raw = Raw::connect(self.port);
            ways::fill(&mut raw, STREAM, &self.payload, self.count);
            let taken = consume();
            assert_eq!(ways::pending(&mut ways::redis(self.port), STREAM), 0, "{name} has left entries unacknowledged");
            taken
        })
    }

    /// A consumer that hands everything to `handle`: from its start until the server has confirmed the last
    /// acknowledgement.
    fn consume(&self, step: &StepStream, mode: AckMode, handle: impl FnOnce(&Consumer)) -> Duration {
        let started = Instant::now();
        let consumer = step.consumer(ways::input(STREAM)).ack_mode(mode).spawn().expect("the private server accepts");
        handle(&consumer);
        // The server is asked, as the consumer may learn of its confirmations later.
        let mut connection = ways::redis(self.port);
        while ways::pending(&mut connection, STREAM) > 0 {
            thread::sleep(Duration::from_micros(100));
        }
        let taken = started.elapsed();
        consumer.close().expect("everything is confirmed");
        taken
    }
}

fn everything(session: &Session, port: u16, payload: usize) {
    let name = "everything, acknowledged";
    if !session.wants(name) {
        return;
    }
    let count = session.scaled(24 * LARGE_BATCH);
    let stage = Stage { port, payload: ways::payload(payload), count };
    let scenario = Scenario {
        name,
        payload,
        count,
        unit: "entries",
        rounds: session.rounds(7),
        references: &["raw", "raw pipelined", BY_BATCH],
    };
    let (step, input) = (ways::step(port, 2), ways::input(STREAM));
    compare(
        session,
        &scenario,
        vec![
            stage.contender("raw", || ways::raw_consume(&mut Raw::connect(port), STREAM, count, BATCH)),
            stage.contender("raw pipelined", || {
                ways::raw_consume_pipelined(&mut Raw::connect(port), STREAM, count, BATCH);
            }),
            stage.contender("redis", || ways::redis_consume(&mut ways::redis(port), STREAM, count, BATCH)),
            stage.contender("step-redis receive_batch", || ways::step_consume(&step, &input, count, BATCH)),
            stage.contender("step-redis ack_and_receive_batch", || {
                ways::step_consume_riding(&step, &input, count, BATCH);
            }),
            stage.contender("the same, 1024 at a time", || {
                ways::step_consume_riding(&step, &input, count, LARGE_BATCH);
            }),
            stage.measured("step-redis consumer", || {
                stage.consume(&step, AckMode::default(), |consumer| {
                    for delivery in consumer.iter().take(count) {
                        handle(delivery);
                    }
                })
            }),
            stage.measured(BY_BATCH, || stage.consume(&step, AckMode::default(), |consumer| by_batch(consumer, count))),
            stage.measured("step-redis consumer, 4 workers", || {
                stage.consume(&step, AckMode::default(), |consumer| work(consumer, count))
            }),
        ],
    );
}

/// Acknowledges as many at once as the reader asks for.
fn by_batch(consumer: &Consumer, count: usize) {
    let mut deliveries = consumer.iter().take(count).map(|delivery| delivery.expect("the server answers"));
    loop {
        let batch: Vec<Delivery> = deliveries.by_ref().take(BATCH).collect();
        if batch.is_empty() {
            return;
        }
        batch.iter().map(Delivery::payload).for_each(ways::look_at);
        Delivery::ack_batch(batch).expect("the consumer is open");
    }
}

/// Workers that share the consumer's channel.
fn work(consumer: &Consumer, count: usize) {
    let taken = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            let (receiver, taken) = (consumer.receiver().clone(), &taken);
            scope.spawn(move || {
                while taken.load(Ordering::Relaxed) < count {
                    let Ok(delivery) = receiver.recv_timeout(Duration::from_millis(20)) else { continue };
                    handle(delivery);
                    taken.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
}

fn handle(delivery: step_redis::Result<Delivery>) {
    let delivery = delivery.expect("the server answers");
    ways::look_at(delivery.payload());
    delivery.ack().expect("the consumer is open");
}

fn one_by_one(session: &Session, port: u16, payload: usize) {
    let name = "one confirmed ack per entry";
    if !session.wants(name) {
        return;
    }
    let count = session.scaled(700);
    let stage = Stage { port, payload: ways::payload(payload), count };
    let scenario = Scenario { name, payload, count, unit: "entries", rounds: session.rounds(19), references: &["raw"] };
    let (step, input) = (ways::step(port, 2), ways::input(STREAM));
    compare(
        session,
        &scenario,
        vec![
            stage.contender("raw", || ways::raw_consume_each(&mut Raw::connect(port), STREAM, count)),
            stage.contender("raw with a time limit", || {
                ways::raw_consume_each(&mut Raw::limited(port), STREAM, count);
            }),
            stage.contender("redis", || ways::redis_consume_each(&mut ways::redis(port), STREAM, count)),
            stage.contender("step-redis", || ways::step_consume_each(&step, &input, count)),
            stage.measured("step-redis consumer", || {
                stage.consume(&step, AckMode::Confirmed, |consumer| {
                    for delivery in consumer.iter().take(count) {
                        handle(delivery);
                    }
                })
            }),
        ],
    );
}
