//! A consumer that loses its connection: how it comes back, what it tells, and what it does with the entries it had.

use std::time::{Duration, Instant};

use log::Level;
use step_redis::{AckMode, Backoff, StreamOutput};

use crate::common::{Direction, Proxy, Server, wait_until};
use crate::support::{LIMIT, Line, SLACK, Scene, assert_quiet, connect, median, next, quick, take};

#[test]
fn an_outage_is_one_warning_one_note_that_it_is_over_and_counted() {
    let scene = Scene::on(Server::builder().append_only());
    let consumer = scene.consumer(&scene.stream()).spawn().unwrap();
    scene.add("before");
    assert_eq!(take(&consumer, 1), ["before"]);
    assert_eq!(consumer.stats().reconnects, 0);

    scene.server.kill();
    // The outage lasts for several attempts.
    crate::common::wait_until(LIMIT, || {
        scene.logged(Level::Debug).iter().filter(|l| l.contains("attempt")).count() >= 3
    });
    let last_read = consumer.stats().last_read.unwrap();
    scene.server.restart();
    scene.add("after");
    assert_eq!(take(&consumer, 1), ["after"]);

    scene.assert_one_outage();
    let stats = consumer.stats();
    assert_eq!(stats.reconnects, 1);
    assert!(stats.last_error.as_deref().is_some_and(|text| text.contains("127.0.0.1")), "{stats:?}");
    assert!(stats.last_read.unwrap() < last_read + SLACK, "{stats:?} {last_read:?}");
}

#[test]
fn attempts_to_reconnect_come_further_and_further_apart() {
    const FIRST: Duration = Duration::from_millis(40);
    const LONGEST: Duration = Duration::from_millis(320);
    let scene = Scene::new();
    let consumer = scene.stream().consumer(scene.input()).backoff(Backoff::new(FIRST, LONGEST)).spawn().unwrap();
    scene.wait_until_blocked();
    scene.server.kill();
    let attempts = || {
        let mut times = scene.logged_with_time(Level::Warn);
        times.extend(scene.logged_with_time(Level::Debug).into_iter().filter(|(_, text)| text.contains("attempt")));
        times.into_iter().map(|(time, _)| time).collect::<Vec<_>>()
    };
    crate::common::wait_until(LIMIT, || attempts().len() >= 9);
    let gaps: Vec<Duration> = attempts().windows(2).map(|pair| pair[1] - pair[0]).collect();
    for (number, gap) in gaps.iter().enumerate() {
        let full = FIRST.saturating_mul(1 << number.min(10)).min(LONGEST);
        assert!(*gap >= full / 2, "gap {number} of {gaps:?}");
    }
    assert!(median(gaps[3..].to_vec()) <= LONGEST + SLACK / 4, "{gaps:?}");
    drop(consumer);
}

#[test]
fn a_killed_connection_is_replaced_within_the_first_wait() {
    let scene = Scene::new();
    let consumer = scene.consumer(&scene.stream()).spawn().unwrap();
    for round in 1..=5 {
        scene.wait_until_blocked();
        scene.server.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        let text = format!("after kill {round}");
        scene.add(&text);
        assert_eq!(take(&consumer, 1), [text]);
        assert_eq!(consumer.stats().reconnects, round);
    }
    crate::common::wait_until(LIMIT, || scene.logged(Level::Info).len() == 5);
    assert_eq!(scene.logged(Level::Warn).len(), 5);
    let stats = consumer.close().unwrap();
    assert_eq!(stats.acked, 5);
    assert_eq!(scene.pending(), 0);
}

#[test]
fn entries_that_were_lost_on_the_way_come_again_and_those_in_flight_do_not() {
    let scene = Scene::new();
    let proxy = Proxy::start(scene.server.port());
    let consumer = scene.consumer(&connect(quick(proxy.port()))).spawn().unwrap();
    scene.add_many("held", 3);
    let held: Vec<_> = (0..3).map(|_| next(&consumer)).collect();

    scene.wait_until_blocked();
    proxy.cut_after(Direction::ToClient, 1000);
    let lost = scene.add_many("lost", 50);
    let mut came: Vec<(String, u64)> = Vec::new();
    for _ in 0..50 {
        let delivery = next(&consumer);
        came.push((delivery.text().unwrap().to_owned(), delivery.delivery_count()));
        delivery.ack().unwrap();
    }
    assert_eq!(proxy.cuts(), 1);
    assert_eq!(consumer.stats().reconnects, 1);
    // The delivery that never arrived is the one that they are handed out with now.
    assert_eq!(came, lost.into_iter().map(|text| (text, 1)).collect::<Vec<_>>());
    assert_quiet(&consumer);

    held.into_iter().for_each(|delivery| delivery.ack().unwrap());
    let stats = consumer.close().unwrap();
    assert_eq!((stats.received, stats.acked), (53, 53));
    assert_eq!(scene.pending(), 0);
}

#[test]
fn acknowledgements_survive_an_outage() {
    let scene = Scene::on(Server::builder().append_only());
    let consumer = scene.consumer(&scene.stream()).spawn().unwrap();
    scene.add_many("entry", 20);
    let taken: Vec<_> = (0..20).map(|_| next(&consumer)).collect();
    scene.server.kill();
    for delivery in taken {
        delivery.ack().unwrap();
    }
    // Both threads have found out that they cannot send them.
    crate::common::wait_until(LIMIT, || !scene.logged(Level::Warn).is_empty());
    assert_eq!(consumer.stats().acked, 0);
    assert_eq!(consumer.stats().in_flight, 20);

    scene.server.restart();
    scene.server.wait_until(|_| scene.pending() == 0);
    crate::common::wait_until(LIMIT, || consumer.stats().acked == 20);
    assert_eq!(consumer.stats().in_flight, 0);
    assert_quiet(&consumer);
    assert_eq!(consumer.close().unwrap().received, 20);
}

#[test]
fn acknowledgements_are_sent_soon_after_only_their_connection_was_lost() {
    let scene = Scene::new();
    // The reader takes no acknowledgements along, as it blocks; the keeper's own duties come once a second.
    let input = scene.input().wait_timeout(Duration::from_secs(20));
    let consumer = scene.stream().consumer(input).claim(false).spawn().unwrap();
    let times = (0..5).map(|number| {
        scene.add(&format!("entry-{number}"));
        let delivery = next(&consumer);
        scene.wait_until_blocked();
        for client in scene.server.client_list() {
            if client["cmd"] != "xreadgroup" {
                let _ = scene.server.try_command(&["CLIENT", "KILL", "ID", &client["id"]]);
            }
        }
        let acked = Instant::now();
        delivery.ack().unwrap();
        scene.server.wait_until(|_| scene.pending() == 0);
        acked.elapsed()
    });
    let times: Vec<Duration> = times.collect();
    assert!(median(times.clone()) < Duration::from_millis(300), "{times:?}");
    assert_eq!(consumer.stats().reconnects, 0);
}

#[test]
fn acknowledgements_that_went_along_with_a_lost_read_are_sent_again() {
    let scene = Scene::new();
    let proxy = Proxy::start(scene.server.port());
    // Nobody but the reader takes them along, with its next read.
    let mode = AckMode::Queued { max: 1000, delay: LIMIT * 100 };
    let consumer = scene.consumer(&connect(quick(proxy.port()))).claim(false).ack_mode(mode).spawn().unwrap();
    for round in 1..=6 {
        let direction = if round % 2 == 0 { Direction::ToServer } else { Direction::ToClient };
        scene.add(&format!("first-{round}"));
        take(&consumer, 1);
        scene.wait_until_blocked();
        let cuts = proxy.cuts();
        // Passes the second entry to the reader, and cuts what follows.
        proxy.cut_after(direction, if direction == Direction::ToClient { 110 } else { 20 });
        scene.add(&format!("second-{round}"));
        take(&consumer, 1);
        proxy.wait_until(|proxy| proxy.cuts() > cuts);
        scene.server.wait_until(|_| consumer.stats().acked >= 2 * round - 1);
    }
    assert!(consumer.stats().reconnects > 0);
    let stats = consumer.close().unwrap();
    assert_eq!((stats.received, stats.acked), (12, 12));
    assert_eq!(scene.pending(), 0);
}

#[test]
fn acknowledgements_of_a_request_that_could_not_be_sent_are_sent_again() {
    let scene = Scene::new();
    let proxy = Proxy::start(scene.server.port());
    let mode = AckMode::Queued { max: 1000, delay: LIMIT * 100 };
    let stream = connect(quick(proxy.port()));
    let consumer = scene.consumer(&stream).claim(false).prefetch(1).batch(1).ack_mode(mode).spawn().unwrap();
    scene.add_many("entry", 3);
    let first = next(&consumer);
    // The channel is full, and the reader has the third in its hand.
    scene.server.wait_until(|_| scene.pending() == 3 && consumer.stats().queued == 1);
    proxy.reset();
    first.ack().unwrap();
    // Now the reader can hand it over, and sends the acknowledgement with its next request.
    let others = [next(&consumer), next(&consumer)];
    scene.server.wait_until(|_| consumer.stats().acked == 1);
    assert_eq!(scene.pending(), 2);
    others.into_iter().for_each(|delivery| delivery.ack().unwrap());
    consumer.close().unwrap();
    assert_eq!(scene.pending(), 0);
}

#[test]
fn requests_and_replies_that_are_cut_off_lose_no_acknowledgement() {
    let scene = Scene::new();
    let proxy = Proxy::start(scene.server.port());
    let consumer = scene.consumer(&connect(quick(proxy.port()))).spawn().unwrap();
    let sent = scene.add_many("entry", 120);
    for (round, texts) in sent.chunks(10).enumerate() {
        // In the middle of a request or of a reply, which may be that of an acknowledgement.
        let direction = if round % 2 == 0 { Direction::ToServer } else { Direction::ToClient };
        for text in texts {
            let delivery = next(&consumer);
            assert_eq!(delivery.text().unwrap(), text);
            proxy.cut_after(direction, 3 + round);
            delivery.ack().unwrap();
        }
        proxy.wait_until(|proxy| proxy.cuts() > round);
    }
    proxy.heal();
    scene.server.wait_until(|_| scene.pending() == 0);
    let stats = consumer.close().unwrap();
    assert_eq!((stats.received, stats.acked), (120, 120));
}

#[test]
fn what_waits_for_its_last_hand_out_keeps_its_number_when_the_connection_breaks() {
    let scene = Scene::new();
    let proxy = Proxy::start(scene.server.port());
    let stream = connect(quick(proxy.port()));
    let dead = StreamOutput::new(format!("{}:dead", scene.stream_id));
    let builder = scene.consumer(&stream).max_deliveries(2).dead_letter(dead);
    scene.add_many("poison", 2);
    let first = builder.clone().spawn().unwrap();
    for _ in 0..2 {
        assert_eq!(next(&first).delivery_count(), 1);
    }
    first.close().unwrap();

    // The same name again. One of the two is with a handler, the other one waits for its turn.
    let second = builder.spawn().unwrap();
    let held = next(&second);
    assert_eq!(held.delivery_count(), 2);
    scene.wait_until_blocked();
    proxy.reset();
    crate::common::wait_until(LIMIT, || second.stats().reconnects == 1);
    // It looks at what is pending, and goes on to read what is new.
    scene.wait_until_blocked();
    held.ack().unwrap();
    assert_eq!(next(&second).delivery_count(), 2);
}

#[test]
fn a_user_who_may_not_run_scripts_reads_on_after_a_reconnect_and_keeps_what_it_holds() {
    // What is older than a sixth of `claim_idle` is renewed after a reconnect.
    const OLD: i64 = 10_500;
    let check = |line: &Line| {
        let Line { scene, proxy, .. } = line;
        scene.server.command(&["ACL", "SETUSER", "default", "-eval", "-evalsha"]);
        let consumer = line.consumer("one").spawn().unwrap();
        scene.add_many("before", 3);
        let held: Vec<_> = (0..3).map(|_| next(&consumer)).collect();
        scene.server.wait_until(|_| scene.pending_entries().iter().all(|(_, idle, _)| *idle > OLD));
        for round in 1..=2 {
            scene.wait_until_blocked();
            proxy.reset();
            wait_until(LIMIT, || consumer.stats().reconnects >= round);
            scene.add("after");
            assert_eq!(take(&consumer, 1), ["after"]);
            assert_eq!(consumer.stats().reconnects, round, "one attempt is enough");
        }
        held.into_iter().for_each(|delivery| delivery.ack().unwrap());
        scene.server.wait_until(|_| scene.pending() == 0);
        let stats = consumer.close().unwrap();
        assert_eq!((stats.received, stats.acked), (5, 5), "{stats:?}");
    };
    std::thread::scope(|scope| {
        for line in Line::all() {
            scope.spawn(move || check(&line));
        }
    });
}
