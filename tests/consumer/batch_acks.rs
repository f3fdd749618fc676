//! Acknowledging many at once: what could not be acknowledged is nobody's loss.

use crate::support::{Bench, GROUP, next, number};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;
use step_redis::{AckMode, Consumer, Delivery, OnDrop, StreamInput, StreamOutput};

fn take(consumer: &Consumer, count: usize) -> Vec<Delivery> {
    (0..count).map(|_| next(consumer)).collect()
}

/// A second stream on the same server, with three entries.
fn other_input(bench: &Bench) -> StreamInput {
    let key = format!("{}:other", bench.key);
    bench.stream.publish_batch(&StreamOutput::new(key.as_str()), ["0", "1", "2"]).unwrap();
    StreamInput::new(key, GROUP).consumer("one")
}

/// Forbids clients to touch the bench's own stream.
fn forbid_stream(bench: &Bench) {
    bench.server.command(&["ACL", "SETUSER", "default", "resetkeys", "~*:other"]);
}

fn allow_all(bench: &Bench) {
    bench.server.command(&["ACL", "SETUSER", "default", "allkeys", "+@all"]);
}

#[test]
fn when_the_iterator_panics_what_it_has_yielded_is_dropped_like_any_other_delivery() {
    let bench = Bench::start();
    bench.publish(3);
    let consumer = bench.consumer("one").on_drop(OnDrop::Release).spawn().unwrap();
    let mut held = take(&consumer, 3).into_iter();
    let panicking = std::iter::from_fn(|| Some(held.next().filter(|delivery| number(delivery) < 2).expect("a panic")));
    let outcome = catch_unwind(AssertUnwindSafe(|| Delivery::ack_batch(panicking)));
    assert!(outcome.is_err());
    let again = take(&consumer, 3);
    assert!(again.iter().all(|delivery| delivery.delivery_count() == 2), "{again:?}");
    Delivery::ack_batch(again).unwrap();
    assert_eq!(consumer.close().unwrap().in_flight, 0);
    assert_eq!(bench.pending(), 0);
}

#[test]
fn when_the_iterator_panics_what_is_left_is_not_renewed_for_ever() {
    let bench = Bench::start();
    bench.publish(3);
    let consumer = bench.consumer("one").spawn().unwrap();
    let mut held = take(&consumer, 3).into_iter();
    let panicking = std::iter::from_fn(|| Some(held.next().filter(|delivery| number(delivery) < 2).expect("a panic")));
    assert!(catch_unwind(AssertUnwindSafe(|| Delivery::ack_batch(panicking))).is_err());
    assert_eq!((consumer.stats().in_flight, bench.pending()), (0, 3));
}

#[test]
fn a_refusal_for_one_group_keeps_the_others_from_nothing_and_leaves_its_own_to_be_claimed() {
    let bench = Bench::start();
    bench.publish(3);
    let refused = bench.claiming("one", Duration::from_secs(2)).ack_mode(AckMode::Confirmed).spawn().unwrap();
    let accepted = bench.stream.consumer(other_input(&bench)).ack_mode(AckMode::Confirmed).spawn().unwrap();
    let mut both = take(&refused, 3);
    both.extend(take(&accepted, 3));
    forbid_stream(&bench);
    let error = Delivery::ack_batch(both).unwrap_err();
    assert_eq!(error.code(), Some("NOPERM"));
    assert_eq!((refused.stats().in_flight, accepted.stats().in_flight), (0, 0), "nobody renews them");
    assert_eq!((refused.stats().acked, accepted.stats().acked), (0, 3));
    allow_all(&bench);
    assert_eq!(bench.pending(), 3);
}

#[test]
fn a_refusal_for_one_group_leaves_those_that_were_not_sent_to_be_claimed() {
    let bench = Bench::start();
    bench.publish(3);
    let refused = bench.consumer("one").ack_mode(AckMode::Confirmed).spawn().unwrap();
    let not_sent = bench.stream.consumer(other_input(&bench)).ack_mode(AckMode::Confirmed).spawn().unwrap();
    let mut done = take(&refused, 3);
    done.extend(take(&not_sent, 3));
    let input = StreamInput::new(format!("{}:third:other", bench.key), GROUP).wait_timeout(Duration::ZERO);
    bench.stream.create_input_stream(&input).unwrap();
    forbid_stream(&bench);
    let error = bench.stream.ack_and_receive_batch(done, &input, 10).unwrap_err();
    assert_eq!(error.code(), Some("NOPERM"));
    assert_eq!((refused.stats().in_flight, not_sent.stats().in_flight), (0, 0), "nobody renews them");
    allow_all(&bench);
    assert_eq!((bench.pending(), not_sent.stats().acked), (3, 0));
}

#[test]
fn entries_that_came_along_with_a_refused_ack_are_given_back_uncounted() {
    let bench = Bench::start();
    bench.publish(20);
    let input = bench.input().consumer("one");
    bench.stream.create_input_stream(&input).unwrap();
    let first = bench.stream.receive_batch(&input, 5).unwrap();
    bench.server.command(&["ACL", "SETUSER", "default", "-xack"]);
    let error = bench.stream.ack_and_receive_batch(first, &input, 5).unwrap_err();
    assert_eq!(error.code(), Some("NOPERM"));
    allow_all(&bench);
    let numbers = |batch: &[Delivery]| batch.iter().map(number).collect::<Vec<_>>();
    let given_back = bench.stream.claim(&input, Duration::from_secs(60), 20).unwrap();
    assert_eq!(numbers(&given_back), [5, 6, 7, 8, 9]);
    assert!(given_back.iter().all(|delivery| delivery.delivery_count() == 1), "{given_back:?}");
    Delivery::ack_batch(given_back).unwrap();
    assert_eq!(numbers(&bench.stream.receive_batch(&input, 20).unwrap()), (10..20).collect::<Vec<_>>());
}
