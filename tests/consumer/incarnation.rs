//! A stream that is deleted and made again may bring the same ids: they are other entries then, and a guard of the old stream
//! settles nothing of the new one.

use crate::support::{Bench, GROUP, LONG, assert_nothing_comes, every_bench, next};
use std::time::Duration;
use step_redis::{AckMode, Consumer, Delivery, OnDrop};

const ID: &str = "1-1";

fn add(bench: &Bench, id: &str, text: &str) {
    bench.server.command(&["XADD", &bench.key, id, "message", text]);
}

/// Deletes the stream, and makes another one with an entry of the same id, all in one step: nobody finds the group gone.
fn replace_at_once(bench: &Bench) {
    const SCRIPT: &str = "redis.call('DEL',KEYS[1]) redis.call('XADD',KEYS[1],ARGV[1],'message','new') \
                          redis.call('XGROUP','CREATE',KEYS[1],ARGV[2],'0')";
    bench.server.command(&["EVAL", SCRIPT, "1", &bench.key, ID, GROUP]);
}

/// Deletes the stream, and makes another one once the consumer has made its group again.
fn replace_slowly(bench: &Bench, consumer: &Consumer) {
    bench.server.command(&["DEL", &bench.key]);
    bench.server.wait_until(|_| consumer.stats().groups_recreated == 1);
    add(bench, ID, "new");
}

fn replace(bench: &Bench, consumer: &Consumer, at_once: bool) {
    if at_once { replace_at_once(bench) } else { replace_slowly(bench, consumer) }
}

/// What is acknowledged after something else goes to the server after it.
fn let_acknowledgements_pass(bench: &Bench, consumer: &Consumer, pending: usize) {
    add(bench, "*", "later");
    let later = next(consumer);
    assert_eq!(later.text().unwrap(), "later");
    later.ack().unwrap();
    bench.server.wait_until(|_| bench.pending() <= pending);
    assert_eq!(bench.pending(), pending);
}

/// The old delivery is settled after the new one has come.
#[track_caller]
fn assert_the_new_entry_is_unharmed(bench: &Bench, mode: AckMode, at_once: bool, settle: impl FnOnce(Delivery)) {
    let consumer = bench.consumer("one").ack_mode(mode).dead_letter(bench.dead()).spawn().unwrap();
    add(bench, ID, "old");
    let old = next(&consumer);
    bench.wait_until_blocked();
    replace(bench, &consumer, at_once);
    let new = next(&consumer);
    assert_eq!((new.id().to_string(), new.text().unwrap(), new.delivery_count()), (ID.to_owned(), "new", 1));
    settle(old);
    let_acknowledgements_pass(bench, &consumer, 1);
    assert!(matches!(&bench.pending_of("one")[..], [(id, idle, 1)] if id == ID && *idle < 30_000));
    assert_nothing_comes(&consumer, Duration::from_millis(50));
    new.ack().unwrap();
    let stats = consumer.close().unwrap();
    assert_eq!((bench.pending(), stats.in_flight), (0, 0));
    assert!(bench.stream.dead_letters(&bench.dead(), 10).unwrap().is_empty());
}

#[test]
fn a_new_entry_with_a_held_id_comes_and_the_old_guard_does_not_acknowledge_it() {
    for at_once in [true, false] {
        for bench in every_bench() {
            assert_the_new_entry_is_unharmed(&bench, AckMode::default(), at_once, |old| old.ack().unwrap());
        }
    }
}

#[test]
fn a_confirmed_ack_of_the_old_guard_does_not_acknowledge_the_new_entry() {
    for at_once in [true, false] {
        assert_the_new_entry_is_unharmed(&Bench::start(), AckMode::Confirmed, at_once, |old| old.ack().unwrap());
    }
}

#[test]
fn the_old_guard_does_not_give_back_the_new_entry() {
    for at_once in [true, false] {
        let mode = AckMode::default();
        assert_the_new_entry_is_unharmed(&Bench::start(), mode, at_once, |old| old.release().unwrap());
        assert_the_new_entry_is_unharmed(&Bench::start(), mode, at_once, |old| drop(old.on_drop(OnDrop::Release)));
        assert_the_new_entry_is_unharmed(&Bench::start(), mode, at_once, Delivery::leave);
    }
}

#[test]
fn the_old_guard_does_not_bury_the_new_entry() {
    for at_once in [true, false] {
        let bench = Bench::start();
        assert_the_new_entry_is_unharmed(&bench, AckMode::default(), at_once, |old| old.dead_letter("old").unwrap());
    }
}

#[test]
fn an_ack_of_the_old_entry_that_is_queued_does_not_acknowledge_the_new_one() {
    for at_once in [true, false] {
        for bench in every_bench() {
            // Nobody sends it before the reader's next request, which is there already.
            let mode = AckMode::Queued { max: 1_000, delay: 10 * LONG };
            let input = bench.input().consumer("one").wait_timeout(LONG / 2);
            let consumer = bench.stream.consumer(input).claim(false).ack_mode(mode).spawn().unwrap();
            add(&bench, ID, "old");
            let old = next(&consumer);
            bench.wait_until_blocked();
            old.ack().unwrap();
            replace(&bench, &consumer, at_once);
            let new = next(&consumer);
            assert_eq!(new.text().unwrap(), "new");
            // With its requests, the reader takes along what is queued.
            for _ in 0..3 {
                add(&bench, "*", "later");
                next(&consumer).ack().unwrap();
            }
            bench.server.wait_until(|_| bench.pending() <= 2);
            assert!(bench.pending_of("one").iter().any(|(id, ..)| id == ID), "at once: {at_once}");
            new.ack().unwrap();
            consumer.close().unwrap();
            assert_eq!(bench.pending(), 0);
        }
    }
}

#[test]
fn entries_of_the_old_stream_that_are_queued_are_not_handed_out_as_the_new_ones() {
    const ENTRIES: usize = 10;
    let bench = Bench::start();
    let consumer = bench.consumer("one").spawn().unwrap();
    let fill = |text: &str| (1..=ENTRIES).for_each(|number| add(&bench, &format!("1-{number}"), text));
    fill("old");
    bench.server.wait_until(|_| consumer.stats().queued == ENTRIES);
    bench.wait_until_blocked();
    bench.server.command(&["DEL", &bench.key]);
    bench.server.wait_until(|_| consumer.stats().groups_recreated == 1);
    fill("new");
    bench.server.wait_until(|_| consumer.stats().received as usize == 2 * ENTRIES);
    let came: Vec<String> = (0..ENTRIES)
        .map(|_| {
            let delivery = next(&consumer);
            let text = format!("{} {}", delivery.text().unwrap(), delivery.id());
            delivery.ack().unwrap();
            text
        })
        .collect();
    assert_eq!(came, (1..=ENTRIES).map(|number| format!("new 1-{number}")).collect::<Vec<_>>());
    assert_nothing_comes(&consumer, Duration::from_millis(50));
    consumer.close().unwrap();
    assert_eq!(bench.pending(), 0);
}
