//! The keeper: one thread with its own connection, which does what must go on while the reader waits and the handlers work.
//! It sends acknowledgements, renews leases, keeps the stream from expiring, and asks the server to unblock the reader.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::loss::LossWatch;
use super::shared::Shared;
use crate::commands;
use crate::connection::Connection;
use crate::entry::EntryId;
use crate::error::{Error, Result, with_causes};
use crate::net::Deadline;

/// How long the server may take to answer `CLIENT UNBLOCK`; a reader that is not unblocked by then is cut off.
const UNBLOCK_LIMIT: Duration = Duration::from_millis(40);
/// `CLIENT UNBLOCK` can come before the reader blocks, and is lost then: it is repeated until the reader has ended.
const UNBLOCK_AGAIN: Duration = Duration::from_micros(500);
/// How often to look at a reader that is to stop and does not wait for the server: it will, or it hands over what it has.
const LOOK_AGAIN: Duration = Duration::from_millis(5);
/// How often to look whether entries were lost unread.
const LOSS_INTERVAL: Duration = Duration::from_secs(1);
/// How many entries one script looks after.
const LEASES_AT_ONCE: usize = 256;

pub(super) struct Keeper {
    shared: Arc<Shared>,
    connection: Option<Connection>,
    /// No attempt to connect before this.
    next_attempt: Instant,
    failures: u32,
    /// No acknowledgements before this: the server has refused them, so many times in a row.
    next_flush: Instant,
    refusals: u32,
    next_lease: Instant,
    next_refresh: Option<Instant>,
    next_loss_check: Instant,
    losses: LossWatch,
    /// It was told that the server forbids something that a consumer needs.
    warned_no_permission: bool,
}

impl Keeper {
    pub(super) fn new(shared: Arc<Shared>, mut connection: Connection) -> Keeper {
        let now = Instant::now();
        connection.limit_socket_timeout(patience(&shared));
        Keeper {
            next_lease: now + lease_interval(&shared),
            next_refresh: shared.input.ttl.map(|ttl| now + ttl / 3),
            shared,
            connection: Some(connection),
            next_attempt: now,
            failures: 0,
            next_flush: now,
            refusals: 0,
            next_loss_check: now,
            losses: LossWatch::default(),
            warned_no_permission: false,
        }
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
        let mut until = self.next_lease.min(self.next_loss_check);
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
        if self.shared.stopping.is_set() && !self.shared.reader.ended.is_set() {
            let pause = if self.shared.reader.blocked_client().is_some() { UNBLOCK_AGAIN } else { LOOK_AGAIN };
            until = until.min(Instant::now() + pause);
        }
        until
    }

    fn do_what_is_due(&mut self) {
        if self.shared.stopping.is_set() && !self.shared.reader.ended.is_set() {
            self.unblock_reader();
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
            self.next_lease = now + lease_interval(&self.shared);
        }
        if let (Some(due), Some(ttl)) = (self.next_refresh, self.shared.input.ttl)
            && now >= due
        {
            let stream_id = Arc::clone(&self.shared.member.stream_id);
            let refreshed = self.with_connection(|connection| commands::refresh(connection, &stream_id, ttl).map(drop));
            self.accepted_by_server(refreshed)?;
            self.next_refresh = Some(now + ttl / 3);
        }
        if now >= self.next_flush {
            let flushed = self.flush_acks();
            if self.accepted_by_server(flushed)? {
                self.refusals = 0;
            } else {
                self.next_flush = now + self.shared.settings.backoff.wait(self.refusals);
                self.refusals = self.refusals.saturating_add(1);
            }
        }
        if now >= self.next_loss_check {
            self.next_loss_check = now + LOSS_INTERVAL;
            self.look_for_losses()?;
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
                log::log!(level, "keeper of consumer {}: {}", self.shared.member.consumer, with_causes(&error));
                Ok(false)
            }
            outcome => outcome.map(|()| true),
        }
    }

    /// An operator whose length limit is too small should learn of it.
    fn look_for_losses(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let position = match self.with_connection(|connection| commands::position(connection, &shared.member)) {
            Ok(position) => position,
            // The stream is gone, or scripts are forbidden: nothing to compare. The connection is fine.
            Err(error) if self.connection.is_some() => {
                log::trace!("no counters of stream {}: {}", shared.member.stream_id, with_causes(&error));
                None
            }
            Err(error) => return Err(error),
        };
        let missed = position.map_or(0, |position| self.losses.look(&position));
        if missed > 0 {
            shared.counters.missed.add(missed);
            log::warn!(
                "{missed} entries of stream {} were trimmed or deleted before group {} saw them",
                shared.member.stream_id,
                shared.member.group,
            );
        }
        Ok(())
    }

    fn note_failure(&mut self, error: &Error) {
        self.shared.counters.note_error(error);
        // The reader tells of outages at warn; one line for each is enough.
        log::debug!("keeper of consumer {}: {}", self.shared.member.consumer, with_causes(error));
        self.next_attempt = Instant::now() + self.shared.settings.backoff.wait(self.failures);
        self.failures = self.failures.saturating_add(1);
    }

    /// Sends what waits to be acknowledged now. What handlers add meanwhile is for the next time, so that a busy queue on a
    /// slow link holds up nothing else.
    fn flush_acks(&mut self) -> Result<()> {
        let mut waiting = self.shared.acks.len();
        while waiting > 0 {
            let ids = self.shared.acks.take();
            if ids.is_empty() {
                break;
            }
            waiting = waiting.saturating_sub(ids.len());
            let member = self.shared.member.clone();
            match self.with_connection(|connection| commands::ack(connection, &member, &ids)) {
                Ok(_) => self.shared.confirm(&ids),
                Err(error) => {
                    self.shared.acks.put_back(ids);
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Tells the server that the entries held here are alive. One that was taken over is not taken back.
    fn renew_leases(&mut self) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let claim_idle = shared.input.claim_idle;
        let due = shared.in_flight.due(claim_idle / 3, claim_idle.saturating_mul(2));
        for ids in due.chunks(LEASES_AT_ONCE) {
            shared.take_lease_turn(|| {
                // What was given back meanwhile is left alone.
                let ids: Vec<EntryId> = ids.iter().copied().filter(|id| shared.in_flight.holds(*id)).collect();
                let sent = Instant::now();
                let own = self.with_connection(|connection| {
                    commands::set_idle(connection, &shared.member, Duration::ZERO, &ids)
                })?;
                shared.in_flight.renewed(&own, sent);
                let lost: Vec<EntryId> = ids.iter().copied().filter(|id| !own.contains(id)).collect();
                let lost = shared.in_flight.give_up(&lost);
                if lost > 0 {
                    shared.counters.taken_over.add(lost as u64);
                    log::warn!(
                        "{lost} entries of stream {} were taken over by another consumer while consumer {} held them",
                        shared.member.stream_id,
                        shared.member.consumer,
                    );
                }
                Ok(())
            })?;
        }
        Ok(())
    }

    fn unblock_reader(&mut self) {
        let shared = Arc::clone(&self.shared);
        let limit = Deadline::after(UNBLOCK_LIMIT);
        while !limit.left().is_zero() {
            let Some(client) = shared.reader.blocked_client() else { return };
            let Some(connection) = &mut self.connection else { return };
            let unblocked = commands::unblock(connection, client, limit);
            if connection.is_broken() {
                self.connection = None;
            }
            if let Err(error) = unblocked {
                log::debug!("the server did not unblock the reader of {}: {error}", shared.member.consumer);
                return;
            }
            if shared.reader.ended.wait(UNBLOCK_AGAIN) {
                return;
            }
        }
    }

    fn with_connection<T>(&mut self, work: impl FnOnce(&mut Connection) -> Result<T>) -> Result<T> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                let connector = self.shared.connector();
                let limit = patience(&self.shared);
                let mut connection = connector.connect_within(limit, &self.shared.keeper_interrupter)?;
                connection.limit_socket_timeout(limit);
                none.insert(connection)
            }
        };
        let result = work(connection);
        if connection.is_broken() {
            self.connection = None;
        }
        result
    }

    /// The last acknowledgements, and a tidy end, within `close_timeout`.
    fn conclude(&mut self, not_handed_out: &[EntryId]) {
        let limit = Deadline::after(self.shared.settings.close_timeout);
        // Handlers may still be at work: what they acknowledge from here on goes through the pool.
        self.shared.acks.close();
        while self.shared.acks.len() > 0 {
            let Err(error) = self.flush_acks() else { continue };
            self.note_failure(&error);
            let pause = self.next_attempt.saturating_duration_since(Instant::now());
            if !error.is_retryable() || pause >= limit.left() {
                return;
            }
            if self.shared.keeper_interrupter.wait(pause) {
                return;
            }
        }
        if let Err(error) = self.tidy_up(not_handed_out) {
            log::debug!("consumer {} did not end tidily: {}", self.shared.member.consumer, with_causes(&error));
        }
    }

    fn tidy_up(&mut self, not_handed_out: &[EntryId]) -> Result<()> {
        let (member, claim_idle) = (self.shared.member.clone(), self.shared.input.claim_idle);
        for ids in not_handed_out.chunks(LEASES_AT_ONCE) {
            self.with_connection(|connection| commands::set_idle(connection, &member, claim_idle, ids))?;
        }
        if self.shared.settings.generated_name {
            self.with_connection(|connection| commands::delete_consumer_without_pending(connection, &member))?;
        }
        Ok(())
    }
}

/// How long the keeper waits for the server: a connection that hangs must be given up while the leases still hold.
fn patience(shared: &Shared) -> Duration {
    (shared.input.claim_idle / 6).max(Duration::from_millis(500))
}

/// Leases older than a third of `claim_idle` are renewed, twice as often, so that none grows older than a half.
fn lease_interval(shared: &Shared) -> Duration {
    (shared.input.claim_idle / 6).max(Duration::from_millis(1))
}
