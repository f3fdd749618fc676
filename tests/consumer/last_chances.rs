//! Entries that have only one hand-out left: each is marked for it when a handler takes it, and not before.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Barrier;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use step_redis::Consumer;

use crate::common::wait_until;
use crate::support::{Bench, GROUP, LONG, next};

/// How long a handler may keep an entry that it has for the last time before another one like it is handed out.
const LONGEST_LAST_CHANCE: Duration = Duration::from_secs(1);

fn spawn(bench: &Bench, limit: u64) -> Consumer {
    bench
        .stream
        .consumer(bench.input().consumer("one"))
        .max_deliveries(limit)
        .dead_letter(bench.dead())
        .spawn()
        .unwrap()
}

/// How many entries this consumer has for the last of three hand-outs, as the server sees it.
fn marked(bench: &Bench) -> usize {
    bench.pending_of("one").iter().filter(|(.., count)| *count == 3).count()
}

#[test]
fn one_at_a_time_is_marked_although_other_workers_are_free() {
    const ENTRIES: usize = 4;
    let bench = Bench::start();
    bench.server.leave_behind(&bench.key, GROUP, &[2; ENTRIES]);
    let consumer = spawn(&bench, 3);
    let (handed_out, deliveries) = channel();
    thread::scope(|scope| {
        for _ in 0..2 {
            let (consumer, handed_out) = (&consumer, handed_out.clone());
            scope.spawn(move || {
                for delivery in consumer {
                    let delivery = delivery.unwrap();
                    assert_eq!(delivery.delivery_count(), 3);
                    let (done, is_done) = channel::<()>();
                    // Until the test lets go of it, or has failed.
                    let _ = handed_out.send((Instant::now(), done));
                    is_done.recv().unwrap_err();
                    delivery.ack().unwrap();
                }
            });
        }
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let (_, first) = deliveries.recv_timeout(LONG).unwrap();
            let held = Instant::now();
            while held.elapsed() < LONGEST_LAST_CHANCE / 2 {
                assert!(marked(&bench) <= 1, "two were marked at a time");
            }
            // When it is done, the next one comes.
            drop(first);
            let (second_at, second) = deliveries.recv_timeout(LONG).unwrap();
            let (third_at, third) = deliveries.recv_timeout(LONG).unwrap();
            let waited = third_at - second_at;
            assert!(waited >= LONGEST_LAST_CHANCE * 9 / 10, "not waited for: {waited:?}");
            drop((second, third));
            drop(deliveries.recv_timeout(LONG).unwrap());
            bench.server.wait_until(|_| bench.pending() == 0);
        }));
        // The workers end even if this is not to be.
        drop(deliveries);
        consumer.stop_handle().stop();
        outcome.unwrap_or_else(|panic| resume_unwind(panic));
    });
    assert_eq!(consumer.close().unwrap().dead_lettered, 0);
}

#[test]
fn none_is_marked_before_a_busy_worker_asks_again() {
    const LOOKS: u64 = 8;
    let bench = Bench::start();
    let consumer = spawn(&bench, 3);
    bench.publish(1);
    let ordinary = next(&consumer);
    bench.server.leave_behind(&bench.key, GROUP, &[2; 2]);
    // The keeper finds them, and looks again when the reader has taken note.
    let looks = || bench.calls("xinfo") + bench.calls("xinfo|groups");
    let before = looks();
    wait_until(LONG, || {
        assert_eq!(marked(&bench), 0);
        looks() >= before + LOOKS
    });
    let last = next(&consumer);
    assert_eq!((last.delivery_count(), marked(&bench)), (3, 1));
    ordinary.ack().unwrap();
    last.ack().unwrap();
    next(&consumer).ack().unwrap();
    bench.server.wait_until(|_| bench.pending() == 0);
    assert_eq!(consumer.close().unwrap().dead_lettered, 0);
}

#[test]
fn where_each_entry_has_one_chance_workers_run_in_parallel() {
    const WORKERS: usize = 12;
    const ROUNDS: usize = 4;
    let bench = Bench::start();
    let consumer = spawn(&bench, 1);
    bench.publish(WORKERS * ROUNDS);
    let all_at_work = Barrier::new(WORKERS);
    let (done, ended) = channel();
    let started = Instant::now();
    thread::scope(|scope| {
        for _ in 0..WORKERS {
            let (consumer, all_at_work, done) = (&consumer, &all_at_work, done.clone());
            scope.spawn(move || {
                for delivery in consumer.iter().take(ROUNDS) {
                    all_at_work.wait();
                    delivery.unwrap().ack().unwrap();
                }
                done.send(()).unwrap();
            });
        }
        (0..WORKERS).for_each(|_| ended.recv_timeout(6 * LONG).unwrap());
    });
    // If each had to wait for the one before, or for a second instead, it would take twice as long.
    assert!(started.elapsed() < LONG, "{:?}", started.elapsed());
    assert_eq!(consumer.close().unwrap().dead_lettered, 0);
    assert_eq!(bench.pending(), 0);
}

#[test]
fn whoever_collects_from_the_receiver_gets_the_next_one_before_the_first_is_done() {
    let bench = Bench::start();
    bench.server.leave_behind(&bench.key, GROUP, &[2; 2]);
    let consumer = spawn(&bench, 3);
    let receiver = consumer.receiver();
    let collected: Vec<_> = (0..2).map(|_| receiver.recv_timeout(LONG).expect("it comes").unwrap()).collect();
    assert!(collected.iter().all(|delivery| delivery.delivery_count() == 3));
    collected.into_iter().for_each(|delivery| delivery.ack().unwrap());
    bench.server.wait_until(|_| bench.pending() == 0);
    assert_eq!(consumer.close().unwrap().dead_lettered, 0);
}
