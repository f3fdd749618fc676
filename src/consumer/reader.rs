//! The reader: one thread with its own connection, which turns the server's replies into deliveries in the channel.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, TrySendError, select};

use super::options::OnGroupLoss;
use super::shared::Shared;
use crate::commands;
use crate::connection::Connection;
use crate::delivery::{Delivery, Settle, bury};
use crate::endpoint::StartId;
use crate::entry::{Delivered, Entry, EntryId};
use crate::error::{Error, Result, with_causes};
use crate::net::Deadline;
use crate::signal::lock;
use crate::stream::next_block;

/// How often to look for entries of dead consumers at least, and at most.
const CLAIM_INTERVAL: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(1);
/// The server's clock for blocked clients ticks ten times a second; a shorter wait would only cost requests.
const SHORTEST_BLOCK: Duration = Duration::from_millis(100);

pub(super) struct Reader {
    shared: Arc<Shared>,
    settler: Arc<dyn Settle>,
    channel: Sender<Result<Delivery>>,
    /// The greatest id it has seen; a lost group is created anew behind it.
    last_seen: Option<EntryId>,
    /// Where a lost group is created anew as long as nothing was seen.
    restart: StartId,
    /// A request for entries is under way while others are handed over: the acknowledgements that went along with it.
    ahead: Option<Vec<EntryId>>,
    next_claim: Instant,
    /// Where the search for claimable entries goes on.
    claim_from: EntryId,
    /// What could not be handed over any more.
    in_hand: Vec<EntryId>,
    /// So many attempts have failed in a row: the server is out of reach, or the group keeps vanishing.
    failures: u32,
    /// The server is out of reach, and that was told.
    outage: bool,
}

/// Why the reader stops without an error.
struct Stopped;

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, channel: Sender<Result<Delivery>>, restart: StartId) -> Reader {
        Reader {
            settler: Arc::clone(&shared) as Arc<dyn Settle>,
            shared,
            channel,
            last_seen: None,
            restart,
            ahead: None,
            next_claim: Instant::now(),
            claim_from: EntryId::MIN,
            in_hand: Vec::new(),
            failures: 0,
            outage: false,
        }
    }

    /// Reads until told to stop, or until an error that no reconnect mends, which is the last thing in the channel.
    /// Returns what it had in hand when nobody wanted more.
    pub(super) fn run(mut self, connection: Connection) -> Vec<EntryId> {
        if let Err(error) = self.read_and_reconnect(connection) {
            self.shared.counters.note_error(&error);
            let _ = self.send(Err(error));
        }
        self.shared.reader.set_connection(None);
        self.shared.reader.ended.set();
        self.in_hand
    }

    fn read_and_reconnect(&mut self, connection: Connection) -> Result<()> {
        let mut connection = Some(connection);
        loop {
            let served = match connection.take() {
                Some(connection) => self.serve(connection),
                None => self.reconnect().and_then(|connection| self.serve(connection)),
            };
            self.shared.reader.set_connection(None);
            if let Some(acks) = self.ahead.take() {
                self.shared.acks.put_back(acks);
            }
            match served {
                Ok(Stopped) => return Ok(()),
                Err(_) if self.shared.stopping.is_set() => return Ok(()),
                Err(error) if !error.is_retryable() => return Err(error),
                Err(error) => self.pause_after(&error),
            }
        }
    }

    /// Tells of an outage once, and waits before the next attempt.
    fn pause_after(&mut self, error: &Error) {
        self.shared.counters.note_error(error);
        let consumer = &self.shared.member.consumer;
        if !std::mem::replace(&mut self.outage, true) {
            log::warn!("consumer {consumer} lost the server and tries to reach it again: {}", with_causes(error));
        } else {
            log::debug!("consumer {consumer}, attempt {}: {}", self.failures, with_causes(error));
        }
        self.wait_before_next_attempt();
    }

    fn wait_before_next_attempt(&mut self) {
        let wait = self.shared.settings.backoff.wait(self.failures);
        self.failures = self.failures.saturating_add(1);
        self.shared.stopping.wait(wait);
    }

    fn reconnect(&self) -> Result<Connection> {
        let connected =
            self.shared.reader.waiting(|| self.shared.connector().connect(&self.shared.reader.interrupter))?;
        self.shared.counters.reconnects.add(1);
        Ok(connected)
    }

    /// Reads on one connection: first what is pending for this consumer already, then what comes.
    fn serve(&mut self, mut connection: Connection) -> Result<Stopped> {
        self.shared.reader.set_connection(Some(&connection));
        let mut own_pending_done = false;
        loop {
            // A reply that is under way holds entries, which are taken even when it is time to stop.
            if self.shared.stopping.is_set() && self.ahead.is_none() {
                return Ok(Stopped);
            }
            let step = if !own_pending_done {
                self.read_own_pending(&mut connection).inspect(|_| own_pending_done = true)
            } else if self.ahead.is_none() && self.claim_is_due() {
                self.claim(&mut connection).inspect(|_| self.server_is_back())
            } else {
                self.read_new(&mut connection).inspect(|_| self.server_is_back())
            };
            match step {
                // Looking at what is pending proves nothing: a replica answers that too.
                Ok(()) => {}
                Err(error) if connection.is_broken() => return Err(error),
                Err(error) if error.is_group_missing() => self.group_lost(&mut connection, error)?,
                Err(error) if is_woken(&error) => self.shared.counters.note_error(&error),
                Err(error) => return Err(error),
            }
        }
    }

    fn server_is_back(&mut self) {
        *lock(&self.shared.counters.last_read) = Some(Instant::now());
        if std::mem::take(&mut self.outage) {
            log::info!("consumer {} reads again after {} attempts", self.shared.member.consumer, self.failures);
        }
        self.failures = 0;
    }

    /// Entries that were delivered to this consumer and never settled: what it had before a restart, or what the server
    /// sent into a connection that broke.
    fn read_own_pending(&mut self, connection: &mut Connection) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let mut after = EntryId::MIN;
        loop {
            let page = shared
                .reader
                .waiting(|| commands::own_pending(connection, &shared.member, after, shared.settings.batch))?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.id;
            let mut wanted = page;
            wanted.retain(|pending| !shared.in_flight.knows(pending.id));
            let Some(idle) = wanted.iter().map(|pending| pending.idle).min() else { continue };
            let ids: Vec<EntryId> = wanted.iter().map(|pending| pending.id).collect();
            let entries = shared.reader.waiting(|| commands::claim(connection, &shared.member, idle, &ids))?;
            if entries.len() < ids.len() {
                let unclaimed: Vec<EntryId> =
                    ids.iter().copied().filter(|id| !entries.iter().any(|entry| entry.id() == *id)).collect();
                self.drop_trimmed(connection, &unclaimed)?;
            }
            let counted = entries.into_iter().map(|entry| {
                let known = wanted.iter().find(|pending| pending.id == entry.id());
                let deliveries = known.map_or(1, |pending| pending.deliveries + 1);
                (entry, deliveries)
            });
            self.hand_over_known(connection, counted.collect())?;
            if shared.stopping.is_set() {
                return Ok(());
            }
        }
    }

    /// Of entries that could not be claimed, those whose content is gone can only be taken off the pending list. The others
    /// belong to somebody else by now.
    fn drop_trimmed(&mut self, connection: &mut Connection, unclaimed: &[EntryId]) -> Result<()> {
        let member = &self.shared.member;
        let gone =
            self.shared.reader.waiting(|| commands::missing_from_stream(connection, &member.stream_id, unclaimed))?;
        self.acknowledge_gone(connection, &gone)
    }

    fn acknowledge_gone(&mut self, connection: &mut Connection, gone: &[EntryId]) -> Result<()> {
        self.shared.counters.trimmed.add(gone.len() as u64);
        self.shared.in_flight.remove(gone);
        self.shared.reader.waiting(|| crate::stream::acknowledge_gone(connection, &self.shared.member, gone))
    }

    fn claim_is_due(&self) -> bool {
        self.shared.settings.claim && Instant::now() >= self.next_claim
    }

    fn claim_interval(&self) -> Duration {
        (self.shared.input.claim_idle / 4).clamp(*CLAIM_INTERVAL.start(), *CLAIM_INTERVAL.end())
    }

    /// Takes over what has lain idle for too long: at consumers that died, or given back by `release` and `retry_after`.
    fn claim(&mut self, connection: &mut Connection) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let (idle, batch) = (shared.input.claim_idle, shared.settings.batch);
        let claimed =
            shared.reader.waiting(|| commands::autoclaim(connection, &shared.member, idle, self.claim_from, batch))?;
        self.claim_from = claimed.next;
        if claimed.next == EntryId::MIN {
            // The whole list was searched.
            self.next_claim = Instant::now() + self.claim_interval();
        }
        self.acknowledge_gone(connection, &claimed.gone)?;
        if claimed.entries.is_empty() {
            return Ok(());
        }
        let counts =
            shared.reader.waiting(|| commands::delivery_counts(connection, &shared.member, claimed.entries.iter()))?;
        // An entry without a count is no longer ours.
        let counted: Vec<_> =
            claimed.entries.into_iter().zip(counts).filter_map(|(entry, count)| Some((entry, count?))).collect();
        shared.counters.claimed.add(counted.len() as u64);
        self.hand_over_known(connection, counted)
    }

    /// Hands over entries that were delivered before, except those that had their chances.
    fn hand_over_known(&mut self, connection: &mut Connection, mut entries: Vec<(Entry, u64)>) -> Result<()> {
        self.last_seen = self.last_seen.max(entries.iter().map(|(entry, _)| entry.id()).max());
        self.shared.in_flight.admit(&mut entries);
        let mut buried = Ok(());
        if let (Some(max), Some(_)) = (self.shared.settings.max_deliveries, self.shared.dead_letters()) {
            let (poisoned, good): (Vec<_>, Vec<_>) = entries.into_iter().partition(|(_, count)| *count > max);
            entries = good;
            buried = self.bury(connection, poisoned);
        }
        // They are held from now on, so nothing would bring them again if they were not handed over.
        self.hand_over(entries);
        buried
    }

    /// Moves entries to the dead letter stream. Those that cannot go there are no longer held, and so come again.
    fn bury(&mut self, connection: &mut Connection, poisoned: Vec<(Entry, u64)>) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let Some(output) = shared.dead_letters() else { return Ok(()) };
        let mut buried = Ok(());
        for (entry, count) in poisoned {
            let id = entry.id();
            if shared.stopping.is_set() {
                shared.in_flight.park(id);
                self.in_hand.push(id);
                continue;
            }
            // The delivery that is counted last is the one that was not made.
            let deliveries = count.saturating_sub(1);
            let reason = format!("delivered {deliveries} times");
            if buried.is_ok() {
                buried =
                    shared.reader.waiting(|| bury(connection, &shared.member, &entry, deliveries, output, &reason));
            }
            if buried.is_ok() {
                shared.in_flight.remove(&[id]);
                shared.counters.dead_lettered.add(1);
                log::warn!("entry {id} of stream {} is a dead letter: {reason}", shared.member.stream_id);
            } else if connection.is_broken() {
                // The next connection finds them among the pending ones.
                shared.in_flight.remove(&[id]);
            } else {
                // The server has no room for dead letters now: later, and not with every reconnect.
                shared.in_flight.park(id);
            }
        }
        buried
    }

    /// Waits for new entries. Acknowledgements that are queued go along; and when a batch comes back full and there is room
    /// for it in the channel, the next request is sent before it is handed over.
    fn read_new(&mut self, connection: &mut Connection) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let acks = match self.ahead.take() {
            Some(acks) => acks,
            None => self.request(connection, self.block())?,
        };
        let received = shared.reader.waiting(|| receive(connection, &shared, acks))?;
        let mut entries = Vec::with_capacity(received.len());
        let mut gone = Vec::new();
        for delivered in received {
            match delivered {
                Delivered::Entry(entry) => entries.push((entry, 1)),
                Delivered::Gone(id) => gone.push(id),
            }
        }
        if let Some((entry, _)) = entries.last() {
            self.last_seen = self.last_seen.max(Some(entry.id()));
        }
        let full = entries.len() == shared.settings.batch;
        shared.in_flight.admit(&mut entries);
        let mut prepared = self.acknowledge_gone(connection, &gone);
        let room = shared.settings.prefetch.saturating_sub(self.channel.len());
        let wants_more = full && room >= entries.len() && !self.claim_is_due() && !shared.stopping.is_set();
        if wants_more && prepared.is_ok() {
            prepared = self.request(connection, None).map(|acks| self.ahead = Some(acks));
        }
        // They are held from now on, so nothing would bring them again if they were not handed over.
        self.hand_over(entries);
        prepared
    }

    /// Sends a request for new entries, and acknowledgements along with it.
    fn request(&self, connection: &mut Connection, block: Option<Duration>) -> Result<Vec<EntryId>> {
        let shared = &self.shared;
        let acks = shared.acks.take();
        let sent = shared.reader.waiting(|| {
            commands::send_read(connection, &shared.member, &acks, shared.settings.batch, block, shared.input.ttl)
        });
        match sent {
            Ok(()) => Ok(acks),
            Err(error) => {
                shared.acks.put_back(acks);
                Err(error)
            }
        }
    }

    /// How long the next read may wait at the server. None: it is not to wait, so that the end of an outage is known.
    fn block(&self) -> Option<Duration> {
        if self.outage {
            return None;
        }
        let input = &self.shared.input;
        let mut longest = input.wait_timeout.max(SHORTEST_BLOCK);
        if self.shared.settings.claim {
            longest = longest.min(self.next_claim.saturating_duration_since(Instant::now()));
        }
        Some(next_block(longest, input.ttl).unwrap_or(SHORTEST_BLOCK))
    }

    /// Puts deliveries into the channel, waiting for room.
    fn hand_over(&mut self, entries: Vec<(Entry, u64)>) {
        for (entry, deliveries) in entries {
            let id = entry.id();
            if self.shared.abandoned.is_set() {
                self.in_hand.push(id);
                continue;
            }
            match self.send(Ok(Delivery::new(entry, deliveries, Arc::clone(&self.settler)))) {
                Ok(()) => self.shared.counters.received.add(1),
                Err(Stopped) => self.in_hand.push(id),
            }
        }
    }

    fn send(&self, item: Result<Delivery>) -> Result<(), Stopped> {
        let item = match self.channel.try_send(item) {
            Ok(()) => return Ok(()),
            Err(TrySendError::Full(item)) => item,
            Err(TrySendError::Disconnected(_)) => return Err(Stopped),
        };
        select! {
            send(self.channel, item) -> sent => sent.map_err(|_| Stopped),
            // What is in hand stays pending, as what is in the channel does.
            recv(self.shared.abandoned.waiters()) -> _ => Err(Stopped),
        }
    }

    /// The stream or the group is gone.
    fn group_lost(&mut self, connection: &mut Connection, error: Error) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        shared.counters.note_error(&error);
        if shared.settings.on_group_loss == OnGroupLoss::Fail {
            return Err(error);
        }
        let start = self.last_seen.map_or(self.restart, StartId::After);
        // A group that vanishes again and again must not make a hot loop.
        if self.failures > 0 {
            self.wait_before_next_attempt();
        } else {
            self.failures = 1;
        }
        let created = shared.reader.waiting(|| commands::create_group(connection, &shared.input, start))?;
        let member = &shared.member;
        if created {
            shared.counters.groups_recreated.add(1);
            log::warn!("group {} of stream {} was gone and is created anew", member.group, member.stream_id);
        }
        Ok(())
    }
}

/// Takes the replies to a request: to the acknowledgements that went along, and the entries.
fn receive(connection: &mut Connection, shared: &Shared, acks: Vec<EntryId>) -> Result<Vec<Delivered>> {
    if !acks.is_empty() {
        // Before the entries, which may be long in coming.
        match commands::receive_acked(connection) {
            Ok(()) => shared.confirm(&acks),
            Err(error) => {
                shared.acks.put_back(acks);
                if connection.is_failed() {
                    return Err(error);
                }
                shared.counters.note_error(&error);
                log::debug!("acknowledgements are put back: {error}");
            }
        }
    }
    commands::receive_read(connection, &shared.member, shared.input.ttl)
}

/// Redis 7.0 wakes a blocked reader with UNBLOCKED when the stream is deleted or replaced; other versions say NOGROUP or
/// WRONGTYPE at once. The next read tells which it was. (A demoted master says UNBLOCKED too, and breaks the connection.)
fn is_woken(error: &Error) -> bool {
    error.code() == Some("UNBLOCKED")
}

/// The bound on telling the server to unblock the reader.
pub(super) fn unblock(connection: &mut Connection, client: u64, deadline: Deadline) -> Result<()> {
    connection.command("CLIENT", 3).arg("UNBLOCK").number(client);
    connection.send_until(deadline)?;
    connection.receive()?.decode("CLIENT UNBLOCK", |_| Ok(()))
}
