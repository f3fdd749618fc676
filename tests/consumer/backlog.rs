//! However much waits in the stream, a consumer holds what it was told to hold.

use crate::child::Child;
use crate::support::{Bench, next};
use std::fs;
use std::time::{Duration, Instant};

#[test]
fn memory_is_bounded_while_a_million_entries_wait() {
    const ENTRIES: usize = 1_000_000;
    const LIMIT: u64 = 48 * 1024 * 1024;
    let bench = Bench::start();
    bench.fill(ENTRIES, 1024);
    let mut child = Child::start(&bench, "backlog", "one");
    child.wait_for_line("full");
    child.wait_for_line("taken");
    // The most it ever had, not what it has now.
    let status = fs::read_to_string(format!("/proc/{}/status", child.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak = peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024;
    assert!(peak < LIMIT, "{} MiB", peak / 1024 / 1024);
    child.finish();
}

#[test]
fn no_more_is_pending_than_documented_with_a_slow_handler() {
    for (prefetch, batch) in [(1, 1), (1, 16), (8, 4), (64, 16)] {
        let bench = Bench::start();
        bench.publish(1_000);
        let consumer = bench.consumer("one").prefetch(prefetch).batch(batch).spawn().unwrap();
        let bound = prefetch + 2 * batch + 1;
        let mut most = 0;
        for _ in 0..30 {
            let held = next(&consumer);
            // The handler works for a while, in which the reader does all it wants to do.
            let started = Instant::now();
            while started.elapsed() < Duration::from_millis(10) {
                let unasked = bench.pending() - 1;
                most = most.max(unasked);
                assert!(unasked <= bound, "{unasked} pending that nobody asked for, with {prefetch} and {batch}");
            }
            held.leave();
            bench.server.command(&["XACK", &bench.key, "group", &first_pending(&bench)]);
        }
        assert!(most >= prefetch, "{most} of {bound}");
    }
}

/// The handler left the entry, so that no acknowledgement is under way while the test counts.
fn first_pending(bench: &Bench) -> String {
    bench.pending_of("one")[0].0.clone()
}
