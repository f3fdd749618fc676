//! What counts as a delivery: that a handler gets the entry, and nothing else.

use crate::common::{Direction, Proxy, wait_until};
use crate::support::{Bench, LONG, assert_nothing_comes, every_bench, next, number, stream_at};
use std::time::Duration;
use step_redis::{Consumer, StreamInput};

const ENTRIES: usize = 100;

/// Takes and acknowledges all entries; each with its number of deliveries, in the order of their numbers.
#[track_caller]
fn take_all(consumer: &Consumer) -> Vec<(usize, u64)> {
    let take_one = |_| {
        let delivery = next(consumer);
        let taken = (number(&delivery), delivery.delivery_count());
        delivery.ack().unwrap();
        taken
    };
    let mut taken: Vec<_> = (0..ENTRIES).map(take_one).collect();
    taken.sort_unstable();
    taken
}

#[track_caller]
fn assert_rolling_restarts_count_nothing(bench: &Bench, names: [&str; 2], limit: u64) {
    bench.publish(ENTRIES);
    let start = |name| bench.consumer(name).max_deliveries(limit).dead_letter(bench.dead()).spawn().unwrap();
    for round in 0..=limit as usize {
        let consumer = start(names[round % 2]);
        wait_until(LONG, || consumer.stats().queued > 0 || consumer.stats().dead_lettered > 0);
        assert_eq!(consumer.close().unwrap().dead_lettered, 0, "round {round}");
    }
    let consumer = start(names[0]);
    assert_eq!(take_all(&consumer), (0..ENTRIES).map(|number| (number, 1)).collect::<Vec<_>>());
    assert!(bench.stream.dead_letters(&bench.dead(), ENTRIES).unwrap().is_empty());
    assert_eq!(consumer.close().unwrap().dead_lettered, 0);
    assert_eq!(bench.pending(), 0);
}

#[test]
fn what_was_queued_at_a_clean_end_was_not_delivered() {
    for bench in every_bench() {
        assert_rolling_restarts_count_nothing(&bench, ["one", "one"], 1);
    }
}

#[test]
fn more_clean_restarts_than_deliveries_are_permitted_bury_nothing() {
    for limit in [2, 3] {
        assert_rolling_restarts_count_nothing(&Bench::start(), ["one", "one"], limit);
    }
}

#[test]
fn what_was_queued_at_a_clean_end_goes_to_others_at_once_and_uncounted() {
    for limit in [1, 2] {
        assert_rolling_restarts_count_nothing(&Bench::start(), ["one", "other"], limit);
    }
}

#[test]
fn an_entry_that_waits_for_its_last_chance_keeps_its_count_over_a_reconnect() {
    let bench = Bench::start();
    bench.publish(2);
    let start = || bench.consumer("one").max_deliveries(2).dead_letter(bench.dead()).spawn().unwrap();
    let consumer = start();
    (0..2).for_each(|_| next(&consumer).leave());
    drop(consumer);

    let consumer = start();
    let first = next(&consumer);
    assert_eq!((number(&first), first.delivery_count()), (0, 2));
    for round in 1..3 {
        bench.wait_until_blocked();
        bench.server.command(&["CLIENT", "KILL", "TYPE", "normal"]);
        wait_until(LONG, || consumer.stats().reconnects >= round);
    }
    first.ack().unwrap();
    let second = next(&consumer);
    assert_eq!((number(&second), second.delivery_count()), (1, 2));
    second.leave();
    drop(consumer);
    let consumer = start();
    bench.server.wait_until(|_| consumer.stats().dead_lettered == 1 && bench.pending() == 0);
    assert_nothing_comes(&consumer, Duration::from_millis(50));
}

#[test]
fn what_another_consumer_has_just_taken_is_not_read_again() {
    const LATE: Duration = Duration::from_millis(300);
    let bench = Bench::start();
    bench.publish(2);
    bench.stream.create_input_stream(&bench.input()).unwrap();
    // Two entries from before a restart: one old, one fresh.
    bench.server.command(&["XREADGROUP", "GROUP", "group", "one", "STREAMS", &bench.key, ">"]);
    let ids: Vec<String> = bench.pending_of("one").into_iter().map(|(id, ..)| id).collect();
    bench.server.command(&["XCLAIM", &bench.key, "group", "one", "0", &ids[0], "IDLE", "50000", "JUSTID"]);

    let proxy = Proxy::start(bench.server.port());
    let stream = stream_at(&proxy.url());
    let input = StreamInput::new(bench.key.as_str(), "group").consumer("one");
    let looked = bench.calls("xpending");
    // Replies arrive late enough to do something between two commands.
    proxy.delay(Direction::ToClient, LATE);
    let refresh = || bench.server.command(&["XCLAIM", &bench.key, "group", "one", "0", &ids[1], "JUSTID"]);
    let consumer = std::thread::scope(|scope| {
        let spawning = scope.spawn(|| stream.consumer(input).claim(false).spawn().unwrap());
        bench.server.wait_until(|_| {
            refresh();
            bench.calls("xpending") > looked
        });
        // It has looked, and its answer is on the way.
        bench.server.command(&["XCLAIM", &bench.key, "group", "thief", "0", &ids[0]]);
        spawning.join().unwrap()
    });
    assert_eq!(next(&consumer).id().to_string(), ids[1]);
    assert_nothing_comes(&consumer, 2 * LATE);
    assert!(matches!(&bench.pending_of("thief")[..], [(id, ..)] if *id == ids[0]));
}
