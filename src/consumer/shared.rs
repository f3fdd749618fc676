//! What a consumer's threads, deliveries and handles share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::acks::AckQueue;
use super::claimable::Claimable;
use super::in_flight::InFlight;
use super::options::{AckMode, Backoff, ConsumerStats, OnGroupLoss};
use super::reader::Leftover;
use super::takers::Takers;
use crate::connection::Connector;
use crate::delivery::{OnDrop, PoolSettler, Receipt, Settle, Settlement};
use crate::endpoint::{ConsumerKey, StreamInput, StreamOutput};
use crate::entry::Entry;
use crate::error::{Error, Result, with_causes};
use crate::latch::{Latch, lock};
use crate::net::Interrupter;
use crate::pool::StepPool;

/// A reader that is told to stop and is still waiting for the server after this time is cut off, if the line is fast.
const SHORTEST_PATIENCE: Duration = Duration::from_millis(40);
/// How often to look for entries to claim at most, and at least: what is given back is found within a second.
const CLAIM_INTERVAL: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_millis(900);
/// How long to wait for the server's word that an entry is done which would be buried otherwise.
const LAST_ACK_PATIENCE: Duration = Duration::from_secs(1);
/// Nothing is waited for that long; it is waited for again.
const LONG: Duration = Duration::from_secs(3600);

/// The builder's choices, checked.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    pub(super) prefetch: usize,
    pub(super) prefetch_bytes: usize,
    pub(super) batch: usize,
    pub(super) claim: bool,
    pub(super) max_deliveries: Option<u64>,
    pub(super) on_drop: OnDrop,
    pub(super) ack_mode: AckMode,
    pub(super) on_group_loss: OnGroupLoss,
    pub(super) backoff: Backoff,
    pub(super) close_timeout: Duration,
    /// How long `spawn()` tries to reach a server that is down.
    pub(super) wait_for_server: Duration,
    /// The name was generated, so nobody will come back under it.
    pub(super) generated_name: bool,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) pool: StepPool,
    pub(super) input: StreamInput,
    pub(super) key: ConsumerKey,
    pub(super) settings: Settings,
    pub(super) acks: AckQueue,
    pub(super) in_flight: InFlight,
    pub(super) claimable: Claimable,
    pub(super) takers: Takers,
    pub(super) counters: Counters,
    pub(super) reader: ReaderControl,
    pub(super) line: Line,
    /// The loop is to end.
    pub(super) stopping: Latch,
    /// What close leaves to the keeper, which ends then: entries that nobody has asked for. They are offered to the other
    /// consumers at once.
    pub(super) not_handed_out: OnceLock<Leftover>,
    /// An error that the keeper met and that ends the loop; the reader yields it.
    pub(super) failure: Mutex<Option<Error>>,
    pub(super) keeper_ended: Latch,
    pub(super) keeper_interrupter: Interrupter,
    stopper: Mutex<Option<JoinHandle<()>>>,
    closing_since: OnceLock<Instant>,
    /// Renewing a lease and giving an entry back take turns: otherwise a renewal that is under way could undo the giving
    /// back.
    lease_turn: Mutex<()>,
    /// Shared by those who acknowledge; alone for the reader while it finds out that ids mean other entries now.
    ack_turn: RwLock<()>,
    through_pool: PoolSettler,
}

impl Shared {
    pub(super) fn new(pool: StepPool, input: StreamInput, key: ConsumerKey, settings: Settings) -> Shared {
        let (max, delay) = match settings.ack_mode {
            AckMode::Queued { max, delay } => (max, delay),
            AckMode::Confirmed => (1, Duration::ZERO),
        };
        Shared {
            through_pool: PoolSettler::new(pool.clone(), key.clone(), &input),
            pool,
            input,
            key,
            settings,
            acks: AckQueue::new(max, delay),
            in_flight: InFlight::default(),
            claimable: Claimable::default(),
            takers: Takers::default(),
            failure: Mutex::default(),
            counters: Counters::default(),
            reader: ReaderControl::new(),
            line: Line::default(),
            stopping: Latch::new(),
            not_handed_out: OnceLock::new(),
            keeper_ended: Latch::new(),
            keeper_interrupter: Interrupter::new(),
            stopper: Mutex::default(),
            closing_since: OnceLock::new(),
            lease_turn: Mutex::default(),
            ack_turn: RwLock::default(),
        }
    }

    pub(super) fn connector(&self) -> &Connector {
        self.pool.connector()
    }

    pub(super) fn dead_letters(&self) -> Option<&StreamOutput> {
        self.input.dead_letter.as_ref()
    }

    /// How often an entry may be handed out, where there is a place for those that have had it.
    pub(super) fn max_deliveries(&self) -> Option<u64> {
        self.settings.max_deliveries.filter(|_| self.dead_letters().is_some())
    }

    /// Whether the hand-out with this number is the last one permitted.
    pub(super) fn is_last_chance(&self, deliveries: u64) -> bool {
        self.max_deliveries().is_some_and(|max| deliveries >= max)
    }

    pub(super) fn claim_interval(&self) -> Duration {
        (self.input.claim_idle / 4).clamp(*CLAIM_INTERVAL.start(), *CLAIM_INTERVAL.end())
    }

    /// The reader waits until something is true that handlers bring about, at most for `limit`, or until it is to stop;
    /// whether either has come.
    pub(super) fn wait_for_handlers(&self, limit: Duration, is_true: impl FnMut() -> bool) -> bool {
        self.takers.watchers.fetch_add(1, Ordering::SeqCst);
        let came = self.stopping.wait_or(limit, is_true);
        self.takers.watchers.fetch_sub(1, Ordering::SeqCst);
        came
    }

    /// A handler has taken something, waits for something, or is done with something.
    pub(super) fn note_handler(&self) {
        if self.takers.watchers.load(Ordering::SeqCst) > 0 {
            self.stopping.wake();
        }
    }

    /// An iterator has taken something.
    pub(super) fn note_taken(&self) {
        if self.settings.max_deliveries.is_some() {
            self.takers.note_taken();
        }
        self.note_handler();
    }

    /// An entry that a handler had for the last time, and is done with, would be buried if the process ended before the
    /// server knows. So nothing that could end it is handed out before, unless the server is long in answering or it is
    /// time to stop. Whether that is so now; then the keeper is called.
    pub(super) fn awaits_last_acks(&self) -> bool {
        let awaits = self.settings.max_deliveries.is_some()
            && self.in_flight.has_just_acked_last_chance(LAST_ACK_PATIENCE)
            && !self.stopping.is_set();
        if awaits {
            self.acks.call_keeper();
        }
        awaits
    }

    /// Waits for the end of that, and not beyond `until`.
    pub(super) fn wait_for_last_acks(&self, until: Option<Instant>) {
        if self.awaits_last_acks() {
            let left = until.map_or(LAST_ACK_PATIENCE, |until| until.saturating_duration_since(Instant::now()));
            let are_known = || !self.in_flight.has_just_acked_last_chance(LAST_ACK_PATIENCE);
            self.wait_for_handlers(left.min(LAST_ACK_PATIENCE), are_known);
        }
    }

    /// An iterator has found nothing, and goes away.
    pub(super) fn note_came_by(&self) {
        if self.settings.max_deliveries.is_some() {
            self.takers.note_came_by();
            self.note_handler();
        }
    }

    /// Ends the loop with this error.
    pub(super) fn fail(self: &Arc<Shared>, error: Error) {
        lock(&self.failure).get_or_insert(error);
        self.stop();
    }

    pub(super) fn is_reader_to_stop(&self) -> bool {
        self.stopping.is_set() && !self.reader.ended.is_set()
    }

    /// Tells the reader to stop. The keeper asks the server to unblock it, which loses nothing; a thread of its own sees to
    /// it that the reader ends even if the server does not answer.
    pub(super) fn stop(self: &Arc<Shared>) {
        // Held until the thread is known, so that whoever joins it finds it.
        let mut stopper = lock(&self.stopper);
        if !self.stopping.set() {
            return;
        }
        self.reader.is_to_stop.store(true, Ordering::SeqCst);
        self.acks.call_keeper();
        let shared = Arc::clone(self);
        let started = std::thread::Builder::new().name("step-redis-stop".into()).spawn(move || shared.cut_off_reader());
        match started {
            Ok(thread) => *stopper = Some(thread),
            Err(error) => {
                log::warn!("no thread to watch over the stop of {}: {error}", self.key.consumer);
                self.reader.interrupter.interrupt();
            }
        }
    }

    fn cut_off_reader(&self) {
        let reader = &self.reader;
        while !reader.ended.is_set() {
            // A reader that hands over what it has read may take its time. It tells when it waits for the server.
            reader.ended.wait_or(LONG, || reader.is_waiting() || self.is_closing());
            let patience = self.patience();
            if reader.ended.wait(patience) {
                return;
            }
            if reader.waits_for_longer_than(patience) {
                reader.interrupter.interrupt();
            } else if self.has_been_closing_for(self.settings.close_timeout / 2) {
                // It waits for its turn, which the keeper has, who waits for the server.
                self.keeper_interrupter.interrupt();
            }
        }
    }

    /// How long a reader that is to stop is waited for: as long as a line takes that is known to be slow, so that what is on
    /// its way can arrive.
    pub(super) fn patience(&self) -> Duration {
        (2 * self.line.connecting()).min(self.settings.close_timeout / 2).max(SHORTEST_PATIENCE)
    }

    /// The consumer is being closed, and nobody takes deliveries any more.
    pub(super) fn begin_closing(&self) {
        self.closing_since.get_or_init(Instant::now);
        self.reader.ended.wake();
    }

    fn is_closing(&self) -> bool {
        self.closing_since.get().is_some()
    }

    fn has_been_closing_for(&self, limit: Duration) -> bool {
        self.closing_since.get().is_some_and(|since| since.elapsed() >= limit)
    }

    /// Ends the keeper, once the reader has ended.
    pub(super) fn end_keeper(&self, not_handed_out: Leftover) {
        // The first and only time that it is set.
        let _ = self.not_handed_out.set(not_handed_out);
        self.acks.call_keeper();
    }

    pub(super) fn join_stopper(&self) {
        let stopper = lock(&self.stopper).take();
        if stopper.is_some_and(|thread| thread.join().is_err()) {
            log::error!("the thread that stops consumer {} panicked", self.key.consumer);
        }
    }

    /// These acknowledgements are confirmed.
    pub(super) fn confirm(&self, acks: &[Receipt]) {
        if !acks.is_empty() {
            let confirmed = self.in_flight.remove(acks);
            self.counters.acked.add(confirmed as u64);
            self.note_handler();
        }
    }

    /// An acknowledgement is under way as long as this is held.
    pub(super) fn acks_under_way(&self) -> RwLockReadGuard<'_, ()> {
        self.ack_turn.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// No acknowledgement is under way, except for the reader's own, and none begins as long as this is held.
    pub(super) fn acks_stand_still(&self) -> RwLockWriteGuard<'_, ()> {
        self.ack_turn.write().unwrap_or_else(PoisonError::into_inner)
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
        &self.key.stream_id
    }

    fn settle(&self, receipt: Receipt, entry: &Entry, settlement: Settlement<'_>) -> Result<()> {
        // Where another consumer has the entry, or another delivery is meant by its id, nothing is done.
        let settled = match settlement {
            Settlement::Ack => return self.ack_batch(&[receipt]),
            Settlement::Leave => {
                self.in_flight.park(&receipt);
                Ok(())
            }
            Settlement::Release | Settlement::RetryAfter(_) => {
                if self.take_lease_turn(|| self.in_flight.park(&receipt)) {
                    let given_back = self.through_pool.carry_out(receipt, entry, settlement);
                    given_back.map(|moved| self.counters.released.add(u64::from(moved)))
                } else {
                    Ok(())
                }
            }
            Settlement::DeadLetter(_) if self.in_flight.is_current(&receipt) => {
                let moved = self.through_pool.carry_out(receipt, entry, settlement);
                if moved.is_ok() {
                    self.in_flight.remove(&[receipt]);
                } else {
                    self.in_flight.park(&receipt);
                }
                moved.map(|moved| self.counters.dead_lettered.add(u64::from(moved)))
            }
            Settlement::DeadLetter(_) => Ok(()),
        };
        self.note_handler();
        settled
    }

    fn shares_group_with(&self, _: &StepPool, _: &ConsumerKey) -> bool {
        // It is to be known here, too.
        false
    }

    fn ack_batch(&self, receipts: &[Receipt]) -> Result<()> {
        let queued = matches!(self.settings.ack_mode, AckMode::Queued { .. }) && self.acks.push(receipts);
        let acked = if queued { Ok(()) } else { self.ack_through_pool(receipts) };
        if receipts.iter().any(|receipt| self.is_last_chance(receipt.deliveries)) {
            receipts.iter().for_each(|receipt| self.in_flight.ack_last_chance(receipt));
            self.note_handler();
        }
        acked
    }
}

impl Shared {
    /// The consumer is closed, or each acknowledgement is to be confirmed.
    fn ack_through_pool(&self, receipts: &[Receipt]) -> Result<()> {
        let _turn = self.acks_under_way();
        let mut acks = receipts.to_vec();
        let done = self.in_flight.retain_pending(&mut acks);
        self.confirm(&done);
        if acks.is_empty() {
            return Ok(());
        }
        match self.through_pool.ack_batch(&acks) {
            Ok(()) => {
                self.confirm(&acks);
                Ok(())
            }
            Err(error) => {
                for receipt in &acks {
                    self.in_flight.park(receipt);
                }
                Err(error)
            }
        }
    }
}

/// What is known about the line to the server.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// How long it last took to make a connection, in microseconds: a few round trips.
    connecting: AtomicU64,
}

impl Line {
    pub(super) fn connecting(&self) -> Duration {
        Duration::from_micros(self.connecting.load(Ordering::Relaxed))
    }

    pub(super) fn set_connecting(&self, took: Duration) {
        self.connecting.store(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// How others find the reader, to wake it or to end it.
#[derive(Debug)]
pub(super) struct ReaderControl {
    pub(super) interrupter: Interrupter,
    pub(super) ended: Latch,
    /// The reading connection's id at the server; 0: none.
    client_id: AtomicU64,
    /// Milliseconds from `birth` to when it began to wait for the server, plus 1; 0: it does not wait.
    waiting_since: AtomicU64,
    birth: Instant,
    /// Whoever watches over its end wants to know when it waits.
    is_to_stop: AtomicBool,
    /// The server does not unblock it.
    cannot_be_woken: AtomicBool,
}

impl ReaderControl {
    fn new() -> ReaderControl {
        ReaderControl {
            interrupter: Interrupter::new(),
            ended: Latch::new(),
            client_id: AtomicU64::new(0),
            waiting_since: AtomicU64::new(0),
            birth: Instant::now(),
            is_to_stop: AtomicBool::new(false),
            cannot_be_woken: AtomicBool::new(false),
        }
    }

    /// Runs something that waits for the server.
    pub(super) fn waiting<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.waiting_since.store(self.now() + 1, Ordering::SeqCst);
        if self.is_to_stop.load(Ordering::SeqCst) {
            self.ended.wake();
        }
        let result = wait();
        self.waiting_since.store(0, Ordering::SeqCst);
        result
    }

    fn is_waiting(&self) -> bool {
        self.waiting_since.load(Ordering::SeqCst) != 0
    }

    pub(super) fn set_client_id(&self, id: Option<u64>) {
        self.client_id.store(id.unwrap_or(0), Ordering::SeqCst);
    }

    /// The server has refused to unblock it.
    pub(super) fn cannot_be_woken(&self) {
        self.cannot_be_woken.store(true, Ordering::Relaxed);
    }

    /// Whether a blocked read can be ended by the keeper.
    pub(super) fn can_be_woken(&self) -> bool {
        self.client_id.load(Ordering::SeqCst) != 0 && !self.cannot_be_woken.load(Ordering::Relaxed)
    }

    /// The connection to unblock, if the reader is waiting on one.
    pub(super) fn blocked_client(&self) -> Option<u64> {
        Some(self.client_id.load(Ordering::SeqCst)).filter(|id| self.is_waiting() && *id != 0)
    }

    fn waits_for_longer_than(&self, patience: Duration) -> bool {
        match self.waiting_since.load(Ordering::SeqCst) {
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

    pub(super) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
