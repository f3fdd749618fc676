//! A consumer that starts anew gets back first what it had.

use crate::common::{Direction, Proxy};
use crate::support::{Bench, next, number, stream_at, take};
use std::time::Duration;

#[test]
fn what_was_pending_comes_first_in_order_and_only_what_a_handler_had_is_counted() {
    const HANDED_OUT: usize = 5;
    let bench = Bench::start();
    bench.publish(50);
    let consumer = bench.consumer("one").prefetch(20).batch(20).spawn().unwrap();
    bench.server.wait_until(|_| bench.pending() >= 20);
    (0..HANDED_OUT).for_each(|_| next(&consumer).leave());
    drop(consumer);

    let consumer = bench.consumer("one").batch(7).spawn().unwrap();
    for expected in 0..50 {
        let delivery = next(&consumer);
        let count = if expected < HANDED_OUT { 2 } else { 1 };
        assert_eq!((number(&delivery), delivery.delivery_count()), (expected, count));
        delivery.ack().unwrap();
    }
    consumer.close().unwrap();
    assert_eq!(bench.pending(), 0);
}

#[test]
fn what_is_pending_for_others_is_left_to_them() {
    let bench = Bench::start();
    bench.publish(4);
    let one = bench.consumer("one").spawn().unwrap();
    let held: Vec<_> = (0..4).map(|_| next(&one)).collect();
    let two = bench.consumer("two").spawn().unwrap();
    bench.stream.publish(&bench.output(), "4").unwrap();
    let (came, other) = (two.timeout_iter(Duration::from_secs(1)).next(), one.try_iter().next());
    let fifth = came.or(other).unwrap().unwrap();
    assert_eq!(number(&fifth), 4, "the new one, to either of them");
    fifth.ack().unwrap();
    held.into_iter().for_each(|delivery| delivery.ack().unwrap());
}

#[test]
fn a_reconnect_brings_back_nothing_that_is_in_flight() {
    let bench = Bench::start();
    bench.publish(30);
    let consumer = bench.consumer("one").prefetch(10).batch(10).spawn().unwrap();
    let held = [next(&consumer), next(&consumer)];
    next(&consumer).leave();
    for round in 1..4 {
        bench.server.command(&["CLIENT", "KILL", "TYPE", "normal"]);
        bench.stream.publish(&bench.output(), format!("{}", 29 + round)).unwrap_or_else(|_| {
            // The pool's connection was killed too.
            bench.stream.publish(&bench.output(), format!("{}", 29 + round)).unwrap()
        });
    }
    assert_eq!(take(&consumer, 30), (3..33).collect::<Vec<_>>());
    assert!(consumer.stats().reconnects > 0);
    held.into_iter().for_each(|delivery| delivery.ack().unwrap());
    consumer.close().unwrap();
    assert_eq!(bench.pending(), 1, "the one that was left");
}

#[test]
fn what_is_on_its_way_when_a_consumer_is_closed_is_counted_as_no_delivery() {
    let bench = Bench::start();
    let proxy = Proxy::start(bench.server.port());
    let input = bench.input().consumer("one");
    let consumer = stream_at(&proxy.url()).consumer(input).spawn().unwrap();
    bench.wait_until_blocked();
    // Longer than a stop waits for the reader.
    proxy.delay(Direction::ToClient, Duration::from_millis(150));
    bench.publish(1);
    bench.server.wait_until(|_| bench.pending() == 1);
    assert_eq!(consumer.close().unwrap().received, 0);
    let left = bench.pending_of("one");
    assert_eq!((left.len(), left[0].2), (1, 0));
    // So the only hand-out that is permitted is still to come, to whoever is there.
    let consumer = bench.consumer("two").max_deliveries(1).dead_letter(bench.dead()).spawn().unwrap();
    assert_eq!(take(&consumer, 1), [0]);
    assert_eq!(consumer.close().unwrap().dead_lettered, 0);
}
