//! The stream or the group goes away under the reader.

use crate::common::Server;
use crate::support::{Bench, GROUP, assert_nothing_comes, next, number, take};
use std::thread;
use std::time::{Duration, Instant};
use step_redis::{OnGroupLoss, StartId};

/// The ways in which a group is lost.
const LOSSES: [&str; 3] = ["XGROUP DESTROY", "DEL", "PEXPIRE"];

fn lose(bench: &Bench, how: &str) {
    match how {
        "XGROUP DESTROY" => drop(bench.server.command(&["XGROUP", "DESTROY", &bench.key, GROUP])),
        "DEL" => drop(bench.server.command(&["DEL", &bench.key])),
        _ => drop(bench.server.command(&["PEXPIRE", &bench.key, "20"])),
    }
}

#[test]
fn a_lost_group_is_created_anew_behind_the_last_entry_that_was_seen() {
    for how in LOSSES {
        for claim in [true, false] {
            let bench = Bench::start();
            bench.publish(3);
            let consumer = bench.consumer("one").claim(claim).spawn().unwrap();
            assert_eq!(take(&consumer, 3), [0, 1, 2]);
            bench.wait_until_blocked();
            lose(&bench, how);
            bench.server.wait_until(|_| consumer.stats().groups_recreated == 1);
            for number in 3..6 {
                bench.stream.publish(&bench.output(), number.to_string()).unwrap();
            }
            assert_eq!(take(&consumer, 3), [3, 4, 5], "{how}, claim {claim}");
            assert_nothing_comes(&consumer, Duration::from_millis(50));
            let stats = consumer.close().unwrap();
            assert_eq!((stats.groups_recreated, stats.received, stats.acked), (1, 6, 6), "{how}");
            assert!(stats.last_error.is_some());
            assert_eq!(bench.pending(), 0, "{how}");
        }
    }
}

/// Servers that tell this consumer nothing about streams: it cannot know where a lost stream stood.
fn benches_without_xinfo() -> [(&'static str, Bench); 2] {
    let renamed = Bench::on(Server::builder().config("rename-command", r#"XINFO """#).start());
    let refused = Bench::start();
    refused.server.command(&["ACL", "SETUSER", "default", "-xinfo"]);
    [("renamed", renamed), ("refused", refused)]
}

#[test]
fn a_lost_group_is_not_replayed_where_the_server_tells_nothing_about_streams() {
    for (why, bench) in benches_without_xinfo() {
        bench.publish(3);
        let consumer = bench.consumer("one").spawn().unwrap();
        assert_eq!(take(&consumer, 3), [0, 1, 2]);
        bench.wait_until_blocked();
        lose(&bench, "XGROUP DESTROY");
        bench.server.wait_until(|_| consumer.stats().groups_recreated == 1);
        bench.stream.publish(&bench.output(), "3").unwrap();
        assert_eq!(take(&consumer, 1), [3], "{why}");
        assert_nothing_comes(&consumer, Duration::from_millis(50));
        assert_eq!(consumer.close().unwrap().received, 4, "{why}");
    }
}

#[test]
fn a_stream_that_is_made_anew_with_lower_ids_is_read_from_its_start_where_the_server_tells_nothing_about_streams() {
    for (why, bench) in benches_without_xinfo() {
        bench.publish(3);
        let consumer = bench.consumer("one").spawn().unwrap();
        assert_eq!(take(&consumer, 3), [0, 1, 2]);
        bench.server.wait_until(|_| consumer.stats().acked == 3);
        bench.wait_until_blocked();
        let script = "redis.call('DEL',KEYS[1]) redis.call('XADD',KEYS[1],'1-1','message','3')";
        bench.server.command(&["EVAL", script, "1", &bench.key]);
        assert_eq!(take(&consumer, 1), [3], "{why}");
    }
}

#[test]
fn what_was_published_while_the_group_was_missing_is_not_missed() {
    let bench = Bench::start();
    bench.publish(1);
    let consumer = bench.consumer("one").claim(false).spawn().unwrap();
    take(&consumer, 1);
    bench.wait_until_blocked();
    let script = "redis.call('XGROUP','DESTROY',KEYS[1],ARGV[1]) redis.call('XADD',KEYS[1],'*','message','1')";
    bench.server.command(&["EVAL", script, "1", &bench.key, GROUP]);
    assert_eq!(take(&consumer, 1), [1]);
}

#[test]
fn a_consumer_that_has_seen_its_own_pending_entries_only_goes_on_behind_them() {
    let bench = Bench::start();
    bench.publish(2);
    let first = bench.consumer("one").spawn().unwrap();
    let held = [next(&first), next(&first)];
    drop(first);
    let consumer = bench.consumer("one").claim(false).spawn().unwrap();
    assert_eq!(take(&consumer, 2), [0, 1]);
    bench.wait_until_blocked();
    lose(&bench, "XGROUP DESTROY");
    bench.stream.publish(&bench.output(), "2").unwrap();
    assert_eq!(take(&consumer, 1), [2]);
    held.into_iter().for_each(|delivery| delivery.leave());
}

#[test]
fn a_consumer_that_has_seen_nothing_starts_where_it_was_told_to() {
    let bench = Bench::start();
    bench.publish(2);
    let input = bench.input().consumer("one").start(StartId::New);
    let consumer = bench.stream.consumer(input).claim(false).spawn().unwrap();
    bench.wait_until_blocked();
    lose(&bench, "XGROUP DESTROY");
    bench.server.wait_until(|_| consumer.stats().groups_recreated == 1);
    bench.stream.publish(&bench.output(), "2").unwrap();
    assert_eq!(take(&consumer, 1), [2]);
}

#[test]
fn under_fail_the_loop_ends_with_the_loss() {
    for how in LOSSES {
        let bench = Bench::start();
        let consumer = bench.consumer("one").on_group_loss(OnGroupLoss::Fail).claim(false).spawn().unwrap();
        bench.wait_until_blocked();
        lose(&bench, how);
        let error = consumer.iter().next().unwrap().unwrap_err();
        assert!(error.is_group_missing(), "{how}: {error:?}");
        assert!(consumer.iter().next().is_none());
        assert_eq!(bench.groups_created(u64::from(how == "XGROUP DESTROY")), 1, "{how}");
        assert_eq!(consumer.close().unwrap().groups_recreated, 0);
    }
}

#[test]
fn a_group_that_vanishes_all_the_time_makes_no_hot_loop() {
    let bench = Bench::start();
    let consumer = bench.consumer("one").spawn().unwrap();
    let started = Instant::now();
    let mut losses = 0;
    while started.elapsed() < Duration::from_secs(1) {
        lose(&bench, "XGROUP DESTROY");
        losses += 1;
        thread::sleep(Duration::from_millis(5));
    }
    // One look, one creation and one read for each loss at most, and the regular ones.
    let (creations, reads) = (bench.groups_created(losses), bench.calls("xreadgroup"));
    assert!(creations <= losses + 2, "{creations} creations, {losses} losses");
    assert!(reads <= 2 * losses + 20, "{reads} reads, {losses} losses");
    bench.server.wait_until(|server| !server.command(&["XINFO", "GROUPS", &bench.key]).array().is_empty());
    bench.stream.publish(&bench.output(), "0").unwrap();
    assert_eq!(take(&consumer, 1), [0]);
}

#[test]
fn an_idle_consumer_asks_the_server_for_little() {
    let bench = Bench::start();
    let _consumer = bench.consumer("one").spawn().unwrap();
    bench.wait_until_blocked();
    let all = || bench.server.info("stats")["total_commands_processed"].parse::<u64>().unwrap();
    let before = all();
    thread::sleep(Duration::from_secs(2));
    // Each second a read, a claim, a look at the counters (a script of three commands), and the test's own questions.
    let asked = all() - before;
    assert!(asked < 25, "{asked}");
}

#[test]
fn a_new_group_starts_where_it_was_told_to() {
    let bench = Bench::start();
    let ids: Vec<_> =
        (0..4).map(|number: u32| bench.stream.publish(&bench.output(), number.to_string()).unwrap()).collect();
    let first = |group: &str, start| {
        let input = step_redis::StreamInput::new(bench.key.as_str(), group).start(start);
        let consumer = bench.stream.consumer(input).spawn().unwrap();
        bench.stream.publish(&bench.output(), "9").unwrap();
        number(&next(&consumer))
    };
    assert_eq!(first("beginning", StartId::Beginning), 0);
    assert_eq!(first("after", StartId::After(ids[1])), 2);
    assert_eq!(first("new", StartId::New), 9);
}

#[test]
fn a_group_that_exists_goes_on_where_it_stands() {
    let bench = Bench::start();
    bench.publish(2);
    bench.server.command(&["XGROUP", "CREATE", &bench.key, GROUP, "$"]);
    let consumer = bench.consumer("one").spawn().unwrap();
    bench.stream.publish(&bench.output(), "2").unwrap();
    assert_eq!(take(&consumer, 1), [2]);
}

#[test]
fn what_an_existing_group_has_not_read_is_not_skipped_when_the_group_is_lost() {
    let bench = Bench::start();
    bench.publish(10);
    bench.server.command(&["XGROUP", "CREATE", &bench.key, GROUP, "0"]);
    let input = bench.input().start(StartId::New);
    let consumer = bench.stream.consumer(input).claim(false).prefetch(1).batch(1).spawn().unwrap();
    // It has read ahead as far as it may, and waits for room.
    bench.server.wait_until(|_| consumer.stats().in_flight == 2);
    lose(&bench, "XGROUP DESTROY");
    assert_eq!(take(&consumer, 10), (0..10).collect::<Vec<_>>());
}
