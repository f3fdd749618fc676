//! Consumer names: given or generated, and when they leave the group.

use crate::support::{Bench, next, take};
use std::collections::HashSet;

#[test]
fn generated_names_differ_between_consumers_and_last_for_their_life() {
    let bench = Bench::start();
    let consumers: Vec<_> = (0..5).map(|_| bench.stream.consumer(bench.input()).spawn().unwrap()).collect();
    let names: HashSet<_> = consumers.iter().map(|consumer| consumer.name().to_owned()).collect();
    assert_eq!(names.len(), 5);
    // The server learns a name with the first entry that is delivered to it.
    let publish = || bench.fill(50, 1);
    bench.server.wait_until(|_| {
        publish();
        bench.consumers().len() == 5
    });
    bench.server.command(&["CLIENT", "KILL", "TYPE", "normal"]);
    for consumer in &consumers {
        bench.server.wait_until(|_| consumer.stats().reconnects > 0);
    }
    publish();
    bench.server.wait_until(|_| bench.delivered().1);
    assert_eq!(bench.consumers().into_iter().collect::<HashSet<_>>(), names, "a reconnect changes no name");
}

#[test]
fn a_generated_name_leaves_the_group_on_a_clean_close() {
    let bench = Bench::start();
    bench.publish(10);
    let consumer = bench.stream.consumer(bench.input()).spawn().unwrap();
    take(&consumer, 10);
    assert_eq!(bench.consumers(), [consumer.name()]);
    consumer.close().unwrap();
    assert!(bench.consumers().is_empty());
}

#[test]
fn a_generated_name_with_pending_entries_stays_in_the_group() {
    let bench = Bench::start();
    bench.publish(10);
    let consumer = bench.stream.consumer(bench.input()).spawn().unwrap();
    let name = consumer.name().to_owned();
    next(&consumer).leave();
    take(&consumer, 9);
    consumer.close().unwrap();
    assert_eq!(bench.consumers(), [name.as_str()]);
    assert_eq!((bench.pending(), bench.pending_of(&name).len()), (1, 1));
}

#[test]
fn a_generated_name_whose_delivery_is_still_held_stays_in_the_group() {
    let bench = Bench::start();
    bench.publish(1);
    let consumer = bench.stream.consumer(bench.input()).spawn().unwrap();
    let held = next(&consumer);
    consumer.close().unwrap();
    assert_eq!((bench.consumers().len(), bench.pending()), (1, 1));
    held.ack().unwrap();
    assert_eq!(bench.pending(), 0);
}

#[test]
fn a_given_name_stays_in_the_group() {
    let bench = Bench::start();
    bench.publish(1);
    let consumer = bench.consumer("given").spawn().unwrap();
    take(&consumer, 1);
    assert_eq!(consumer.name(), "given");
    consumer.close().unwrap();
    assert_eq!(bench.consumers(), ["given"]);
}
