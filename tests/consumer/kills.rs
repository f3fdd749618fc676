//! Workers that are killed, and handlers that fail: every entry is handled, and poison ends as a dead letter.

use crate::child::{Child, WORKER_DELIVERIES, is_poison};
use crate::common::wait_until;
use crate::support::{Bench, distinct};
use std::thread;
use std::time::{Duration, Instant};

const ENTRIES: usize = 100_000;
const WORKERS: usize = 4;
const KILLS: usize = 12;
const KILL_EVERY: Duration = Duration::from_millis(250);
const LIMIT: Duration = Duration::from_secs(90);

#[test]
fn every_entry_is_handled_although_workers_are_killed_and_handlers_fail() {
    let bench = Bench::start();
    bench.stream.create_input_stream(&bench.input()).unwrap();
    bench.fill(ENTRIES, 50);
    let name = |worker: usize| format!("worker-{worker}");
    let mut workers: Vec<_> = (0..WORKERS).map(|worker| Child::start(&bench, "worker", &name(worker))).collect();

    let started = Instant::now();
    let mut kills = 0;
    while kills < KILLS || !bench.delivered().1 {
        thread::sleep(KILL_EVERY);
        let worker = kills % WORKERS;
        workers[worker].kill();
        workers[worker] = Child::start(&bench, "worker", &name(worker));
        kills += 1;
        assert!(started.elapsed() < LIMIT, "{:?} after {kills} kills", bench.delivered());
    }
    wait_until(LIMIT, || bench.pending() == 0);
    workers.iter_mut().for_each(Child::finish);

    let recorded: Vec<_> = workers.iter().flat_map(Child::lines).collect();
    let numbers = |what: &str| {
        let lines = recorded.iter().filter_map(|line| line.strip_prefix(what));
        distinct(lines.map(|number| number.trim().parse().unwrap()).collect())
    };
    let poison: Vec<_> = (0..ENTRIES).filter(|number| is_poison(*number)).collect();
    assert_eq!(numbers("done").len() + poison.len(), ENTRIES, "entries that no handler has finished");
    let failed = numbers("failed");
    assert!(poison.iter().all(|number| failed.binary_search(number).is_ok()), "poison that no handler has seen");

    let dead = bench.stream.dead_letters(&bench.dead(), ENTRIES).unwrap();
    let mut buried: Vec<usize> =
        dead.iter().map(|letter| String::from_utf8_lossy(letter.payload()).parse().unwrap()).collect();
    buried.sort_unstable();
    assert_eq!(buried, poison, "each poison entry, once, and nothing else");
    assert!(dead.iter().all(|letter| letter.deliveries() >= WORKER_DELIVERIES));
    assert_eq!((bench.pending(), bench.delivered()), (0, (ENTRIES, true)));
}
