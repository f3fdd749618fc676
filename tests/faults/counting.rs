//! Hand-outs are what counts: whatever happens to the line, an entry whose handler fails is handed out exactly as often as it
//! may be, and one that was lost on the way not less. The handlers do the counting.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Mutex;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use step_redis::{Consumer, Delivery};

use crate::common::{Direction, Proxy, wait_until};
use crate::support::{LIMIT, Line, Scene, assert_quiet, next};

const DELIVERIES: u64 = 3;
/// The entry whose handler always fails.
const FAILING: &str = "failing-0";
/// More than `claim_idle` takes by default, and everything that comes after it.
const PATIENCE: Duration = Duration::from_secs(150);

/// What handlers have got: the entries' texts, and the numbers of the deliveries.
#[derive(Default)]
struct HandOuts(Mutex<Vec<(String, u64)>>);

impl HandOuts {
    fn note(&self, delivery: &Delivery) {
        self.0.lock().unwrap().push((delivery.text().unwrap().to_owned(), delivery.delivery_count()));
    }

    fn of(&self, text: &str) -> Vec<u64> {
        let hand_outs = self.0.lock().unwrap();
        hand_outs.iter().filter(|(its, _)| its == text).map(|(_, count)| *count).collect()
    }

    /// Each good entry was handed out once, as number 1; the failing one as often as it may be.
    #[track_caller]
    fn assert_exact(&self, scene: &Scene, good: &[String]) {
        assert_eq!(self.of(FAILING), (1..=DELIVERIES).collect::<Vec<_>>());
        for text in good {
            assert_eq!(self.of(text), [1], "{text}");
        }
        assert_eq!(scene.buried(), [FAILING]);
        assert_eq!(scene.pending(), 0);
    }
}

/// Hands what the consumers deliver to handlers, one for each, until something is true; then the consumers are stopped.
/// `fail` gets the failing entry.
fn work(
    consumers: &[Consumer],
    hand_outs: &HandOuts,
    fail: impl Fn(&Consumer, Delivery) + Sync,
    until: impl FnMut() -> bool,
) {
    thread::scope(|scope| {
        for consumer in consumers {
            let fail = &fail;
            scope.spawn(move || {
                for delivery in consumer {
                    let delivery = delivery.unwrap();
                    hand_outs.note(&delivery);
                    if delivery.text().unwrap() == FAILING { fail(consumer, delivery) } else { delivery.ack().unwrap() }
                }
            });
        }
        // The handlers end even if this is not to be.
        let outcome = catch_unwind(AssertUnwindSafe(|| wait_until(PATIENCE, until)));
        consumers.iter().for_each(|consumer| consumer.stop_handle().stop());
        outcome.unwrap_or_else(|panic| resume_unwind(panic));
    });
}

fn release(_: &Consumer, delivery: Delivery) {
    delivery.release().unwrap();
}

fn spawn(line: &Line, name: &str) -> Consumer {
    line.consumer(name).max_deliveries(DELIVERIES).dead_letter(line.scene.dead()).spawn().unwrap()
}

#[test]
fn clean_restarts_count_nothing() {
    for line in Line::all() {
        let scene = &line.scene;
        let hand_outs = HandOuts::default();
        let start = || [spawn(&line, "a"), spawn(&line, "b")];
        let queued = |both: &[Consumer]| both.iter().map(|consumer| consumer.stats().queued).sum::<usize>();
        let mut good = scene.add_many("before", 10);
        scene.add_many("failing", 1);
        good.extend(scene.add_many("after", 10));
        while scene.buried().is_empty() {
            // One restart in which nobody asks for anything.
            let both = start();
            wait_until(LIMIT, || queued(&both) > 0 || !scene.buried().is_empty());
            both.into_iter().for_each(|consumer| drop(consumer.close().unwrap()));
            let both = start();
            let before = hand_outs.of(FAILING).len();
            work(&both, &hand_outs, release, || hand_outs.of(FAILING).len() > before || !scene.buried().is_empty());
            both.into_iter().for_each(|consumer| drop(consumer.close().unwrap()));
        }
        let both = start();
        work(&both, &hand_outs, release, || scene.pending() == 0);
        hand_outs.assert_exact(scene, &good);
    }
}

#[test]
fn what_was_cut_off_on_its_way_is_handed_out_for_the_first_time() {
    const CUTS: usize = 5;
    for line in Line::all() {
        let Line { scene, proxy, .. } = &line;
        let consumer = spawn(&line, "a");
        scene.wait_until_blocked();
        proxy.cut_after(Direction::ToClient, 4_000);
        let sent = scene.add_large("entry", 50, 5_000);
        for cut in 1..=CUTS {
            proxy.wait_until(|proxy| proxy.cuts() == cut);
            // Enough for a greeting, and not for an entry.
            proxy.cut_after(Direction::ToClient, 4_000);
        }
        proxy.heal();
        for text in sent {
            let delivery = next(&consumer);
            assert_eq!((delivery.text().unwrap(), delivery.delivery_count()), (&*text, 1));
            delivery.ack().unwrap();
        }
        assert_quiet(&consumer);
        let stats = consumer.close().unwrap();
        assert!(stats.reconnects as usize >= 2, "{stats:?}");
        assert_eq!((scene.buried().len(), scene.pending()), (0, 0));
    }
}

#[test]
fn what_was_lost_before_a_clean_end_was_not_delivered() {
    let line = Line::plain();
    let Line { scene, proxy, .. } = &line;
    let start = |name| line.consumer(name).max_deliveries(1).dead_letter(scene.dead()).spawn().unwrap();
    let consumer = start("a");
    let took_nothing = consumer.timeout_iter(Duration::from_millis(200)).next();
    assert!(took_nothing.is_none());
    proxy.cut_after(Direction::ToClient, 4_000);
    scene.add_large("entry", 1, 50_000);
    for cut in 1..=3 {
        proxy.wait_until(|proxy| proxy.cuts() == cut);
        proxy.cut_after(Direction::ToClient, 4_000);
    }
    consumer.close().unwrap();
    proxy.heal();
    let other = start("b");
    let delivery = next(&other);
    assert_eq!((delivery.text().unwrap(), delivery.delivery_count()), ("entry-0", 1));
    delivery.ack().unwrap();
    other.close().unwrap();
    assert_eq!((scene.buried().len(), scene.pending()), (0, 0));
}

#[test]
fn cut_connections_count_nothing() {
    for line in Line::all() {
        let Line { scene, proxy, .. } = &line;
        let hand_outs = HandOuts::default();
        let both = [spawn(&line, "a"), spawn(&line, "b")];
        proxy.cut_after(Direction::ToClient, 4_000);
        let mut good = scene.add_large("before", 10, 2_000);
        scene.add_large("failing", 1, 5_000);
        good.extend(scene.add_large("after", 10, 2_000));
        let (mut cuts, mut seen) = (0, 0);
        let fail = |_: &Consumer, delivery: Delivery| {
            // The way back is not cut.
            proxy.heal();
            delivery.release().unwrap();
        };
        work(&both, &hand_outs, fail, || {
            let handed_out = hand_outs.of(FAILING).len();
            if handed_out > seen {
                (seen, cuts) = (handed_out, 0);
            }
            if cuts < 4 {
                let before = proxy.cuts();
                proxy.cut_after(Direction::ToClient, 4_000);
                wait_until(LIMIT, || proxy.cuts() > before || hand_outs.of(FAILING).len() > seen);
                cuts += 1;
                if cuts == 4 {
                    proxy.heal();
                }
            }
            !scene.buried().is_empty() && scene.pending() == 0
        });
        assert!(both.iter().map(|consumer| consumer.stats().reconnects).sum::<u64>() > 0);
        hand_outs.assert_exact(scene, &good);
    }
}

#[test]
fn an_outage_longer_than_claim_idle_counts_nothing() {
    // It differs which of a consumer's connections comes first after the outage.
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert_an_outage_counts_nothing(Line::plain()));
        }
    });
}

fn assert_an_outage_counts_nothing(line: Line) {
    // What the default is, and more.
    const OUTAGE: i64 = 61_500;
    let Line { scene, proxy, .. } = &line;
    let others = Proxy::start(scene.server.port());
    let other_line = step_redis::PoolParams::new("127.0.0.1", others.port());
    let hand_outs = HandOuts::default();
    scene.add_many("failing", 1);
    let good = scene.add_many("good", 10);
    let a = spawn(&line, "a");
    wait_until(LIMIT, || a.stats().received == 11);
    let b = scene.default_consumer(other_line, "b").max_deliveries(DELIVERIES).dead_letter(scene.dead());
    let both = [a, b.spawn().unwrap()];
    scene.wait_until_blocked();

    // The first handler has the failing entry, and the others are queued behind it.
    let (go_on, outage_is_over) = channel();
    let outage_is_over = Mutex::new(outage_is_over);
    let fail = |_: &Consumer, delivery: Delivery| {
        if delivery.delivery_count() == 1 {
            outage_is_over.lock().unwrap().recv().unwrap();
        }
        delivery.release().unwrap();
    };
    let mut began = false;
    work(&both, &hand_outs, fail, || {
        if !began && !hand_outs.of(FAILING).is_empty() {
            began = true;
            for proxy in [proxy, &others] {
                proxy.refuse(true);
                proxy.reset();
            }
            wait_until(PATIENCE, || scene.pending_entries().iter().all(|(_, idle, _)| *idle > OUTAGE));
            // Only the first gets through, for a while.
            let accepted = proxy.accepted();
            proxy.refuse(false);
            proxy.wait_until(|proxy| proxy.accepted() > accepted);
            proxy.refuse(true);
            thread::sleep(Duration::from_secs(2));
            proxy.refuse(false);
            wait_until(LIMIT, || scene.pending_entries().iter().all(|(_, idle, _)| *idle < OUTAGE));
            // Time for a claim that should not be.
            thread::sleep(Duration::from_secs(2));
            let pending = scene.pending_entries();
            let counts: Vec<_> = pending.iter().map(|(owner, _, count)| (owner.as_str(), *count)).collect();
            others.heal();
            go_on.send(()).unwrap();
            assert_eq!(counts, vec![("a", 1); 11]);
        }
        !scene.buried().is_empty() && scene.pending() == 0
    });
    hand_outs.assert_exact(scene, &good);
    for consumer in &both {
        let stats = consumer.stats();
        assert_eq!((stats.taken_over, stats.reconnects), (0, 1), "{stats:?}");
    }
}

#[test]
fn a_line_too_slow_for_a_batch_counts_nothing() {
    let line = Line::plain();
    let Line { scene, proxy, .. } = &line;
    let hand_outs = HandOuts::default();
    let both = [spawn(&line, "a"), spawn(&line, "b")];
    scene.wait_until_blocked();
    // All of them take 40 s, and `socket_timeout` is 30 s.
    proxy.drip(Direction::ToClient, 200, Duration::from_millis(100));
    scene.add_large("failing", 1, 10_000);
    let good = scene.add_large("good", 7, 10_000);
    work(&both, &hand_outs, release, || !scene.buried().is_empty() && scene.pending() == 0);
    hand_outs.assert_exact(scene, &good);
    assert!(both.iter().any(|consumer| consumer.stats().reconnects > 0), "the batch came in time");
}
