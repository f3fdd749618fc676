//! The ways to take deliveries, and how each ends.

use crate::support::{Bench, LONG, assert_nothing_comes, number};
use std::thread;
use std::time::{Duration, Instant};
use step_redis::crossbeam_channel::{after, select};

fn bench_with(count: usize) -> Bench {
    let bench = Bench::start();
    bench.publish(count);
    bench
}

#[test]
fn iter_waits_for_entries_and_ends_with_a_stop() {
    let bench = bench_with(3);
    let consumer = bench.consumer("one").spawn().unwrap();
    let numbers: Vec<_> = consumer.iter().take(3).map(|delivery| number(&delivery.unwrap())).collect();
    assert_eq!(numbers, [0, 1, 2]);
    let handle = consumer.stop_handle();
    let stopping = thread::spawn(move || {
        thread::sleep(Duration::from_millis(30));
        handle.stop();
    });
    let mut iterator = consumer.iter();
    assert!(iterator.next().is_none());
    assert!(iterator.next().is_none(), "fused");
    assert!(consumer.iter().next().is_none(), "and so is every other");
    stopping.join().unwrap();
}

#[test]
fn the_loop_works_on_the_consumer_and_on_a_reference() {
    let bench = bench_with(6);
    let consumer = bench.consumer("one").spawn().unwrap();
    let mut numbers = Vec::new();
    for delivery in &consumer {
        let delivery = delivery.unwrap();
        numbers.push(number(&delivery));
        delivery.ack().unwrap();
        if numbers.len() == 3 {
            break;
        }
    }
    let handle = consumer.stop_handle();
    for delivery in consumer {
        let delivery = delivery.unwrap();
        numbers.push(number(&delivery));
        delivery.ack().unwrap();
        if numbers.len() == 6 {
            handle.stop();
        }
    }
    assert_eq!(numbers, (0..6).collect::<Vec<_>>());
    assert_eq!(bench.pending(), 0, "the end of the loop has closed the consumer");
}

#[test]
fn try_iter_takes_what_is_there_without_waiting() {
    let bench = bench_with(5);
    let consumer = bench.consumer("one").spawn().unwrap();
    bench.server.wait_until(|_| consumer.stats().queued == 5);
    let started = Instant::now();
    assert_eq!(consumer.try_iter().map(|delivery| delivery.unwrap().leave()).count(), 5);
    assert!(consumer.try_iter().next().is_none());
    assert!(started.elapsed() < Duration::from_millis(500));
    let mut iterator = consumer.try_iter();
    assert!(iterator.next().is_none());
    bench.publish(1);
    bench.server.wait_until(|_| consumer.stats().queued == 1);
    assert!(iterator.next().is_some(), "nothing now is not the end");
}

#[test]
fn timeout_iter_waits_for_its_limit() {
    let bench = bench_with(0);
    let consumer = bench.consumer("one").spawn().unwrap();
    let limit = Duration::from_millis(100);
    let mut iterator = consumer.timeout_iter(limit);
    let started = Instant::now();
    assert!(iterator.next().is_none());
    assert!((limit..limit * 5).contains(&started.elapsed()), "{:?}", started.elapsed());
    bench.publish(1);
    bench.server.wait_until(|_| consumer.stats().queued == 1);
    assert!(iterator.next().is_some(), "nothing in time is not the end");
    consumer.stop_handle().stop();
    let started = Instant::now();
    assert!(consumer.timeout_iter(LONG).next().is_none());
    assert!(started.elapsed() < LONG / 4, "the end is noticed at once");
}

#[test]
fn the_receiver_works_in_select_with_several_consumers() {
    let bench = bench_with(10);
    let other = Bench::on(crate::common::Server::start());
    other.publish(10);
    let (left, right) = (bench.consumer("one").spawn().unwrap(), other.consumer("one").spawn().unwrap());
    let deadline = after(LONG);
    let mut counts = [0, 0];
    while counts != [10, 10] {
        let (side, delivery) = select! {
            recv(left.receiver()) -> delivery => (0, delivery),
            recv(right.receiver()) -> delivery => (1, delivery),
            recv(deadline) -> _ => panic!("{counts:?}"),
        };
        delivery.unwrap().unwrap().ack().unwrap();
        counts[side] += 1;
    }
    left.stop_handle().stop();
    select! {
        recv(left.receiver()) -> end => assert!(end.is_err(), "a stop ends the channel"),
        recv(deadline) -> _ => panic!("the channel does not end"),
    }
    assert_eq!((left.close().unwrap().acked, right.close().unwrap().acked), (10, 10));
}

#[test]
fn workers_that_share_the_receiver_get_each_delivery_once() {
    const ENTRIES: usize = 2_000;
    let bench = bench_with(ENTRIES);
    let consumer = bench.consumer("one").spawn().unwrap();
    let work = |_| {
        let (receiver, handle) = (consumer.receiver().clone(), consumer.stop_handle());
        thread::spawn(move || {
            let mut numbers = Vec::new();
            for delivery in &receiver {
                let delivery = delivery.unwrap();
                numbers.push(number(&delivery));
                if number(&delivery) == ENTRIES - 1 {
                    handle.stop();
                }
                delivery.ack().unwrap();
            }
            numbers
        })
    };
    let workers: Vec<_> = (0..4).map(work).collect();
    let mut numbers: Vec<_> = workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..ENTRIES).collect::<Vec<_>>());
    assert_eq!(consumer.close().unwrap().acked as usize, ENTRIES);
}

#[test]
fn entries_keep_their_order_through_batches_and_a_full_channel() {
    let bench = bench_with(3_000);
    let consumer = bench.consumer("one").prefetch(50).batch(20).spawn().unwrap();
    assert_eq!(crate::support::take(&consumer, 3_000), (0..3_000).collect::<Vec<_>>());
    assert_nothing_comes(&consumer, Duration::from_millis(20));
}
