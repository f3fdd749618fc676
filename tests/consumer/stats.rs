//! The numbers that a consumer tells about itself.

use crate::common::Server;
use crate::support::{Bench, GROUP, next};
use std::thread;
use std::time::Duration;
use step_redis::AckMode;

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
