//! Entries that had their chances: where they go, what goes with them, and how they come back.

use crate::common::Server;
use crate::support::{Bench, assert_nothing_comes, next, number, take};
use std::time::Duration;
use step_redis::{Error, Message, OnDrop};

const IDLE: Duration = Duration::from_millis(300);

#[test]
fn poison_is_handled_exactly_max_deliveries_times_and_then_buried() {
    const ENTRIES: usize = 200;
    const DELIVERIES: u64 = 3;
    let bench = Bench::start();
    bench.publish(ENTRIES);
    let start = |name| {
        let builder = bench.claiming(name, IDLE).max_deliveries(DELIVERIES).dead_letter(bench.dead());
        builder.on_drop(OnDrop::Release).spawn().unwrap()
    };
    let consumers = [start("a"), start("b"), start("c")];
    let is_poison = |number: usize| number % 10 == 3;
    let (notes, noted) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        for consumer in &consumers {
            let notes = notes.clone();
            scope.spawn(move || {
                for delivery in consumer {
                    let delivery = delivery.unwrap();
                    notes.send((number(&delivery), delivery.delivery_count())).unwrap();
                    if !is_poison(number(&delivery)) {
                        delivery.ack().unwrap();
                    }
                }
            });
        }
        bench.stream.create_input_stream(&bench.input()).unwrap();
        bench.server.wait_until(|_| bench.delivered().1 && bench.pending() == 0);
        consumers.iter().for_each(|consumer| consumer.stop_handle().stop());
    });
    drop(notes);
    let mut handled: Vec<_> = noted.iter().collect();
    handled.sort_unstable();
    let counts = |number| if is_poison(number) { 1..=DELIVERIES } else { 1..=1 };
    let expected: Vec<_> = (0..ENTRIES).flat_map(|number| counts(number).map(move |count| (number, count))).collect();
    assert_eq!(handled, expected);

    let dead = bench.stream.dead_letters(&bench.dead(), 1_000).unwrap();
    assert_eq!(dead.len(), ENTRIES / 10);
    assert!(dead.iter().all(|letter| letter.deliveries() == DELIVERIES && letter.reason() == "delivered 3 times"));
    let buried: u64 = consumers.iter().map(|consumer| consumer.stats().dead_lettered).sum();
    assert_eq!(buried as usize, ENTRIES / 10);
}

#[test]
fn poison_is_buried_at_a_restart_and_what_no_handler_saw_is_not() {
    let bench = Bench::start();
    bench.publish(3);
    let start = || bench.consumer("one").max_deliveries(2).dead_letter(bench.dead()).spawn().unwrap();
    let consumer = start();
    assert_eq!(number(&next(&consumer)), 0);
    bench.server.wait_until(|_| consumer.stats().received == 3);
    drop(consumer);
    // The first has only one chance left, and comes when no other waits.
    let consumer = start();
    let left = [next(&consumer), next(&consumer), next(&consumer)].map(|left| (number(&left), left.delivery_count()));
    assert_eq!(left, [(1, 1), (2, 1), (0, 2)]);
    drop(consumer);
    let consumer = start();
    for expected in [1, 2] {
        let delivery = next(&consumer);
        assert_eq!((number(&delivery), delivery.delivery_count()), (expected, 2));
        delivery.ack().unwrap();
    }
    bench.server.wait_until(|_| consumer.stats().dead_lettered == 1 && bench.pending() == 0);
    assert_nothing_comes(&consumer, Duration::from_millis(50));
}

#[test]
fn a_dead_letter_tells_where_it_came_from_and_why() {
    let bench = Bench::start();
    let message = Message::new().field("kind", "order").field("message", "broken").field("kind", "again");
    let id = bench.stream.publish(&bench.output(), message).unwrap();
    let consumer = bench.consumer("one").dead_letter(bench.dead().ttl(Duration::from_secs(100))).spawn().unwrap();
    next(&consumer).dead_letter("cannot be read").unwrap();
    assert_eq!(bench.pending(), 0);

    let dead = bench.stream.dead_letters(&bench.dead(), 10).unwrap();
    let [letter] = &dead[..] else { panic!("{dead:?}") };
    assert_eq!((letter.stream_id(), letter.group(), letter.consumer()), (bench.key.as_str(), "group", "one"));
    assert_eq!((letter.origin_id(), letter.deliveries(), letter.reason()), (id, 1, "cannot be read"));
    let fields: Vec<_> = letter.fields().collect();
    assert_eq!(fields, [(&b"kind"[..], &b"order"[..]), (b"message", b"broken"), (b"kind", b"again")]);
    assert!(bench.server.command(&["PTTL", bench.dead().stream_id()]).int() > 0);
    let stats = consumer.close().unwrap();
    assert_eq!((stats.dead_lettered, stats.acked, stats.in_flight), (1, 0, 0));
}

#[test]
fn a_requeued_dead_letter_comes_as_a_new_entry_and_only_once() {
    let bench = Bench::start();
    bench.publish(1);
    let consumer = bench.consumer("one").dead_letter(bench.dead()).spawn().unwrap();
    next(&consumer).dead_letter("not now").unwrap();
    let letter = bench.stream.dead_letters(&bench.dead(), 10).unwrap().remove(0);
    let id = bench.stream.requeue(&bench.dead(), &letter).unwrap();
    let again = next(&consumer);
    assert_eq!((again.id(), number(&again), again.delivery_count()), (id, 0, 1));
    assert_eq!(again.fields().count(), 1, "the origin's fields stay behind");
    again.ack().unwrap();
    assert!(bench.stream.dead_letters(&bench.dead(), 10).unwrap().is_empty());
    let error = bench.stream.requeue(&bench.dead(), &letter).unwrap_err();
    assert!(matches!(error, Error::NoSuchEntry { .. }), "{error:?}");
    assert_nothing_comes(&consumer, Duration::from_millis(50));
}

#[test]
fn without_a_dead_letter_stream_the_entry_stays_pending() {
    let bench = Bench::start();
    bench.publish(1);
    let consumer = bench.consumer("one").spawn().unwrap();
    let error = next(&consumer).dead_letter("nowhere to go").unwrap_err();
    assert!(matches!(error, Error::Params { ref field, .. } if field == "dead_letter"), "{error:?}");
    assert_eq!(bench.pending(), 1);
}

#[test]
fn poison_that_cannot_be_buried_now_is_buried_later_and_holds_up_nothing() {
    let bench = Bench::on(Server::builder().config("maxmemory-policy", "noeviction").start());
    bench.publish(2);
    // Two entries of a consumer that is gone, of which one had its chances.
    bench.stream.create_input_stream(&bench.input()).unwrap();
    bench.server.command(&["XREADGROUP", "GROUP", "group", "gone", "STREAMS", &bench.key, ">"]);
    let poison = bench.pending_of("gone")[0].0.clone();
    bench.server.command(&["XCLAIM", &bench.key, "group", "gone", "0", &poison, "RETRYCOUNT", "5", "JUSTID"]);

    let consumer = bench.claiming("one", IDLE).max_deliveries(3).dead_letter(bench.dead()).spawn().unwrap();
    bench.server.command(&["CONFIG", "SET", "maxmemory", "1"]);
    assert_eq!(take(&consumer, 1), [1], "the other one comes all the same");
    let reconnects = consumer.stats().reconnects;
    assert_nothing_comes(&consumer, 3 * IDLE);
    assert!(consumer.stats().reconnects < reconnects + 10, "no hot loop");
    bench.server.command(&["CONFIG", "SET", "maxmemory", "0"]);
    bench.server.wait_until(|_| consumer.stats().dead_lettered == 1);
    bench.server.wait_until(|_| bench.pending() == 0);
    assert_eq!(bench.stream.dead_letters(&bench.dead(), 10).unwrap().len(), 1);
}

#[test]
fn a_dead_letter_stream_of_the_wrong_type_ends_the_loop_and_nothing_is_lost() {
    let bench = Bench::start();
    bench.publish(1);
    bench.server.command(&["SET", bench.dead().stream_id(), "text"]);
    let first = bench.consumer("one").spawn().unwrap();
    next(&first).leave();
    drop(first);
    let consumer = bench.consumer("one").max_deliveries(1).dead_letter(bench.dead()).spawn().unwrap();
    let error = consumer.iter().next().unwrap().unwrap_err();
    assert!(error.is_wrong_type(), "{error:?}");
    assert!(consumer.iter().next().is_none());
    assert_eq!(bench.pending(), 1);
}
