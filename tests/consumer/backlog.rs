//! However much waits in the stream, a consumer holds what it was told to hold.

use crate::child::Child;
use crate::support::{Bench, GROUP, LONG, Way, every_way, next, number, stream_with, take_until_error};
use std::fs;
use std::time::{Duration, Instant};
use step_redis::{Error, PoolParams, StepStream};

const MEBIBYTE: u64 = 1024 * 1024;

#[test]
fn memory_is_bounded_while_a_million_entries_wait() {
    const ENTRIES: usize = 1_000_000;
    const LIMIT: u64 = 48 * 1024 * 1024;
    let bench = Bench::start();
    bench.fill(ENTRIES, 1024);
    let mut child = Child::start(&bench, "backlog", "one");
    child.wait_for_line("full");
    child.wait_for_line("taken");
    let peak = peak_memory(&child);
    assert!(peak < LIMIT, "{} MiB", peak / MEBIBYTE);
    child.finish();
}

/// The most that it ever had, not what it has now.
fn peak_memory(child: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    peak.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

/// Where large entries wait for the consumer.
#[derive(Clone, Copy, Debug)]
enum Where {
    New,
    PendingElsewhere,
    OwnPending,
}

#[test]
fn memory_is_bounded_in_bytes_while_large_entries_wait() {
    for place in [Where::New, Where::PendingElsewhere, Where::OwnPending] {
        assert_memory_is_bounded_while_large_entries_wait(place);
    }
}

fn assert_memory_is_bounded_while_large_entries_wait(place: Where) {
    const ENTRIES: usize = 600;
    /// What the channel may hold, and a first reply of 16 entries, in the buffer and in pieces; the rest is the program.
    const LIMIT: u64 = (8 + 2 * 16 + 24) * MEBIBYTE;
    let bench = Bench::start();
    bench.fill(ENTRIES, MEBIBYTE as usize);
    match place {
        Where::New => {}
        Where::OwnPending => deliver_unread(&bench, "one"),
        Where::PendingElsewhere => deliver_unread(&bench, "gone"),
    }
    let mut child = Child::start(&bench, "large", "one");
    let full = child.wait_for_line("full");
    // Gigabytes go through the two processes.
    let taken = child.wait_for_line_within(5 * LONG, "taken");
    assert!(taken.starts_with("taken 600 of"), "{place:?}: {taken}");
    let peak = peak_memory(&child);
    assert!(peak < LIMIT, "{place:?}: {} MiB, {full} queued", peak / MEBIBYTE);
    child.finish();
    assert_eq!(bench.pending(), 0);
}

/// Makes all entries pending for this consumer, for long enough to be claimed, as `XREADGROUP` would; but that would send them.
fn deliver_unread(bench: &Bench, consumer: &str) {
    bench.stream.create_input_stream(&bench.input()).unwrap();
    let script = "\
        local first='-' while true do local entry=redis.call('XRANGE',KEYS[1],first,'+','COUNT',1)[1] \
        if not entry then break end first='('..entry[1] \
        redis.call('XCLAIM',KEYS[1],ARGV[1],ARGV[2],0,entry[1],'IDLE',60000,'RETRYCOUNT',1,'FORCE','JUSTID') end \
        redis.call('XGROUP','SETID',KEYS[1],ARGV[1],'$')";
    bench.server.command(&["EVAL", script, "1", &bench.key, GROUP, consumer]);
}

#[test]
fn a_reply_that_would_be_too_long_is_followed_by_smaller_ones() {
    for place in [Where::New, Where::PendingElsewhere, Where::OwnPending] {
        every_way().into_iter().for_each(|way| assert_long_replies_are_followed_by_smaller_ones(&way, place));
    }
}

fn assert_long_replies_are_followed_by_smaller_ones(Way { name, bench, params, .. }: &Way, place: Where) {
    const ENTRIES: usize = 60;
    bench.fill(ENTRIES, 1 << 20);
    let stream = stream_with(params.clone().max_reply(5 << 20));
    let (owner, claims) = match place {
        Where::New => (None, false),
        Where::PendingElsewhere => (Some("gone"), true),
        Where::OwnPending => (Some("one"), false),
    };
    if let Some(owner) = owner {
        deliver_unread(bench, owner);
    }
    let consumer = stream.consumer(bench.input().consumer("one")).claim(claims).spawn().unwrap();
    let count = if owner.is_some() { 2 } else { 1 };
    for expected in 0..ENTRIES {
        let delivery = next(&consumer);
        assert_eq!((number(&delivery), delivery.delivery_count()), (expected, count), "{name}, {place:?}");
        delivery.ack().unwrap();
    }
    let stats = consumer.close().unwrap();
    assert!(stats.reconnects <= 2, "{name}, {place:?}: {}", stats.reconnects);
    assert_eq!(bench.pending(), 0);
}

#[test]
fn an_entry_that_is_too_large_to_be_read_is_named_and_no_loop() {
    for place in [Where::New, Where::PendingElsewhere, Where::OwnPending] {
        every_way().into_iter().for_each(|way| assert_too_large_an_entry_is_named(&way, place));
    }
}

fn assert_too_large_an_entry_is_named(Way { name, bench, params, .. }: &Way, place: Where) {
    bench.publish(3);
    bench.fill(1, 200_000);
    let large = bench.server.command(&["XREVRANGE", &bench.key, "+", "-", "COUNT", "1"]);
    let large = large.array()[0].array()[0].text();
    let owner = match place {
        Where::New => None,
        Where::PendingElsewhere => Some("gone"),
        Where::OwnPending => Some("one"),
    };
    if let Some(owner) = owner {
        deliver_unread(bench, owner);
    }
    let count = if owner.is_some() { 1 } else { 0 };
    let small = stream_with(params.clone().max_reply(100_000));
    let start = |stream: &StepStream| {
        stream.consumer(bench.input().consumer("one")).max_deliveries(3).dead_letter(bench.dead()).spawn().unwrap()
    };
    // However often it is tried: no handler has it, so no attempt counts.
    for attempt in 0..4 {
        let connections = connections(bench);
        let consumer = start(&small);
        let (handed_out, error) = take_until_error(&consumer);
        match error {
            Error::EntryTooLarge { stream_id, id, limit } => {
                assert_eq!((&*stream_id, id.to_string(), limit), (bench.key.as_str(), large.clone(), 100_000));
            }
            other => panic!("{name}, {place:?}, attempt {attempt}: {other:?}"),
        }
        assert_eq!(handed_out, if attempt == 0 { 3 } else { 0 }, "{name}, {place:?}");
        consumer.close().unwrap();
        // Two for each consumer, and one for each attempt to read it with others until it is certain which it is.
        let more = self::connections(bench) - connections;
        assert!(more <= 8, "{name}, {place:?}: {more} connections");
        let left = bench.pending_of("one");
        assert_eq!((left.len(), &left[0].0, left[0].2), (1, &large, count), "{name}, {place:?}, attempt {attempt}");
    }
    // Whoever may read it gets it, and what is behind it.
    bench.publish(1);
    let consumer = start(&stream_with(params.clone()));
    let left = [next(&consumer), next(&consumer)].map(|left| (left.id().to_string(), left.delivery_count()));
    assert_eq!(left[0], (large, count as u64 + 1), "{name}, {place:?}");
    assert_eq!(left[1].1, 1);
    assert_eq!(bench.server.command(&["XLEN", bench.dead().stream_id()]).int(), 0);
}

#[test]
fn an_entry_that_is_too_large_to_be_read_can_be_buried() {
    let bench = Bench::start();
    bench.fill(1, 200_000);
    bench.stream.create_input_stream(&bench.input()).unwrap();
    bench.server.command(&["XREADGROUP", "GROUP", GROUP, "one", "STREAMS", &bench.key, ">"]);
    let (large, _, _) = bench.pending_of("one").remove(0);
    bench.server.command(&["XCLAIM", &bench.key, GROUP, "one", "0", &large, "RETRYCOUNT", "3", "JUSTID"]);
    let params = PoolParams::from_url(&bench.server.url()).unwrap();
    let stream = stream_with(params.max_reply(100_000));
    let consumer = stream.consumer(bench.input().consumer("one")).max_deliveries(3).dead_letter(bench.dead());
    let consumer = consumer.spawn().unwrap();
    bench.server.wait_until(|_| consumer.stats().dead_lettered == 1);
    assert_eq!((bench.pending(), consumer.stats().reconnects), (0, 0), "the server has copied it");
    let letter = bench.stream.dead_letters(&bench.dead(), 1).unwrap().remove(0);
    assert_eq!((letter.origin_id().to_string(), letter.deliveries()), (large, 3));
    assert_eq!(letter.field("filling").map(<[u8]>::len), Some(200_000));
}

fn connections(bench: &Bench) -> u64 {
    bench.server.info("stats")["total_connections_received"].trim().parse().unwrap()
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
