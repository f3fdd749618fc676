//! A pool over TLS notices what became of its connections, as one without TLS does, and recovers.

use std::thread;
use std::time::Duration;

use step_redis::{Error, PoolParams, StepPool};

use crate::common::{Certificates, Server};
use crate::support::{identified, mutual_server, params, with_causes};

fn pool_of(server: &Server, change: impl FnOnce(PoolParams) -> PoolParams, certificates: &Certificates) -> StepPool {
    StepPool::connect(change(params(server, identified(certificates)))).expect("everything is in order")
}

/// How many times the server was asked this.
fn calls(server: &Server, command: &str) -> u64 {
    let stats = server.info("commandstats");
    let line = stats.get(&format!("cmdstat_{command}")).map_or("calls=0,", String::as_str);
    let calls = line.split(',').next().and_then(|part| part.strip_prefix("calls="));
    calls.and_then(|calls| calls.parse().ok()).expect("the line begins with the number of calls")
}

/// The ids of the pool's connections, as the server knows them.
fn ids(server: &Server) -> Vec<String> {
    let ours = |client: &std::collections::BTreeMap<String, String>| client["name"] == "step-redis";
    server.client_list().into_iter().filter(ours).map(|client| client["id"].clone()).collect()
}

/// Long enough idle for the pool to look at a connection before it lends it.
fn lie_idle() {
    thread::sleep(Duration::from_millis(30));
}

#[test]
fn one_connection_serves_again_and_again() {
    let certificates = Certificates::generate();
    let server = mutual_server(&certificates);
    let pool = pool_of(&server, |params| params, &certificates);
    let first = ids(&server);
    for _ in 0..50 {
        pool.ping().unwrap();
    }
    lie_idle();
    pool.ping().unwrap();
    assert_eq!((ids(&server), first.len(), pool.state().connections), (first, 1, 1));
}

#[test]
fn only_a_connection_that_lay_idle_for_long_is_asked_for_a_sign_of_life() {
    let certificates = Certificates::generate();
    let server = mutual_server(&certificates);
    for (interval, expected) in [(Duration::from_millis(10), 1), (Duration::from_secs(600), 0)] {
        let pool = pool_of(&server, |params| params.health_check_interval(interval), &certificates);
        drop(pool.get().unwrap());
        let before = calls(&server, "ping");
        lie_idle();
        drop(pool.get().unwrap());
        assert_eq!(calls(&server, "ping") - before, expected, "{interval:?}");
    }
}

#[test]
fn a_connection_that_the_server_closed_is_replaced_unseen() {
    let certificates = Certificates::generate();
    let server = mutual_server(&certificates);
    let pool = pool_of(&server, |params| params, &certificates);
    for _ in 0..10 {
        let two = (pool.get().unwrap(), pool.get().unwrap());
        drop(two);
        let closed = ids(&server);
        assert_eq!(closed.len(), 2);
        for id in &closed {
            server.command(&["CLIENT", "KILL", "ID", id]);
        }
        lie_idle();
        pool.ping().expect("the one that was closed is not lent");
        assert!(ids(&server).iter().all(|id| !closed.contains(id)));
    }
}

#[test]
fn a_connection_that_hangs_fails_its_check_and_the_next_one_serves() {
    let certificates = Certificates::generate();
    let server = mutual_server(&certificates);
    let change = |params: PoolParams| {
        params.health_check_interval(Duration::from_millis(10)).connection_available_timeout(Duration::from_millis(400))
    };
    let pool = pool_of(&server, change, &certificates);
    pool.ping().unwrap();
    lie_idle();
    server.pause();
    let error = pool.get().expect_err("the check is not answered");
    assert!(matches!(&error, Error::PoolExhausted { source: Some(_), .. }), "{}", with_causes(&error));
    server.resume();
    pool.ping().unwrap();
}

#[test]
fn a_pool_recovers_when_the_server_comes_back() {
    let certificates = Certificates::generate();
    let server = mutual_server(&certificates);
    let change = |params: PoolParams| params.connection_available_timeout(Duration::from_millis(500));
    let pool = pool_of(&server, change, &certificates);
    for end in [Server::kill, Server::shutdown] {
        pool.ping().unwrap();
        end(&server);
        lie_idle();
        let error = pool.ping().expect_err("nobody is there");
        assert!(error.is_retryable(), "{}", with_causes(&error));
        assert!(with_causes(&error).contains("refused"), "{}", with_causes(&error));
        server.restart();
        server.wait_until(|_| pool.ping().is_ok());
    }
}

#[test]
fn a_server_with_another_certificate_after_a_restart_is_found_out() {
    let (certificates, others) = (Certificates::generate(), Certificates::generate());
    let server = mutual_server(&certificates);
    let change = |params: PoolParams| params.connection_available_timeout(Duration::from_secs(1));
    let pool = pool_of(&server, change, &certificates);
    pool.ping().unwrap();
    for (from, to) in [(others.server(), certificates.server()), (others.server_key(), certificates.server_key())] {
        std::fs::copy(from, to).unwrap();
    }
    server.restart();
    lie_idle();
    let error = pool.ping().expect_err("the authority is another one");
    assert!(with_causes(&error).contains("certificate"), "{}", with_causes(&error));
    assert!(!error.is_retryable(), "{}", with_causes(&error));
}
