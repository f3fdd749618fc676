//! Streams and groups that vanish, expire, are replaced or trimmed while a consumer is at work on them.

use std::thread;
use std::time::{Duration, Instant};

use log::Level;
use step_redis::{Backoff, Error, OnGroupLoss, StartId};

use crate::common::{Proxy, wait_until};
use crate::support::{LIMIT, Scene, assert_quiet, connect, next, quick, take};

#[test]
fn a_stream_that_expires_under_a_blocked_reader_loses_nothing_and_makes_no_hot_loop() {
    let scene = Scene::new();
    let consumer = scene.consumer(&scene.stream()).spawn().unwrap();
    scene.add("before");
    assert_eq!(take(&consumer, 1), ["before"]);
    scene.server.wait_until(|_| scene.pending() == 0);
    for event in 1..=3 {
        scene.wait_until_blocked();
        let expected = expire_and_add(&scene, &format!("event-{event}"));
        assert_eq!(take(&consumer, 20), expected);
        assert_eq!(consumer.stats().groups_recreated, event);
        assert_eq!(scene.logged(Level::Warn).len() as u64, event, "{:?}", scene.logged(Level::Warn));
    }
    assert!(scene.logged(Level::Info).is_empty(), "more than one line for an event: {:?}", scene.logged(Level::Info));
    assert_eq!(consumer.stats().reconnects, 0);
}

#[test]
fn a_stream_that_expires_and_stays_away_is_waited_for_quietly() {
    let scene = Scene::new();
    // Nobody looks for idle entries, so each read blocks for as long as it may.
    let consumer = scene.consumer(&scene.stream()).claim(false).spawn().unwrap();
    scene.wait_until_blocked();
    let calls = || ["xreadgroup", "xgroup|create", "xautoclaim", "xpending"].map(|name| scene.calls(name)).iter().sum();
    let before: u64 = calls();
    let started = Instant::now();
    scene.server.command(&["PEXPIRE", &scene.stream_id, "1"]);
    wait_until(LIMIT, || started.elapsed() >= Duration::from_secs(2));
    let per_second = (calls() - before) as f64 / started.elapsed().as_secs_f64();
    assert!(per_second < 15.0, "{per_second} commands per second");
    assert_eq!(scene.logged(Level::Warn).len() + scene.logged(Level::Info).len(), 1);
    scene.add("late");
    assert_eq!(take(&consumer, 1), ["late"]);
}

#[test]
fn a_deleted_stream_and_a_destroyed_group_are_made_anew_behind_what_was_seen() {
    let scene = Scene::new();
    let consumer = scene.consumer(&scene.stream()).spawn().unwrap();
    scene.add("seen");
    assert_eq!(take(&consumer, 1), ["seen"]);

    scene.wait_until_blocked();
    let script = "redis.call('XGROUP','DESTROY',KEYS[1],'group') redis.call('XADD',KEYS[1],'*','message','destroyed')";
    scene.server.command(&["EVAL", script, "1", &scene.stream_id]);
    // The entry that was seen is still in the stream, and does not come again.
    assert_eq!(take(&consumer, 1), ["destroyed"]);

    // In the same millisecond, the new stream's first id could be that of the entry that was seen.
    let seen = scene.server.command(&["TIME"]).array()[0].text();
    scene.server.wait_until(|server| server.command(&["TIME"]).array()[0].text() > seen);
    scene.wait_until_blocked();
    let script = "redis.call('DEL',KEYS[1]) redis.call('XADD',KEYS[1],'*','message','deleted')";
    scene.server.command(&["EVAL", script, "1", &scene.stream_id]);
    assert_eq!(take(&consumer, 1), ["deleted"]);
    assert_quiet(&consumer);
    assert_eq!(consumer.stats().groups_recreated, 2);
    assert_eq!(scene.logged(Level::Warn).len(), 2);
}

#[test]
fn a_group_that_is_lost_during_an_outage_does_not_end_a_consumer_that_holds_an_entry() {
    let scene = Scene::new();
    let proxy = Proxy::start(scene.server.port());
    // What is held needs a sign of life soon, so that is the first that the server is asked for after the outage.
    let input = scene.input().claim_idle(Duration::from_millis(500));
    let builder = connect(quick(proxy.port())).consumer(input);
    let consumer =
        builder.backoff(Backoff::new(Duration::from_millis(20), Duration::from_millis(200))).spawn().unwrap();
    scene.add("held");
    let held = consumer.iter().next().unwrap().unwrap();
    scene.wait_until_blocked();
    proxy.refuse(true);
    proxy.reset();
    scene.server.command(&["XGROUP", "DESTROY", &scene.stream_id, "group"]);
    scene.add("after");
    let lost = Instant::now();
    wait_until(LIMIT, || lost.elapsed() >= Duration::from_millis(200));
    proxy.refuse(false);
    assert_eq!(take(&consumer, 1), ["after"]);
    held.ack().unwrap();
    assert_eq!(consumer.close().unwrap().groups_recreated, 1);
}

#[test]
fn a_stream_that_was_replaced_by_one_with_smaller_ids_is_read_from_its_start() {
    let scene = Scene::new();
    let consumer = scene.consumer(&scene.stream()).spawn().unwrap();
    scene.add("seen");
    assert_eq!(take(&consumer, 1), ["seen"]);
    // As after a failover to a server whose clock is behind.
    for ids in ["1000-1", "500-1"] {
        scene.wait_until_blocked();
        let script = "redis.call('DEL',KEYS[1]) redis.call('XADD',KEYS[1],ARGV[1],'message',ARGV[1])";
        scene.server.command(&["EVAL", script, "1", &scene.stream_id, ids]);
        assert_eq!(take(&consumer, 1), [ids]);
    }
    assert_quiet(&consumer);
}

#[test]
fn a_group_that_starts_with_new_entries_misses_none_that_follow_its_loss() {
    let scene = Scene::new();
    scene.add("older than the group");
    let stream = scene.stream();
    let consumer = stream.consumer(scene.input().start(StartId::New)).spawn().unwrap();
    scene.wait_until_blocked();
    let expected = expire_and_add(&scene, "after");
    assert_eq!(take(&consumer, 20), expected);
    assert_quiet(&consumer);
}

#[test]
fn a_lost_group_ends_the_loop_where_that_was_chosen() {
    let scene = Scene::new();
    let consumer = scene.consumer(&scene.stream()).on_group_loss(OnGroupLoss::Fail).spawn().unwrap();
    scene.add("before");
    assert_eq!(take(&consumer, 1), ["before"]);
    scene.wait_until_blocked();
    scene.server.command(&["DEL", &scene.stream_id]);
    let mut items = consumer.timeout_iter(LIMIT);
    let error = items.next().expect("an error").unwrap_err();
    assert!(error.is_group_missing(), "{error:?}");
    assert!(consumer.iter().next().is_none());
    assert!(scene.logged(Level::Warn).is_empty(), "it is no outage: {:?}", scene.logged(Level::Warn));
    assert_eq!(scene.server.command(&["EXISTS", &scene.stream_id]).int(), 0);
}

#[test]
fn a_key_that_becomes_something_else_ends_the_loop_and_is_left_alone() {
    let scene = Scene::new();
    let stream = scene.stream();
    let ttl = Duration::from_secs(20);
    let input = scene.input().ttl(ttl);
    let consumer = stream.consumer(input).spawn().unwrap();
    scene.add("before");
    assert_eq!(take(&consumer, 1), ["before"]);
    scene.wait_until_blocked();
    let script = "redis.call('DEL',KEYS[1]) redis.call('SET',KEYS[1],'somebody else''s')";
    let script = script.replace("''s", "s");
    scene.server.command(&["EVAL", &script, "1", &scene.stream_id]);
    let error = consumer.timeout_iter(LIMIT).next().expect("an error").unwrap_err();
    assert!(error.is_wrong_type(), "{error:?}");
    assert!(consumer.iter().next().is_none());

    let output = scene.output.clone().ttl(ttl);
    let refusals = [
        stream.publish(&output, "text").unwrap_err(),
        stream.publish_batch(&output, ["one", "two"]).unwrap_err(),
        stream.publisher(output).publish("text").unwrap_err(),
    ];
    for error in refusals {
        assert!(error.is_wrong_type() && !error.is_retryable() && !error.is_outcome_unknown(), "{error:?}");
    }
    drop(consumer);
    assert_eq!(scene.server.command(&["GET", &scene.stream_id]).text(), "somebody elses");
    assert_eq!(scene.server.command(&["PTTL", &scene.stream_id]).int(), -1);
}

#[test]
fn pending_entries_that_were_trimmed_are_settled_when_they_are_read_again() {
    let scene = Scene::new();
    let stream = scene.stream();
    let consumer = scene.consumer(&stream).spawn().unwrap();
    scene.add_many("entry", 3);
    (0..3).for_each(|_| next(&consumer).leave());
    consumer.close().unwrap();
    scene.server.command(&["XTRIM", &scene.stream_id, "MAXLEN", "0"]);
    assert_eq!(scene.pending(), 3);

    let consumer = scene.consumer(&stream).spawn().unwrap();
    scene.server.wait_until(|_| scene.pending() == 0);
    wait_until(LIMIT, || consumer.stats().trimmed == 3);
    scene.add("new");
    assert_eq!(take(&consumer, 1), ["new"]);
    let warned: Vec<_> = scene.logged(Level::Warn).into_iter().filter(|line| line.contains("while pending")).collect();
    assert_eq!(warned.len(), 1, "{warned:?}");
}

#[test]
fn receiving_directly_tells_of_a_lost_stream() {
    let scene = Scene::new();
    let stream = scene.stream();
    let input = scene.input();
    stream.create_input_stream(&input).unwrap();
    let error = thread::scope(|scope| {
        let waiting = scope.spawn(|| stream.receive(&input.clone().wait_timeout(Duration::from_secs(20))));
        scene.wait_until_blocked();
        scene.server.command(&["DEL", &scene.stream_id]);
        waiting.join().unwrap().unwrap_err()
    });
    assert!(matches!(error, Error::Server { .. }), "{error:?}");
    assert!(stream.receive(&input).unwrap_err().is_group_missing());
    stream.create_input_stream(&input).unwrap();
    scene.add("anew");
    assert_eq!(stream.receive(&input).unwrap().expect("an entry").text().unwrap(), "anew");
}

/// Lets the stream expire, and publishes as soon as it has.
fn expire_and_add(scene: &Scene, name: &str) -> Vec<String> {
    let created = scene.calls("xgroup|create");
    scene.server.command(&["PEXPIRE", &scene.stream_id, "5"]);
    // Either it is gone, or the consumer has made it anew already.
    scene.server.wait_until(|server| {
        server.command(&["EXISTS", &scene.stream_id]).int() == 0 || scene.calls("xgroup|create") > created
    });
    scene.add_many(name, 20)
}
