//! The pool: bounded waiting, an error that tells why, a look at idle connections, and recovery without a failed call.

use std::error::Error as StdError;
use std::thread;
use std::time::{Duration, Instant};

use step_redis::{ConnectStep, Error, PoolParams, PoolState, Protocol, StepPool};

use crate::common::{Behaviour, Peer, Server, Step};
use crate::context::{Context, median_of_three, told};

both_protocols! {
    an_idle_connection_that_died_is_no_failure_to_connect,
    a_pool_whose_connections_are_held_says_so_after_its_limit,
    a_connection_given_back_serves_a_waiting_caller_at_once,
    an_unreachable_server_is_the_cause_of_an_exhausted_pool,
    a_silent_server_does_not_hold_a_checkout_beyond_its_limit,
    an_idle_connection_is_asked_only_after_the_interval,
    idle_connections_to_a_restarted_server_are_replaced_without_a_failed_call,
    connections_killed_by_the_server_are_replaced_without_a_failed_call,
    a_caller_waits_for_a_server_that_comes_back_in_time,
    the_proven_connection_is_the_first_one_used,
    a_proven_connection_that_died_is_replaced,
    a_lazy_pool_connects_when_it_is_used,
    the_state_counts_what_is_held_and_what_is_idle,
    an_idle_connection_that_is_refused_its_health_check_is_replaced,
    a_dropped_pool_closes_its_connections,
}

/// How often the server has answered `PING`, other than for the test's own connection, which sends none here.
fn pings(server: &Server) -> u64 {
    let stats = server.info("commandstats");
    let ping = stats.get("cmdstat_ping").map(String::as_str).unwrap_or("calls=0,");
    ping.trim_start_matches("calls=").split(',').next().unwrap().parse().unwrap()
}

fn connections_received(server: &Server) -> u64 {
    server.info("stats")["total_connections_received"].parse().unwrap()
}

/// A connection that was used a moment ago is lent without a look at it.
fn let_idle() {
    thread::sleep(Duration::from_millis(20));
}

fn counts(state: PoolState) -> [u32; 4] {
    [state.connections, state.idle, state.in_use, state.max]
}

fn a_pool_whose_connections_are_held_says_so_after_its_limit(context: Context) {
    let limit = Duration::from_millis(500);
    let pool =
        context.stream_with(|params| params.max_connections(2).connection_available_timeout(limit)).pool().clone();
    let held = [pool.get().unwrap(), pool.get().unwrap()];
    let (median, errors) = median_of_three(|| pool.get().unwrap_err());
    assert!((limit.mul_f32(0.8)..limit.mul_f32(1.2)).contains(&median), "{median:?}");
    for error in errors {
        let Error::PoolExhausted { waited, connections, in_use, max, source } = &error else { panic!("{error:?}") };
        assert_eq!((*connections, *in_use, *max, source.is_none()), (2, 2, 2, true));
        assert!(*waited >= limit.mul_f32(0.8), "{waited:?}");
        assert!(error.to_string().ends_with("2 of at most 2 connections are open, 2 of them held"), "{error}");
        assert!(error.is_retryable() && error.is_timeout() && !error.is_outcome_unknown());
    }
    drop(held);
    let (median, _) = median_of_three(|| pool.get().unwrap().id());
    assert!(median < Duration::from_millis(100), "{median:?}");
    assert_eq!(pool.state().connections, 2);
}

fn a_connection_given_back_serves_a_waiting_caller_at_once(context: Context) {
    let pool =
        context.stream_with(|params| params.max_connections(1).connection_available_timeout(Duration::from_secs(20)));
    let pool = pool.pool();
    let mut waits: Vec<Duration> = (0..3)
        .map(|_| {
            let held = pool.get().unwrap();
            thread::scope(|scope| {
                let waiting = scope.spawn(|| pool.get().map(|_| Instant::now()).unwrap());
                // Long enough that the other thread waits; nothing depends on it.
                thread::sleep(Duration::from_millis(50));
                let given_back = Instant::now();
                drop(held);
                waiting.join().unwrap().saturating_duration_since(given_back)
            })
        })
        .collect();
    waits.sort();
    assert!(waits[1] < Duration::from_millis(100), "{waits:?}");
}

fn an_unreachable_server_is_the_cause_of_an_exhausted_pool(context: Context) {
    context.server.kill();
    let limit = Duration::from_millis(500);
    let params = context.params().connection_available_timeout(limit);
    let address = format!("127.0.0.1:{}", params.port);
    let pool = StepPool::new(params).unwrap();
    let (median, errors) = median_of_three(|| pool.get().unwrap_err());
    assert!((limit.mul_f32(0.8)..limit.mul_f32(1.2)).contains(&median), "{median:?}");
    for error in errors {
        let Error::PoolExhausted { connections: 0, in_use: 0, source: Some(source), .. } = &error else {
            panic!("{error:?}")
        };
        assert!(matches!(&**source, Error::Connect { step: ConnectStep::Open, .. }), "{source:?}");
        assert!(error.source().is_some() && error.is_retryable());
        let told = told(&error);
        assert!(told.contains(&address) && told.contains("refused"), "{told}");
    }
    let state = pool.state();
    assert!(state.opened == 0 && state.failed > 0 && state.last_connected.is_none(), "{state:?}");
    assert!(state.last_error.is_some_and(|error| error.contains(&address) && error.contains("refused")));
}

fn a_silent_server_does_not_hold_a_checkout_beyond_its_limit(context: Context) {
    let limit = Duration::from_millis(500);
    let interval = Duration::from_millis(1);
    let change = |params: step_redis::PoolParams| {
        params
            .connection_available_timeout(limit)
            .health_check_interval(interval)
            .socket_timeout(Duration::from_secs(20))
    };
    // A pool with three idle connections to look after, and one without any.
    let used = context.stream_with(change).pool().clone();
    drop([used.get().unwrap(), used.get().unwrap(), used.get().unwrap()]);
    let_idle();
    let fresh = StepPool::new(change(context.params())).unwrap();
    context.server.pause();
    for pool in [&used, &fresh] {
        let (median, errors) = median_of_three(|| pool.get().unwrap_err());
        assert!(median < Duration::from_millis(700), "{median:?}");
        assert!(errors.iter().all(|error| matches!(error, Error::PoolExhausted { .. })), "{errors:?}");
    }
    context.server.resume();
    used.ping().unwrap();
}

fn an_idle_connection_is_asked_only_after_the_interval(context: Context) {
    let interval = Duration::from_millis(500);
    let pool = context.stream_with(|params| params.health_check_interval(interval)).pool().clone();
    drop(pool.get().unwrap());
    let started = Instant::now();
    let before = pings(&context.server);
    for _ in 0..50 {
        drop(pool.get().unwrap());
    }
    if started.elapsed() < interval {
        assert_eq!(pings(&context.server), before, "a checkout asked a connection that was just used");
    }
    let before = pings(&context.server);
    for asked in 1..=2 {
        thread::sleep(interval + Duration::from_millis(20));
        drop(pool.get().unwrap());
        assert_eq!(pings(&context.server), before + asked);
    }
}

fn idle_connections_to_a_restarted_server_are_replaced_without_a_failed_call(context: Context) {
    let pool = context.pool();
    let held = [pool.get().unwrap(), pool.get().unwrap(), pool.get().unwrap()];
    drop(held);
    assert_eq!(context.server.connected_clients(), 3);
    for _ in 0..3 {
        context.server.restart();
        let held: Vec<_> = (0..3).map(|_| context.pool().get().unwrap()).collect();
        context.stream.publish(&context.output(), "text").unwrap();
        drop(held);
    }
}

fn connections_killed_by_the_server_are_replaced_without_a_failed_call(context: Context) {
    context.stream.publish(&context.output(), "one").unwrap();
    context.command(&["CLIENT", "KILL", "SKIPME", "yes", "USER", "default"]);
    context.server.wait_until(|server| server.connected_clients() == 0);
    let_idle();
    context.stream.publish(&context.output(), "two").unwrap();
    assert_eq!(context.length(), 2);
}

fn a_caller_waits_for_a_server_that_comes_back_in_time(context: Context) {
    let stream = context.stream_with(|params| params.connection_available_timeout(Duration::from_secs(20)));
    context.server.kill();
    let_idle();
    thread::scope(|scope| {
        let publisher = scope.spawn(|| stream.publish(&context.output(), "text").unwrap());
        thread::sleep(Duration::from_millis(300));
        assert!(!publisher.is_finished());
        context.server.restart();
        publisher.join().unwrap();
    });
    assert_eq!(context.length(), 1);
}

fn the_proven_connection_is_the_first_one_used(context: Context) {
    let before = connections_received(&context.server);
    let pool = StepPool::connect(context.params()).unwrap();
    assert_eq!(connections_received(&context.server), before + 1);
    assert_eq!((counts(pool.state()), pool.state().opened), ([1, 1, 0, 10], 1));
    assert!(pool.state().last_connected.is_some());
    pool.ping().unwrap();
    drop(pool.get().unwrap());
    assert_eq!(connections_received(&context.server), before + 1);
    assert_eq!(counts(pool.state()), [1, 1, 0, 10]);
}

fn a_proven_connection_that_died_is_replaced(context: Context) {
    let stream = context.stream_with(|params| params);
    context.server.restart();
    let_idle();
    stream.publish(&context.output(), "text").unwrap();
    assert_eq!(context.length(), 1);
}

fn a_lazy_pool_connects_when_it_is_used(context: Context) {
    let before = connections_received(&context.server);
    let pool = StepPool::new(context.params()).unwrap();
    assert_eq!(counts(pool.state()), [0, 0, 0, 10]);
    assert_eq!(connections_received(&context.server), before);
    pool.ping().unwrap();
    assert_eq!(connections_received(&context.server), before + 1);
}

fn the_state_counts_what_is_held_and_what_is_idle(context: Context) {
    let pool = StepPool::new(context.params().max_connections(5)).unwrap();
    let first = pool.get().unwrap();
    let second = pool.get().unwrap();
    assert_eq!(counts(pool.state()), [2, 0, 2, 5]);
    drop(first);
    assert_eq!(counts(pool.state()), [2, 1, 1, 5]);
    drop(second);
    assert_eq!(counts(pool.clone().state()), [2, 2, 0, 5]);
}

fn an_idle_connection_that_is_refused_its_health_check_is_replaced(protocol: Protocol) {
    // HELLO, PING and two of CLIENT make the greeting.
    let greeting = if protocol == Protocol::Resp3 { 4 } else { 3 };
    let mut steps = vec![vec![Step::Request, Step::Send(b"+PONG\r\n".to_vec())]; greeting].concat();
    steps.push(Step::AnswerEach(b"-NOAUTH Authentication required.\r\n".to_vec()));
    let peer = Peer::tcp_each(move |index| match index {
        0 => Behaviour::Script(steps.clone()),
        _ => Behaviour::Script(vec![Step::Handshake]),
    });
    let params = PoolParams::new("127.0.0.1", peer.port()).protocol(protocol);
    let pool = StepPool::connect(params.health_check_interval(Duration::from_millis(10))).unwrap();
    let_idle();
    let greeting = peer.received(0).len();
    pool.get().unwrap();
    assert_eq!(peer.connections(), 2);
    assert_eq!(peer.received(0).len() - greeting, b"*1\r\n$4\r\nPING\r\n".len());
}

fn a_dropped_pool_closes_its_connections(protocol: Protocol) {
    let context = Context::start_with(protocol, |builder| builder);
    let pool = context.stream_with(|params| params).pool().clone();
    let held = pool.get().unwrap();
    drop(pool.get().unwrap());
    assert_eq!(context.server.connected_clients(), 3);
    drop((held, pool));
    context.server.wait_until(|server| server.connected_clients() == 1);
}

fn an_idle_connection_that_died_is_no_failure_to_connect(context: Context) {
    let pool = context.pool();
    let (one, other) = (pool.get().unwrap(), pool.get().unwrap());
    let (kept, killed) = (one.id(), other.id().unwrap());
    // The one that is given back last is lent first.
    drop(one);
    drop(other);
    context.command(&["CLIENT", "KILL", "ID", &killed.to_string()]);
    let_idle();
    assert_eq!(pool.get().unwrap().id(), kept);
    let state = pool.state();
    assert_eq!((state.connections, state.failed, state.last_error), (1, 0, None));
}
