//! The numbers that a consumer tells about itself.

use crate::common::Server;
use crate::support::{Bench, GROUP, next};
use std::thread;
use std::time::Duration;
use step_redis::{AckMode, Error};

#[test]
fn the_counts_follow_each_delivery() {
    let bench = Bench::start();
    let idle = Duration::from_secs(60);
    let consumer = bench.claiming("one", idle).claim(false).dead_letter(bench.dead()).spawn().unwrap();
    let stats = consumer.stats();
    assert_eq!((stats.received, stats.queued, stats.in_flight, stats.oldest_unacked), (0, 0, 0, None));
    assert_eq!((stats.reconnects, stats.groups_recreated, stats.last_error), (0, 0, None));

    bench.publish(10);
    bench.server.wait_until(|_| consumer.stats().queued == 10);
    let stats = consumer.stats();
    assert_eq!((stats.received, stats.in_flight, stats.acked), (10, 10, 0));
    assert!(stats.last_read.is_some());

    thread::sleep(Duration::from_millis(30));
    let (oldest, second) = (next(&consumer), next(&consumer));
    let stats = consumer.stats();
    assert_eq!((stats.queued, stats.in_flight), (8, 10));
    assert!(stats.oldest_unacked.unwrap() >= Duration::from_millis(30));

    oldest.ack().unwrap();
    bench.server.wait_until(|_| consumer.stats().acked == 1);
    second.release().unwrap();
    next(&consumer).retry_after(Duration::from_secs(1)).unwrap();
    next(&consumer).dead_letter("reason").unwrap();
    next(&consumer).leave();
    let stats = consumer.stats();
    assert_eq!((stats.released, stats.dead_lettered, stats.acked), (2, 1, 1));
    assert_eq!((stats.queued, stats.in_flight), (5, 5), "what was given back or left is no longer held");

    let stats = consumer.close().unwrap();
    assert_eq!((stats.received, stats.queued, stats.in_flight), (10, 0, 0));
    assert_eq!((stats.claimed, stats.taken_over, stats.trimmed), (0, 0, 0));
    assert_eq!(bench.pending(), 8);
}

#[test]
fn what_was_taken_over_and_what_was_lost_is_counted() {
    let bench = Bench::start();
    let idle = Duration::from_secs(1);
    bench.stream.create_input_stream(&bench.input()).unwrap();
    bench.publish(4);
    bench.server.command(&["XREADGROUP", "GROUP", GROUP, "gone", "STREAMS", &bench.key, ">"]);
    let consumer = bench.claiming("one", idle).spawn().unwrap();
    let held: Vec<_> = (0..4).map(|_| next(&consumer)).collect();
    assert_eq!((consumer.stats().claimed, consumer.stats().taken_over), (4, 0));
    let id = held[0].id().to_string();
    bench.server.command(&["XCLAIM", &bench.key, GROUP, "thief", "0", &id]);
    bench.server.wait_until(|_| consumer.stats().taken_over == 1);
    assert_eq!(consumer.stats().in_flight, 3);
}

#[test]
fn entries_that_were_deleted_or_acknowledged_elsewhere_are_not_taken_over() {
    let bench = Bench::start();
    bench.publish(4);
    let consumer = bench.claiming("one", Duration::from_secs(1)).claim(false).spawn().unwrap();
    let held: Vec<_> = (0..4).map(|_| next(&consumer)).collect();
    let id = |index: usize| held[index].id().to_string();
    bench.server.command(&["XDEL", &bench.key, &id(0)]);
    bench.server.command(&["XACK", &bench.key, GROUP, &id(1)]);
    bench.server.command(&["XCLAIM", &bench.key, GROUP, "thief", "0", &id(2)]);
    bench.server.wait_until(|_| consumer.stats().taken_over == 1);
    // The last one is kept fresh, so the others are looked at again and again.
    let idle = || bench.pending_of("one").iter().find(|pending| pending.0 == id(3)).unwrap().1;
    for _ in 0..3 {
        bench.server.wait_until(|_| idle() > 100);
        bench.server.wait_until(|_| idle() < 100);
    }
    assert_eq!(consumer.stats().taken_over, 1);
    held.into_iter().for_each(|delivery| delivery.ack().unwrap());
    assert_eq!(consumer.close().unwrap().taken_over, 1);
    assert_eq!((bench.pending(), bench.pending_of("thief").len()), (1, 1), "the thief's is the thief's");
}

#[test]
fn what_another_consumer_has_taken_is_neither_released_nor_a_dead_letter() {
    let bench = Bench::start();
    bench.publish(2);
    let consumer = bench.consumer("one").dead_letter(bench.dead()).spawn().unwrap();
    let held = [next(&consumer), next(&consumer)];
    for delivery in &held {
        bench.server.command(&["XCLAIM", &bench.key, GROUP, "thief", "0", &delivery.id().to_string()]);
    }
    let [first, second] = held;
    first.release().unwrap();
    second.dead_letter("not mine any more").unwrap();
    let stats = consumer.close().unwrap();
    assert_eq!((stats.released, stats.dead_lettered), (0, 0));
    assert_eq!(bench.server.command(&["XLEN", bench.dead().stream_id()]).int(), 0);
    assert_eq!(bench.pending_of("thief").len(), 2);
}

#[test]
fn the_statistics_outlive_a_close_that_fails() {
    let bench = Bench::start();
    bench.publish(3);
    let consumer = bench.consumer("one").close_timeout(Duration::from_millis(300)).spawn().unwrap();
    let handle = consumer.stats_handle();
    let held: Vec<_> = (0..3).map(|_| next(&consumer)).collect();
    bench.server.pause();
    held.into_iter().for_each(|delivery| delivery.ack().unwrap());
    let error = consumer.close().unwrap_err();
    assert!(matches!(error, Error::AcksUnconfirmed { count: 3 }), "{error:?}");
    let stats = handle.stats();
    assert_eq!((stats.received, stats.acked, stats.in_flight), (3, 0, 3));
    bench.server.resume();
}

#[test]
fn an_entry_is_in_flight_until_its_acknowledgement_is_confirmed() {
    let bench = Bench::start();
    bench.publish(1);
    let mode = AckMode::Queued { max: 100, delay: Duration::from_secs(100) };
    let input = bench.input().wait_timeout(Duration::from_secs(30));
    let consumer = bench.stream.consumer(input).claim(false).ack_mode(mode).spawn().unwrap();
    let delivery = next(&consumer);
    bench.wait_until_blocked();
    delivery.ack().unwrap();
    let stats = consumer.stats();
    assert_eq!((stats.acked, stats.in_flight, stats.oldest_unacked.is_some()), (0, 1, true));
    let stats = consumer.close().unwrap();
    assert_eq!((stats.acked, stats.in_flight, stats.oldest_unacked), (1, 0, None));
}

#[test]
fn an_outage_is_counted_and_told() {
    let bench = Bench::on(Server::start());
    let consumer = bench.consumer("one").spawn().unwrap();
    bench.wait_until_blocked();
    for outage in 1..=3 {
        bench.server.command(&["CLIENT", "KILL", "TYPE", "normal"]);
        bench.server.wait_until(|_| consumer.stats().reconnects >= outage);
        bench.wait_until_blocked();
    }
    let stats = consumer.stats();
    assert_eq!(stats.reconnects, 3);
    assert!(stats.last_error.unwrap().contains("127.0.0.1"));
    assert!(stats.last_read.unwrap() < Duration::from_secs(20));
}
