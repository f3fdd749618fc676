//! Deadlines and interruptions hold under TLS: nothing that a server or a network does makes a call wait for longer.

use std::thread;
use std::time::{Duration, Instant};

use step_redis::redis::cmd;
use step_redis::{Backoff, Error, PoolParams, PooledConnection, StepPool, StepStream, StreamInput, StreamOutput};

use crate::common::{Certificates, Direction, Proxy, Server};
use crate::support::{identified, mutual_server, params, with_causes};

const COMMAND_LIMIT: Duration = Duration::from_millis(300);

/// What a limit may be exceeded by: the system's timers are coarse, and the machine may be busy.
fn at_most(limit: Duration) -> Duration {
    limit + limit / 8 + Duration::from_millis(250)
}

/// Runs what must not succeed.
fn timed(call: impl FnOnce() -> Result<(), Error>) -> (Duration, Error) {
    let started = Instant::now();
    let Err(error) = call() else { panic!("this should have failed") };
    (started.elapsed(), error)
}

/// Two of three trials fail in time.
#[track_caller]
fn fails_within(limit: Duration, trial: impl Fn() -> (Duration, Error)) -> Error {
    let mut trials = [(); 3].map(|()| trial());
    trials.sort_by_key(|(took, _)| *took);
    let [_, (took, error), _] = trials;
    assert!(took <= at_most(limit), "it took {took:?} until: {}", with_causes(&error));
    error
}

/// A server, a proxy in front of its TLS port, and parameters for a pool behind it.
fn behind_a_proxy() -> (Server, Proxy, PoolParams) {
    let certificates = Certificates::generate();
    let server = mutual_server(&certificates);
    let proxy = Proxy::start(server.tls_port());
    let mut params = params(&server, identified(&certificates)).socket_timeout(COMMAND_LIMIT);
    params.port = proxy.port();
    (server, proxy, params)
}

#[test]
fn a_command_ends_at_its_deadline_when_the_server_hangs() {
    let certificates = Certificates::generate();
    let server = mutual_server(&certificates);
    let pool = StepPool::connect(params(&server, identified(&certificates)).socket_timeout(COMMAND_LIMIT)).unwrap();
    let stream = StepStream::new(pool.clone());
    let input = StreamInput::new("orders", "kitchen").wait_timeout(Duration::from_millis(200));
    stream.create_input_stream(&input).unwrap();

    let fails_while_paused = |limit, call: &dyn Fn() -> Result<(), Error>| {
        fails_within(limit, || {
            pool.ping().expect("a connection that timed out is gone");
            server.pause();
            let timed = timed(call);
            server.resume();
            timed
        })
    };
    let error = fails_while_paused(COMMAND_LIMIT, &|| pool.ping().map(drop));
    assert!(error.is_timeout() && error.is_outcome_unknown(), "{error:?}");
    let error = fails_while_paused(COMMAND_LIMIT + Duration::from_millis(200), &|| stream.receive(&input).map(drop));
    assert!(error.is_timeout(), "{error:?}");
    // More than the buffers of both sides hold, so that writing is what takes too long.
    let large = vec![b'x'; 16 << 20];
    let output = StreamOutput::new("orders");
    let error = fails_while_paused(COMMAND_LIMIT, &|| stream.publish(&output, &large).map(drop));
    assert!(matches!(error, Error::Timeout { .. }), "{error:?}");
    stream.publish(&StreamOutput::new("orders"), "small").unwrap();
}

#[test]
fn a_reply_that_drips_ends_at_the_deadline() {
    let (server, proxy, params) = behind_a_proxy();
    let pool = StepPool::connect(params).unwrap();
    server.command(&["SET", "large", &"x".repeat(50_000)]);
    // A record is useless until its last byte is there; a byte comes all the time.
    proxy.drip(Direction::ToClient, 50, Duration::from_millis(5));
    let started = Instant::now();
    let error = cmd("GET").arg("large").query::<String>(&mut pool.get().unwrap()).unwrap_err();
    assert!(error.is_timeout(), "{error:?}");
    assert!(started.elapsed() <= at_most(COMMAND_LIMIT), "{:?}", started.elapsed());
    proxy.heal();
    pool.ping().expect("the network is well again");
}

/// Interrupts a command that waits, once the server has it. How long the call takes to end.
fn interrupted(mut connection: PooledConnection, server: &Server, command: &str, paused: bool) -> Duration {
    let interrupter = connection.interrupter();
    let id = connection.id().expect("this server tells").to_string();
    let arguments: Vec<String> = command.split(' ').map(str::to_owned).collect();
    let blocked = thread::spawn(move || {
        let failed = cmd(&arguments[0]).arg(&arguments[1..]).exec(&mut *connection);
        (failed, Instant::now(), connection)
    });
    server.wait_until(|server| server.client_list().iter().any(|client| client["id"] == id && client["flags"] == "b"));
    if paused {
        server.pause();
    }
    let at = Instant::now();
    interrupter.interrupt();
    let (failed, ended, mut connection) = blocked.join().unwrap();
    failed.unwrap_err();
    // It is never used again.
    cmd("PING").exec(&mut *connection).unwrap_err();
    if paused {
        server.resume();
    }
    ended - at
}

#[test]
fn an_interruption_ends_a_call_at_once() {
    let certificates = Certificates::generate();
    let server = mutual_server(&certificates);
    let pool = StepPool::connect(params(&server, identified(&certificates))).unwrap();
    for paused in [false, true] {
        let mut took = [(); 3].map(|()| interrupted(pool.get().unwrap(), &server, "BLPOP nothing 20", paused));
        took.sort_unstable();
        assert!(took[1] < Duration::from_millis(100), "{took:?}");
    }
    pool.ping().expect("a new connection takes the place of those");
}

#[test]
fn a_stop_ends_an_idle_consumer_at_once() {
    let certificates = Certificates::generate();
    let server = mutual_server(&certificates);
    let stream = StepStream::new(StepPool::connect(params(&server, identified(&certificates))).unwrap());
    let input = StreamInput::new("orders", "kitchen").wait_timeout(Duration::from_secs(30));
    let mut took: Vec<Duration> = (0..20)
        .map(|_| {
            let consumer = stream.consumer(input.clone()).spawn().unwrap();
            let started = Instant::now();
            consumer.stop_handle().stop();
            assert!(consumer.iter().next().is_none());
            let took = started.elapsed();
            consumer.close().unwrap();
            took
        })
        .collect();
    took.sort();
    assert!(took[took.len() / 2] < Duration::from_millis(20), "{took:?}");
}

#[test]
fn a_consumer_that_is_caught_in_a_handshake_ends_at_once() {
    let (server, proxy, params) = behind_a_proxy();
    let stream = StepStream::new(StepPool::connect(params.socket_connect_timeout(Duration::from_secs(20))).unwrap());
    let consumer = stream
        .consumer(StreamInput::new("orders", "kitchen"))
        .backoff(Backoff::new(Duration::from_millis(1), Duration::from_millis(1)))
        .close_timeout(Duration::from_millis(500))
        .spawn()
        .unwrap();
    let accepted = proxy.accepted();
    proxy.swallow(Direction::ToClient, true);
    proxy.close();
    // Its hello has left, and nothing comes back.
    proxy.wait_until(|proxy| proxy.accepted() > accepted && proxy.swallowed(Direction::ToClient) > 0);
    let started = Instant::now();
    consumer.stop_handle().stop();
    assert!(consumer.iter().next().is_none());
    assert!(started.elapsed() < Duration::from_millis(500), "{:?}", started.elapsed());
    consumer.close().unwrap();
    assert!(started.elapsed() < Duration::from_millis(1_500), "{:?}", started.elapsed());
    drop(server);
}

/// A handshake in several pieces, each of them in time, is in time only if all of them are.
#[test]
fn the_limit_for_connecting_covers_the_handshake_and_the_greeting_together() {
    let certificates = Certificates::generate();
    let server = mutual_server(&certificates);
    let proxy = Proxy::start(server.tls_port());
    proxy.delay(Direction::Both, Duration::from_millis(150));
    let mut params = params(&server, identified(&certificates));
    params.port = proxy.port();
    // The handshake takes 0.3 s, and the greeting 0.3 s more.
    let limit = Duration::from_millis(450);
    let error =
        fails_within(limit, || timed(|| StepPool::connect(params.clone().socket_connect_timeout(limit)).map(drop)));
    assert!(error.is_timeout(), "{error:?}");
    StepPool::connect(params).expect("there is time enough");
}
