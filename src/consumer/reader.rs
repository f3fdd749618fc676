//! The reader: one thread with its own connection, which turns the server's replies into deliveries in the channel.

mod known;

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, TrySendError};

use super::options::OnGroupLoss;
use super::shared::Shared;
use crate::commands;
use crate::connection::Connection;
use crate::delivery::{Delivery, Settle};
use crate::endpoint::{Member, StartId};
use crate::entry::{Entry, EntryId, Received};
use crate::error::{Error, Result, with_causes};
use crate::signal::lock;
use crate::stream::{StreamInfo, next_block, stream_info};

/// With so many acknowledgements waiting to be confirmed, nothing more is read.
const MOST_UNCONFIRMED: usize = 64 * 1024;
/// The server's clock for blocked clients ticks ten times a second; a shorter wait would only cost requests.
const SHORTEST_BLOCK: Duration = Duration::from_millis(100);

pub(super) struct Reader {
    shared: Arc<Shared>,
    settler: Arc<dyn Settle>,
    channel: Sender<Result<Delivery>>,
    /// The greatest id it has seen; a lost group is created anew behind it.
    last_seen: Option<EntryId>,
    /// A request for entries is under way while others are handed over: the acknowledgements that went along with it.
    ahead: Option<Vec<EntryId>>,
    next_claim: Instant,
    /// Where the search for claimable entries goes on.
    claim_from: EntryId,
    /// The last step was a claim: a long pending list is searched in turn with reading what is new.
    just_claimed: bool,
    /// It was told that reading waits for acknowledgements.
    told_full: bool,
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
    pub(super) fn new(shared: Arc<Shared>, channel: Sender<Result<Delivery>>, last_seen: Option<EntryId>) -> Reader {
        Reader {
            settler: Arc::clone(&shared) as Arc<dyn Settle>,
            shared,
            channel,
            last_seen,
            ahead: None,
            next_claim: Instant::now(),
            claim_from: EntryId::MIN,
            just_claimed: false,
            told_full: false,
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
            self.shared.acks.reader_is_away();
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
    fn serve(&mut self, mut connection: Connection) -> Result<Stopped> {
        self.shared.reader.set_connection(Some(&connection));
        let mut own_pending_done = false;
        loop {
            // A reply that is under way holds entries, which are taken even when it is time to stop.
            if self.shared.stopping.is_set() && self.ahead.is_none() {
                return Ok(Stopped);
            }
            if self.ahead.is_none() && self.shared.acks.len() > MOST_UNCONFIRMED {
                // The server does not take acknowledgements, and each entry that is read makes it one more.
                if !std::mem::replace(&mut self.told_full, true) {
                    log::warn!(
                        "consumer {} reads no more until acknowledgements are confirmed",
                        self.shared.member.consumer
                    );
                }
                self.shared.acks.reader_is_away();
                self.shared.stopping.wait(self.shared.settings.backoff.first);
                continue;
            }
            self.told_full = false;
            let step = if !own_pending_done {
                self.read_own_pending(&mut connection).inspect(|_| own_pending_done = true)
            } else if self.ahead.is_none() && self.claim_is_due() && !self.just_claimed {
                self.just_claimed = true;
                self.claim(&mut connection).inspect(|_| self.server_is_back())
            } else {
                self.just_claimed = false;
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

    /// Waits for new entries. Acknowledgements that are queued go along; and when a batch comes back full and there is room
    /// for it in the channel, the next request is sent before it is handed over.
    fn read_new(&mut self, connection: &mut Connection) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let acks = match self.ahead.take() {
            Some(acks) => acks,
            None => self.request(connection, self.block())?,
        };
        let Received { mut entries, gone } = shared.reader.waiting(|| receive(connection, &shared, acks))?;
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
        let acks = shared.acks.take_along(block.is_some());
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

    /// How long the next read may wait at the server. None: it is not to wait, so that the end of an outage is known, or
    /// because there is more to claim.
    fn block(&self) -> Option<Duration> {
        if self.outage || self.claim_is_due() {
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
            match self.send(Ok(Delivery::new(entry, deliveries, Arc::clone(&self.settler)))) {
                Ok(()) => self.shared.counters.received.add(1),
                Err(Stopped) => self.in_hand.push(id),
            }
        }
    }

    fn send(&self, item: Result<Delivery>) -> Result<(), Stopped> {
        let Some(item) = self.try_send(item)? else { return Ok(()) };
        // Let the handlers run before lying down: each place they make would wake this thread for a single entry, and where
        // there is one core for both, it would run at once and lie down again.
        thread::yield_now();
        let Some(item) = self.try_send(item)? else { return Ok(()) };
        self.shared.acks.reader_is_away();
        self.channel.send(item).map_err(|_| Stopped)
    }

    /// Gives the item back when the channel is full.
    fn try_send(&self, item: Result<Delivery>) -> Result<Option<Result<Delivery>>, Stopped> {
        match self.channel.try_send(item) {
            Ok(()) => Ok(None),
            Err(TrySendError::Full(item)) => Ok(Some(item)),
            Err(TrySendError::Disconnected(_)) => Err(Stopped),
        }
    }

    /// The stream or the group is gone.
    fn group_lost(&mut self, connection: &mut Connection, error: Error) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        shared.counters.note_error(&error);
        if shared.settings.on_group_loss == OnGroupLoss::Fail {
            return Err(error);
        }
        // A group that vanishes again and again must not make a hot loop.
        if self.failures > 0 {
            self.wait_before_next_attempt();
        } else {
            self.failures = 1;
        }
        let start = self.start_of_new_group(connection)?;
        let created = shared.reader.waiting(|| commands::create_group(connection, &shared.input, start))?;
        let member = &shared.member;
        if created {
            shared.counters.groups_recreated.add(1);
            log::warn!("group {} of stream {} was gone and is created anew", member.group, member.stream_id);
        }
        Ok(())
    }

    /// Behind what was seen, if the stream still is the one in which it was seen: the ids of a stream only grow, and
    /// another stream holds nothing that was seen.
    fn start_of_new_group(&mut self, connection: &mut Connection) -> Result<StartId> {
        let shared = Arc::clone(&self.shared);
        if let Some(seen) = self.last_seen {
            let last_id = shared.reader.waiting(|| last_id(connection, &shared.member.stream_id))?;
            if last_id.is_some_and(|last_id| last_id < seen) {
                self.last_seen = None;
                return Ok(StartId::Beginning);
            }
        }
        Ok(self.last_seen.map_or(shared.input.start, StartId::After))
    }
}

/// Takes the replies to a request: to the acknowledgements that went along, and the entries.
fn receive(connection: &mut Connection, shared: &Shared, acks: Vec<EntryId>) -> Result<Received> {
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

/// Where a group stands; a group that is yet to be made with [`StartId::New`] will stand at the stream's end. `None`: the
/// server does not tell this user.
pub(super) fn last_delivered(connection: &mut Connection, member: &Member) -> Result<Option<EntryId>> {
    let end = |info: StreamInfo| {
        let group = info.groups.iter().find(|group| *group.name == *member.group);
        group.map_or(info.last_id, |group| group.last_delivered_id)
    };
    known(connection, &member.stream_id, end)
}

/// The greatest id that a stream ever had. `None`: the server does not tell this user.
fn last_id(connection: &mut Connection, stream_id: &str) -> Result<Option<EntryId>> {
    known(connection, stream_id, |info| info.last_id)
}

/// What can be read off a stream's properties; zero if there is no stream.
fn known(
    connection: &mut Connection,
    stream_id: &str,
    read_off: impl FnOnce(StreamInfo) -> EntryId,
) -> Result<Option<EntryId>> {
    match stream_info(connection, stream_id) {
        Ok(info) => Ok(Some(read_off(info))),
        // "ERR no such key": all that will come is new.
        Err(error) if error.code() == Some("ERR") => Ok(Some(EntryId::MIN)),
        Err(Error::Server { .. }) if !connection.is_broken() => Ok(None),
        Err(error) => Err(error),
    }
}
