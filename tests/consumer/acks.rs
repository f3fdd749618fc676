//! Acknowledgements: when they reach the server, and what they survive.

use crate::common::Server;
use crate::support::{Bench, LONG, distinct, next, number, random};
use std::thread;
use std::time::{Duration, Instant};
use step_redis::AckMode;

/// A reader that blocks for long: it takes no acknowledgement along for 30 s.
fn quiet(bench: &Bench) -> step_redis::ConsumerBuilder {
    bench.stream.consumer(bench.input().consumer("one").wait_timeout(Duration::from_secs(30))).claim(false)
}

#[test]
fn queued_acknowledgements_reach_the_server_within_tens_of_milliseconds_when_idle() {
    const TRIALS: usize = 21;
    let bench = Bench::start();
    let consumer = quiet(&bench).spawn().unwrap();
    let trial = |_| {
        bench.publish(1);
        let delivery = next(&consumer);
        bench.wait_until_blocked();
        let acked = Instant::now();
        delivery.ack().unwrap();
        while bench.pending() > 0 {
            assert!(acked.elapsed() < LONG);
        }
        acked.elapsed()
    };
    let mut times: Vec<_> = (0..TRIALS).map(trial).collect();
    times.sort_unstable();
    assert!(times[TRIALS / 2] < Duration::from_millis(50), "{times:?}");
}

#[test]
fn a_full_queue_is_sent_without_waiting_for_its_delay() {
    let bench = Bench::start();
    bench.publish(10);
    let consumer = quiet(&bench).ack_mode(AckMode::Queued { max: 10, delay: LONG * 10 }).spawn().unwrap();
    let deliveries: Vec<_> = (0..10).map(|_| next(&consumer)).collect();
    bench.wait_until_blocked();
    deliveries.into_iter().for_each(|delivery| delivery.ack().unwrap());
    bench.server.wait_until(|_| bench.pending() == 0);
    assert_eq!(bench.calls("xack"), 1);
    bench.server.wait_until(|_| consumer.stats().acked == 10);
}

#[test]
fn a_full_queue_is_sent_although_the_reader_is_held_up_by_a_full_channel() {
    const MANY: &str = "for i=1,30 do redis.call('XADD',KEYS[1],'*','message',i) end";
    let bench = Bench::start();
    bench.publish(10);
    let mode = AckMode::Queued { max: 10, delay: LONG * 10 };
    let consumer = quiet(&bench).prefetch(10).batch(10).ack_mode(mode).spawn().unwrap();
    let deliveries: Vec<_> = (0..10).map(|_| next(&consumer)).collect();
    bench.wait_until_blocked();
    // All at once, so that one read comes back full, the next is sent ahead, and what it brings finds no room.
    bench.server.command(&["EVAL", MANY, "1", &bench.key]);
    bench.server.wait_until(|_| bench.pending() == 30);
    let acked = Instant::now();
    deliveries.into_iter().for_each(|delivery| delivery.ack().unwrap());
    bench.server.wait_until(|_| bench.pending() == 20);
    // Once a second the keeper looks around, whether it was called or not.
    assert!(acked.elapsed() < Duration::from_millis(500), "{:?}", acked.elapsed());
    assert_eq!(consumer.stats().queued, 10);
}

#[test]
fn a_full_queue_is_sent_although_the_reader_was_stopped_amid_full_batches() {
    const ENTRIES: usize = 20_000;
    let bench = Bench::start();
    bench.publish(ENTRIES);
    let mode = AckMode::Queued { max: 100, delay: LONG * 10 };
    let consumer = quiet(&bench).prefetch(ENTRIES).batch(10).ack_mode(mode).spawn().unwrap();
    let deliveries: Vec<_> = (0..100).map(|_| next(&consumer)).collect();
    consumer.stop_handle().stop();
    consumer.iter().for_each(|delivery| delivery.unwrap().leave());
    let pending = bench.pending();
    assert!(pending < ENTRIES, "it was to stop amid them");
    let acked = Instant::now();
    deliveries.into_iter().for_each(|delivery| delivery.ack().unwrap());
    bench.server.wait_until(|_| bench.pending() == pending - 100);
    // Once a second the keeper looks around, whether it was called or not.
    assert!(acked.elapsed() < Duration::from_millis(500), "{:?}", acked.elapsed());
}

#[test]
fn close_flushes_what_is_queued() {
    const ENTRIES: usize = 3_000;
    let bench = Bench::start();
    bench.publish(ENTRIES);
    let mode = AckMode::Queued { max: 100_000, delay: LONG * 10 };
    let consumer = quiet(&bench).prefetch(ENTRIES).ack_mode(mode).spawn().unwrap();
    let deliveries: Vec<_> = (0..ENTRIES).map(|_| next(&consumer)).collect();
    bench.wait_until_blocked();
    deliveries.into_iter().for_each(|delivery| delivery.ack().unwrap());
    assert_eq!(bench.pending(), ENTRIES);
    assert_eq!(consumer.close().unwrap().acked as usize, ENTRIES);
    assert_eq!(bench.pending(), 0);
}

#[test]
fn acknowledgements_go_on_from_other_threads_while_the_consumer_closes() {
    let bench = Bench::start();
    for round in 0..20 {
        bench.publish(200);
        let consumer = bench.stream.consumer(bench.input()).prefetch(200).spawn().unwrap();
        let deliveries: Vec<_> = (0..200).map(|_| next(&consumer)).collect();
        let acking = thread::spawn(|| {
            for delivery in deliveries {
                delivery.ack().unwrap();
                // So that some come before the close, some amid it, and some behind it.
                thread::sleep(Duration::from_micros(10));
            }
        });
        thread::sleep(Duration::from_micros(random(3_000)));
        consumer.close().unwrap();
        acking.join().unwrap();
        assert_eq!(bench.pending(), 0, "round {round}");
    }
}

#[test]
fn acknowledgements_survive_killed_connections() {
    const ENTRIES: usize = 2_000;
    let bench = Bench::start();
    bench.publish(ENTRIES);
    let consumer = bench.consumer("one").prefetch(32).batch(16).spawn().unwrap();
    let mut came = Vec::new();
    for index in 0..ENTRIES {
        let delivery = next(&consumer);
        came.push(number(&delivery));
        delivery.ack().unwrap();
        if index % 100 == 50 {
            bench.server.command(&["CLIENT", "KILL", "TYPE", "normal"]);
        }
    }
    let stats = consumer.close().unwrap();
    assert_eq!(came.len(), distinct(came).len(), "an entry that was in flight came again");
    assert_eq!((bench.pending(), stats.acked as usize), (0, ENTRIES));
    assert!(stats.reconnects >= 10, "{stats:?}");
}

#[test]
fn acknowledgements_wait_for_a_server_that_is_down() {
    let bench = Bench::on(Server::builder().append_only().start());
    bench.publish(20);
    let consumer = bench.consumer("one").spawn().unwrap();
    let deliveries: Vec<_> = (0..20).map(|_| next(&consumer)).collect();
    bench.server.kill();
    let acking = Instant::now();
    deliveries.into_iter().for_each(|delivery| delivery.ack().unwrap());
    assert!(acking.elapsed() < Duration::from_secs(1), "a queued ack waits for nothing");
    bench.server.restart();
    bench.server.wait_until(|_| bench.pending() == 0);
    bench.publish(1);
    next(&consumer).ack().unwrap();
    let stats = consumer.close().unwrap();
    assert_eq!((stats.received, stats.acked, stats.in_flight), (21, 21, 0));
}

#[test]
fn acknowledgements_that_broke_off_with_the_reader_do_not_wait_for_the_next_entry() {
    let bench = Bench::start();
    for _ in 0..20 {
        bench.publish(1);
        let consumer = quiet(&bench).spawn().unwrap();
        let delivery = next(&consumer);
        bench.wait_until_blocked();
        delivery.ack().unwrap();
        bench.server.command(&["CLIENT", "KILL", "TYPE", "normal"]);
        bench.server.wait_until(|_| bench.pending() == 0);
    }
}

#[test]
fn a_confirmed_ack_is_done_when_it_returns() {
    let bench = Bench::start();
    bench.publish(50);
    let consumer = quiet(&bench).ack_mode(AckMode::Confirmed).spawn().unwrap();
    let deliveries: Vec<_> = (0..50).map(|_| next(&consumer)).collect();
    for (index, delivery) in deliveries.into_iter().enumerate() {
        delivery.ack().unwrap();
        assert_eq!((bench.pending(), consumer.stats().acked as usize), (49 - index, index + 1));
    }
    assert_eq!(consumer.stats().in_flight, 0);
}

#[test]
fn a_confirmed_ack_that_fails_says_so_and_the_entry_comes_again() {
    let bench = Bench::start();
    bench.publish(1);
    let consumer = bench.claiming("one", Duration::from_millis(200)).ack_mode(AckMode::Confirmed).spawn().unwrap();
    let delivery = next(&consumer);
    bench.server.command(&["ACL", "SETUSER", "default", "-xack"]);
    assert_eq!(delivery.ack().unwrap_err().code(), Some("NOPERM"));
    let again = next(&consumer);
    assert!(again.delivery_count() >= 2);
    bench.server.command(&["ACL", "SETUSER", "default", "+xack"]);
    again.ack().unwrap();
    assert_eq!(bench.pending(), 0);
}

#[test]
fn a_delivery_that_outlives_its_consumer_acks_through_the_pool() {
    for mode in [AckMode::default(), AckMode::Confirmed] {
        let bench = Bench::start();
        bench.publish(2);
        let consumer = bench.consumer("one").ack_mode(mode).spawn().unwrap();
        let (first, second) = (next(&consumer), next(&consumer));
        consumer.close().unwrap();
        assert_eq!(bench.pending(), 2);
        first.ack().unwrap();
        assert_eq!(bench.pending(), 1);
        second.release().unwrap();
        assert!(bench.pending_of("one")[0].1 >= 60_000);
    }
}

#[test]
fn a_server_that_refuses_acknowledgements_holds_up_neither_leases_nor_entries() {
    let bench = Bench::start();
    let idle = Duration::from_millis(500);
    bench.publish(2);
    let consumer = bench.claiming("one", idle).claim(false).spawn().unwrap();
    let held = next(&consumer);
    bench.server.command(&["ACL", "SETUSER", "default", "-xack"]);
    next(&consumer).ack().unwrap();
    let other = bench.claiming("other", idle).spawn().unwrap();
    crate::support::assert_nothing_comes(&other, 3 * idle);
    bench.server.command(&["ACL", "SETUSER", "default", "+xack"]);
    held.ack().unwrap();
    bench.server.wait_until(|_| bench.pending() == 0);
}
