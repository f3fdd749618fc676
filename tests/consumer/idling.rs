//! What a consumer costs that has nothing to do: the commands it sends, and the threads it wakes. And that it is there at once
//! when there is something.

use crate::child::Child;
use crate::support::{Bench, GROUP, LONG, Way, every_way, next};
use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};
use step_redis::StreamInput;

fn reads(sent: &[String]) -> usize {
    sent.iter().filter(|command| command.to_ascii_uppercase().starts_with("\"XREADGROUP\"")).count()
}

#[test]
fn an_idle_consumer_sends_two_commands_a_second_at_most_and_waits_as_long_as_it_was_told() {
    thread::scope(|scope| {
        for way in every_way() {
            scope.spawn(move || {
                let bench = &way.bench;
                bench.publish(10);
                let consumer = way.stream().consumer(bench.input()).spawn().unwrap();
                (0..10).for_each(|_| next(&consumer).ack().unwrap());
                bench.server.wait_until(|_| consumer.stats().acked == 10);
                bench.wait_until_blocked();
                let sent = bench.sent_within(Duration::from_secs(10));
                assert!(sent.len() <= 20, "{}, {}: {:#?}", way.name, sent.len(), &sent[..sent.len().min(40)]);
                // One every 5 s.
                assert!(reads(&sent) <= 3, "{sent:#?}");
                consumer.close().unwrap();
            });
        }
    });
}

#[test]
fn a_longer_and_a_shorter_wait_timeout_is_obeyed() {
    thread::scope(|scope| {
        for (wait_timeout, expected) in [(Duration::from_secs(20), 0..=1), (Duration::from_millis(500), 7..=11)] {
            scope.spawn(move || {
                let bench = Bench::start();
                let consumer = bench.stream.consumer(bench.input().wait_timeout(wait_timeout)).spawn().unwrap();
                bench.wait_until_blocked();
                let sent = bench.sent_within(Duration::from_secs(5));
                assert!(expected.contains(&reads(&sent)), "{wait_timeout:?}: {sent:#?}");
                consumer.close().unwrap();
            });
        }
    });
}

#[test]
fn entries_that_are_pending_elsewhere_in_great_numbers_cost_an_idle_consumer_little() {
    const ENTRIES: &str = "10000";
    let bench = Bench::start();
    bench.fill(ENTRIES.parse().unwrap(), 1);
    bench.stream.create_input_stream(&bench.input()).unwrap();
    // The other one is alive, so nothing of this can be claimed for the next minute.
    bench.server.command(&["XREADGROUP", "GROUP", GROUP, "other", "COUNT", ENTRIES, "STREAMS", &bench.key, ">"]);
    let consumer = bench.stream.consumer(bench.input()).batch(1).spawn().unwrap();
    bench.wait_until_blocked();
    let sent = bench.sent_within(Duration::from_secs(5));
    assert!(sent.len() <= 5 * 10, "{}: {:#?}", sent.len(), &sent[..sent.len().min(40)]);
    assert!(reads(&sent) <= 2, "{sent:#?}");
    assert_eq!(consumer.close().unwrap().claimed, 0);
}

#[test]
fn what_is_given_back_is_found_within_a_second_while_reads_wait_for_longer() {
    thread::scope(|scope| {
        for way in every_way() {
            scope.spawn(move || assert_found_within_a_second(&way));
        }
    });
}

fn assert_found_within_a_second(way: &Way) {
    let (bench, stream) = (&way.bench, way.stream());
    bench.publish(1);
    let first = stream.consumer(bench.input()).claim(false).spawn().unwrap();
    let mut held = next(&first);
    let second = stream.consumer(bench.input()).spawn().unwrap();
    let mut took = Vec::new();
    for round in 0..5 {
        bench.server.wait_until(|server| {
            server.client_list().iter().filter(|client| client["flags"].contains('b')).count() == 2
        });
        held.release().unwrap();
        let released = Instant::now();
        held = next(&second);
        took.push(released.elapsed());
        assert_eq!(held.delivery_count(), round + 2);
    }
    took.sort_unstable();
    assert!(took[2] <= Duration::from_secs(1), "{}: {took:?}", way.name);
    // However busy the machine is, a read waits for longer.
    assert!(took[4] < Duration::from_secs(5), "{}: {took:?}", way.name);
    held.ack().unwrap();
    first.close().unwrap();
    second.close().unwrap();
}

/// Entries whose time has come, at a consumer that is gone, and one that waits for new entries.
#[test]
fn what_becomes_claimable_is_found_within_a_second_while_reads_wait_for_longer() {
    let bench = Bench::start();
    bench.publish(300);
    bench.stream.create_input_stream(&bench.input()).unwrap();
    bench.server.command(&["XREADGROUP", "GROUP", GROUP, "gone", "COUNT", "300", "STREAMS", &bench.key, ">"]);
    let consumer = bench.stream.consumer(StreamInput::new(bench.key.as_str(), GROUP)).spawn().unwrap();
    bench.wait_until_blocked();
    bench.make_claimable("gone");
    let started = Instant::now();
    for delivery in consumer.timeout_iter(LONG).take(300) {
        let delivery = delivery.unwrap();
        assert_eq!(delivery.delivery_count(), 2);
        delivery.ack().unwrap();
    }
    // Three batches, each found by a look of its own.
    assert!(started.elapsed() < Duration::from_secs(4), "{:?}", started.elapsed());
    bench.server.wait_until(|_| bench.pending() == 0);
    assert_eq!(consumer.close().unwrap().claimed, 300);
}

#[test]
fn a_consumer_that_is_stopped_with_a_full_queue_wakes_nobody() {
    // Full in entries, and in bytes.
    for (entries, bytes) in [(1_000, 10), (40, 1 << 20)] {
        let bench = Bench::start();
        bench.fill(entries, bytes);
        let mut child = Child::start(&bench, "stopped", "one");
        child.wait_for_line("stopped");
        let mut rates = Vec::new();
        for _ in 0..3 {
            let before = context_switches(child.pid());
            assert!(!before.is_empty(), "the keeper is there");
            thread::sleep(Duration::from_secs(1));
            // A thread may end meanwhile: the reader, when it holds nothing that it could not enqueue.
            let after = context_switches(child.pid());
            rates.push(after.iter().map(|(task, count)| count - before.get(task).unwrap_or(&0)).sum::<u64>());
        }
        rates.sort_unstable();
        // The keeper keeps what is queued, and looks around once a second.
        assert!(rates[1] <= 20, "{rates:?} a second, with entries of {bytes} bytes");
        child.finish();
    }
}

/// How often each of a process's threads that are the library's has gone to sleep or given way so far.
fn context_switches(pid: u32) -> HashMap<OsString, u64> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let switches = tasks.flatten().filter_map(|task| {
        let name = fs::read_to_string(task.path().join("comm")).ok()?;
        let status = fs::read_to_string(task.path().join("status")).ok()?;
        let count = |line: &str| line.split_once("ctxt_switches:")?.1.trim().parse::<u64>().ok();
        let count = status.lines().filter_map(count).sum();
        name.starts_with("step-redis").then(|| (task.file_name(), count))
    });
    switches.collect()
}
