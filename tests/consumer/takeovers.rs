//! Entries that another consumer has taken over: they are the other one's, whatever is left of them here.

use crate::common::wait_until;
use crate::support::{Bench, GROUP, assert_nothing_comes, every_bench, next, number};
use std::time::Duration;
use step_redis::{Consumer, Delivery, StreamInput};

/// Leases are renewed every third of `claim_idle`, 60 s by default.
const NOTICED: Duration = Duration::from_secs(45);

fn default_input(bench: &Bench) -> StreamInput {
    bench.input().consumer("one")
}

fn take_over(bench: &Bench, ids: &[String]) {
    let mut claim = vec!["XCLAIM", &bench.key, GROUP, "thief", "0"];
    claim.extend(ids.iter().map(String::as_str));
    bench.server.command(&claim);
}

/// As the thief's consumer would that fails: the entry may be taken by anyone.
fn give_back(bench: &Bench, id: &str) {
    bench.server.command(&["XCLAIM", &bench.key, GROUP, "thief", "0", id, "IDLE", "100000", "JUSTID"]);
}

#[test]
fn entries_known_to_be_taken_over_are_not_handed_out() {
    const ENTRIES: usize = 100;
    let bench = Bench::start();
    bench.publish(ENTRIES);
    let consumer = bench.stream.consumer(default_input(&bench)).spawn().unwrap();
    wait_until(NOTICED, || consumer.stats().queued == ENTRIES);
    let ids: Vec<String> = bench.pending_of("one").into_iter().map(|(id, ..)| id).collect();
    take_over(&bench, &ids);
    wait_until(NOTICED, || consumer.stats().taken_over as usize == ENTRIES);
    assert!(consumer.try_iter().next().is_none());
    assert_nothing_comes(&consumer, Duration::from_millis(200));
    bench.publish(1);
    next(&consumer).ack().unwrap();
    assert_eq!(bench.pending_of("thief").len(), ENTRIES);
    assert_eq!(consumer.close().unwrap().in_flight, 0);
}

/// What is acknowledged later goes to the server later.
#[track_caller]
fn let_acknowledgements_pass(bench: &Bench, consumer: &Consumer) {
    bench.publish(1);
    let later = next(consumer);
    let id = later.id().to_string();
    later.ack().unwrap();
    bench.server.wait_until(|_| bench.pending_of("one").iter().all(|(its, ..)| *its != id));
}

#[track_caller]
fn assert_an_old_guard_settles_nothing(bench: &Bench, settle: impl FnOnce(Delivery)) {
    bench.publish(1);
    let builder = bench.stream.consumer(default_input(bench)).dead_letter(bench.dead());
    let consumer = builder.spawn().unwrap();
    let old = next(&consumer);
    let id = old.id().to_string();
    take_over(bench, std::slice::from_ref(&id));
    give_back(bench, &id);
    let new = next(&consumer);
    assert_eq!((new.id(), new.delivery_count()), (old.id(), 3));
    settle(old);
    let_acknowledgements_pass(bench, &consumer);
    assert!(matches!(&bench.pending_of("one")[..], [(its, idle, 3)] if *its == id && *idle < 30_000));
    assert_nothing_comes(&consumer, Duration::from_millis(1_500));
    new.ack().unwrap();
    consumer.close().unwrap();
    assert_eq!(bench.pending(), 0);
    assert!(bench.stream.dead_letters(&bench.dead(), 10).unwrap().is_empty());
}

#[test]
fn an_old_guard_does_not_acknowledge_what_was_claimed_back() {
    for bench in every_bench() {
        assert_an_old_guard_settles_nothing(&bench, |old| old.ack().unwrap());
    }
}

#[test]
fn an_old_guard_does_not_give_back_what_was_claimed_back() {
    assert_an_old_guard_settles_nothing(&Bench::start(), |old| old.release().unwrap());
    assert_an_old_guard_settles_nothing(&Bench::start(), |old| old.retry_after(Duration::from_millis(1)).unwrap());
    assert_an_old_guard_settles_nothing(&Bench::start(), drop);
}

#[test]
fn an_old_guard_does_not_bury_what_was_claimed_back() {
    assert_an_old_guard_settles_nothing(&Bench::start(), |old| old.dead_letter("late").unwrap());
}

#[test]
fn an_old_guard_is_still_void_after_the_takeover_was_noticed() {
    let bench = Bench::start();
    bench.publish(1);
    let consumer = bench.stream.consumer(default_input(&bench)).spawn().unwrap();
    let old = next(&consumer);
    let id = old.id().to_string();
    take_over(&bench, std::slice::from_ref(&id));
    wait_until(NOTICED, || consumer.stats().taken_over == 1);
    give_back(&bench, &id);
    let new = next(&consumer);
    assert_eq!(number(&new), 0);
    old.ack().unwrap();
    let_acknowledgements_pass(&bench, &consumer);
    assert_eq!(bench.pending(), 1, "the new delivery is not done");
    new.ack().unwrap();
    let stats = consumer.close().unwrap();
    assert_eq!((bench.pending(), stats.acked), (0, 2));
}

#[test]
fn an_entry_with_the_greatest_count_holds_up_nobody() {
    // `XNACK ... FATAL` sets it, and so may anyone with `XCLAIM ... RETRYCOUNT`.
    const GREATEST: u64 = i64::MAX as u64;
    for limit in [None, Some(3)] {
        for bench in every_bench() {
            bench.server.leave_behind(&bench.key, GROUP, &[1, GREATEST, 1]);
            let consumer = bench.stream.consumer(default_input(&bench));
            let consumer = match limit {
                None => consumer,
                Some(limit) => consumer.max_deliveries(limit).dead_letter(bench.dead()),
            };
            let consumer = consumer.spawn().unwrap();
            let expected: &[_] = match limit {
                None => &[("left-0", 2), ("left-1", GREATEST), ("left-2", 2)],
                Some(_) => &[("left-0", 2), ("left-2", 2)],
            };
            for expected in expected {
                let delivery = next(&consumer);
                assert_eq!((delivery.text().unwrap(), delivery.delivery_count()), *expected);
                delivery.ack().unwrap();
            }
            bench.server.wait_until(|_| bench.pending() == 0);
            assert_eq!(consumer.close().unwrap().dead_lettered, u64::from(limit.is_some()));
        }
    }
}
