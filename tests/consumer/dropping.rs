//! What goes away without a word acknowledges nothing, wherever entries are queued, under each drop policy.

use crate::common::wait_until;
use crate::support::{Bench, GROUP, LONG, next};
use std::thread;
use step_redis::{Consumer, OnDrop};

const POLICIES: [OnDrop; 3] = [OnDrop::Leave, OnDrop::Release, OnDrop::Ack];
const ENTRIES: usize = 100;

/// A consumer with a full channel and a reader that waits for room.
fn full(bench: &Bench, policy: OnDrop) -> Consumer {
    bench.publish(ENTRIES);
    let consumer = bench.consumer("one").prefetch(8).batch(16).on_drop(policy).spawn().unwrap();
    wait_until(LONG, || consumer.stats().queued == 8);
    consumer
}

/// Entries that were delivered and are acknowledged.
fn acknowledged(bench: &Bench) -> usize {
    bench.delivered().0 - bench.pending()
}

fn under_each_policy(test: impl Fn(&Bench, Consumer, OnDrop)) {
    for policy in POLICIES {
        let bench = Bench::start();
        let consumer = full(&bench, policy);
        test(&bench, consumer, policy);
    }
}

#[test]
fn dropping_a_consumer_with_entries_queued_acknowledges_none() {
    under_each_policy(|bench, consumer, policy| {
        drop(consumer);
        assert!(bench.pending() >= 8, "{policy:?}");
        assert_eq!(acknowledged(bench), 0, "{policy:?}");
    });
}

#[test]
fn closing_a_consumer_acknowledges_what_was_acked_and_nothing_else() {
    under_each_policy(|bench, consumer, policy| {
        next(&consumer).ack().unwrap();
        next(&consumer).ack().unwrap();
        next(&consumer).leave();
        assert_eq!(consumer.close().unwrap().acked, 2, "{policy:?}");
        assert_eq!(acknowledged(bench), 2, "{policy:?}");
    });
}

#[test]
fn leaving_the_loop_early_acknowledges_nothing_that_is_queued() {
    under_each_policy(|bench, consumer, policy| {
        for (index, delivery) in consumer.into_iter().enumerate() {
            delivery.unwrap().ack().unwrap();
            if index == 4 {
                break;
            }
        }
        assert_eq!(acknowledged(bench), 5, "{policy:?}");
    });
}

#[test]
fn a_borrowing_iterator_goes_without_a_trace() {
    under_each_policy(|bench, consumer, policy| {
        consumer.iter().next().unwrap().unwrap().ack().unwrap();
        consumer.try_iter().next().unwrap().unwrap().leave();
        consumer.timeout_iter(LONG).next().unwrap().unwrap().leave();
        drop(consumer);
        assert_eq!(acknowledged(bench), 1, "{policy:?}");
    });
}

#[test]
fn a_handed_out_delivery_follows_the_policy_even_after_its_consumer() {
    under_each_policy(|bench, consumer, policy| {
        let (early, late) = (next(&consumer), next(&consumer));
        let late_id = late.id().to_string();
        drop(early);
        consumer.close().unwrap();
        drop(late);
        assert_eq!(acknowledged(bench), if policy == OnDrop::Ack { 2 } else { 0 }, "{policy:?}");
        let pending = bench.pending_of("one");
        let idle = pending.iter().find(|(id, ..)| *id == late_id).map(|(_, idle, _)| *idle >= 60_000);
        let offered = match policy {
            OnDrop::Release => Some(true),
            OnDrop::Ack => None,
            _ => Some(false),
        };
        assert_eq!(idle, offered, "{policy:?}");
    });
}

#[test]
fn what_is_taken_from_the_receiver_leaves_on_drop() {
    under_each_policy(|bench, consumer, policy| {
        let receiver = consumer.receiver().clone();
        let taken: Vec<_> = (0..20).map(|_| receiver.recv().unwrap().unwrap()).collect();
        let ids: Vec<_> = taken.iter().map(|delivery| delivery.id().to_string()).collect();
        drop(taken);
        drop(consumer);
        assert!(receiver.recv().is_err(), "{policy:?}: the channel ends with the consumer");
        assert_eq!(acknowledged(bench), 0, "{policy:?}");
        let offered = bench.pending_of("one").into_iter().filter(|(id, idle, _)| ids.contains(id) && *idle >= 60_000);
        assert_eq!(offered.count(), 0, "{policy:?}: left, not released");
    });
}

#[test]
fn a_receiver_that_goes_away_acknowledges_nothing() {
    under_each_policy(|bench, consumer, policy| {
        let receiver = consumer.receiver().clone();
        drop(receiver.recv().unwrap().unwrap());
        drop(receiver);
        consumer.close().unwrap();
        assert_eq!(acknowledged(bench), 0, "{policy:?}");
    });
}

#[test]
fn a_delivery_taken_from_the_receiver_can_choose_otherwise() {
    let bench = Bench::start();
    let consumer = full(&bench, OnDrop::Leave);
    drop(consumer.receiver().recv().unwrap().unwrap().on_drop(OnDrop::Ack));
    consumer.close().unwrap();
    assert_eq!(acknowledged(&bench), 1);
}

#[test]
fn a_panic_in_the_handler_acknowledges_nothing_even_under_ack() {
    let bench = Bench::start();
    bench.publish(2);
    let consumer = bench.consumer("one").on_drop(OnDrop::Ack).spawn().unwrap();
    let handler = thread::spawn(move || {
        for delivery in &consumer {
            let delivery = delivery.unwrap();
            assert_ne!(delivery.text().unwrap(), "1", "the handler's own panic");
        }
    });
    assert!(handler.join().is_err());
    let pending = bench.pending_of("one");
    assert!(matches!(pending[..], [(_, _, 1)]), "the first was dropped and acknowledged, the second not: {pending:?}");
}

#[test]
fn what_nobody_asked_for_is_offered_to_others_at_once() {
    let bench = Bench::start();
    let consumer = full(&bench, OnDrop::Ack);
    let held = next(&consumer);
    drop(consumer);
    let other = bench.consumer("other").spawn().unwrap();
    let came: Vec<_> = (0..ENTRIES - 1).map(|_| next(&other)).collect();
    assert!(came.iter().all(|delivery| delivery.id() != held.id()));
    assert!(other.stats().claimed >= 8, "{:?}", other.stats());
    assert!(came.iter().all(|delivery| delivery.delivery_count() == 1), "no handler had them before");
    let ids = bench.server.command(&["XPENDING", &bench.key, GROUP, "-", "+", "1000", "one"]);
    assert_eq!(ids.array().len(), 1, "the one that is held");
    held.leave();
    came.into_iter().for_each(|delivery| delivery.ack().unwrap());
}
