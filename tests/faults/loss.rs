//! Entries that a length limit or a deletion took away before the group saw them are noticed, counted and told once.

use std::time::Duration;

use log::Level;
use step_redis::Consumer;

use crate::support::{LIMIT, Scene, next, take};

/// A consumer whose channel is full, so that it reads no more; it has read 3 of the 20 entries.
fn stuck(scene: &Scene) -> Consumer {
    let consumer = scene.consumer(&scene.stream()).claim(false).prefetch(1).batch(1).spawn().unwrap();
    wait_for_looks(scene, 1);
    scene.add_many("entry", 20);
    let first = next(&consumer);
    first.ack().unwrap();
    // One is in the channel, and one in the reader's hand.
    scene.server.wait_until(|_| entries_read(scene) >= 3);
    let read = entries_read(scene);
    wait_for_looks(scene, 2);
    assert_eq!(entries_read(scene), read, "the reader stands still");
    consumer
}

#[test]
fn entries_trimmed_before_they_were_read_are_counted_and_told_once() {
    let scene = Scene::new();
    let consumer = stuck(&scene);
    let unread = 20 - entries_read(&scene);
    scene.server.command(&["XTRIM", &scene.stream_id, "MAXLEN", "5"]);
    crate::common::wait_until(LIMIT, || consumer.stats().missed > 0);
    wait_for_looks(&scene, 2);
    assert_eq!(consumer.stats().missed, unread - 5);
    let warned = scene.logged(Level::Warn);
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].contains("before group group saw them"), "{warned:?}");

    // A second occurrence is told again, and the rest is received.
    scene.server.command(&["XTRIM", &scene.stream_id, "MAXLEN", "2"]);
    crate::common::wait_until(LIMIT, || consumer.stats().missed == unread - 2);
    crate::common::wait_until(LIMIT, || scene.logged(Level::Warn).len() == 2);
    let came = take(&consumer, 4);
    assert_eq!(came[2..], ["entry-18", "entry-19"]);
    wait_for_looks(&scene, 2);
    assert_eq!(consumer.stats().missed, unread - 2);
    assert_eq!(scene.logged(Level::Warn).len(), 2);
}

#[test]
fn entries_deleted_before_they_were_read_are_counted_and_told_once() {
    let scene = Scene::new();
    let consumer = stuck(&scene);
    let entries = scene.server.command(&["XRANGE", &scene.stream_id, "-", "+"]);
    let ids: Vec<String> = entries.array().iter().map(|entry| entry.array()[0].text()).collect();
    scene.server.command(&["XDEL", &scene.stream_id, &ids[10], &ids[15]]);
    crate::common::wait_until(LIMIT, || consumer.stats().missed > 0);
    wait_for_looks(&scene, 2);
    assert_eq!(consumer.stats().missed, 2);
    assert_eq!(take(&consumer, 17).len(), 17);
    wait_for_looks(&scene, 2);
    assert_eq!(consumer.stats().missed, 2);
    assert_eq!(scene.logged(Level::Warn).len(), 1, "{:?}", scene.logged(Level::Warn));
}

#[test]
fn trimming_and_deleting_what_was_read_is_no_loss() {
    let scene = Scene::new();
    let consumer = scene.consumer(&scene.stream()).spawn().unwrap();
    wait_for_looks(&scene, 1);
    for round in 0..3 {
        let sent = scene.add_many(&format!("round-{round}"), 30);
        assert_eq!(take(&consumer, 30), sent);
        scene.server.wait_until(|_| scene.pending() == 0);
        if round == 1 {
            let entries = scene.server.command(&["XRANGE", &scene.stream_id, "-", "+"]);
            scene.server.command(&["XDEL", &scene.stream_id, &entries.array()[7].array()[0].text()]);
        }
        scene.server.command(&["XTRIM", &scene.stream_id, "MAXLEN", "10"]);
        wait_for_looks(&scene, 1);
    }
    wait_for_looks(&scene, 1);
    assert_eq!(consumer.stats().missed, 0);
    assert!(scene.logged(Level::Warn).is_empty(), "{:?}", scene.logged(Level::Warn));
}

#[test]
fn a_publisher_with_a_small_limit_and_a_slow_consumer_are_noticed() {
    let scene = Scene::new();
    let stream = scene.stream();
    let consumer = scene.consumer(&stream).claim(false).prefetch(1).batch(1).spawn().unwrap();
    wait_for_looks(&scene, 1);
    let output = scene.output.clone().exact_length(10);
    for number in 0..100 {
        stream.publish(&output, format!("message-{number}")).unwrap();
    }
    crate::common::wait_until(LIMIT, || consumer.stats().missed > 0);
    let mut received = 0;
    for delivery in consumer.timeout_iter(Duration::from_millis(500)) {
        delivery.unwrap().ack().unwrap();
        received += 1;
    }
    wait_for_looks(&scene, 2);
    // Each message was either received or missed.
    assert_eq!(received + consumer.stats().missed, 100, "{received} received");
}

/// Waits until the counters have been looked at so many times more.
fn wait_for_looks(scene: &Scene, looks: u64) {
    let looked = scene.calls("xinfo|groups");
    crate::common::wait_until(LIMIT, || scene.calls("xinfo|groups") >= looked + looks);
}

/// How many entries the group has read, by the server's count.
fn entries_read(scene: &Scene) -> u64 {
    let stream = scene.server.command(&["XINFO", "STREAM", &scene.stream_id, "FULL", "COUNT", "1"]);
    let value = |list: &[crate::common::Reply], name: &str| {
        let at = list.iter().position(|item| *item == crate::common::Reply::Bulk(name.as_bytes().to_vec()));
        list[at.unwrap_or_else(|| panic!("no {name}")) + 1].clone()
    };
    let groups = value(stream.array(), "groups");
    value(groups.array()[0].array(), "entries-read").int() as u64
}
