//! A server that is away for a while, in the ways an operator sends it away.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use log::Level;

use crate::common::Server;
use crate::support::{LIMIT, Scene, assert_quiet, connect, take};

#[test]
fn a_server_that_is_shut_down_and_started_again_is_found_again() {
    let scene = Scene::on(Server::builder().append_only());
    let stream = scene.stream();
    let consumer = scene.consumer(&stream).prefetch(4).batch(4).spawn().unwrap();
    let mut expected: BTreeSet<String> = scene.add_many("before", 40).into_iter().collect();
    let mut came: BTreeSet<String> = take(&consumer, 10).into_iter().collect();

    scene.server.shutdown();
    crate::common::wait_until(LIMIT, || stream.publish(&scene.output, "while it is down").is_err());
    scene.server.restart();
    expected.extend(scene.add_many("after", 40));
    while came.len() < expected.len() {
        came.extend(take(&consumer, 1));
    }
    assert_eq!(came, expected);
    assert_quiet(&consumer);
    consumer.close().unwrap();
    assert_eq!(scene.pending(), 0);
}

#[test]
fn a_paused_server_is_waited_for_within_the_socket_timeout() {
    let scene = Scene::new();
    let stream = connect(scene.params().socket_timeout(Duration::from_secs(20)));
    let consumer = scene.consumer(&stream).spawn().unwrap();
    scene.wait_until_blocked();
    let paused = Instant::now();
    scene.server.command(&["CLIENT", "PAUSE", "1000", "ALL"]);
    stream.publish(&scene.output, "held back").unwrap();
    assert!(paused.elapsed() >= Duration::from_millis(900), "the server was not paused");
    assert_eq!(take(&consumer, 1), ["held back"]);
    assert_eq!(consumer.stats().reconnects, 0);
    assert!(scene.logged(Level::Warn).is_empty());
}

#[test]
fn a_server_paused_beyond_the_socket_timeout_is_an_outage() {
    let scene = Scene::new();
    let limit = Duration::from_millis(300);
    let stream = connect(scene.params().socket_timeout(limit).socket_connect_timeout(limit));
    let consumer = scene.consumer(&stream).spawn().unwrap();
    scene.wait_until_blocked();
    scene.server.command(&["CLIENT", "PAUSE", "2500", "ALL"]);
    let error = stream.publish(&scene.output, "maybe").unwrap_err();
    assert!(error.is_timeout() && error.is_outcome_unknown(), "{error:?}");
    crate::common::wait_until(LIMIT, || !scene.logged(Level::Warn).is_empty());

    // This one is answered when the pause is over.
    scene.add("for certain");
    let mut came = take(&consumer, 1);
    if came == ["maybe"] {
        came = take(&consumer, 1);
    }
    assert_eq!(came, ["for certain"]);
    scene.assert_one_outage();
}

#[test]
fn a_stopped_server_process_is_an_outage_and_loses_nothing() {
    let scene = Scene::new();
    let limit = Duration::from_millis(300);
    let stream = connect(scene.params().socket_timeout(limit).socket_connect_timeout(limit));
    let consumer = scene.consumer(&stream).spawn().unwrap();
    scene.wait_until_blocked();
    scene.server.pause();
    crate::common::wait_until(LIMIT, || scene.logged(Level::Debug).iter().any(|line| line.contains("attempt 2")));
    scene.server.resume();
    let expected = scene.add_many("entry", 30);
    assert_eq!(take(&consumer, 30), expected);
    scene.assert_one_outage();
    consumer.close().unwrap();
    assert_eq!(scene.pending(), 0);
}

#[test]
fn closing_during_an_outage_keeps_its_bound_and_says_what_is_unconfirmed() {
    let scene = Scene::on(Server::builder().append_only());
    let close_timeout = Duration::from_millis(500);
    let consumer = scene.consumer(&scene.stream()).close_timeout(close_timeout).spawn().unwrap();
    scene.add_many("entry", 5);
    let taken: Vec<_> = (0..5).map(|_| crate::support::next(&consumer)).collect();
    scene.server.kill();
    taken.into_iter().for_each(|delivery| delivery.ack().unwrap());
    let started = Instant::now();
    let error = consumer.close().unwrap_err();
    assert!(started.elapsed() < close_timeout + crate::support::SLACK, "{:?}", started.elapsed());
    assert!(matches!(error, step_redis::Error::AcksUnconfirmed { count: 5 }), "{error:?}");
    // They come again, to the next of this name.
    scene.server.restart();
    let consumer = scene.consumer(&scene.stream()).spawn().unwrap();
    assert_eq!(take(&consumer, 5).len(), 5);
}
