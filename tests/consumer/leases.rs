//! Work that goes on is nobody else's; work whose process stands still is.

use crate::child::{Child, SLOW_IDLE};
use crate::common::signal;
use crate::support::{Bench, assert_nothing_comes, next, number, take};
use std::thread;
use std::time::Duration;

const IDLE: Duration = Duration::from_secs(1);

#[test]
fn a_handler_that_takes_three_times_claim_idle_keeps_its_entry_and_those_that_wait() {
    const ENTRIES: usize = 600;
    let bench = Bench::start();
    let busy = bench.claiming("busy", IDLE).prefetch(ENTRIES).spawn().unwrap();
    bench.publish(ENTRIES);
    let first = next(&busy);
    bench.server.wait_until(|_| busy.stats().received as usize == ENTRIES);
    let other = bench.claiming("other", IDLE).spawn().unwrap();

    assert_nothing_comes(&other, 3 * IDLE);
    assert_eq!(bench.pending_of("busy").len(), ENTRIES);
    first.ack().unwrap();
    assert_eq!(take(&busy, ENTRIES - 1), (1..ENTRIES).collect::<Vec<_>>());
    let stats = busy.close().unwrap();
    assert_eq!((stats.taken_over, stats.claimed, stats.acked as usize), (0, 0, ENTRIES));
    assert_eq!((bench.pending(), other.close().unwrap().claimed), (0, 0));
}

#[test]
fn renewing_a_lease_does_not_count_as_a_delivery() {
    let bench = Bench::start();
    let idle = Duration::from_secs(1);
    let consumer = bench.claiming("one", idle).spawn().unwrap();
    bench.publish(1);
    let delivery = next(&consumer);
    let evals = bench.calls("eval");
    bench.server.wait_until(|_| bench.calls("eval") >= evals + 5);
    assert!(matches!(bench.pending_of("one")[..], [(_, _, 1)]));
    delivery.ack().unwrap();
}

#[test]
fn an_entry_whose_handler_stands_still_goes_to_another_and_is_not_stolen_back() {
    let bench = Bench::start();
    let mut stopped = Child::start(&bench, "slow", "stopped");
    bench.server.wait_until(|server| server.command(&["EXISTS", &bench.key]).int() == 1);
    bench.publish(1);
    stopped.wait_for_line("got 0");
    signal(stopped.pid(), "STOP");

    let other = bench.claiming("other", SLOW_IDLE).spawn().unwrap();
    let delivery = next(&other);
    assert_eq!((number(&delivery), delivery.delivery_count()), (0, 2));
    signal(stopped.pid(), "CONT");
    // The other one is still at work, for longer than an entry may lie idle.
    assert_nothing_comes(&other, 3 * SLOW_IDLE);
    assert!(matches!(bench.pending_of("other")[..], [(_, _, 2)]));
    assert!(bench.pending_of("stopped").is_empty());
    stopped.finish();
    assert_eq!(stopped.wait_for_line("lost"), "lost 1");
    delivery.ack().unwrap();
    assert_eq!(other.close().unwrap().claimed, 1);
    assert_eq!(bench.pending(), 0);
}

#[test]
fn a_delivery_that_was_lost_to_another_consumer_is_not_given_back_by_its_first_holder() {
    let bench = Bench::start();
    let consumer = bench.claiming("one", IDLE).claim(false).spawn().unwrap();
    bench.publish(3);
    let deliveries = [next(&consumer), next(&consumer), next(&consumer)];
    let ids: Vec<_> = deliveries.iter().map(|delivery| delivery.id().to_string()).collect();
    for id in &ids {
        bench.server.command(&["XCLAIM", &bench.key, "group", "thief", "0", id]);
    }
    bench.server.wait_until(|_| consumer.stats().taken_over == 3);
    let [first, second, third] = deliveries;
    first.release().unwrap();
    second.retry_after(Duration::from_millis(10)).unwrap();
    third.leave();
    thread::sleep(Duration::from_millis(50));
    let idle: Vec<_> = bench.pending_of("thief").into_iter().map(|(id, idle, _)| (id, idle >= 50)).collect();
    assert_eq!(idle, ids.into_iter().map(|id| (id, true)).collect::<Vec<_>>(), "untouched since the thief has them");
}

#[test]
fn a_lease_that_ran_out_unnoticed_does_not_bring_the_entry_twice() {
    let bench = Bench::start();
    let consumer = bench.claiming("one", 4 * IDLE).spawn().unwrap();
    bench.publish(1);
    let held = next(&consumer);
    let id = held.id().to_string();
    // As if the whole process had stood still: the consumer's own search finds it.
    bench.server.command(&["XCLAIM", &bench.key, "group", "one", "0", &id, "IDLE", "100000", "JUSTID"]);
    bench.server.wait_until(|_| matches!(bench.pending_of("one")[..], [(_, idle, 1)] if idle < 4_000));
    assert_nothing_comes(&consumer, IDLE / 10);
    held.ack().unwrap();
    assert_eq!(consumer.close().unwrap().received, 1);
    assert_eq!(bench.pending(), 0);
}

#[test]
fn entries_of_a_consumer_that_is_gone_are_taken_over_after_claim_idle() {
    let bench = Bench::start();
    let idle = Duration::from_millis(300);
    bench.stream.create_input_stream(&bench.input()).unwrap();
    bench.publish(500);
    let count = ["XREADGROUP", "GROUP", "group", "gone", "COUNT", "500", "STREAMS", &bench.key, ">"];
    bench.server.command(&count);
    let consumer = bench.claiming("one", idle).batch(64).spawn().unwrap();
    let first = next(&consumer);
    assert_eq!((number(&first), first.delivery_count()), (0, 2));
    first.ack().unwrap();
    assert_eq!(take(&consumer, 499), (1..500).collect::<Vec<_>>());
    assert_eq!(consumer.close().unwrap().claimed, 500);
    assert_eq!(bench.pending(), 0);
}

#[test]
fn a_consumer_that_does_not_claim_leaves_the_entries_of_others_alone() {
    let bench = Bench::start();
    let idle = Duration::from_millis(20);
    bench.stream.create_input_stream(&bench.input()).unwrap();
    bench.publish(1);
    bench.server.command(&["XREADGROUP", "GROUP", "group", "gone", "STREAMS", &bench.key, ">"]);
    let consumer = bench.claiming("one", idle).claim(false).spawn().unwrap();
    assert_nothing_comes(&consumer, 20 * idle);
    let left = bench.pending_of("gone");
    assert_eq!((left.len(), left[0].2), (1, 1));
}
