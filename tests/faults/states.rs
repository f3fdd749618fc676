//! A server that is there and refuses: replica, out of memory, permissions, loading, full.

use std::error::Error as _;
use std::time::Duration;

use log::Level;
use step_redis::{Error, StepPool};

use crate::common::Server;
use crate::support::{LIMIT, Scene, connect, take};

#[test]
fn a_server_that_becomes_a_replica_and_a_master_again_is_an_outage() {
    let scene = Scene::new();
    let stream = scene.stream();
    let consumer = scene.consumer(&stream).spawn().unwrap();
    scene.add("as master");
    assert_eq!(take(&consumer, 1), ["as master"]);
    scene.wait_until_blocked();

    // Of a master that is not there, so that the data stays.
    scene.server.command(&["REPLICAOF", "127.0.0.1", "1"]);
    crate::common::wait_until(LIMIT, || scene.logged(Level::Debug).iter().any(|line| line.contains("attempt 2")));
    let error = stream.publish(&scene.output, "to a replica").unwrap_err();
    assert_eq!(error.code(), Some("READONLY"));
    assert!(error.is_retryable() && !error.is_outcome_unknown(), "{error:?}");

    scene.server.command(&["REPLICAOF", "NO", "ONE"]);
    stream.publish(&scene.output, "as master again").unwrap();
    assert_eq!(take(&consumer, 1), ["as master again"]);
    scene.assert_one_outage();
    assert_eq!(scene.content().len(), 2);
}

#[test]
fn a_connection_to_a_demoted_master_is_not_used_again() {
    let scene = Scene::new();
    let stream = scene.stream();
    let publisher = stream.publisher(scene.output.clone());
    stream.publish(&scene.output, "one").unwrap();
    publisher.publish("two").unwrap();
    scene.server.command(&["REPLICAOF", "127.0.0.1", "1"]);
    let ids = || scene.server.client_list().iter().map(|client| client["id"].clone()).collect::<Vec<_>>();
    let before = ids();
    assert_eq!(before.len(), 2);
    assert_eq!(stream.publish(&scene.output, "three").unwrap_err().code(), Some("READONLY"));
    assert_eq!(stream.publish_batch(&scene.output, ["four"]).unwrap_err().code(), Some("READONLY"));
    assert_eq!(publisher.publish("five").unwrap_err().code(), Some("READONLY"));
    // A name behind which another server has become the master is looked up again.
    scene.server.wait_until(|_| ids().iter().all(|id| !before.contains(id)));
}

#[test]
fn a_server_out_of_memory_refuses_messages_and_the_consumer_goes_on() {
    let scene = Scene::new();
    let stream = scene.stream();
    let consumer = scene.consumer(&stream).prefetch(2).batch(2).spawn().unwrap();
    let expected = scene.add_many("entry", 100);
    assert_eq!(take(&consumer, 10), expected[..10]);

    scene.server.command(&["CONFIG", "SET", "maxmemory-policy", "noeviction", "maxmemory", "1"]);
    let publisher = stream.publisher(scene.output.clone());
    let refusals = [
        stream.publish(&scene.output, "text").unwrap_err(),
        stream.publish(&scene.output.clone().ttl(Duration::from_secs(60)), "text").unwrap_err(),
        stream.publish_batch(&scene.output, ["one", "two"]).unwrap_err(),
        publisher.publish("text").unwrap_err(),
    ];
    for error in refusals {
        assert_eq!(error.code(), Some("OOM"), "{error:?}");
        assert!(error.is_retryable() && !error.is_outcome_unknown(), "{error:?}");
    }
    assert_eq!(take(&consumer, 90), expected[10..]);
    scene.server.wait_until(|_| scene.pending() == 0);
    assert!(scene.logged(Level::Warn).is_empty(), "{:?}", scene.logged(Level::Warn));

    scene.server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    publisher.publish("room again").unwrap();
    assert_eq!(take(&consumer, 1), ["room again"]);
    assert_eq!(consumer.close().unwrap().reconnects, 0);
}

#[test]
fn permissions_that_are_withdrawn_end_the_loop_with_one_error() {
    let scene = scene_with_user();
    let stream = connect(scene.params().username("service").password("hidden-word"));
    let consumer = scene.consumer(&stream).spawn().unwrap();
    scene.add("before");
    assert_eq!(take(&consumer, 1), ["before"]);
    scene.server.command(&["ACL", "SETUSER", "service", "-xreadgroup", "-xadd"]);
    let error = consumer.timeout_iter(LIMIT).next().expect("an error").unwrap_err();
    assert_eq!(error.code(), Some("NOPERM"), "{error:?}");
    assert!(!error.is_retryable());
    assert!(consumer.iter().next().is_none());
    let error = stream.publish(&scene.output, "text").unwrap_err();
    assert_eq!(error.code(), Some("NOPERM"));
    assert!(!error.is_retryable() && !error.is_outcome_unknown(), "{error:?}");
    assert!(scene.logged(Level::Warn).is_empty(), "it is no outage: {:?}", scene.logged(Level::Warn));
}

#[test]
fn a_password_that_is_changed_ends_the_loop_at_the_next_reconnect_and_is_not_shown() {
    let scene = scene_with_user();
    let stream = connect(scene.params().username("service").password("hidden-word"));
    let consumer = scene.consumer(&stream).spawn().unwrap();
    scene.server.command(&["ACL", "SETUSER", "service", "resetpass", ">another-word"]);
    scene.add("the connection stays");
    assert_eq!(take(&consumer, 1), ["the connection stays"]);

    scene.server.command(&["CLIENT", "KILL", "USER", "service"]);
    let error = consumer.timeout_iter(LIMIT).next().expect("an error").unwrap_err();
    assert!(matches!(error, Error::Auth { .. }) && !error.is_retryable(), "{error:?}");
    assert!(consumer.iter().next().is_none());
    let mut shown = format!("{error} {error:?} {:?}", consumer.stats());
    for level in [Level::Warn, Level::Info, Level::Debug] {
        shown.extend(scene.logged(level));
    }
    assert!(!shown.contains("hidden-word"), "{shown}");
}

#[test]
fn a_server_that_loads_its_data_is_waited_for() {
    let builder = Server::builder().append_only().config("key-load-delay", "100");
    let scene = Scene::on(builder.config("loading-process-events-interval-bytes", "1024"));
    let stream = scene.stream();
    let consumer = scene.consumer(&stream).spawn().unwrap();
    scene.add("before");
    assert_eq!(take(&consumer, 1), ["before"]);
    scene.server.wait_until(|_| scene.pending() == 0);
    let fill = "for i=1,8000 do redis.call('SET','filler:'..i,i) end";
    scene.server.command(&["EVAL", fill, "0"]);

    scene.server.kill();
    scene.server.restart_without_waiting();
    let mut met_loading = false;
    crate::common::wait_until(LIMIT, || match StepPool::connect(scene.params()) {
        Ok(_) => true,
        Err(error) => {
            assert!(error.is_retryable(), "{error:?}");
            met_loading |= error.code() == Some("LOADING");
            false
        }
    });
    assert!(met_loading, "the server never said LOADING");
    stream.publish(&scene.output, "loaded").unwrap();
    assert_eq!(take(&consumer, 1), ["loaded"]);
    scene.assert_one_outage();
}

#[test]
fn a_server_with_too_many_clients_is_an_outage_and_not_the_end() {
    let scene = Scene::new();
    let stream = scene.stream();
    let consumer = scene.consumer(&stream).spawn().unwrap();
    scene.wait_until_blocked();
    // One place, which is the test's own.
    let mut admin = scene.server.client().unwrap();
    let mut tell = |words: &[&str]| assert!(!admin.command(words).unwrap().is_error(), "{words:?}");
    tell(&["CONFIG", "SET", "maxclients", "1"]);
    tell(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
    crate::common::wait_until(LIMIT, || scene.logged(Level::Debug).iter().any(|line| line.contains("attempt 2")));
    let error = StepPool::connect(scene.params()).unwrap_err();
    assert!(error.is_retryable(), "{error:?} {:?}", error.source());

    tell(&["CONFIG", "SET", "maxclients", "100"]);
    scene.add("room again");
    assert_eq!(take(&consumer, 1), ["room again"]);
    scene.assert_one_outage();
}

fn scene_with_user() -> Scene {
    Scene::on(Server::builder().user("service", "on >hidden-word ~* &* +@all"))
}
