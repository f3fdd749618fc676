//! Server, network and consumers are tortured at random while programs publish and consume, and every entry is counted.
//!
//! What must be true in the end, and what each bound follows from, is in `chaos/verdict.rs`. No call hangs, and every thread,
//! connection and descriptor is gone.
//!
//! `CHAOS_MINUTES` says how long (a sixth of a minute if unset), `CHAOS_SEED` repeats the decisions of an earlier run. The
//! seed is printed; after a failure, so is the story of the entry concerned.

#[path = "common/mod.rs"]
mod common;
#[path = "chaos/consumers.rs"]
mod consumers;
#[path = "chaos/content.rs"]
mod content;
#[path = "chaos/events.rs"]
mod events;
#[path = "chaos/journal.rs"]
mod journal;
#[path = "chaos/ledger.rs"]
mod ledger;
#[path = "chaos/lines.rs"]
mod lines;
#[path = "chaos/messages.rs"]
mod messages;
#[path = "chaos/notes.rs"]
mod notes;
#[path = "chaos/processes.rs"]
mod processes;
#[path = "chaos/publishers.rs"]
mod publishers;
#[path = "chaos/removals.rs"]
mod removals;
#[path = "chaos/report.rs"]
mod report;
#[path = "chaos/statistics.rs"]
mod statistics;
#[path = "chaos/tools.rs"]
mod tools;
#[path = "chaos/verdict.rs"]
mod verdict;
#[path = "chaos/world.rs"]
mod world;

use std::time::Duration;

use common::{Certificates, Server, open_descriptors, server_speaks_tls, thread_count, threads_named, wait_until};
use tools::{now, say, setting};
use world::World;

/// How long it may take until all that belonged to a run is gone.
const GONE: Duration = Duration::from_secs(60);
/// A run that is longer than this has each kind of event ten times.
const LONG_RUN: f64 = 3.0;

#[test]
fn every_entry_is_accounted_for() {
    let seed = setting("CHAOS_SEED").unwrap_or_else(|| now() << 20 | u64::from(std::process::id()));
    let minutes: f64 = setting("CHAOS_MINUTES").unwrap_or(1.0 / 6.0);
    say(&format!("CHAOS_SEED={seed} CHAOS_MINUTES={minutes}"));
    journal::begin();

    let certificates = (cfg!(feature = "tls") && server_speaks_tls()).then(Certificates::generate);
    // What is written anew often is loaded quickly, when there is much of it, too.
    let server = Server::builder().unix().append_only().config("auto-aof-rewrite-min-size", "4mb");
    let server = server.config("auto-aof-rewrite-percentage", "50");
    let server = match &certificates {
        Some(certificates) => server.tls(certificates).start(),
        None => server.start(),
    };
    let before = Resources::of(&server);
    let world = World::new(server, certificates.as_ref(), seed);
    let wanted = if minutes > LONG_RUN { 10 } else { 1 };
    world.run(Duration::from_secs_f64(minutes * 60.0), wanted);
    let server = world.judge(wanted as u64);
    wait_until(GONE, || threads_named("step-redis") == 0 && server.connected_clients() == 0);
    wait_until(GONE, || Resources::of(&server) == before);
}

/// Plays no part, and passes, when it is run as a test among others.
#[test]
fn a_consumer_process_plays_its_part() {
    notes::consume_as_told();
}

/// What must be as it was before.
#[derive(Debug, PartialEq)]
struct Resources {
    threads: usize,
    descriptors: usize,
}

impl Resources {
    fn of(server: &Server) -> Resources {
        // The test's own connection is open in any case.
        server.command(&["PING"]);
        Resources { threads: thread_count(), descriptors: open_descriptors() }
    }
}
