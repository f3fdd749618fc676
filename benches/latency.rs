//! How soon a published entry is in its handler's hands: `cargo bench --bench latency -- --help`.

#![allow(clippy::print_stdout)]

mod support;

use std::thread;
use std::time::{Duration, Instant};

use redis::Value;
use support::common::Server;
use support::raw::{Raw, add_request, push_ack, read_request};
use support::record::{Ratio, Row};
use support::rounds::median;
use support::session::{Cores, Session};
use support::ways::{self, GROUP};

const ABOUT: &str = "\
The time from just before an entry is published until its handler has it, while the reader waits for it at the server. A
thread of the same program publishes on a raw socket at a fixed rate; each entry carries the time. Contenders take turns,
round by round; p50 is the median of the rounds' medians, its ratio is computed round by round, and p99 and p99.9 are those
of all rounds together. A ratio of two is twice as long.

  raw      a TcpStream; the acknowledgement goes with the next read
  redis    the redis crate's own connection; likewise
  receive  step-redis: StepStream::receive, and a confirmed ack
  consumer step-redis: the consumer's iterator, which has a thread and a channel between the socket and the handler";

const STREAM: &str = "bench";
/// Longer than a round.
const BLOCK: Duration = Duration::from_secs(5);

fn main() {
    let session = Session::start("latency", ABOUT, &[Cores::One, Cores::Two]);
    let server = Server::start();
    let origin = Instant::now();
    for payload in session.payloads(&[100, 1024]) {
        measure(&session, server.port(), origin, payload, Duration::from_millis(1));
        // The payload matters even less when the machine is busy.
        if payload < 1000 {
            measure(&session, server.port(), origin, payload, Duration::from_micros(200));
        }
    }
}

/// The latencies of one round, in microseconds.
type Round = Vec<f64>;

/// What a reader does: hands the payload of each of `count` entries to the stopwatch.
type Read<'a> = Box<dyn FnMut(usize, &mut dyn FnMut(&[u8])) + 'a>;

fn measure(session: &Session, port: u16, origin: Instant, payload: usize, every: Duration) {
    let name = format!("one entry every {every:?}");
    if !session.wants(&name) {
        return;
    }
    // About as long at either rate.
    let count = session.scaled((150_000 / every.as_micros() as usize).clamp(150, 500));
    let rounds = session.rounds(11);
    let (mut raw, mut redis, step) = (Raw::connect(port), ways::redis(port), ways::step(port, 2));
    let input = ways::input(STREAM).wait_timeout(BLOCK);
    let mut contenders: Vec<(&str, Read<'_>)> = vec![
        ("raw", Box::new(move |count, watch| raw_read(&mut raw, count, watch))),
        ("redis", Box::new(move |count, watch| redis_read(&mut redis, count, watch))),
        ("step-redis receive", {
            let (step, input) = (step.clone(), input.clone());
            Box::new(move |count, watch| {
                for _ in 0..count {
                    let delivery = step.receive(&input).expect("the server answers").expect("an entry comes");
                    watch(delivery.payload());
                    delivery.ack().expect("the server answers");
                }
            })
        }),
        ("step-redis consumer", {
            Box::new(move |count, watch| {
                let consumer = step.consumer(input.clone()).spawn().expect("the private server accepts");
                for delivery in consumer.iter().take(count) {
                    let delivery = delivery.expect("the server answers");
                    watch(delivery.payload());
                    delivery.ack().expect("the consumer is open");
                }
                consumer.close().expect("everything is confirmed");
            })
        }),
    ];
    let mut results: Vec<Vec<Round>> = vec![Vec::new(); contenders.len()];
    // The first round warms up.
    for round in 0..=rounds {
        for ((_, read), results) in contenders.iter_mut().zip(&mut results) {
            let latencies = run(port, origin, payload, every, count, read);
            if round > 0 {
                results.push(latencies);
            }
        }
    }
    let names: Vec<&str> = contenders.iter().map(|(name, _)| *name).collect();
    report(session, &name, payload, count, &names, &results);
}

/// One round: a reader that waits, and a publisher in a thread of its own.
fn run(port: u16, origin: Instant, payload: usize, every: Duration, count: usize, read: &mut Read<'_>) -> Round {
    ways::fill(&mut Raw::connect(port), STREAM, &[], 0);
    let mut latencies = Vec::with_capacity(count);
    thread::scope(|scope| {
        scope.spawn(move || publish(port, origin, payload, every, count));
        read(count, &mut |payload| {
            let arrived = origin.elapsed();
            let sent = Duration::from_nanos(payload.get(..DIGITS).map_or(0, number));
            latencies.push(arrived.saturating_sub(sent).as_secs_f64() * 1e6);
        });
    });
    latencies
}

const DIGITS: usize = 20;

fn number(digits: &[u8]) -> u64 {
    digits.iter().fold(0, |number, digit| number * 10 + u64::from(digit - b'0'))
}

/// Publishes at a fixed rate; each payload begins with the time in nanoseconds.
fn publish(port: u16, origin: Instant, payload: usize, every: Duration, count: usize) {
    let mut raw = Raw::connect(port);
    let mut request = add_request(STREAM, &vec![b'x'; payload.max(DIGITS)]);
    // The payload and the line end behind it are the last thing in the request.
    let at = request.len() - payload.max(DIGITS) - 2;
    // The reader is to be waiting.
    thread::sleep(Duration::from_millis(20));
    let mut next = Instant::now();
    for _ in 0..count {
        next += every;
        thread::sleep(next.saturating_duration_since(Instant::now()));
        let time = format!("{:0width$}", origin.elapsed().as_nanos(), width = DIGITS);
        request[at..at + DIGITS].copy_from_slice(time.as_bytes());
        raw.call(&request);
    }
}

fn raw_read(raw: &mut Raw, count: usize, watch: &mut dyn FnMut(&[u8])) {
    let read = read_request(STREAM, GROUP, 1, Some(BLOCK.as_millis() as u64));
    let mut ids = Vec::new();
    raw.send(&read);
    for taken in 1..=count {
        ids.clear();
        assert_eq!(raw.entries(&mut ids, &mut *watch), 1, "an entry comes");
        let mut request = Vec::new();
        push_ack(&mut request, STREAM, GROUP, &ids, 1);
        if taken < count {
            request.extend_from_slice(&read);
        }
        raw.send(&request);
        raw.reply();
    }
}

fn redis_read(connection: &mut redis::Connection, count: usize, watch: &mut dyn FnMut(&[u8])) {
    let mut read = redis::cmd("XREADGROUP");
    read.arg("GROUP").arg(GROUP).arg("reader").arg("COUNT").arg(1).arg("BLOCK").arg(BLOCK.as_millis() as u64);
    read.arg("STREAMS").arg(STREAM).arg(">");
    let mut acks: Vec<Vec<u8>> = Vec::new();
    for _ in 0..count {
        let mut pipe = redis::pipe();
        if !acks.is_empty() {
            pipe.cmd("XACK").arg(STREAM).arg(GROUP).arg(&acks).ignore();
        }
        pipe.add_command(read.clone());
        let (reply,): (Value,) = pipe.query(connection).expect("the server answers");
        acks.clear();
        for (id, payload) in ways::decode(reply) {
            watch(&payload);
            acks.push(id);
        }
    }
    ways::redis_ack(connection, STREAM, &acks);
}

fn report(session: &Session, name: &str, payload: usize, count: usize, names: &[&str], results: &[Vec<Round>]) {
    let cores = session.cores.name();
    let rounds = results.first().map_or(0, Vec::len);
    println!("\n{name} ({cores}, {payload} B; {count} entries in each of {rounds} rounds)");
    let medians: Vec<Vec<f64>> =
        results.iter().map(|rounds| rounds.iter().map(|round| median(round.clone())).collect()).collect();
    for ((name_of, rounds), own) in names.iter().zip(results).zip(&medians) {
        let mut all: Vec<f64> = rounds.iter().flatten().copied().collect();
        all.sort_by(f64::total_cmp);
        let ratios: Vec<f64> = own.iter().zip(&medians[0]).map(|(own, raw)| own / raw).collect();
        let ratio = Ratio {
            reference: "raw".to_owned(),
            median: median(ratios.clone()),
            lowest: ratios.iter().copied().fold(f64::INFINITY, f64::min),
            highest: ratios.iter().copied().fold(0.0, f64::max),
        };
        let [p50, p99, p999] = [median(own.clone()), quantile(&all, 0.99), quantile(&all, 0.999)];
        println!(
            "  {name_of:20}  p50 {p50:6.1} us  p99 {p99:7.1} us  p99.9 {p999:7.1} us   {:5.2} of raw ({:.2}..{:.2})",
            ratio.median, ratio.lowest, ratio.highest
        );
        session.record.add(&Row {
            bench: "latency".to_owned(),
            cores: cores.to_owned(),
            scenario: name.to_owned(),
            payload,
            contender: (*name_of).to_owned(),
            result: format!("{p50:.0} / {p99:.0} / {p999:.0} us"),
            ratios: vec![ratio],
        });
    }
}

/// Of sorted values.
fn quantile(values: &[f64], part: f64) -> f64 {
    let at = (values.len() as f64 * part) as usize;
    values.get(at.min(values.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
}
