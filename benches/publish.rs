//! How fast entries are published: `cargo bench --bench publish -- --help`.

mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use support::common::{Direction, Proxy, Server};
use support::raw::{Raw, add_request};
use support::rounds::{Scenario, compare, contender, in_threads, timed};
use support::session::{Cores, Session};
use support::ways;

const ABOUT: &str = "\
Publishes entries one at a time, in batches, and from many threads: on a raw socket, with the redis crate, and with
step-redis.

  raw             a TcpStream with prebuilt requests; each reply is awaited and scanned in place
  raw combined    all threads' messages in one request on one connection
  raw by threads  the same when each message has its thread, which waits until it is confirmed
  raw pipelined   as combined, with two requests under way: the ceiling of one connection
  redis           the redis crate's own connection, pipe() for batches; one connection for each thread";

const STREAM: &str = "bench";
const BY_THREADS: &str = "raw by threads";
/// Threads that share the small pool, and its connections.
const MANY: usize = 64;
const SMALL_POOL: u32 = 10;

fn main() {
    let session = Session::start("publish", ABOUT, &[Cores::One, Cores::Two]);
    let server = Server::start();
    for payload in session.payloads(&[100, 1024]) {
        one_at_a_time(&session, server.port(), payload);
        for batch in [16, 128, 1024] {
            batches(&session, server.port(), payload, batch);
        }
        eight_threads(&session, server.port(), payload);
        many_threads(&session, server.port(), payload);
        if payload < 1000 {
            far_away(&session, server.port(), payload);
        }
    }
}

fn one_at_a_time(session: &Session, port: u16, payload: usize) {
    let name = "one at a time";
    if !session.wants(name) {
        return;
    }
    let count = session.scaled(1_000);
    let scenario = Scenario { name, payload, count, unit: "entries", rounds: session.rounds(27), references: &["raw"] };
    let bytes = ways::payload(payload);
    let request = add_request(STREAM, &bytes);
    let (mut raw, mut limited) = (Raw::connect(port), Raw::limited(port));
    let (mut redis, step) = (ways::redis(port), ways::step(port, 1));
    let (output, publisher) = (ways::output(STREAM), step.publisher(ways::output(STREAM)));
    compare(
        session,
        &scenario,
        vec![
            contender("raw", || {
                fresh(port);
                timed(|| ways::raw_publish(&mut raw, &request, count))
            }),
            contender("raw with a time limit", || {
                fresh(port);
                timed(|| ways::raw_publish(&mut limited, &request, count))
            }),
            contender("redis", || {
                fresh(port);
                timed(|| ways::redis_publish(&mut redis, STREAM, &bytes, count))
            }),
            contender("step-redis", || {
                fresh(port);
                timed(|| ways::step_publish(&step, &output, &bytes, count))
            }),
            contender("step-redis publisher()", || {
                fresh(port);
                timed(|| {
                    for _ in 0..count {
                        publisher.publish(&*bytes).expect("the server answers");
                    }
                })
            }),
        ],
    );
}

fn batches(session: &Session, port: u16, payload: usize, batch: usize) {
    let name = format!("batches of {batch}");
    if !session.wants(&name) {
        return;
    }
    let batches = session.scaled(8_192) / batch;
    let scenario = Scenario {
        name: &name,
        payload,
        count: batches * batch,
        unit: "entries",
        rounds: session.rounds(13),
        references: &["raw", "raw pipelined"],
    };
    let bytes = ways::payload(payload);
    let requests = add_request(STREAM, &bytes).repeat(batch);
    let (raw, mut redis, step) = (&mut Raw::connect(port), ways::redis(port), ways::step(port, 1));
    let raw = std::cell::RefCell::new(raw);
    let output = ways::output(STREAM);
    compare(
        session,
        &scenario,
        vec![
            contender("raw", || {
                fresh(port);
                timed(|| ways::raw_publish_batches(&mut raw.borrow_mut(), &requests, batch, batches))
            }),
            contender("raw pipelined", || {
                fresh(port);
                timed(|| ways::raw_publish_pipelined(&mut raw.borrow_mut(), &requests, batch, batches))
            }),
            contender("redis", || {
                fresh(port);
                timed(|| ways::redis_publish_batches(&mut redis, STREAM, &bytes, batch, batches))
            }),
            contender("step-redis, a call for each batch", || {
                fresh(port);
                timed(|| ways::step_publish_batches(&step, &output, &bytes, batch, batches))
            }),
            contender("step-redis, one call", || {
                fresh(port);
                timed(|| ways::step_publish_batches(&step, &output, &bytes, batches * batch, 1))
            }),
        ],
    );
}

fn eight_threads(session: &Session, port: u16, payload: usize) {
    const THREADS: usize = 8;
    let name = "8 threads";
    if !session.wants(name) {
        return;
    }
    let each = session.scaled(400);
    let count = THREADS * each;
    let scenario = Scenario {
        name,
        payload,
        count,
        unit: "entries",
        rounds: session.rounds(11),
        references: &["raw", BY_THREADS, "raw pipelined", "step-redis, pool of 8"],
    };
    let bytes = ways::payload(payload);
    let request = add_request(STREAM, &bytes);
    let step = ways::step(port, THREADS as u32);
    let (output, publisher) = (ways::output(STREAM), step.publisher(ways::output(STREAM)));
    compare(
        session,
        &scenario,
        vec![
            contender("raw", || {
                fresh(port);
                let connections = locked(THREADS, || Raw::connect(port));
                in_threads(THREADS, |thread| ways::raw_publish(&mut lock(&connections[thread]), &request, each))
            }),
            contender("raw combined", || combined(port, &request, THREADS, count)),
            contender(BY_THREADS, || combined_by_threads(port, &request, THREADS, each)),
            contender("raw pipelined", || pipelined(port, &request, THREADS, count)),
            contender("redis", || redis_connections(port, &bytes, THREADS, each)),
            contender("step-redis, pool of 8", || {
                fresh(port);
                in_threads(THREADS, |_| ways::step_publish(&step, &output, &bytes, each))
            }),
            contender("step-redis publisher()", || one_publisher(port, &publisher, &bytes, THREADS, each)),
        ],
    );
}

fn many_threads(session: &Session, port: u16, payload: usize) {
    let name = "64 threads";
    if !session.wants(name) {
        return;
    }
    let each = session.scaled(120);
    let count = MANY * each;
    let scenario = Scenario {
        name,
        payload,
        count,
        unit: "entries",
        rounds: session.rounds(7),
        references: &["step-redis, pool of 10", BY_THREADS],
    };
    let bytes = ways::payload(payload);
    let request = add_request(STREAM, &bytes);
    let step = ways::step(port, SMALL_POOL);
    let (output, publisher) = (ways::output(STREAM), step.publisher(ways::output(STREAM)));
    compare(
        session,
        &scenario,
        vec![
            contender("raw combined", || combined(port, &request, MANY, count)),
            contender(BY_THREADS, || combined_by_threads(port, &request, MANY, each)),
            contender("raw pipelined", || pipelined(port, &request, MANY, count)),
            contender("redis", || redis_connections(port, &bytes, MANY, each)),
            contender("step-redis, pool of 10", || {
                fresh(port);
                in_threads(MANY, |_| ways::step_publish(&step, &output, &bytes, each))
            }),
            contender("step-redis publisher()", || one_publisher(port, &publisher, &bytes, MANY, each)),
        ],
    );
}

/// Each reply comes one millisecond late.
fn far_away(session: &Session, port: u16, payload: usize) {
    let name = "64 threads, 1 ms away";
    if !session.wants(name) {
        return;
    }
    let each = session.scaled(40);
    let count = MANY * each;
    let references = &["step-redis, one thread", "step-redis, pool of 10"];
    let scenario = Scenario { name, payload, count, unit: "entries", rounds: session.rounds(5), references };
    let proxy = Proxy::start(port);
    proxy.delay(Direction::ToClient, Duration::from_millis(1));
    let far = proxy.port();
    let bytes = ways::payload(payload);
    let request = add_request(STREAM, &bytes);
    let step = ways::step(far, SMALL_POOL);
    let (output, publisher) = (ways::output(STREAM), step.publisher(ways::output(STREAM)));
    // One thread alone would take 64 times as long.
    let (part, parts) = (count / MANY, MANY as u32);
    compare(
        session,
        &scenario,
        vec![
            contender("raw combined", || combined(far, &request, MANY, count)),
            contender("step-redis, one thread", || {
                fresh(port);
                timed(|| ways::step_publish(&step, &output, &bytes, part)) * parts
            }),
            contender("step-redis, pool of 10", || {
                fresh(port);
                in_threads(MANY, |_| ways::step_publish(&step, &output, &bytes, each))
            }),
            contender("step-redis publisher()", || one_publisher(port, &publisher, &bytes, MANY, each)),
        ],
    );
}

/// What `threads` publishers have to say, in one request on one connection.
fn combined(port: u16, request: &[u8], threads: usize, count: usize) -> Duration {
    fresh(port);
    let (mut raw, requests) = (Raw::connect(port), request.repeat(threads));
    timed(|| ways::raw_publish_batches(&mut raw, &requests, threads, count / threads))
}

/// The same when each message has its thread: the last of them to come sends for all, and none goes on before it is done.
/// What this costs beyond `combined` is running so many threads in turn, which no publisher for threads can avoid.
fn combined_by_threads(port: u16, request: &[u8], threads: usize, each: usize) -> Duration {
    fresh(port);
    let (raw, requests) = (Locked::new(Raw::connect(port)), request.repeat(threads));
    let (come, sent) = (AtomicUsize::new(0), AtomicUsize::new(0));
    in_threads(threads, |_| {
        for turn in 0..each {
            if come.fetch_add(1, Ordering::AcqRel) + 1 == threads * (turn + 1) {
                ways::raw_publish_batches(&mut lock(&raw), &requests, threads, 1);
                sent.store(turn + 1, Ordering::Release);
            }
            while sent.load(Ordering::Acquire) <= turn {
                thread::yield_now();
            }
        }
    })
}

/// A connection of the `redis` crate for each thread.
fn redis_connections(port: u16, payload: &[u8], threads: usize, each: usize) -> Duration {
    fresh(port);
    let connections = locked(threads, || ways::redis(port));
    in_threads(threads, |thread| ways::redis_publish(&mut lock(&connections[thread]), STREAM, payload, each))
}

/// The same as `combined` in two halves, both under way.
fn pipelined(port: u16, request: &[u8], threads: usize, count: usize) -> Duration {
    fresh(port);
    let half = threads / 2;
    let (mut raw, requests) = (Raw::connect(port), request.repeat(half));
    timed(|| ways::raw_publish_pipelined(&mut raw, &requests, half, count / half))
}

/// All threads through one publisher.
fn one_publisher(
    port: u16,
    publisher: &step_redis::Publisher,
    payload: &[u8],
    threads: usize,
    each: usize,
) -> Duration {
    fresh(port);
    in_threads(threads, |_| publish_through(publisher, payload, each))
}

fn publish_through(publisher: &step_redis::Publisher, payload: &[u8], count: usize) {
    for _ in 0..count {
        publisher.publish(payload).expect("the server answers");
    }
}

/// Every contender begins with an empty stream.
fn fresh(port: u16) {
    ways::clear(&mut Raw::connect(port), STREAM);
}

type Locked<T> = std::sync::Mutex<T>;

/// A connection for each thread. Its lock is never contended.
fn locked<T>(count: usize, connect: impl Fn() -> T) -> Vec<Locked<T>> {
    (0..count).map(|_| Locked::new(connect())).collect()
}

fn lock<T>(connection: &Locked<T>) -> std::sync::MutexGuard<'_, T> {
    connection.lock().expect("no thread has panicked")
}
