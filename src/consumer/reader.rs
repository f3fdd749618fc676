//! The reader: one thread with its own connection, which turns the server's replies into deliveries in the channel.

mod own_pending;
mod queue;
mod redelivery;
mod watched;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Sender;

use super::acks::MOST_ACKS;
use super::leases::MOST_LEASES;
use super::options::OnGroupLoss;
use super::request_size::RequestSize;
use super::shared::Shared;
use crate::commands::{self, Candidate, Received};
use crate::connection::Connection;
use crate::delivery::{Delivery, Receipt, Settle};
use crate::endpoint::{ConsumerKey, StartId};
use crate::entry::Entry;
use crate::entry_id::EntryId;
use crate::error::{Error, Result, with_causes};
use crate::latch::lock;
use own_pending::OwnPending;
pub(super) use own_pending::Unseen;
use queue::Queue;
use watched::WatchedConnection;

/// With this many acknowledgements waiting to be confirmed, nothing more is read.
const MOST_UNCONFIRMED: usize = 64 * 1024;
/// The server's clock for blocked clients ticks ten times a second; a shorter wait would only cost requests.
const SHORTEST_BLOCK: Duration = Duration::from_millis(100);
/// How much longer than it was told the server may hold a blocked read.
const BLOCK_SLACK: Duration = Duration::from_millis(500);
/// How long to wait for a handler before looking again. Iterators tell when they take something; who takes from a receiver
/// tells nothing.
const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// How long a handler may take over an entry that it has for the last time before another one like it is offered.
const LONGEST_LAST_CHANCE: Duration = Duration::from_secs(1);

pub(super) struct Reader {
    shared: Arc<Shared>,
    settler: Arc<dyn Settle>,
    queue: Queue,
    /// The greatest id it has seen; a lost group is created again behind it.
    last_seen: Option<EntryId>,
    /// How many entries the next request asks for.
    size: RequestSize,
    lease_size: RequestSize,
    /// How many the last one asked for, and when.
    asked: usize,
    asked_at: Instant,
    /// A request for entries is under way while others are enqueued: the acknowledgements that went along with it.
    prefetched_acks: Option<Vec<Receipt>>,
    own_pending: OwnPending,
    /// Entries whose next hand-out is the last one permitted: pending at the server, and not this consumer's yet.
    last_chances: BTreeMap<EntryId, Candidate>,
    /// When the last of them was offered.
    last_chance_at: Instant,
    /// The last step was a redelivery: a long pending list is searched in turn with reading what is new.
    just_redelivered: bool,
    /// It was told that reading waits for acknowledgements.
    warned_backpressure: bool,
    /// It was told that the dead letter stream takes nothing.
    warned_dead_letters: bool,
    /// What could not be enqueued any more.
    not_enqueued: Vec<Receipt>,
    /// This many attempts have failed in a row: the server is out of reach, or the group keeps vanishing.
    failures: u32,
    /// The server is out of reach, and that was told.
    outage: bool,
    /// The connection that reads, or the last one that did.
    connected: Option<Connected>,
    /// A read on a connection that was lost may still be waiting at the server until then; what it takes is pending
    /// for this consumer, and read then.
    reread_at: Option<Instant>,
}

/// What a reader leaves to be given back.
#[derive(Debug, Default)]
pub(super) struct Leftover {
    /// What it could not enqueue.
    pub(super) not_enqueued: Vec<Receipt>,
    /// What may have been on its way to it.
    pub(super) unseen: Option<Unseen>,
}

/// Where a reading connection can be found at the server.
#[derive(Debug)]
struct Connected {
    run_id: Option<Box<str>>,
    client_id: Option<u64>,
    /// Its last read is over by then, whatever became of the connection.
    read_ends: Instant,
}

/// Why the reader stops without an error.
struct Stopped;

impl Reader {
    pub(super) fn new(shared: Arc<Shared>, channel: Sender<Result<Delivery>>, last_seen: Option<EntryId>) -> Reader {
        Reader {
            settler: Arc::clone(&shared) as Arc<dyn Settle>,
            size: RequestSize::new(shared.settings.batch, shared.connector().params().max_reply),
            lease_size: RequestSize::full(MOST_LEASES),
            shared,
            queue: Queue::new(channel),
            last_seen,
            asked: 0,
            asked_at: Instant::now(),
            prefetched_acks: None,
            own_pending: OwnPending::default(),
            last_chances: BTreeMap::new(),
            last_chance_at: Instant::now(),
            just_redelivered: false,
            warned_backpressure: false,
            warned_dead_letters: false,
            not_enqueued: Vec::new(),
            failures: 0,
            outage: false,
            connected: None,
            reread_at: None,
        }
    }

    /// Reads until told to stop, or until an error that no reconnect mends, which is the last thing in the channel.
    pub(super) fn run(mut self, connection: Connection) -> Leftover {
        let read = self.read_and_reconnect(connection).map(|Stopped| ());
        let failed = read.err().or_else(|| lock(&self.shared.failure).take());
        if let Some(error) = failed {
            self.shared.counters.note_error(&error);
            // Nobody is there to be told if this fails.
            let _ = self.queue.send(Err(error), 0, || {});
        }
        self.shared.reader.ended.set();
        Leftover { not_enqueued: std::mem::take(&mut self.not_enqueued), unseen: self.unseen() }
    }

    fn read_and_reconnect(&mut self, connection: Connection) -> Result<Stopped> {
        let mut connection = Some(connection);
        loop {
            let served = match connection.take() {
                Some(connection) => self.serve(connection),
                None => self.reconnect().and_then(|connection| self.serve(connection)),
            };
            if let Some(acks) = self.prefetched_acks.take() {
                self.shared.acks.put_back(acks);
            }
            self.shared.acks.reader_is_away();
            if served.is_err() {
                self.own_pending.begin_again();
            }
            match served {
                Ok(Stopped) => return Ok(Stopped),
                Err(_) if self.shared.stopping.is_set() => return Ok(Stopped),
                Err(error) if !error.is_retryable() => return Err(error),
                Err(error) => {
                    self.size.note_failure(&error);
                    self.pause_after(&error);
                }
            }
        }
    }

    /// Tells of an outage once, and waits before the next attempt.
    fn pause_after(&mut self, error: &Error) {
        self.shared.counters.note_error(error);
        let consumer = &self.shared.key.consumer;
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
        self.shared.acks.reader_is_away();
        self.shared.stopping.wait(wait);
    }

    fn reconnect(&self) -> Result<Connection> {
        let connected =
            self.shared.reader.waiting(|| self.shared.connector().connect(&self.shared.reader.interrupter))?;
        self.shared.counters.reconnects.add(1);
        Ok(connected)
    }

    /// Reads on one connection: first what is pending for this consumer already, then what comes.
    fn serve(&mut self, connection: Connection) -> Result<Stopped> {
        let mut connection = WatchedConnection::new(connection, Arc::clone(&self.shared));
        let mut outcome = self.begin(&mut connection);
        loop {
            match outcome {
                Ok(()) => {}
                Err(error) if !connection.is_reusable() => return Err(error),
                Err(error) if error.is_group_missing() => self.group_lost(&mut connection, error)?,
                Err(error) if is_woken(&error) => self.shared.counters.note_error(&error),
                Err(error) => return Err(error),
            }
            // A reply that is under way holds entries, which are taken even when it is time to stop.
            if self.shared.stopping.is_set() && self.prefetched_acks.is_none() {
                return Ok(Stopped);
            }
            outcome = self.step(&mut connection);
        }
    }

    /// What comes before the first read on a connection: the end of the last read on the one before, and a sign of life for
    /// what is held here, so that nobody claims it, this consumer included.
    fn begin(&mut self, connection: &mut WatchedConnection) -> Result<()> {
        let run_id = connection.ask(commands::run_id)?;
        if let Some(lost) = &self.connected {
            let surely_over = match (&lost.run_id, &run_id, lost.client_id) {
                // Another server, or another run of it: client ids begin again.
                (Some(before), Some(now), _) if before != now => true,
                (Some(_), Some(_), Some(client)) => {
                    connection.ask(|server| commands::end_client(server, &self.shared.key, client))?
                }
                _ => false,
            };
            if !surely_over && lost.read_ends > Instant::now() {
                self.reread_at = Some(lost.read_ends);
            }
        }
        let is_reconnect = self.connected.is_some();
        self.connected = Some(Connected { run_id, client_id: connection.id(), read_ends: Instant::now() });
        self.own_pending.begin_again();
        let shared = Arc::clone(&self.shared);
        let limit = shared.connector().params().socket_timeout;
        let renewed = super::leases::renew(&shared, shared.input.claim_idle / 6, &mut self.lease_size, limit, |ids| {
            connection.ask(|server| commands::keep(server, &shared.key, ids))
        });
        let kept = match renewed {
            Ok(()) if is_reconnect => self.expect_lost(connection),
            renewed => renewed,
        };
        match kept {
            // Where scripts are forbidden nothing can be kept, which the keeper tells.
            Err(error) if error.code() == Some("NOPERM") && connection.is_reusable() => Ok(()),
            kept => kept,
        }
    }

    /// Does what is next.
    fn step(&mut self, connection: &mut WatchedConnection) -> Result<()> {
        if self.prefetched_acks.is_some() {
            return self.read_new(connection);
        }
        if self.waits_for_acks() {
            return Ok(());
        }
        if !self.own_pending.is_done() {
            return self.read_own_pending(connection);
        }
        let was_redelivery = std::mem::take(&mut self.just_redelivered);
        if !was_redelivery && self.shared.claimable.is_any() {
            self.just_redelivered = true;
            return self.claim(connection);
        }
        if self.waits_for_lost_read() || self.offer_last_chance(connection)? || self.waits_for_room() {
            return Ok(());
        }
        self.read_new(connection)
    }

    /// It has let this consumer read or take entries. To look at what is pending proves nothing: a replica answers that too.
    fn server_is_back(&mut self) {
        *lock(&self.shared.counters.last_read) = Some(Instant::now());
        if std::mem::take(&mut self.outage) {
            log::info!("consumer {} reads again after {} attempts", self.shared.key.consumer, self.failures);
        }
        self.failures = 0;
    }

    /// The server does not take acknowledgements, and each entry that is read makes it one more.
    fn waits_for_acks(&mut self) -> bool {
        let waits = self.shared.acks.len() > MOST_UNCONFIRMED;
        if waits {
            if !std::mem::replace(&mut self.warned_backpressure, true) {
                let consumer = &self.shared.key.consumer;
                log::warn!("consumer {consumer} reads no more until acknowledgements are confirmed");
            }
            self.shared.acks.reader_is_away();
            self.shared.stopping.wait(self.shared.settings.backoff.first);
        } else {
            self.warned_backpressure = false;
        }
        waits
    }

    /// As long as a read may be under way on a connection that was lost, a new one would leave to it what comes.
    fn waits_for_lost_read(&mut self) -> bool {
        let Some(over) = self.reread_at else { return false };
        let left = over.saturating_duration_since(Instant::now());
        if left.is_zero() {
            self.reread_at = None;
            self.own_pending.begin_again();
        } else {
            self.shared.acks.reader_is_away();
            let claimable = &self.shared.claimable;
            self.shared.wait_for_handlers(left, || claimable.is_any());
        }
        true
    }

    /// The channel holds as many bytes as it may. Waits a moment for a handler to take some.
    fn waits_for_room(&mut self) -> bool {
        let most = self.shared.settings.prefetch_bytes;
        if self.queue.bytes() < most {
            return false;
        }
        self.shared.acks.reader_is_away();
        let queue = &mut self.queue;
        !self.shared.wait_for_handlers(LOOK_AGAIN, || queue.bytes() < most)
    }

    /// How many entries to ask for, so that they probably fit into the channel.
    fn entries_that_fit(&mut self) -> usize {
        let room = self.shared.settings.prefetch_bytes.saturating_sub(self.queue.bytes());
        self.size.within(room)
    }

    /// Waits for new entries. Acknowledgements that are queued go along; and when a batch comes back full and there is room
    /// for it in the channel, the next request is sent before it is enqueued.
    fn read_new(&mut self, connection: &mut WatchedConnection) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        if self.only_last_chances() && !self.may_offer_last_chance(connection)? {
            return Ok(());
        }
        let reply = connection.ask(|server| {
            let acks = match self.prefetched_acks.take() {
                Some(acks) => acks,
                // From here on who wants to wake the reader knows that it is asleep.
                None if shared.stopping.is_set() || shared.claimable.is_any() => return Ok(None),
                None => self.request(server, self.block())?,
            };
            receive(server, &shared, acks).map(Some)
        });
        let Some(Received { entries, deleted }) = reply? else { return Ok(()) };
        self.server_is_back();
        let bytes = self.note_answer(entries.iter().map(|(entry, _)| entry));
        if let Some((entry, _)) = entries.last() {
            self.last_seen = self.last_seen.max(Some(entry.id()));
        }
        let full = entries.len() == self.asked;
        let admission = shared.in_flight.admit_new(&entries, self.fresh_since());
        let mut prepared = self.acknowledge_deleted(connection, &deleted);
        if !admission.replaced.is_empty() && prepared.is_ok() {
            prepared = self.begin_new_incarnation(connection, &admission.replaced);
        }
        if full && prepared.is_ok() && self.has_room_for_more(entries.len(), bytes) {
            prepared =
                connection.ask(|server| self.request(server, None)).map(|acks| self.prefetched_acks = Some(acks));
        }
        // They are held from now on, so nothing would bring them again if they were not enqueued.
        self.enqueue(entries, admission.generation);
        prepared
    }

    /// Whether a second request may be under way while these entries are enqueued.
    fn has_room_for_more(&mut self, entries: usize, bytes: usize) -> bool {
        let settings = &self.shared.settings;
        let room = settings.prefetch.saturating_sub(self.queue.len());
        let bytes = self.queue.bytes().saturating_add(bytes).saturating_add(self.size.bytes_of(self.size.now()));
        room >= entries
            && bytes <= settings.prefetch_bytes
            && !self.only_last_chances()
            && self.last_chances.is_empty()
            && !self.shared.claimable.is_any()
            && !self.shared.stopping.is_set()
    }

    /// Sends a request for new entries, and acknowledgements along with it.
    fn request(&mut self, connection: &mut Connection, block: Option<Duration>) -> Result<Vec<Receipt>> {
        let shared = Arc::clone(&self.shared);
        self.asked = if self.only_last_chances() { 1 } else { self.entries_that_fit() };
        self.asked_at = Instant::now();
        let mut acks = shared.acks.take_along(self.most_acks(), block.is_some());
        let done = shared.in_flight.retain_pending(&mut acks);
        shared.confirm(&done);
        if let (Some(connected), Some(block)) = (&mut self.connected, block) {
            connected.read_ends = self.asked_at + block + BLOCK_SLACK;
        }
        let ids = acks.iter().map(|receipt| receipt.id);
        match commands::send_read(connection, &shared.key, ids, self.asked, block, shared.input.ttl) {
            Ok(()) => Ok(acks),
            Err(error) => {
                shared.acks.put_back(acks);
                Err(error)
            }
        }
    }

    /// How many acknowledgements may go along with a request.
    fn most_acks(&self) -> usize {
        if self.size.is_smallest() { self.size.now() } else { MOST_ACKS }
    }

    /// How long the next read may wait at the server. None: it is not to wait, so that the end of an outage is known.
    fn block(&self) -> Option<Duration> {
        if self.outage {
            return None;
        }
        let input = &self.shared.input;
        let mut longest = input.wait_timeout.max(SHORTEST_BLOCK);
        if !self.last_chances.is_empty() {
            longest = SHORTEST_BLOCK;
        } else if self.shared.settings.claim && !self.shared.reader.can_be_woken() {
            longest = longest.min(self.shared.claim_interval());
        }
        Some(commands::next_block(longest, input.ttl).unwrap_or(SHORTEST_BLOCK))
    }

    /// Since when the server counts as fresh what has just arrived. When it was sent is not known; on a slow line that was
    /// long ago.
    fn fresh_since(&self) -> Instant {
        let is_recent = self.asked_at.elapsed() < self.shared.input.claim_idle / 6;
        if is_recent { Instant::now() } else { self.asked_at }
    }

    /// What the reply to a sized request tells about the next; its bytes.
    fn note_answer<'a>(&mut self, entries: impl Iterator<Item = &'a Entry>) -> usize {
        let (mut count, mut bytes) = (0, 0);
        for entry in entries {
            count += 1;
            bytes += entry.size();
        }
        let limit = self.shared.connector().params().socket_timeout;
        self.size.answered(count, bytes, self.asked_at.elapsed(), limit);
        bytes
    }

    /// Puts deliveries into the channel, waiting for room.
    fn enqueue(&mut self, entries: Vec<(Entry, u64)>, generation: u64) {
        for (entry, deliveries) in entries {
            let size = entry.size();
            if self.shared.is_last_chance(deliveries) {
                self.shared.in_flight.begin_last_chance(entry.id(), generation);
                self.last_chance_at = Instant::now();
            }
            let delivery = Delivery::new(entry, deliveries, generation, Arc::clone(&self.settler));
            let receipt = delivery.receipt();
            let acks = &self.shared.acks;
            match self.queue.send(Ok(delivery), size, || acks.reader_is_away()) {
                Ok(()) => self.shared.counters.received.add(1),
                Err(Stopped) => self.not_enqueued.push(receipt),
            }
        }
    }

    /// The server has delivered ids as new that are held here: the stream was deleted and made again. What was held is
    /// void, and an acknowledgement of it that was under way may have hit the new entries.
    fn begin_new_incarnation(&mut self, connection: &mut WatchedConnection, replaced: &[EntryId]) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        log::warn!(
            "stream {} was deleted and made again with the same ids: {} deliveries of the old one are void",
            shared.key.stream_id,
            replaced.len(),
        );
        // Nobody acknowledges before this is settled, and what is under way is awaited.
        let _turn = shared.acks_stand_still();
        connection.ask(|server| commands::make_pending(server, &shared.key, replaced))
    }

    /// The stream or the group is gone.
    fn group_lost(&mut self, connection: &mut WatchedConnection, error: Error) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        shared.counters.note_error(&error);
        if shared.settings.on_group_loss == OnGroupLoss::Fail {
            return Err(error);
        }
        shared.in_flight.note_group_loss();
        shared.claimable.clear();
        self.last_chances.clear();
        self.own_pending.forget();
        // A group that vanishes again and again must not make a hot loop.
        if self.failures > 0 {
            self.wait_before_next_attempt();
        } else {
            self.failures = 1;
        }
        let start = self.start_of_new_group(connection)?;
        let created = connection.ask(|server| commands::create_group(server, &shared.input, start))?;
        let key = &shared.key;
        if created {
            shared.counters.groups_recreated.add(1);
            log::warn!("group {} of stream {} was gone and is created again", key.group, key.stream_id);
        }
        Ok(())
    }

    /// Behind what was seen, if the stream still is the one in which it was seen: the ids of a stream only grow, and
    /// another stream holds nothing that was seen.
    fn start_of_new_group(&mut self, connection: &mut WatchedConnection) -> Result<StartId> {
        let shared = Arc::clone(&self.shared);
        if let Some(seen) = self.last_seen {
            let last_id = connection.ask(|server| last_id(server, &shared.key.stream_id))?;
            if last_id.is_some_and(|last_id| last_id < seen) {
                self.last_seen = None;
                return Ok(StartId::Beginning);
            }
        }
        Ok(self.last_seen.map_or(shared.input.start, StartId::After))
    }
}

/// Takes the replies to a request: to the acknowledgements that went along, and the entries.
fn receive(connection: &mut Connection, shared: &Shared, acks: Vec<Receipt>) -> Result<Received> {
    if !acks.is_empty() {
        // Before the entries, which may be long in coming.
        let acked = commands::receive_acked(connection);
        note_acked(shared, acks, acked, connection.has_failed())?;
    }
    commands::receive_read(connection, &shared.key, shared.input.ttl)
}

/// What came of acknowledgements that the reader has sent. An error: the connection is lost.
fn note_acked(shared: &Shared, acks: Vec<Receipt>, acked: Result<()>, is_lost: bool) -> Result<()> {
    match acked {
        Ok(()) => shared.confirm(&acks),
        Err(error) if is_lost => {
            shared.acks.put_back(acks);
            return Err(error);
        }
        // The keeper tries them again, and tells if they are refused for good.
        Err(error) => {
            shared.counters.note_error(&error);
            shared.acks.set_refused(true);
            shared.acks.put_back(acks);
        }
    }
    Ok(())
}

/// Redis 7.0 wakes a blocked reader with UNBLOCKED when the stream is deleted or replaced; other versions say NOGROUP or
/// WRONGTYPE at once. The next read tells which it was. (A demoted master says UNBLOCKED too, and breaks the connection.)
fn is_woken(error: &Error) -> bool {
    error.code() == Some("UNBLOCKED")
}

/// Where a group stands; a group that is yet to be made with [`StartId::New`] will stand at the stream's end. `None`: the
/// server does not tell this user.
pub(super) fn last_delivered(connection: &mut Connection, key: &ConsumerKey) -> Result<Option<EntryId>> {
    let end = |info: commands::StreamInfo| {
        let group = info.groups.iter().find(|group| *group.name == *key.group);
        group.map_or(info.last_id, |group| group.last_delivered_id)
    };
    stream_property(connection, &key.stream_id, end)
}

/// The greatest id that a stream ever had, or if the server keeps that from this user, the greatest that it holds.
fn last_id(connection: &mut Connection, stream_id: &str) -> Result<Option<EntryId>> {
    let told = stream_property(connection, stream_id, |info| info.last_id)?;
    if told.is_some() {
        return Ok(told);
    }
    match commands::last_entry_id(connection, stream_id) {
        Err(Error::Server { .. }) if connection.is_reusable() => Ok(None),
        last => last,
    }
}

/// What can be read off a stream's properties; zero if there is no stream. `None`: the server does not tell this user.
fn stream_property(
    connection: &mut Connection,
    stream_id: &str,
    read_off: impl FnOnce(commands::StreamInfo) -> EntryId,
) -> Result<Option<EntryId>> {
    match commands::stream_info(connection, stream_id) {
        Ok(info) => Ok(Some(read_off(info))),
        // All that will come is new.
        Err(error) if error.is_key_missing() => Ok(Some(EntryId::MIN)),
        Err(Error::Server { .. }) if connection.is_reusable() => Ok(None),
        Err(error) => Err(error),
    }
}
