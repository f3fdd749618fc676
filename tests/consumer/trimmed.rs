//! Entries whose content goes away while they are pending: counted, taken off the pending list, and no trouble else.

use crate::support::{Bench, GROUP, assert_nothing_comes, next, number, take};
use std::time::Duration;

const IDLE: Duration = Duration::from_millis(200);

/// Entries of a consumer that is gone.
fn pending_for(bench: &Bench, consumer: &str, count: usize) -> Vec<String> {
    bench.stream.create_input_stream(&bench.input()).unwrap();
    bench.publish(count);
    bench.server.command(&["XREADGROUP", "GROUP", GROUP, consumer, "STREAMS", &bench.key, ">"]);
    bench.pending_of(consumer).into_iter().map(|(id, ..)| id).collect()
}

fn delete(bench: &Bench, ids: &[String]) {
    for id in ids {
        bench.server.command(&["XDEL", &bench.key, id]);
    }
}

#[test]
fn entries_deleted_while_pending_here_are_left_out_at_the_start() {
    let bench = Bench::start();
    let ids = pending_for(&bench, "one", 10);
    delete(&bench, &ids[2..5]);
    let consumer = bench.consumer("one").batch(4).spawn().unwrap();
    assert_eq!(take(&consumer, 7), [0, 1, 5, 6, 7, 8, 9]);
    let stats = consumer.close().unwrap();
    assert_eq!((stats.trimmed, stats.received), (3, 7));
    assert_eq!(bench.pending(), 0);
}

#[test]
fn a_start_with_nothing_but_deleted_entries_goes_on_to_new_ones() {
    let bench = Bench::start();
    let ids = pending_for(&bench, "one", 10);
    delete(&bench, &ids);
    let consumer = bench.consumer("one").batch(4).spawn().unwrap();
    bench.stream.publish(&bench.output(), "77").unwrap();
    assert_eq!(number(&next(&consumer)), 77);
    assert_eq!(consumer.stats().trimmed, 10);
    assert_eq!(bench.pending(), 1);
}

#[test]
fn entries_trimmed_while_pending_elsewhere_are_left_out_of_a_claim() {
    let bench = Bench::start();
    pending_for(&bench, "gone", 10);
    bench.server.command(&["XTRIM", &bench.key, "MAXLEN", "3"]);
    let consumer = bench.claiming("one", IDLE).spawn().unwrap();
    assert_eq!(take(&consumer, 3), [7, 8, 9]);
    bench.server.wait_until(|_| consumer.stats().trimmed == 7);
    bench.server.wait_until(|_| bench.pending() == 0);
    let sent = bench.sent_within(Duration::from_millis(500));
    assert!(sent.len() < 20, "no loop: {sent:#?}");
    assert_nothing_comes(&consumer, Duration::ZERO);
}

#[test]
fn an_entry_that_is_deleted_in_its_handler_is_acknowledged_as_any_other() {
    let bench = Bench::start();
    bench.publish(2);
    let consumer = bench.claiming("one", IDLE).spawn().unwrap();
    let (first, second) = (next(&consumer), next(&consumer));
    delete(&bench, &[first.id().to_string(), second.id().to_string()]);
    // Leases are renewed in the meantime: XCLAIM meets entries that are gone.
    assert_nothing_comes(&consumer, 3 * IDLE);
    first.ack().unwrap();
    second.release().unwrap();
    bench.server.wait_until(|_| bench.pending() == 0);
    bench.stream.publish(&bench.output(), "77").unwrap();
    assert_eq!(take(&consumer, 1), [77]);
}

#[test]
fn deleted_poison_is_no_dead_letter_and_no_trouble() {
    let bench = Bench::start();
    let ids = pending_for(&bench, "one", 3);
    delete(&bench, &ids[1..2]);
    let consumer = bench.consumer("one").max_deliveries(1).dead_letter(bench.dead()).spawn().unwrap();
    bench.server.wait_until(|_| consumer.stats().dead_lettered == 2 && consumer.stats().trimmed == 1);
    assert_eq!(bench.pending(), 0);
}
