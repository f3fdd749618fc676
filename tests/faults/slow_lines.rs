//! Lines that are slow or far away, with the default time limits: they carry what they can, and work that goes on is kept.

use std::time::Duration;

use crate::common::Direction;
use crate::support::{LIMIT, Line, next};

/// What `socket_timeout` is by default, `wait_timeout`, and one entry.
const FIRST_ENTRY: Duration = Duration::from_secs(60);

fn a_batch_too_large_for_the_line_comes_entry_by_entry(line: &Line) {
    const ENTRIES: usize = 50;
    let Line { scene, proxy, .. } = line;
    let consumer = line.consumer("one").max_deliveries(3).dead_letter(scene.dead()).spawn().unwrap();
    scene.wait_until_blocked();
    // One entry takes 8 s.
    proxy.drip(Direction::ToClient, 200, Duration::from_millis(100));
    let sent = scene.add_large("entry", ENTRIES, 16_000);
    let mut sent = sent.iter();
    let mut take = |within: Duration| {
        let delivery = consumer.timeout_iter(within).next().expect("nothing came").unwrap();
        assert_eq!((delivery.text().unwrap(), delivery.delivery_count()), (&**sent.next().unwrap(), 1));
        delivery.ack().unwrap();
    };
    take(FIRST_ENTRY);
    (0..2).for_each(|_| take(LIMIT));
    assert_eq!(consumer.stats().reconnects, 1, "one time-out is enough to learn from");
    proxy.heal();
    (3..ENTRIES).for_each(|_| take(LIMIT));
    // The line is good again, and so requests are large again.
    let requests = scene.calls("xreadgroup");
    scene.add_many("more", 1_000);
    (0..1_000).for_each(|_| next(&consumer).ack().unwrap());
    let requests = scene.calls("xreadgroup") - requests;
    assert!(requests < 100, "{requests}");
    consumer.close().unwrap();
    assert_eq!((scene.buried().len(), scene.pending()), (0, 0));
}

#[test]
fn a_line_that_carries_one_entry_in_time_makes_progress() {
    std::thread::scope(|scope| {
        for line in Line::all() {
            scope.spawn(move || a_batch_too_large_for_the_line_comes_entry_by_entry(&line));
        }
    });
}

/// The line carries 32 KB/s to the server.
fn large_dead_letters_stay_at_the_server(line: &Line) {
    const BYTES: usize = 1 << 20;
    let Line { scene, proxy, .. } = line;
    let group = ["XGROUP", "CREATE", &scene.stream_id, "group", "0", "MKSTREAM"];
    scene.server.command(&group);
    let large = scene.add_large("large", 1, BYTES);
    let read = ["XREADGROUP", "GROUP", "group", "gone", "STREAMS", &scene.stream_id, ">"];
    let id = scene.server.command(&read).array()[0].array()[1].array()[0].array()[0].text();
    let exhausted = ["IDLE", "100000", "RETRYCOUNT", "3", "JUSTID"];
    scene.server.command(&[&["XCLAIM", &scene.stream_id, "group", "gone", "0", &id], &exhausted[..]].concat());
    let behind = scene.leave_behind(&[1]);
    let consumer = line.consumer("one").max_deliveries(3).dead_letter(scene.dead());
    proxy.drip(Direction::ToServer, 1_600, Duration::from_millis(50));
    let consumer = consumer.spawn().unwrap();
    let delivery = next(&consumer);
    assert_eq!((delivery.text().unwrap(), delivery.delivery_count()), (&*behind[0], 2));
    delivery.ack().unwrap();
    scene.server.wait_until(|_| scene.pending() == 0);
    assert_eq!(scene.buried(), large);
    let stats = consumer.close().unwrap();
    assert_eq!((stats.dead_lettered, stats.reconnects), (1, 0), "{stats:?}");
    let (up, down) = (proxy.forwarded(Direction::ToServer), proxy.forwarded(Direction::ToClient));
    assert!(up < BYTES as u64 / 4 && down < BYTES as u64 / 4, "{up} bytes up, {down} bytes down");
}

#[test]
fn a_large_entry_is_buried_behind_a_narrow_uplink_and_holds_up_nothing() {
    std::thread::scope(|scope| {
        for line in Line::all() {
            scope.spawn(move || large_dead_letters_stay_at_the_server(&line));
        }
    });
}

#[cfg(feature = "tls")]
mod far_away {
    use super::*;
    use crate::common::wait_until;
    use crate::support::assert_quiet;
    use log::Level;
    use step_redis::StreamInput;

    const ONE_WAY: Duration = Duration::from_millis(140);

    #[test]
    fn live_work_is_kept_over_a_cut_although_connecting_takes_long() {
        const CLAIM_IDLE: Duration = Duration::from_secs(3);
        let line = Line::tls();
        let Line { scene, proxy, params } = &line;
        let input = |name: &str| StreamInput::new(&*scene.stream_id, "group").consumer(name).claim_idle(CLAIM_IDLE);
        proxy.delay(Direction::Both, ONE_WAY);
        let sent = scene.add_many("entry", 5);
        let consumer = crate::support::connect(params.clone()).consumer(input("far")).spawn().unwrap();
        let held: Vec<_> = sent.iter().map(|_| next(&consumer)).collect();
        let near = crate::support::connect(scene.params()).consumer(input("near")).spawn().unwrap();
        proxy.reset();
        let stolen = near.timeout_iter(4 * CLAIM_IDLE).next();
        assert!(stolen.is_none(), "{stolen:?}");
        held.into_iter().for_each(|delivery| delivery.ack().unwrap());
        scene.server.wait_until(|_| scene.pending() == 0);
        let stats = consumer.close().unwrap();
        assert_eq!((stats.taken_over, stats.acked, stats.reconnects), (0, 5, 1), "{stats:?}");
        assert!(scene.logged(Level::Warn).iter().all(|line| !line.contains("too short")));
    }

    #[test]
    fn a_claim_idle_too_short_for_the_line_is_told_once() {
        let line = Line::tls();
        let Line { scene, proxy, params } = &line;
        proxy.delay(Direction::Both, ONE_WAY);
        // The group's name is what the warning tells.
        let input = StreamInput::new(&*scene.stream_id, &*scene.stream_id).claim_idle(Duration::from_secs(1));
        let consumer = crate::support::connect(params.clone()).consumer(input).spawn().unwrap();
        let told = || scene.logged(Level::Warn).into_iter().filter(|line| line.contains("too short")).count();
        assert_eq!(told(), 1, "{:?}", scene.logged(Level::Warn));
        for cut in 1..=2 {
            proxy.reset();
            wait_until(LIMIT, || consumer.stats().reconnects >= cut && proxy.open() >= 2);
            assert_quiet(&consumer);
        }
        assert_eq!(told(), 1);
    }
}
