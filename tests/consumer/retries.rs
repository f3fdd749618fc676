//! Another chance: `release`, `retry_after`, and entries that are left.

use crate::support::{Bench, assert_nothing_comes, next, number, random};
use std::time::{Duration, Instant};
use step_redis::Error;

const IDLE: Duration = Duration::from_secs(2);

#[test]
fn a_released_entry_comes_again_at_once_to_the_same_consumer() {
    let bench = Bench::start();
    bench.publish(1);
    let consumer = bench.claiming("one", IDLE).spawn().unwrap();
    let released = Instant::now();
    next(&consumer).release().unwrap();
    let again = next(&consumer);
    assert!(released.elapsed() < IDLE, "{:?}", released.elapsed());
    assert_eq!((number(&again), again.delivery_count()), (0, 2));
    again.ack().unwrap();
    let stats = consumer.close().unwrap();
    assert_eq!((stats.released, stats.claimed, stats.acked), (1, 1, 1));
}

#[test]
fn a_released_entry_comes_to_another_consumer() {
    let bench = Bench::start();
    bench.publish(1);
    let one = bench.claiming("one", IDLE).claim(false).spawn().unwrap();
    let delivery = next(&one);
    let other = bench.claiming("other", IDLE).spawn().unwrap();
    delivery.release().unwrap();
    assert_eq!(next(&other).delivery_count(), 2);
}

#[test]
fn an_entry_to_retry_comes_after_its_delay_and_not_before() {
    let bench = Bench::start();
    bench.publish(1);
    let consumer = bench.claiming("one", IDLE).spawn().unwrap();
    let delay = Duration::from_millis(700);
    let delivery = next(&consumer);
    let given_back = Instant::now();
    delivery.retry_after(delay).unwrap();
    let again = next(&consumer);
    let took = given_back.elapsed();
    // The server and the test count milliseconds from slightly different moments.
    assert!(took >= delay - Duration::from_millis(5), "{took:?}");
    // It is looked for every quarter of `claim_idle`.
    assert!(took < delay + IDLE, "{took:?}");
    assert_eq!((number(&again), again.delivery_count()), (0, 2));
    again.ack().unwrap();
}

#[test]
fn the_server_keeps_the_delay_across_a_restart_of_the_consumer() {
    let bench = Bench::start();
    bench.publish(1);
    let consumer = bench.claiming("one", IDLE).spawn().unwrap();
    let delivery = next(&consumer);
    let given_back = Instant::now();
    delivery.retry_after(IDLE / 2).unwrap();
    drop(consumer);
    let other = bench.claiming("other", IDLE).spawn().unwrap();
    let again = next(&other);
    assert!(given_back.elapsed() >= IDLE / 2 - Duration::from_millis(5), "{:?}", given_back.elapsed());
    again.ack().unwrap();
}

#[test]
fn a_delay_longer_than_the_server_can_keep_is_refused_and_the_entry_comes_again() {
    let bench = Bench::start();
    bench.publish(1);
    let idle = Duration::from_millis(300);
    let consumer = bench.claiming("one", idle).spawn().unwrap();
    let error = next(&consumer).retry_after(idle * 2).unwrap_err();
    assert!(matches!(error, Error::Params { ref field, .. } if field == "delay"), "{error:?}");
    assert_eq!(next(&consumer).delivery_count(), 2);
}

#[test]
fn an_entry_that_is_left_comes_again_after_claim_idle() {
    let bench = Bench::start();
    bench.publish(1);
    let idle = Duration::from_millis(600);
    let consumer = bench.claiming("one", idle).spawn().unwrap();
    let delivery = next(&consumer);
    let left = Instant::now();
    drop(delivery);
    assert_nothing_comes(&consumer, idle / 4);
    let again = next(&consumer);
    assert_eq!(again.delivery_count(), 2);
    assert!(left.elapsed() >= idle / 2, "{:?}", left.elapsed());
    again.ack().unwrap();
    assert_eq!(consumer.close().unwrap().released, 0);
}

#[test]
fn giving_back_wins_over_a_lease_that_is_being_renewed() {
    let bench = Bench::start();
    // So many leases, and so short ones, that they are renewed all the time.
    const ENTRIES: usize = 4_000;
    let idle = Duration::from_millis(60);
    let consumer = bench.claiming("one", idle).claim(false).prefetch(ENTRIES).spawn().unwrap();
    bench.fill(ENTRIES, 1);
    let mut held: Vec<_> = (0..ENTRIES).map(|_| next(&consumer)).collect();
    for round in 0..500 {
        let delivery = held.swap_remove(random(held.len() as u64) as usize);
        let id = delivery.id().to_string();
        std::thread::sleep(Duration::from_micros(random(10_000)));
        delivery.release().unwrap();
        // A renewal that was under way has ended by then.
        std::thread::sleep(Duration::from_millis(5));
        let pending = bench.server.command(&["XPENDING", &bench.key, "group", &id, &id, "1"]);
        let idle = pending.array()[0].array()[2].int();
        assert!(idle >= 60, "round {round}: idle for {idle} ms");
    }
}
