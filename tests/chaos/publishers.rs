//! Publishers: one by one, in batches, and together with others, over every line. Each caller has a number, and each message
//! is sent once, whatever becomes of it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use step_redis::{Error, Publisher, StepStream, StreamOutput};

use crate::consumers::HUNG;
use crate::ledger::{Ledger, Told};
use crate::lines::Network;
use crate::messages::{FIRST_SHIFTING_CALLER, Lane, Name};
use crate::tools::Random;

/// How a caller publishes.
enum Way<'run> {
    OneByOne,
    Batches,
    Together(&'run Publisher),
}

/// The publishers of a run.
pub(crate) struct Publishers<'run> {
    pub(crate) network: &'run Network,
    pub(crate) ledger: &'run Ledger,
    pub(crate) seed: u64,
    /// They end.
    pub(crate) quiet: &'run AtomicBool,
}

impl Publishers<'_> {
    /// Publishes until told to be quiet.
    pub(crate) fn run(&self) {
        let output = StreamOutput::new(Lane::Orders.stream());
        // Callers who share a publisher have the line of the first of them, by their numbers.
        let together = self.network.line(20).stream().publisher(output.clone());
        let expiring = self.network.line(31).stream().publisher(output.ttl(Duration::from_secs(3600)));
        thread::scope(|scope| {
            for caller in 0..4 {
                scope.spawn(move || self.publish(caller, Way::OneByOne));
                scope.spawn(move || self.publish(10 + caller, Way::Batches));
                scope.spawn(move || self.publish(FIRST_SHIFTING_CALLER + caller, Way::OneByOne));
            }
            for (caller, publisher) in [(20, &together), (32, &together), (31, &expiring), (43, &expiring)] {
                scope.spawn(move || self.publish(caller, Way::Together(publisher)));
            }
            scope.spawn(move || self.publish(FIRST_SHIFTING_CALLER + 10, Way::Batches));
        });
    }

    fn publish(&self, caller: u16, way: Way<'_>) {
        let mut random = Random::new(self.seed ^ (u64::from(caller) << 40));
        let stream = self.network.line(caller).stream();
        let lane = Name { caller, number: 0 }.lane();
        let output = StreamOutput::new(lane.stream());
        let mut next = 0;
        while !self.quiet.load(Ordering::SeqCst) {
            let started = Instant::now();
            let first = Name { caller, number: next };
            let results = match &way {
                Way::OneByOne => vec![(first, Told::of(&stream.publish(&output, first.text())))],
                Way::Together(publisher) => vec![(first, Told::of(&publisher.publish(first.text())))],
                Way::Batches => {
                    let names = (next..next + 1 + random.below(60) as u32).map(|number| Name { caller, number });
                    publish_batch(&stream, &output, names.collect())
                }
            };
            assert!(started.elapsed() < HUNG, "publishing {first} took {:?}", started.elapsed());
            next += results.len() as u32;
            let failed = results.iter().any(|(_, told)| !matches!(told, Told::Confirmed(_)));
            self.ledger.tell(results);
            // Not more than the server can load quickly when it comes back.
            let pause = if matches!(way, Way::Batches) { (200, 900) } else { (5, if failed { 150 } else { 80 }) };
            thread::sleep(Duration::from_millis(random.between(pause.0, pause.1)));
        }
    }
}

fn publish_batch(stream: &StepStream, output: &StreamOutput, names: Vec<Name>) -> Vec<(Name, Told)> {
    let told = match stream.publish_batch(output, names.iter().map(|name| name.text())) {
        Ok(ids) => {
            assert_eq!(ids.len(), names.len(), "an id for each message of the batch");
            ids.into_iter().map(Told::Confirmed).collect()
        }
        Err(error) => {
            let otherwise = Told::of_failure(&error);
            let mut told: Vec<Told> = match &error {
                Error::Batch { published, .. } => {
                    published.iter().map(|id| id.map_or(otherwise, Told::Confirmed)).collect()
                }
                _ => vec![otherwise; names.len()],
            };
            // These were not even taken from the iterator.
            told.resize(names.len(), Told::NotSent);
            told
        }
    };
    names.into_iter().zip(told).collect()
}
