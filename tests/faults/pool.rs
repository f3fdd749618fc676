//! The pool while its server is away, and when it comes back.

use std::error::Error as _;
use std::thread;
use std::time::{Duration, Instant};

use step_redis::{ConnectStep, Error, StepPool};

use crate::common::{Proxy, Server};
use crate::support::{LIMIT, SLACK, Scene, connect, quick};

#[test]
fn a_checkout_without_a_server_fails_in_time_and_says_why() {
    let scene = Scene::new();
    let limit = Duration::from_millis(400);
    let stream = connect(scene.params().connection_available_timeout(limit));
    stream.publish(&scene.output, "before").unwrap();
    scene.server.kill();
    // For a few milliseconds, a connection is lent without a look.
    crate::common::wait_until(LIMIT, || stream.pool().get().is_err());
    for _ in 0..5 {
        let started = Instant::now();
        let error = stream.pool().get().unwrap_err();
        assert!(started.elapsed() < limit + SLACK, "{:?}", started.elapsed());
        let Error::PoolExhausted { source: Some(source), in_use: 0, connections: 0, .. } = &error else {
            panic!("{error:?}")
        };
        assert!(matches!(**source, Error::Connect { step: ConnectStep::Open, .. }), "{source:?}");
        assert!(error.source().is_some() && error.is_retryable() && !error.is_outcome_unknown(), "{error:?}");
    }
    let state = stream.pool().state();
    assert!(state.failed > 0 && state.connections == 0, "{state:?}");
    assert!(state.last_error.is_some_and(|text| text.contains("refused")));
}

#[test]
fn a_pool_recovers_by_itself_when_the_server_returns() {
    let scene = Scene::on(Server::builder().append_only());
    let stream = connect(scene.params());
    stream.publish(&scene.output, "before").unwrap();
    scene.server.kill();
    // Long enough that whatever grows between attempts has grown.
    let down = Instant::now();
    while down.elapsed() < Duration::from_secs(3) {
        assert!(stream.publish(&scene.output, "while it is down").is_err());
    }
    scene.server.restart();
    // A checkout waits for a second, which is more than the wait between two attempts.
    stream.publish(&scene.output, "after").unwrap();
    assert_eq!(stream.pool().state().last_error, None);
    assert_eq!(scene.content().len(), 2);
}

#[test]
fn a_checkout_that_waits_gets_its_connection_when_the_server_returns() {
    let scene = Scene::new();
    let proxy = Proxy::start(scene.server.port());
    let limit = Duration::from_secs(6);
    let pool = StepPool::new(quick(proxy.port()).connection_available_timeout(limit)).unwrap();
    proxy.refuse(true);
    let waited = thread::scope(|scope| {
        let waiting = scope.spawn(|| pool.get().map(drop));
        crate::common::wait_until(LIMIT, || pool.state().failed >= 3);
        let returned = Instant::now();
        proxy.heal();
        waiting.join().unwrap().unwrap();
        returned.elapsed()
    });
    // The waits between attempts grow to half of the limit.
    assert!(waited < limit / 2 + SLACK, "{waited:?}");
}

#[test]
fn a_restart_between_two_uses_goes_unnoticed() {
    let scene = Scene::on(Server::builder().append_only());
    let stream = scene.stream();
    let publisher = stream.publisher(scene.output.clone());
    for round in 0..3 {
        stream.publish(&scene.output, format!("plain-{round}")).unwrap();
        publisher.publish(format!("shared-{round}")).unwrap();
        scene.server.restart();
    }
    assert_eq!(scene.content().len(), 6);
}

#[test]
fn many_threads_recover_at_once_within_the_bound_of_the_pool() {
    let scene = Scene::on(Server::builder().append_only());
    let stream = connect(scene.params().max_connections(4).connection_available_timeout(Duration::from_secs(10)));
    let publish = |round: usize| {
        thread::scope(|scope| {
            for thread in 0..16 {
                let (stream, scene) = (&stream, &scene);
                scope.spawn(move || {
                    // A request may be under way when the connection dies; no later than the next call it is well again.
                    let text = format!("{round}-{thread}");
                    assert!((0..3).any(|_| stream.publish(&scene.output, &*text).is_ok()), "{text}");
                });
            }
        });
    };
    publish(0);
    for round in 1..4 {
        scene.server.kill();
        scene.server.restart();
        publish(round);
        let state = stream.pool().state();
        assert!(state.connections <= 4 && state.in_use == 0, "{state:?}");
    }
    assert_eq!(scene.content().len(), 64);
    scene.server.wait_until(|server| server.connected_clients() <= 4);
}
