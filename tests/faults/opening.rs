//! Who has a connection opened, when, and what becomes of an attempt that hangs, is refused, or panics.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use step_redis::redis;
use step_redis::{ConnectStep, Error, PoolParams, Protocol, StepPool, StepStream, StreamOutput};

use crate::common::{Behaviour, Direction, Peer, Proxy, Server, Step};
use crate::support::{ActingLogger, LIMIT, PanickingLogger, SLACK, Scene, quick, remember_logs};

fn params(port: u16) -> PoolParams {
    PoolParams::new("127.0.0.1", port)
}

fn healthy() -> Behaviour {
    Behaviour::Script(vec![Step::Handshake])
}

/// Answers its greeting, and then nothing any more.
fn half_open() -> Behaviour {
    // HELLO, PING and two of CLIENT.
    Behaviour::Script(vec![vec![Step::Request, Step::Send(b"+PONG\r\n".to_vec())]; 4].concat())
}

#[test]
fn a_caller_who_waits_gets_the_place_of_a_connection_that_broke() {
    let scene = Scene::new();
    let pool = StepPool::connect(scene.params().max_connections(1).connection_available_timeout(LIMIT)).unwrap();
    for _ in 0..3 {
        let mut held = pool.get().unwrap();
        let id = held.id();
        thread::scope(|scope| {
            let waiting = scope.spawn(|| pool.get().map(|connection| (connection.id(), Instant::now())));
            // Long enough that the other thread waits; nothing depends on it.
            thread::sleep(Duration::from_millis(50));
            scene.server.command(&["CLIENT", "KILL", "ID", &id.unwrap().to_string()]);
            redis::cmd("PING").exec(&mut held).unwrap_err();
            let given_back = Instant::now();
            drop(held);
            let (new_id, got) = waiting.join().unwrap().unwrap();
            assert_ne!(new_id, id);
            assert!(got.saturating_duration_since(given_back) < SLACK);
        });
    }
}

#[test]
fn an_idle_connection_that_is_half_open_costs_neither_the_checkout_nor_the_others() {
    let peer = Peer::tcp_each(|index| if index == 2 { half_open() } else { healthy() });
    let params = params(peer.port()).health_check_interval(Duration::from_millis(10)).max_connections(3);
    let pool = StepPool::new(params).unwrap();
    let (first, second, third) = (pool.get().unwrap(), pool.get().unwrap(), pool.get().unwrap());
    // The one that is given back last is lent first.
    drop(first);
    drop(second);
    drop(third);
    thread::sleep(Duration::from_millis(30));
    let lent = [pool.get().unwrap(), pool.get().unwrap()];
    drop(lent);
    assert_eq!((peer.connections(), pool.state().opened), (3, 3), "the healthy ones serve");
}

#[test]
fn where_all_idle_connections_are_half_open_another_one_is_opened_in_time() {
    for (max, checkout) in [(1, 2_000), (4, 2_000), (10, 500), (20, 2_000)] {
        let peer = Peer::tcp_each(move |index| if index < max { half_open() } else { healthy() });
        let params = params(peer.port()).health_check_interval(Duration::from_millis(10));
        let params = params.connection_available_timeout(Duration::from_millis(checkout));
        let pool = StepPool::new(params.max_connections(max as u32)).unwrap();
        let held: Vec<_> = (0..max).map(|_| pool.get().unwrap()).collect();
        drop(held);
        thread::sleep(Duration::from_millis(30));
        pool.ping().unwrap();
    }
}

#[test]
fn a_wrong_password_fails_at_once_and_is_tried_for_callers_only() {
    let server = Server::builder().password("right").start();
    let pool = StepPool::new(params(server.port()).password("wrong")).unwrap();
    let started = Instant::now();
    let error = pool.get().unwrap_err();
    assert!(matches!(error, Error::Auth { .. }) && !error.is_retryable(), "{error:?}");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!(pool.state().failed, 1);
    let error = StepStream::new(pool.clone()).publish(&StreamOutput::new("orders"), "text").unwrap_err();
    assert!(matches!(error, Error::Auth { .. }), "{error:?}");
    assert_eq!(pool.state().failed, 2);

    // Less time than an attempt may take to follow another.
    let hasty = StepPool::new(pool.params().clone().connection_available_timeout(Duration::from_millis(20))).unwrap();
    for pool in [&pool, &hasty] {
        thread::scope(|scope| {
            for _ in 0..10 {
                scope.spawn(|| assert!(pool.get().is_err()));
            }
        });
        let asked = || server.info("stats")["total_connections_received"].clone();
        crate::common::wait_until(LIMIT, || {
            let before = (pool.state().failed, asked());
            thread::sleep(Duration::from_millis(100));
            (pool.state().failed, asked()) == before
        });
        let before = asked();
        thread::sleep(Duration::from_millis(700));
        assert_eq!(asked(), before, "nobody asks, and it still connects");
    }
    assert!(matches!(hasty.get().unwrap_err(), Error::Auth { .. }));
}

#[test]
fn while_somebody_waits_attempts_keep_a_steady_and_bounded_pace() {
    let scene = Scene::new();
    let proxy = Proxy::start(scene.server.port());
    let pool = StepPool::new(quick(proxy.port()).connection_available_timeout(LIMIT)).unwrap();
    proxy.refuse(true);
    let (attempts, waits) = thread::scope(|scope| {
        let callers: Vec<_> = (0..16).map(|_| scope.spawn(|| pool.get().map(|_| Instant::now()).unwrap())).collect();
        crate::common::wait_until(LIMIT, || pool.state().failed > 0);
        let before = pool.state().failed;
        let begun = Instant::now();
        thread::sleep(Duration::from_secs(2));
        let attempts = f64::from((pool.state().failed - before) as u32) / begun.elapsed().as_secs_f64();
        let healed = Instant::now();
        proxy.heal();
        (attempts, callers.into_iter().map(|caller| caller.join().unwrap() - healed).max().unwrap())
    });
    assert!((2.0..=20.0).contains(&attempts), "{attempts} a second");
    assert!(waits < SLACK, "{waits:?}");
}

#[test]
fn a_logger_that_panics_at_what_an_attempt_says_costs_nobody_anything() {
    remember_logs();
    let server = Server::start();
    let pool = StepPool::new(params(server.port()).max_connections(2)).unwrap();
    let panicking = PanickingLogger::at(format!("connected to 127.0.0.1:{}", server.port()));
    // The attempt is over by the time that it is told.
    let held = [pool.get().unwrap(), pool.get().unwrap()];
    assert_eq!((pool.state().opened, pool.state().failed, pool.state().last_error), (2, 0, None));
    drop((panicking, held));
}

#[test]
fn a_logger_that_wants_a_connection_itself_neither_fills_the_pool_nor_multiplies_attempts() {
    remember_logs();
    let scene = Scene::new();
    let proxy = Proxy::start(scene.server.port());
    let limit = Duration::from_secs(1);
    let pool = StepPool::new(quick(proxy.port()).max_connections(3).connection_available_timeout(limit)).unwrap();
    let for_logger = pool.clone();
    let acting = ActingLogger::at(format!("127.0.0.1:{}", proxy.port()), move || {
        // Whether there is one or not: this is about what it does to others.
        drop(for_logger.get_timeout(Duration::from_millis(300)));
    });
    proxy.refuse(true);
    pool.get().unwrap_err();
    assert!(pool.state().failed <= 20, "{:?}", pool.state());
    proxy.heal();
    pool.get().unwrap();
    drop(acting);
}

#[test]
fn after_a_long_outage_a_short_hole_is_as_short_as_before() {
    let is_silent = |index| index < 3 || index == 4;
    let peer = Peer::tcp_each(move |index| if is_silent(index) { Behaviour::Silent } else { healthy() });
    let params = params(peer.port()).max_connections(1).connection_available_timeout(Duration::from_millis(500));
    let pool = StepPool::new(params.socket_connect_timeout(Duration::from_secs(60))).unwrap();
    // Each attempt that gives way leaves twice as long to the next: the line may be slow.
    let connection = pool.get_timeout(LIMIT).unwrap();
    assert_eq!(peer.connections(), 4);
    connection.interrupter().interrupt();
    drop(connection);
    let started = Instant::now();
    pool.get_timeout(LIMIT).unwrap();
    assert_eq!(peer.connections(), 6);
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

#[test]
fn attempts_that_hang_do_not_hold_up_those_that_would_not() {
    // In the hole vanish as many as one checkout tries.
    for (max, hole) in [(10, 2), (1, 1)] {
        let peer = Peer::tcp_each(move |index| if index < hole { Behaviour::Silent } else { healthy() });
        let params = params(peer.port()).max_connections(max).socket_connect_timeout(Duration::from_secs(60));
        let pool = StepPool::new(params).unwrap();
        let error = pool.get().unwrap_err();
        let Error::PoolExhausted { source: Some(source), waited, .. } = &error else { panic!("{error:?}") };
        // What it waited for is the cause, though no attempt has failed yet.
        assert!(matches!(**source, Error::Connect { step: ConnectStep::Hello, .. }), "{source:?}");
        assert!(source.is_timeout() && *waited < Duration::from_secs(2) + SLACK, "{error:?}");
        let started = Instant::now();
        pool.get().unwrap();
        assert!(started.elapsed() < SLACK, "{:?}", started.elapsed());
    }
}

#[test]
fn a_caller_outlives_a_short_hole() {
    let peer = Peer::tcp_each(|index| if index == 0 { Behaviour::Silent } else { healthy() });
    let pool = StepPool::new(params(peer.port()).socket_connect_timeout(Duration::from_secs(60))).unwrap();
    pool.get().unwrap();
}

#[test]
fn behind_a_slow_line_first_callers_are_served_at_the_same_time() {
    let server = Server::start();
    let proxy = Proxy::start(server.port());
    proxy.delay(Direction::Both, Duration::from_millis(350));
    let pool = StepPool::new(params(proxy.port())).unwrap();
    let (start, got) = (Barrier::new(10), Barrier::new(10));
    thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                start.wait();
                let lent = pool.get();
                got.wait();
                lent.unwrap();
            });
        }
    });
    assert_eq!((pool.state().opened, pool.state().connections), (10, 10));
}

#[test]
fn an_attempt_outlives_its_caller_and_serves_the_next() {
    let server = Server::start();
    let proxy = Proxy::start(server.port());
    proxy.delay(Direction::Both, Duration::from_millis(250));
    let pool = StepPool::new(params(proxy.port()).connection_available_timeout(Duration::from_millis(100))).unwrap();
    assert!(pool.get().is_err());
    crate::common::wait_until(LIMIT, || pool.state().idle > 0);
    pool.get().unwrap();
}

#[test]
fn a_dropped_pool_ends_its_attempts() {
    let peer = Peer::tcp(Behaviour::Silent);
    let params = params(peer.port()).socket_connect_timeout(Duration::from_secs(60));
    let pool = StepPool::new(params.connection_available_timeout(Duration::from_millis(50))).unwrap();
    assert!(pool.get().is_err());
    peer.wait_until(|peer| peer.open() > 0);
    drop(pool);
    peer.wait_until(|peer| peer.open() == 0);
}

#[test]
fn the_bounds_of_a_checkout_hold_for_many_callers_with_large_messages() {
    let scene = Scene::new();
    let proxy = Proxy::start(scene.server.port());
    let (checkout, command) = (Duration::from_millis(500), Duration::from_secs(2));
    let params = quick(proxy.port()).max_connections(10).connection_available_timeout(checkout).socket_timeout(command);
    let stream = StepStream::new(StepPool::connect(params).unwrap());
    let text = "x".repeat(1 << 20);
    let publish = || {
        let started = Instant::now();
        let result = stream.publish(&scene.output, &*text);
        (started.elapsed(), result)
    };
    let by_many = || -> Vec<_> {
        thread::scope(|scope| {
            let callers: Vec<_> = (0..64).map(|_| scope.spawn(publish)).collect();
            callers.into_iter().map(|caller| caller.join().unwrap()).collect()
        })
    };
    by_many();
    // From here on ten of them hold a connection that hangs, and the others find the pool full.
    proxy.swallow(Direction::ToServer, true);
    for (waited, result) in by_many() {
        let error = result.unwrap_err();
        let exhausted = matches!(error, Error::PoolExhausted { .. });
        let limit = if exhausted { checkout } else { checkout + command };
        assert!(waited < limit + SLACK, "{waited:?} {error:?}");
    }
    proxy.heal();
    crate::common::wait_until(LIMIT, || publish().1.is_ok());
}

#[test]
fn what_lies_ready_is_lent_without_waiting() {
    let server = Server::start();
    let pool = StepPool::new(params(server.port()).max_connections(1).protocol(Protocol::Resp2)).unwrap();
    assert!(pool.try_get().is_none() && pool.state().opened == 0);
    let held = pool.get_timeout(LIMIT).unwrap();
    assert!(pool.try_get().is_none());
    let error = pool.get_timeout(Duration::from_millis(50)).unwrap_err();
    let Error::PoolExhausted { waited, in_use: 1, source: None, .. } = error else { panic!("{error:?}") };
    assert!(waited < SLACK, "{waited:?}");
    drop(held);
    let ready = pool.try_get().unwrap();
    drop(ready);
    server.kill();
    server.wait_until(|_| pool.try_get().is_none());
}
