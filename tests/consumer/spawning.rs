//! What `spawn()` refuses, and what it says then.

use crate::support::Bench;
use std::time::{Duration, Instant};
use step_redis::{
    AckMode, Backoff, ConsumerBuilder, Error, PoolParams, StepPool, StepStream, StreamInput, StreamOutput,
};

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
