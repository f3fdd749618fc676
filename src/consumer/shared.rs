//! What a consumer's threads, deliveries and handles share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::acks::AckQueue;
use super::in_flight::InFlight;
use super::options::{AckMode, Backoff, ConsumerStats, OnGroupLoss};
use crate::connection::{Connection, Connector};
use crate::delivery::{OnDrop, PoolSettler, Settle, Settlement};
use crate::endpoint::{Member, StreamInput, StreamOutput};
use crate::entry::{Entry, EntryId};
use crate::error::{Error, Result, with_causes};
use crate::net::Interrupter;
use crate::pool::StepPool;
use crate::signal::{Signal, lock};

/// A reader that is told to stop and is still waiting for the server after this time is cut off.
const PATIENCE: Duration = Duration::from_millis(40);

/// The builder's choices, checked.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) prefetch: usize,
    pub(super) batch: usize,
    pub(super) claim: bool,
    pub(super) max_deliveries: Option<u64>,
    pub(super) on_drop: OnDrop,
    pub(super) ack_mode: AckMode,
    pub(super) on_group_loss: OnGroupLoss,
    pub(super) backoff: Backoff,
    pub(super) close_timeout: Duration,
    /// The name was generated, so nobody will come back under it.
    pub(super) generated_name: bool,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) pool: StepPool,
    pub(super) input: StreamInput,
    pub(super) member: Member,
    pub(super) settings: Settings,
    pub(super) acks: AckQueue,
    pub(super) in_flight: InFlight,
    pub(super) counters: Counters,
    pub(super) reader: ReaderControl,
    /// The loop is to end.
    pub(super) stopping: Signal,
    /// What close leaves to the keeper, which ends then: entries that nobody has asked for. They are offered to the other
    /// consumers at once.
    pub(super) not_handed_out: OnceLock<Vec<EntryId>>,
    pub(super) keeper_ended: Signal,
    pub(super) keeper_interrupter: Interrupter,
    stopper: Mutex<Option<JoinHandle<()>>>,
    /// Renewing a lease and giving an entry back take turns: otherwise a renewal that is under way could undo the giving
    /// back.
    lease_turn: Mutex<()>,
    through_pool: PoolSettler,
}

impl Shared {
    pub(super) fn new(pool: StepPool, input: StreamInput, member: Member, settings: Settings) -> Shared {
        let (max, delay) = match settings.ack_mode {
            AckMode::Queued { max, delay } => (max, delay),
            AckMode::Confirmed => (1, Duration::ZERO),
        };
        Shared {
            through_pool: PoolSettler::new(pool.clone(), member.clone(), &input),
            pool,
            input,
            member,
            settings,
            acks: AckQueue::new(max, delay),
            in_flight: InFlight::default(),
            counters: Counters::default(),
            reader: ReaderControl::new(),
            stopping: Signal::new(),
            not_handed_out: OnceLock::new(),
            keeper_ended: Signal::new(),
            keeper_interrupter: Interrupter::new(),
            stopper: Mutex::default(),
            lease_turn: Mutex::default(),
        }
    }

    pub(super) fn connector(&self) -> &Connector {
        self.pool.connector()
    }

    pub(super) fn dead_letters(&self) -> Option<&StreamOutput> {
        self.input.dead_letter.as_ref()
    }

    /// Tells the reader to stop. The keeper asks the server to unblock it, which loses nothing; a thread of its own sees to
    /// it that the reader ends even if the server does not answer.
    pub(super) fn stop(self: &Arc<Shared>) {
        // Held until the thread is known, so that whoever joins it finds it.
        let mut stopper = lock(&self.stopper);
        if !self.stopping.set() {
            return;
        }
        self.acks.call_keeper();
        let shared = Arc::clone(self);
        let started = std::thread::Builder::new().name("step-redis-stop".into()).spawn(move || shared.cut_off_reader());
        match started {
            Ok(thread) => *stopper = Some(thread),
            Err(error) => {
                log::warn!("no thread to watch over the stop of {}: {error}", self.member.consumer);
                self.reader.interrupter.interrupt();
            }
        }
    }

    fn cut_off_reader(&self) {
        while !self.reader.ended.wait(PATIENCE) {
            if self.reader.waits_for_longer_than(PATIENCE) {
                self.reader.interrupter.interrupt();
            }
        }
    }

    /// Ends the keeper, once the reader has ended.
    pub(super) fn end_keeper(&self, not_handed_out: Vec<EntryId>) {
        // The first and only time that it is set.
        let _ = self.not_handed_out.set(not_handed_out);
        self.acks.call_keeper();
    }

    pub(super) fn join_stopper(&self) {
        let stopper = lock(&self.stopper).take();
        if stopper.is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread that stops consumer {} panicked", self.member.consumer);
        }
    }

    /// These acknowledgements are confirmed.
    pub(super) fn confirm(&self, ids: &[EntryId]) {
        if ids.is_empty() {
            return;
        }
        self.in_flight.remove(ids);
        self.counters.acked.add(ids.len() as u64);
    }

    /// Renews leases while nobody gives entries back.
    pub(super) fn take_lease_turn<T>(&self, renew: impl FnOnce() -> T) -> T {
        let _turn = lock(&self.lease_turn);
        renew()
    }

    pub(super) fn stats(&self, queued: usize) -> ConsumerStats {
        let (in_flight, oldest_unacked) = self.in_flight.held();
        let counters = &self.counters;
        ConsumerStats {
            received: counters.received.get(),
            acked: counters.acked.get(),
            claimed: counters.claimed.get(),
            released: counters.released.get(),
            dead_lettered: counters.dead_lettered.get(),
            trimmed: counters.trimmed.get(),
            taken_over: counters.taken_over.get(),
            missed: counters.missed.get(),
            reconnects: counters.reconnects.get(),
            groups_recreated: counters.groups_recreated.get(),
            queued,
            in_flight,
            oldest_unacked,
            last_read: lock(&counters.last_read).map(|at| at.elapsed()),
            last_error: lock(&counters.last_error).clone(),
        }
    }
}

impl Settle for Shared {
    fn stream_id(&self) -> &str {
        &self.member.stream_id
    }

    fn settle(&self, entry: &Entry, deliveries: u64, settlement: Settlement<'_>) -> Result<()> {
        let id = entry.id();
        match settlement {
            Settlement::Ack => self.ack_batch(&[id])?,
            Settlement::Release | Settlement::RetryAfter(_) => {
                self.take_lease_turn(|| self.in_flight.park(id));
                self.through_pool.settle(entry, deliveries, settlement)?;
                self.counters.released.add(1);
            }
            Settlement::DeadLetter(_) => {
                if let Err(error) = self.through_pool.settle(entry, deliveries, settlement) {
                    self.in_flight.park(id);
                    return Err(error);
                }
                self.in_flight.remove(&[id]);
                self.counters.dead_lettered.add(1);
            }
            Settlement::Leave => self.in_flight.park(id),
        }
        Ok(())
    }

    fn shares_group_with(&self, _: &StepPool, _: &Member) -> bool {
        // It is to be known here, too.
        false
    }

    fn ack_batch(&self, ids: &[EntryId]) -> Result<()> {
        if matches!(self.settings.ack_mode, AckMode::Queued { .. }) && self.acks.push(ids) {
            return Ok(());
        }
        // The consumer is closed, or each acknowledgement is to be confirmed.
        match self.through_pool.ack_batch(ids) {
            Ok(()) => {
                self.confirm(ids);
                Ok(())
            }
            Err(error) => {
                ids.iter().for_each(|id| self.in_flight.park(*id));
                Err(error)
            }
        }
    }
}

/// How others find the reader, to wake it or to end it.
#[derive(Debug)]
pub(super) struct ReaderControl {
    pub(super) interrupter: Interrupter,
    pub(super) ended: Signal,
    /// The reading connection's id at the server; 0: none.
    client_id: AtomicU64,
    /// Milliseconds from `birth` to when it began to wait for the server, plus 1; 0: it does not wait.
    waiting_since: AtomicU64,
    birth: Instant,
}

impl ReaderControl {
    fn new() -> ReaderControl {
        ReaderControl {
            interrupter: Interrupter::new(),
            ended: Signal::new(),
            client_id: AtomicU64::new(0),
            waiting_since: AtomicU64::new(0),
            birth: Instant::now(),
        }
    }

    /// Runs something that waits for the server.
    pub(super) fn waiting<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.waiting_since.store(self.now() + 1, Ordering::Release);
        let result = wait();
        self.waiting_since.store(0, Ordering::Release);
        result
    }

    pub(super) fn set_connection(&self, connection: Option<&Connection>) {
        let id = connection.and_then(Connection::id).unwrap_or(0);
        self.client_id.store(id, Ordering::Release);
    }

    /// The connection to unblock, if the reader is waiting on one.
    pub(super) fn blocked_client(&self) -> Option<u64> {
        let waits = self.waiting_since.load(Ordering::Acquire) != 0;
        Some(self.client_id.load(Ordering::Acquire)).filter(|id| waits && *id != 0)
    }

    fn waits_for_longer_than(&self, patience: Duration) -> bool {
        match self.waiting_since.load(Ordering::Acquire) {
            0 => false,
            since => u128::from(self.now().saturating_sub(since - 1)) + 1 >= patience.as_millis(),
        }
    }

    fn now(&self) -> u64 {
        self.birth.elapsed().as_millis() as u64
    }
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) received: Counter,
    pub(super) acked: Counter,
    pub(super) claimed: Counter,
    pub(super) released: Counter,
    pub(super) dead_lettered: Counter,
    pub(super) trimmed: Counter,
    pub(super) taken_over: Counter,
    pub(super) missed: Counter,
    pub(super) reconnects: Counter,
    pub(super) groups_recreated: Counter,
    pub(super) last_read: Mutex<Option<Instant>>,
    pub(super) last_error: Mutex<Option<String>>,
}

impl Counters {
    pub(super) fn note_error(&self, error: &Error) {
        *lock(&self.last_error) = Some(with_causes(error));
    }
}

#[derive(Debug, Default)]
pub(super) struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
