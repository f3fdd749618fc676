//! The keeper: one thread with its own connection, which does what must go on while the reader waits and the handlers work.
//! It sends acknowledgements, renews leases, keeps the stream from expiring, and asks the server to unblock the reader.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::acks::MOST_ACKS;
use super::leases::{self, MOST_LEASES};
use super::loss::LossWatch;
use super::reader::Leftover;
use super::request_size::RequestSize;
use super::shared::Shared;
use crate::commands::{self, GivenBack, SearchPosition};
use crate::connection::Connection;
use crate::deadline::Deadline;
use crate::error::{Error, Result, with_causes};

/// For how long a reader that has something to claim is woken, if it begins to wait just then.
const WAKE_LIMIT: Duration = Duration::from_millis(40);
/// `CLIENT UNBLOCK` can come before the reader blocks, and is lost then: it is repeated until the reader has answered.
const UNBLOCK_AGAIN: Duration = Duration::from_micros(500);
/// The pause between looks around is at least this many times as long as a look takes.
const LOOK_SHARE: u32 = 9;
/// How many entries to claim are looked for at once, at most.
const MOST_FOUND: usize = 1024;
/// How long the server may take to answer at least, before the connection is given up.
const SHORTEST_PATIENCE: Duration = Duration::from_millis(500);

pub(super) struct Keeper {
    shared: Arc<Shared>,
    connection: Option<Connection>,
    /// No attempt to connect before this.
    next_attempt: Instant,
    failures: u32,
    /// No acknowledgements before this: the server has refused them, this many times in a row.
    next_flush: Instant,
    refusals: u32,
    ack_size: RequestSize,
    next_lease: Instant,
    lease_size: RequestSize,
    next_refresh: Option<Instant>,
    next_look: Instant,
    look_size: RequestSize,
    /// Where the search for entries to claim goes on.
    search_from: SearchPosition,
    losses: LossWatch,
    /// It was told that the server forbids something that a consumer needs.
    warned_no_permission: bool,
    /// It was told that `claim_idle` is too short for this line.
    warned_too_slow: bool,
}

impl Keeper {
    /// `connecting` is how long it took to make the connection.
    pub(super) fn new(shared: Arc<Shared>, connection: Connection, connecting: Duration) -> Keeper {
        let now = Instant::now();
        shared.line.set_connecting(connecting);
        let mut keeper = Keeper {
            next_lease: now,
            next_refresh: shared.input.ttl.map(|ttl| now + ttl / 3),
            look_size: RequestSize::full(shared.settings.batch.min(MOST_FOUND)),
            shared,
            connection: None,
            next_attempt: now,
            failures: 0,
            next_flush: now,
            refusals: 0,
            ack_size: RequestSize::full(MOST_ACKS),
            lease_size: RequestSize::full(MOST_LEASES),
            next_look: now,
            search_from: SearchPosition::default(),
            losses: LossWatch::default(),
            warned_no_permission: false,
            warned_too_slow: false,
        };
        let mut connection = connection;
        keeper.prepare(&mut connection);
        keeper.connection = Some(connection);
        keeper.next_lease = now + keeper.lease_interval();
        keeper
    }

    /// Works until the consumer closes, and then until all acknowledgements are confirmed or the time is up.
    pub(super) fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let not_handed_out = loop {
            if let Some(ids) = shared.not_handed_out.get() {
                break ids;
            }
            self.do_what_is_due();
            let until = self.next_duty();
            shared.acks.wait(until, Instant::now() >= self.next_attempt.max(self.next_flush));
        };
        self.conclude(not_handed_out);
        shared.keeper_ended.set();
    }

    fn next_duty(&self) -> Instant {
        let mut until = self.next_lease.min(self.next_look);
        if let Some(refresh) = self.next_refresh {
            until = until.min(refresh);
        }
        if self.refusals > 0 {
            until = until.min(self.next_flush);
        }
        if self.failures > 0 {
            until = until.min(self.next_attempt);
        }
        // Without a connection nothing can be done, whatever is due.
        until = until.max(self.next_attempt);
        if self.shared.is_reader_to_stop() && self.shared.reader.blocked_client().is_some() {
            until = until.min(Instant::now() + UNBLOCK_AGAIN);
        }
        until
    }

    fn do_what_is_due(&mut self) {
        if self.shared.is_reader_to_stop() {
            let shared = Arc::clone(&self.shared);
            self.wake_reader(shared.patience(), || shared.reader.ended.is_set());
        }
        let now = Instant::now();
        if now < self.next_attempt {
            return;
        }
        if let Err(error) = self.try_duties(now) {
            self.note_failure(&error);
        }
    }

    /// What the server refuses is tried again in its turn and holds up nothing else. An error: there is no connection.
    fn try_duties(&mut self, now: Instant) -> Result<()> {
        if now >= self.next_lease {
            let renewed = self.renew_leases();
            self.accepted_by_server(renewed)?;
            self.next_lease = now + self.lease_interval();
        }
        if let (Some(due), Some(ttl)) = (self.next_refresh, self.shared.input.ttl)
            && now >= due
        {
            let stream_id = Arc::clone(&self.shared.key.stream_id);
            let refreshed = self.with_connection(|connection| commands::refresh(connection, &stream_id, ttl).map(drop));
            self.accepted_by_server(refreshed)?;
            self.next_refresh = Some(now + ttl / 3);
        }
        if now >= self.next_flush {
            let flushed = self.flush_acks();
            if let (Err(error), Some(_)) = (&flushed, &self.connection)
                && !error.is_retryable()
            {
                // No acknowledgement will ever be accepted, and all that is handled would come again.
                self.shared.fail(error.clone());
            }
            if self.accepted_by_server(flushed)? {
                self.refusals = 0;
            } else {
                self.next_flush = Instant::now() + self.shared.settings.backoff.wait(self.refusals);
                self.refusals = self.refusals.saturating_add(1);
            }
            self.shared.acks.set_refused(self.refusals > 0);
        }
        if now >= self.next_look {
            let began = Instant::now();
            self.next_look = began + self.shared.claim_interval();
            let is_done = self.look_around()?;
            // On a slow line, most of it is for entries and acknowledgements. A long pending list is looked through in
            // turn with all other duties.
            let pause = if is_done { LOOK_SHARE } else { 1 } * began.elapsed();
            self.next_look = if is_done { self.next_look } else { began }.max(Instant::now() + pause);
        }
        self.failures = 0;
        Ok(())
    }

    /// `false`: the server has refused, on a connection that works.
    fn accepted_by_server(&mut self, outcome: Result<()>) -> Result<bool> {
        match outcome {
            Err(error) if self.connection.is_some() => {
                self.shared.counters.note_error(&error);
                let level = match error.code() {
                    // This does not pass by itself, and an operator must know.
                    Some("NOPERM") if !std::mem::replace(&mut self.warned_no_permission, true) => log::Level::Warn,
                    _ => log::Level::Debug,
                };
                log::log!(level, "keeper of consumer {}: {}", self.shared.key.consumer, with_causes(&error));
                Ok(false)
            }
            outcome => outcome.map(|()| true),
        }
    }

    /// Looks for entries that lay idle for too long, and whether any were lost unread. `false`: there is more to look through.
    fn look_around(&mut self) -> Result<bool> {
        let shared = Arc::clone(&self.shared);
        // What was found before comes first.
        let searches = shared.settings.claim && !shared.claimable.is_any() && !shared.stopping.is_set();
        let wanted = if searches { self.look_size.now() } else { 0 };
        let (idle, from, sent) = (shared.input.claim_idle, self.search_from.clone(), Instant::now());
        let sight =
            self.with_connection(|connection| commands::look_around(connection, &shared.key, idle, &from, wanted));
        let sight = match sight {
            Ok(sight) => sight,
            // There is no stream, or no group. The reader notices, and sees to it.
            Err(error) if self.connection.is_some() && error.is_group_missing() => {
                log::trace!("no sight of stream {}: {}", shared.key.stream_id, with_causes(&error));
                return Ok(true);
            }
            Err(error) if self.connection.is_some() => return self.accepted_by_server(Err(error)).map(|_| true),
            Err(error) => {
                self.look_size.note_failure(&error);
                return Err(error);
            }
        };
        if let Some(progress) = &sight.progress {
            let missed = self.losses.look(progress);
            self.note_losses(missed);
        }
        if wanted > 0 {
            self.look_size.answered(sight.idle.len(), 0, sent.elapsed(), self.patience());
            self.search_from = sight.next;
            if !sight.idle.is_empty() {
                shared.claimable.put(sight.idle);
            }
        }
        if shared.claimable.is_any() {
            // The reader may be waiting for new entries, and for longer than what can be claimed should wait.
            shared.stopping.wake();
            self.wake_reader(WAKE_LIMIT, || !shared.claimable.is_any());
            return Ok(true);
        }
        Ok(wanted == 0 || self.search_from.is_at_start())
    }

    /// An operator whose length limit is too small should learn of it.
    fn note_losses(&self, missed: u64) {
        if missed > 0 {
            self.shared.counters.missed.add(missed);
            log::warn!(
                "{missed} entries of stream {} were trimmed or deleted before group {} saw them",
                self.shared.key.stream_id,
                self.shared.key.group,
            );
        }
    }

    fn note_failure(&mut self, error: &Error) {
        self.shared.counters.note_error(error);
        // The reader tells of outages at warn; one line for each is enough.
        log::debug!("keeper of consumer {}: {}", self.shared.key.consumer, with_causes(error));
        self.next_attempt = Instant::now() + self.shared.settings.backoff.wait(self.failures);
        self.failures = self.failures.saturating_add(1);
    }

    /// Sends what waits to be acknowledged now. What handlers add meanwhile is for the next time, so that a busy queue on a
    /// slow link holds up nothing else.
    fn flush_acks(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut waiting = shared.acks.len();
        while waiting > 0 {
            let mut acks = shared.acks.take(self.ack_size.now());
            if acks.is_empty() {
                break;
            }
            waiting = waiting.saturating_sub(acks.len());
            if let Err(error) = self.ensure_connected() {
                shared.acks.put_back(acks);
                return Err(error);
            }
            // While this is under way, no id is delivered as another entry's.
            let _turn = shared.acks_under_way();
            let done = shared.in_flight.retain_pending(&mut acks);
            shared.confirm(&done);
            if acks.is_empty() {
                continue;
            }
            let (asked, sent) = (acks.len(), Instant::now());
            let ids = acks.iter().map(|receipt| receipt.id);
            match self.with_connection(|connection| commands::ack(connection, &shared.key, ids)) {
                Ok(_) => {
                    shared.confirm(&acks);
                    self.ack_size.answered(asked, 0, sent.elapsed(), self.patience());
                }
                Err(error) => {
                    shared.acks.put_back(acks);
                    self.ack_size.note_failure(&error);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    fn renew_leases(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        // Whoever gives entries back waits for a renewal, and should not wait for a connection.
        self.ensure_connected()?;
        let (age, limit, mut size) = (self.lease_age(), self.patience(), self.lease_size);
        let renewed = leases::renew(&shared, age, &mut size, limit, |ids| {
            self.with_connection(|connection| commands::keep(connection, &shared.key, ids))
        });
        let looked_after = renewed.and_then(|()| {
            let age = shared.input.claim_idle.saturating_mul(2);
            leases::look_after_parked(&shared, age, &mut size, limit, |ids| {
                self.with_connection(|connection| commands::look_after(connection, &shared.key, ids))
            })
        });
        self.lease_size = size;
        looked_after
    }

    /// Leases older than this are renewed: a third of `claim_idle`, or less where making a new connection takes a
    /// noticeable part of it.
    fn lease_age(&self) -> Duration {
        let claim_idle = self.shared.input.claim_idle;
        (claim_idle.saturating_sub(2 * self.connecting()) / 3).max(claim_idle / 20)
    }

    /// They are looked at twice as often, so that none grows much older than that.
    fn lease_interval(&self) -> Duration {
        (self.lease_age() / 2).max(Duration::from_millis(1))
    }

    /// How long it last took to make a connection.
    fn connecting(&self) -> Duration {
        self.shared.line.connecting()
    }

    /// How long the keeper waits for an answer: a connection that hangs must be given up while the leases still hold, and a
    /// line that is slow must not be taken for one.
    fn patience(&self) -> Duration {
        (self.shared.input.claim_idle / 6).max(SHORTEST_PATIENCE).max(self.connecting())
    }

    /// Wakes the reader from a blocked read, until it has answered or does not wait for the server any more, at most for
    /// `limit`.
    fn wake_reader(&mut self, limit: Duration, has_answered: impl Fn() -> bool) {
        let shared = Arc::clone(&self.shared);
        let limit = Deadline::after(limit);
        while !limit.left().is_zero() && !has_answered() {
            let Some(client) = shared.reader.blocked_client() else { return };
            let Some(connection) = &mut self.connection else { return };
            // A reader that is to stop is cut off if this takes too long. Otherwise there is time.
            let deadline = if shared.stopping.is_set() { limit } else { connection.command_deadline() };
            let unblocked = commands::unblock(connection, &shared.key, client, deadline);
            if !connection.is_reusable() {
                self.connection = None;
            }
            match unblocked {
                // It is on its way.
                Ok(true) if !shared.stopping.is_set() => return,
                Ok(_) => {}
                Err(error) => {
                    if matches!(error, Error::Server { .. }) {
                        shared.reader.cannot_be_woken();
                    }
                    log::debug!("the server did not unblock the reader of {}: {error}", shared.key.consumer);
                    return;
                }
            }
            if shared.reader.ended.wait(UNBLOCK_AGAIN) {
                return;
            }
        }
    }

    fn with_connection<T>(&mut self, work: impl FnOnce(&mut Connection) -> Result<T>) -> Result<T> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect()?,
        };
        let result = work(&mut connection);
        self.connection = Some(connection).filter(|connection| connection.is_reusable());
        result
    }

    fn ensure_connected(&mut self) -> Result<()> {
        if self.connection.is_none() {
            self.connection = Some(self.connect()?);
        }
        Ok(())
    }

    fn connect(&mut self) -> Result<Connection> {
        let started = Instant::now();
        let mut connection = self.shared.connector().connect(&self.shared.keeper_interrupter)?;
        self.shared.line.set_connecting(started.elapsed());
        self.prepare(&mut connection);
        Ok(connection)
    }

    /// Sets the limits of a new connection.
    fn prepare(&mut self, connection: &mut Connection) {
        connection.limit_socket_timeout(self.patience());
        let claim_idle = self.shared.input.claim_idle;
        if claim_idle < 2 * self.connecting() && !std::mem::replace(&mut self.warned_too_slow, true) {
            log::warn!(
                "`claim_idle` of {claim_idle:?} is too short for this line: connecting took {:?}, and entries that are \
                 held meanwhile may be taken over; set at least {:?} for all consumers of group {}",
                self.connecting(),
                4 * self.connecting(),
                self.shared.key.group,
            );
        }
    }

    /// The last acknowledgements, and a tidy end, within `close_timeout`.
    fn conclude(&mut self, not_handed_out: &Leftover) {
        let limit = Deadline::after(self.shared.settings.close_timeout);
        // Handlers may still be at work: what they acknowledge from here on goes through the pool.
        self.shared.acks.close();
        self.leave_time_for_a_new_connection();
        while self.shared.acks.len() > 0 {
            let Err(error) = self.flush_acks() else { continue };
            if !error.is_retryable() {
                // Refused for good; the rest can be tidied up all the same.
                self.shared.counters.note_error(&error);
                break;
            }
            self.note_failure(&error);
            let pause = self.next_attempt.saturating_duration_since(Instant::now());
            if pause >= limit.left() {
                return;
            }
            if self.shared.keeper_interrupter.wait(pause) {
                return;
            }
        }
        // To give something back twice does no harm: its count has changed the first time.
        while let Err(error) = self.tidy_up(not_handed_out) {
            log::debug!("consumer {} did not end tidily: {}", self.shared.key.consumer, with_causes(&error));
            let pause = self.shared.settings.backoff.wait(self.failures);
            self.failures = self.failures.saturating_add(1);
            if !error.is_retryable() || pause >= limit.left() || self.shared.keeper_interrupter.wait(pause) {
                return;
            }
        }
    }

    /// The connection may have died and not told. So it is given up in time for another one, where the line is fast enough
    /// for that.
    fn leave_time_for_a_new_connection(&mut self) {
        let half = self.shared.settings.close_timeout / 2;
        let connecting = self.connecting();
        if let Some(connection) = &mut self.connection
            && connecting < half
        {
            connection.limit_socket_timeout(half);
        }
    }

    /// What nobody has asked for goes back as it came: for anyone to take, and without the hand-out that was marked.
    fn tidy_up(&mut self, not_handed_out: &Leftover) -> Result<()> {
        let (key, claim_idle) = (self.shared.key.clone(), self.shared.input.claim_idle);
        let (limit, mut size) = (self.patience(), self.lease_size);
        let given_back = leases::in_pieces(&not_handed_out.not_enqueued, &mut size, limit, |receipts| {
            let current: Vec<_> = receipts
                .iter()
                .filter(|receipt| self.shared.in_flight.is_current(receipt))
                .map(|receipt| GivenBack {
                    id: receipt.id,
                    deliveries: receipt.deliveries,
                    counted: receipt.deliveries.saturating_sub(1),
                })
                .collect();
            if current.is_empty() {
                return Ok(());
            }
            self.with_connection(|connection| commands::give_back(connection, &key, claim_idle, &current)).map(drop)
        });
        self.lease_size = size;
        given_back?;
        if let Some(unseen) = &not_handed_out.unseen {
            let shared = Arc::clone(&self.shared);
            self.with_connection(|connection| unseen.give_back(connection, &shared))?;
        }
        if self.shared.settings.generated_name {
            self.with_connection(|connection| commands::delete_consumer_without_pending(connection, &key))?;
        }
        Ok(())
    }
}
