//! What `spawn()` refuses, and what it says then.

use crate::common::{Direction, Proxy, Server};
use crate::support::{Bench, LONG, next, stream_at};
use std::time::{Duration, Instant};
use step_redis::{
    AckMode, Backoff, ConsumerBuilder, Error, PoolParams, StepPool, StepStream, StreamInput, StreamOutput,
};

/// The greatest `prefetch` and `batch`.
const MOST: usize = 1 << 20;

#[test]
fn the_greatest_parameters_work() {
    let bench = Bench::start();
    bench.publish(1_000);
    let consumer = bench.consumer("one").prefetch(MOST).batch(MOST).prefetch_bytes(usize::MAX).spawn().unwrap();
    bench.server.wait_until(|_| consumer.stats().queued == 1_000);
    assert_eq!(crate::support::take(&consumer, 1_000), (0..1_000).collect::<Vec<_>>());
    consumer.close().unwrap();
    assert_eq!(bench.pending(), 0);
}

#[test]
fn parameters_that_cannot_work_are_refused_before_anything_is_sent() {
    // Nobody listens there.
    let stream = StepStream::new(StepPool::new(PoolParams::new("127.0.0.1", 1)).unwrap());
    let good = || stream.consumer(StreamInput::new("stream", "group"));
    let of = |input| stream.consumer(input);
    let (millisecond, second) = (Duration::from_millis(1), Duration::from_secs(1));
    let cases: Vec<(&str, ConsumerBuilder)> = vec![
        ("prefetch", good().prefetch(0)),
        ("batch", good().batch(0)),
        ("prefetch", good().prefetch(usize::MAX)),
        ("prefetch", good().prefetch(1 << 40)),
        ("prefetch", good().prefetch(MOST + 1)),
        ("prefetch_bytes", good().prefetch_bytes(0)),
        ("batch", good().batch(usize::MAX)),
        ("batch", good().batch(MOST + 1)),
        ("dead_letter", good().dead_letter(StreamOutput::new("stream"))),
        ("dead_letter", of(StreamInput::new("stream", "group").dead_letter(StreamOutput::new("stream")))),
        ("max_deliveries", good().max_deliveries(0).dead_letter(StreamOutput::new("dead"))),
        ("max_deliveries", good().max_deliveries(3)),
        ("backoff", good().backoff(Backoff::new(Duration::ZERO, second))),
        ("backoff", good().backoff(Backoff::new(second, millisecond))),
        ("ack_mode", good().ack_mode(AckMode::Queued { max: 0, delay: millisecond })),
        ("stream_id", of(StreamInput::new("", "group"))),
        ("group", of(StreamInput::new("stream", ""))),
        ("consumer", of(StreamInput::new("stream", "group").consumer(""))),
        ("claim_idle", of(StreamInput::new("stream", "group").claim_idle(Duration::ZERO))),
        ("ttl", of(StreamInput::new("stream", "group").ttl(Duration::ZERO))),
        ("stream_id", good().dead_letter(StreamOutput::new(""))),
    ];
    for (expected, builder) in cases {
        match builder.spawn() {
            Err(Error::Params { field, .. }) => assert_eq!(field, expected),
            other => panic!("{expected}: {other:?}"),
        }
    }
}

#[test]
fn a_server_that_is_not_there_is_an_error_at_once() {
    let stream = StepStream::new(StepPool::new(PoolParams::new("127.0.0.1", 1)).unwrap());
    let started = Instant::now();
    let error = stream.consumer(StreamInput::new("stream", "group")).spawn().unwrap_err();
    assert!(matches!(error, Error::Connect { .. }) && error.is_retryable(), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(1));
}

#[test]
fn a_server_that_hangs_is_an_error_within_the_bounds() {
    let bench = Bench::start();
    bench.server.pause();
    let limit = Duration::from_millis(300);
    let params = PoolParams::from_url(&bench.server.url()).unwrap();
    let params = params.socket_connect_timeout(limit).socket_timeout(limit);
    let stream = StepStream::new(StepPool::new(params).unwrap());
    let started = Instant::now();
    let error = stream.consumer(bench.input()).spawn().unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    assert!(started.elapsed() < 3 * limit + limit, "{:?}", started.elapsed());
}

#[test]
fn spawn_creates_the_group_and_takes_nothing_from_the_pool() {
    let bench = Bench::start();
    let before = bench.stream.pool().state();
    let held: Vec<_> = (0..before.max).map(|_| bench.stream.pool().get().unwrap()).collect();
    let consumer = bench.consumer("one").spawn().unwrap();
    assert_eq!(bench.delivered().0, 0);
    bench.fill(3, 1);
    assert_eq!(crate::support::take(&consumer, 3), [0, 1, 2]);
    consumer.close().unwrap();
    drop(held);
    assert_eq!(bench.pending(), 0, "queued acknowledgements do not go through the pool");
}

#[test]
fn a_group_that_is_there_needs_no_permission_to_create_one() {
    let bench = Bench::start();
    bench.stream.create_input_stream(&bench.input()).unwrap();
    bench.publish(2);
    let rules = "on >secret ~* &* +@all -xgroup";
    bench.server.command(&[&["ACL", "SETUSER", "worker"][..], &rules.split(' ').collect::<Vec<_>>()].concat());
    let stream = stream_at(&format!("redis://worker:secret@127.0.0.1:{}", bench.server.port()));
    for input in [bench.input(), bench.input().ttl(Duration::from_secs(100))] {
        let consumer = stream.consumer(input).spawn().unwrap();
        next(&consumer).ack().unwrap();
        consumer.close().unwrap();
    }
    assert_eq!(bench.pending(), 0);
    // One that is not there cannot be read.
    let error = stream.consumer(StreamInput::new(bench.key.as_str(), "other")).spawn().unwrap_err();
    assert_eq!(error.code(), Some("NOPERM"), "{error:?}");
}

#[test]
fn a_server_that_is_down_is_waited_for_if_asked() {
    let bench = Bench::on(Server::builder().append_only().start());
    bench.publish(1);
    let stream = StepStream::new(StepPool::new(PoolParams::from_url(&bench.server.url()).unwrap()).unwrap());
    bench.server.kill();
    let started = Instant::now();
    let limit = Duration::from_millis(600);
    let error = stream.consumer(bench.input()).wait_for_server(limit).spawn().unwrap_err();
    assert!(matches!(error, Error::Connect { .. }) && error.is_retryable(), "{error:?}");
    assert!((limit..limit + Duration::from_secs(2)).contains(&started.elapsed()), "{:?}", started.elapsed());

    let consumer = std::thread::scope(|scope| {
        let spawning = scope.spawn(|| stream.consumer(bench.input()).wait_for_server(LONG).spawn());
        // Some attempts are in vain.
        std::thread::sleep(Duration::from_millis(300));
        bench.server.restart();
        spawning.join().unwrap().unwrap()
    });
    assert!(started.elapsed() < LONG);
    next(&consumer).ack().unwrap();
    consumer.close().unwrap();
}

#[test]
fn a_server_that_refuses_is_not_waited_for() {
    let bench = Bench::on(Server::builder().password("right").start());
    let params = PoolParams::new("127.0.0.1", bench.server.port()).password("wrong");
    let stream = StepStream::new(StepPool::new(params).unwrap());
    let started = Instant::now();
    let error = stream.consumer(bench.input()).wait_for_server(LONG).spawn().unwrap_err();
    assert!(matches!(error, Error::Auth { .. }), "{error:?}");
    assert!(started.elapsed() < LONG / 2);
}

#[test]
fn a_server_that_vanishes_between_the_two_connections_is_waited_for_if_asked() {
    let bench = Bench::start();
    bench.publish(1);
    let proxy = Proxy::start(bench.server.port());
    let stream = StepStream::new(StepPool::new(PoolParams::new("127.0.0.1", proxy.port())).unwrap());
    for limit in [Duration::ZERO, LONG] {
        // Slow enough to do something before the first connection is ready.
        proxy.delay(Direction::ToClient, Duration::from_millis(200));
        let spawned = std::thread::scope(|scope| {
            let spawning = scope.spawn(|| stream.consumer(bench.input()).wait_for_server(limit).spawn());
            proxy.wait_until(|proxy| proxy.open() == 1);
            proxy.refuse(true);
            // The first connection works until the second one is wanted.
            proxy.wait_until(|proxy| proxy.open() == 0);
            proxy.heal();
            spawning.join().unwrap()
        });
        match (limit.is_zero(), spawned) {
            (true, Err(error)) => assert!(matches!(error, Error::Connect { .. }), "{error:?}"),
            (false, Ok(consumer)) => {
                next(&consumer).ack().unwrap();
                consumer.close().unwrap();
            }
            (_, other) => panic!("{limit:?}: {other:?}"),
        }
    }
    assert_eq!(bench.pending(), 0);
}
