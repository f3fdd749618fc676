//! A consumer that starts anew gets back first what it had.

use crate::support::{Bench, next, number, take};
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
