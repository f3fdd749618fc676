//! A stream with a lifetime lives as long as it is in use.

use crate::support::{Bench, every_bench, next};
use std::thread;
use std::time::{Duration, Instant};

const TTL: Duration = Duration::from_secs(1);

fn lifetime(bench: &Bench) -> i64 {
    bench.server.command(&["PTTL", &bench.key]).int()
}

/// That it never comes near its end for this long.
fn assert_alive(bench: &Bench, during: Duration) {
    let started = Instant::now();
    while started.elapsed() < during {
        let left = lifetime(bench);
        assert!(left > 0, "after {:?}: {left}", started.elapsed());
        assert!(left <= TTL.as_millis() as i64);
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_stream_does_not_expire_while_a_consumer_waits_and_does_after_it_has_closed() {
    for claim in [true, false] {
        let bench = Bench::start();
        let input = bench.input().ttl(TTL).wait_timeout(Duration::from_secs(30));
        let consumer = bench.stream.consumer(input).claim(claim).spawn().unwrap();
        assert_alive(&bench, 3 * TTL);
        assert_eq!(consumer.close().unwrap().groups_recreated, 0);
        bench.server.wait_until(|_| lifetime(&bench) == -2);
    }
}

#[test]
fn a_stream_does_not_expire_under_a_slow_handler() {
    let bench = Bench::start();
    bench.publish(50);
    let input = bench.input().ttl(TTL);
    // The reader waits for room in the channel all the time and asks for nothing.
    let consumer = bench.stream.consumer(input).prefetch(1).batch(1).claim(false).spawn().unwrap();
    let delivery = next(&consumer);
    assert_alive(&bench, 3 * TTL);
    delivery.ack().unwrap();
    consumer.close().unwrap();
    bench.server.wait_until(|_| lifetime(&bench) == -2);
}

#[test]
fn a_reader_and_a_publisher_only_ever_make_a_lifetime_longer() {
    const LONGER: Duration = Duration::from_secs(1_000);
    const AT_LEAST: i64 = 900_000;
    for scripts in [true, false] {
        for bench in every_bench() {
            if !scripts {
                bench.server.command(&["ACL", "SETUSER", "default", "-eval", "-evalsha"]);
            }
            let publish = |ttl: Duration| bench.stream.publish(&bench.output().ttl(ttl), "0").unwrap();
            publish(LONGER);
            // Making the group, reading, waiting, and the keeper's turn every third of the lifetime.
            let input = bench.input().ttl(TTL);
            bench.stream.create_input_stream(&input).unwrap();
            let consumer = bench.stream.consumer(input.clone().consumer("one")).spawn().unwrap();
            let delivery = next(&consumer);
            let refreshed = bench.calls(if scripts { "eval" } else { "pttl" });
            bench.server.wait_until(|_| bench.calls(if scripts { "eval" } else { "pttl" }) >= refreshed + 4);
            delivery.ack().unwrap();
            publish(TTL);
            next(&consumer).ack().unwrap();
            consumer.close().unwrap();
            assert!(bench.stream.receive(&input.wait_timeout(Duration::ZERO)).unwrap().is_none());
            assert!(lifetime(&bench) > AT_LEAST, "scripts: {scripts}: {}", lifetime(&bench));
            // Who says so expressly may make it shorter.
            assert!(bench.stream.update_stream_ttl(&bench.key, 10 * TTL).unwrap());
            assert!(lifetime(&bench) <= 10_000);
            publish(LONGER);
            assert!(lifetime(&bench) > AT_LEAST);
        }
    }
}

#[test]
fn the_first_who_names_a_lifetime_sets_it() {
    let bench = Bench::start();
    bench.publish(1);
    assert_eq!(lifetime(&bench), -1);
    bench.stream.create_input_stream(&bench.input().ttl(100 * TTL)).unwrap();
    let left = lifetime(&bench);
    assert!((1..=100_000).contains(&left), "{left}");
}

#[test]
fn without_a_ttl_no_lifetime_is_set() {
    let bench = Bench::start();
    let consumer = bench.consumer("one").spawn().unwrap();
    bench.publish(1);
    next(&consumer).ack().unwrap();
    consumer.close().unwrap();
    assert_eq!(lifetime(&bench), -1);
}

#[test]
fn a_user_who_may_run_no_scripts_keeps_the_stream_alive_too() {
    let bench = Bench::start();
    bench.server.command(&["ACL", "SETUSER", "default", "-eval", "-evalsha"]);
    let input = bench.input().ttl(TTL);
    let consumer = bench.stream.consumer(input).spawn().unwrap();
    bench.publish(1);
    let delivery = next(&consumer);
    assert_alive(&bench, 2 * TTL);
    delivery.ack().unwrap();
    // What needs scripts and fails does not hold up the acknowledgements.
    let acked = Instant::now();
    bench.server.wait_until(|_| bench.pending() == 0);
    assert!(acked.elapsed() < Duration::from_millis(500), "{:?}", acked.elapsed());
}
