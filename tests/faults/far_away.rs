//! A server that is far away, 140 ms each way: an end loses nothing, and what is to be done in the background takes the few
//! round trips that it needs and holds up nothing else.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use crate::common::{Direction, wait_until};
use crate::support::{LIMIT, Line, next};

const ONE_WAY: Duration = Duration::from_millis(140);
/// What the default settings take to notice that the server is silent, and then to go on.
const OUTAGE: Duration = Duration::from_secs(90);

/// Each kind of line, with that delay, all at the same time.
fn on_every_line(check: impl Fn(&Line) + Sync) {
    thread::scope(|scope| {
        for line in Line::all() {
            line.proxy.delay(Direction::Both, ONE_WAY);
            let check = &check;
            scope.spawn(move || check(&line));
        }
    });
}

#[test]
fn a_clean_end_gives_back_everything_uncounted_also_what_is_on_its_way() {
    const ENTRIES: usize = 400;
    on_every_line(|line| {
        let Line { scene, proxy, .. } = line;
        let start = |name| line.consumer(name).max_deliveries(3).dead_letter(scene.dead()).spawn().unwrap();
        let consumer = start("one");
        scene.wait_until_blocked();
        let sent = scene.add_many("entry", ENTRIES);
        // A second request is under way, and its reply holds what comes after those that are queued.
        let received = || consumer.stats().received;
        wait_until(LIMIT, || received() > 0 && scene.pending() > received() as i64);
        let accepted = proxy.accepted();
        consumer.close().unwrap();
        assert_eq!(proxy.accepted(), accepted, "a connection was given up, as if the server did not answer");
        let left = scene.pending_entries();
        assert!(left.len() > 16, "{}", left.len());
        assert!(left.iter().all(|(_, idle, count)| *count == 0 && *idle >= 60_000), "{left:?}");
        let other = start("other");
        let mut came: Vec<_> = (0..ENTRIES)
            .map(|_| {
                let delivery = next(&other);
                assert_eq!(delivery.delivery_count(), 1);
                let text = delivery.text().unwrap().to_owned();
                delivery.ack().unwrap();
                text
            })
            .collect();
        came.sort();
        let mut sent = sent;
        sent.sort();
        assert_eq!(came, sent);
        other.close().unwrap();
        assert_eq!((scene.pending(), scene.buried().len()), (0, 0));
    });
}

#[test]
fn after_a_silent_outage_reading_goes_on_within_a_few_round_trips() {
    const HELD: usize = 256;
    on_every_line(|line| {
        let Line { scene, proxy, .. } = line;
        let consumer = line.consumer("one").spawn().unwrap();
        scene.add_many("held", HELD);
        let held: Vec<_> = (0..HELD).map(|_| next(&consumer)).collect();
        scene.wait_until_blocked();
        proxy.swallow(Direction::Both, true);
        // The reader has learned from it to ask for a single entry.
        wait_until(OUTAGE, || consumer.stats().last_error.is_some_and(|error| error.contains("30s")));
        let ((), sent) = scene.sent_while(|| {
            proxy.swallow(Direction::Both, false);
            scene.add("after");
            let after = consumer.timeout_iter(OUTAGE).next().expect("reading goes on").unwrap();
            assert_eq!((after.text().unwrap(), after.delivery_count()), ("after", 1));
            after.ack().unwrap();
        });
        assert!(sent.len() < HELD / 2, "{}: {:#?}", sent.len(), sent.iter().take(100).collect::<Vec<_>>());
        held.into_iter().for_each(|delivery| delivery.ack().unwrap());
        scene.server.wait_until(|_| scene.pending() == 0);
        let stats = consumer.close().unwrap();
        assert_eq!((stats.taken_over, stats.received as usize), (0, HELD + 1), "{stats:?}");
    });
}

#[test]
fn entries_to_claim_are_found_and_cost_no_connection() {
    const ROUNDS: usize = 4;
    on_every_line(|line| {
        let Line { scene, proxy, .. } = line;
        let consumer = line.consumer("one").spawn().unwrap();
        scene.wait_until_blocked();
        let accepted = proxy.accepted();
        for _ in 0..ROUNDS {
            // The reader waits for new entries, and has to be woken.
            let texts = scene.leave_behind(&[1, 1]);
            for text in texts {
                let delivery = next(&consumer);
                assert_eq!((delivery.text().unwrap(), delivery.delivery_count()), (&*text, 2));
                delivery.ack().unwrap();
            }
            scene.server.wait_until(|_| scene.pending() == 0);
            scene.wait_until_blocked();
        }
        assert_eq!((proxy.accepted(), consumer.stats().reconnects), (accepted, 0), "a connection was given up");
        consumer.close().unwrap();
    });
}

#[test]
fn a_long_pending_list_is_looked_through_in_turn_with_acknowledgements() {
    const ELSEWHERE: usize = 20_000;
    // More than are handled while the list is looked through.
    const ENTRIES: usize = 1_000;
    on_every_line(|line| {
        let scene = &line.scene;
        let all = ELSEWHERE.to_string();
        scene.server.command(&["XGROUP", "CREATE", &scene.stream_id, "group", "0", "MKSTREAM"]);
        scene.add_many("elsewhere", ELSEWHERE);
        let read = ["XREADGROUP", "GROUP", "group", "busy", "COUNT", &all, "STREAMS", &scene.stream_id, ">"];
        scene.server.command(&read);
        let mut idle: BTreeSet<_> = scene.leave_behind(&[1; 10]).into_iter().collect();
        scene.add_many("entry", ENTRIES);
        let (consumer, sent) = scene.sent_while(|| {
            let consumer = line.consumer("one").spawn().unwrap();
            while !idle.is_empty() {
                let delivery = next(&consumer);
                idle.remove(delivery.text().unwrap());
                delivery.ack().unwrap();
                // A handler at work: there is always something to acknowledge.
                thread::sleep(Duration::from_millis(30));
            }
            consumer
        });
        let is_ack = |command: &String| command.starts_with("\"XACK\"");
        let is_look = |command: &String| command.contains("'XINFO','STREAM'");
        let (mut looks, mut run, mut longest) = (0, 0, 0);
        for command in &sent {
            if is_ack(command) {
                run = 0;
            } else if is_look(command) {
                (looks, run) = (looks + 1, run + 1);
                longest = longest.max(run);
            }
        }
        assert!(looks >= 10, "{looks} looks are too few");
        // Some come before the first entry does.
        assert!(longest <= 3, "{longest} looks in a row, while acknowledgements waited");
        consumer.close().unwrap();
    });
}
