//! Consumers and their handlers: they take what comes, fail at random, and write down what they had before they do anything
//! with it. The same code runs in this process and in those that are killed.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use step_redis::{AckMode, Backoff, Consumer, Delivery, EntryId, Error, OnDrop, StatsHandle, StepStream, StreamOutput};

use crate::journal;
use crate::ledger::{Ending, How, Outcome, Stats};
use crate::lines::LIMIT;
use crate::messages::{Lane, Name};
use crate::tools::{Random, now};

/// No call takes longer: every limit is far shorter, and the machine may be busy.
pub(crate) const HUNG: Duration = Duration::from_secs(8);
/// A consumer that takes longer to end may have cut off its reader, and what the server sent into the closed socket stays
/// pending and counted. (The reader is cut off 40 ms after it was told to stop.)
const GENTLE_END: Duration = Duration::from_millis(35);
/// Why a handler gives up on an entry; other dead letters have had their hand-outs.
pub(crate) const GIVEN_UP: &str = "the handler gives up";

/// What the run tells its consumers.
#[derive(Debug, Default)]
pub(crate) struct Control {
    /// Handlers fail with poison only.
    pub(crate) calm: AtomicBool,
    /// Consumers end.
    pub(crate) ended: AtomicBool,
}

/// Where a consumer's handlers write down what they had.
pub(crate) trait Record {
    fn handed_out(&self, name: Name, id: EntryId, number: u64);
    /// What became of it. An acknowledgement is noted twice: as [`Outcome::Acking`] before it is made, too, as the process
    /// may be killed between that and the note.
    fn settled(&self, name: Name, outcome: Outcome, stats: &StatsHandle);
    /// How many acknowledgements `ack()` has taken.
    fn acks(&self) -> u64;
}

/// One consumer, from its start to its end.
pub(crate) struct Job<'run> {
    pub(crate) lane: Lane,
    pub(crate) stream: &'run StepStream,
    /// None: a generated name, which does not come back.
    pub(crate) consumer: Option<&'run str>,
    pub(crate) control: &'run Control,
}

impl Job<'_> {
    /// Starts the consumer if the server is there for it; with settings of the moment.
    pub(crate) fn start(&self, random: &mut Random) -> Option<Consumer> {
        let mut input = self.lane.input();
        if let Some(name) = self.consumer {
            input = input.consumer(name);
        }
        // What is left comes to who comes back under the name, or to all after a while.
        let on_drop = if self.consumer.is_some() && random.one_in(2) { OnDrop::Leave } else { OnDrop::Release };
        let ack_mode = if random.one_in(3) { AckMode::Confirmed } else { AckMode::default() };
        let builder = self.stream.consumer(input).prefetch(1 + random.below(300)).batch(1 + random.below(150));
        let builder = builder.max_deliveries(self.lane.max_deliveries()).on_drop(on_drop).ack_mode(ack_mode);
        let builder = builder.dead_letter(StreamOutput::new(self.lane.dead())).close_timeout(LIMIT);
        builder.backoff(Backoff::new(Duration::from_millis(10), Duration::from_millis(300))).spawn().ok()
    }

    /// Handles what comes until the time is over, and ends the consumer.
    pub(crate) fn work(&self, consumer: Consumer, record: &dyn Record, random: &mut Random, time: Duration) -> Ending {
        let (started, control) = (Instant::now(), self.control);
        // Once all is to be settled, the next one gets at once what this one has left.
        let was_calm = control.calm.load(Ordering::SeqCst);
        let goes_on = || !control.ended.load(Ordering::SeqCst) && control.calm.load(Ordering::SeqCst) == was_calm;
        let handlers = Handlers { job: self, record, stats: consumer.stats_handle() };
        while started.elapsed() < time && goes_on() {
            for delivery in consumer.timeout_iter(Duration::from_millis(50)).take(64) {
                let delivery = delivery.expect("no error ends the loop");
                let handled = catch_unwind(AssertUnwindSafe(|| handlers.handle(delivery, random)));
                // A handler's panic is part of the game, an assertion's is not.
                handled.unwrap_or_else(|panic| {
                    if !panic.is::<Thrown>() {
                        resume_unwind(panic)
                    }
                });
            }
        }
        end(consumer, record, random)
    }
}

fn end(consumer: Consumer, record: &dyn Record, random: &mut Random) -> Ending {
    let (name, handle) = (consumer.name().to_owned(), consumer.stats_handle());
    let (from, started) = (now(), Instant::now());
    // Dropping it does the same, and tells nobody.
    let (how, closed) = if random.one_in(3) {
        drop(consumer);
        (How::Dropped, Ok(()))
    } else {
        (How::Closed, consumer.close().map(drop))
    };
    let took = started.elapsed();
    assert!(took < HUNG, "closing took {took:?}");
    let stats = Stats::from(&handle.stats());
    let unconfirmed = match (how, &closed) {
        (How::Closed, Ok(())) => 0,
        (How::Closed, Err(Error::AcksUnconfirmed { count })) => *count as u64,
        (_, Err(error)) => panic!("{name} did not close: {error}"),
        (_, Ok(())) => record.acks().saturating_sub(stats.acked),
    };
    let troubled = unconfirmed > 0 || took >= GENTLE_END || journal::is_troubled(&name);
    journal::forget(&name);
    Ending { how, from, until: now(), unconfirmed, troubled, stats }
}

struct Handlers<'run> {
    job: &'run Job<'run>,
    record: &'run dyn Record,
    stats: StatsHandle,
}

impl Handlers<'_> {
    fn handle(&self, delivery: Delivery, random: &mut Random) {
        let name = Name::of(delivery.payload()).unwrap_or_else(|problem| panic!("{problem}"));
        self.record.handed_out(name, delivery.id(), delivery.delivery_count());
        let calm = self.job.control.calm.load(Ordering::SeqCst);
        // Poison fails in any way, and when all is to be settled soon, in the fastest.
        let chance = match (name.is_poison(), calm) {
            (true, true) => 30,
            (true, false) => random.below(110),
            (false, true) => 999,
            (false, false) => random.below(1000),
        };
        let started = Instant::now();
        let outcome = match chance {
            0..30 => {
                drop(delivery);
                Outcome::Dropped
            }
            30..60 => Outcome::Released(delivery.release().is_ok()),
            60..90 => Outcome::Retried(delivery.retry_after(Duration::from_millis(random.between(0, 900))).is_ok()),
            90..110 => {
                self.record.settled(name, Outcome::Panicked, &self.stats);
                resume_unwind(Box::new(Thrown))
            }
            110..115 => Outcome::DeadLettered(delivery.dead_letter(GIVEN_UP).is_ok()),
            115..117 => {
                // Longer than others of the shifting stream would wait, were it not kept fresh.
                thread::sleep(Lane::Shifting.claim_idle() * 3 / 2);
                self.ack(name, delivery)
            }
            _ => self.ack(name, delivery),
        };
        let took = started.elapsed();
        assert!(took < HUNG, "{name}: {outcome:?} took {took:?}");
        self.record.settled(name, outcome, &self.stats);
    }

    fn ack(&self, name: Name, delivery: Delivery) -> Outcome {
        self.record.settled(name, Outcome::Acking, &self.stats);
        Outcome::Acked(delivery.ack().is_ok())
    }
}

/// What a failing handler throws.
struct Thrown;
