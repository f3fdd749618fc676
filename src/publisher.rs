//! A publisher for many threads: callers that publish at the same time share round trips.

use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::commands::{self, AddEncoder};
use crate::connection::Connection;
use crate::endpoint::StreamOutput;
use crate::entry::{EntryId, Message};
use crate::error::{Error, Result};
use crate::net::{Deadline, Interrupter};
use crate::pool::StepPool;
use crate::signal::lock;
use crate::stream::{StepStream, check_message, conclude_add};

/// How much waits for its turn at most; who comes then waits for room.
const QUEUE_MESSAGES: usize = 1024;
const QUEUE_BYTES: usize = 1024 * 1024;
/// How long a turn waits for callers who are likely to come: a quarter of the last round trip, within these bounds. The
/// shortest is what it takes a few threads to wake up.
const LINGER: std::ops::RangeInclusive<Duration> = Duration::from_micros(50)..=Duration::from_millis(2);

/// Publishes for many threads over one connection; made by [`StepStream::publisher`]. Clones share it.
///
/// [`publish`](Publisher::publish) returns when the server has confirmed the message, as
/// [`StepStream::publish`] does. What is different is what happens when several threads publish at once: while one request
/// is under way, the messages of the others gather, and go together with the next.
///
/// ```no_run
/// use std::thread;
/// use step_redis::{PoolParams, StepPool, StepStream, StreamOutput};
///
/// let stream = StepStream::new(StepPool::connect(PoolParams::default())?);
/// let publisher = stream.publisher(StreamOutput::new("orders").max_length(100_000));
/// thread::scope(|scope| {
///     for thread in 0..64 {
///         let publisher = &publisher;
///         scope.spawn(move || publisher.publish(format!("order from thread {thread}")));
///     }
/// });
/// # Ok::<(), step_redis::Error>(())
/// ```
#[derive(Clone)]
pub struct Publisher {
    shared: Arc<Shared>,
}

struct Shared {
    /// For its connector; the publisher's connection is its own.
    pool: StepPool,
    output: StreamOutput,
    queue: Mutex<Queue>,
    room: Condvar,
    /// As many have come as the last turn carried.
    gathered: Condvar,
    /// Only the caller whose turn it is locks this.
    connection: Mutex<Option<Connection>>,
}

/// What waits for the next turn.
struct Queue {
    batch: Arc<Batch>,
    encoder: AddEncoder,
    encoded: Vec<u8>,
    messages: usize,
    /// One of the callers is at the connection, or was told to be.
    busy: bool,
    /// The last turn's messages and how long its round trip took: how many are likely to come, and how soon.
    last_messages: usize,
    last_round_trip: Duration,
}

/// The messages of one turn, and the place where their callers wait.
struct Batch {
    state: Mutex<BatchState>,
    changed: Condvar,
}

enum BatchState {
    Waiting,
    /// The connection is free: one of the waiting callers is to use it for all of them.
    YourTurn,
    Done(Vec<Result<EntryId>>),
}

impl StepStream {
    /// Makes a publisher that many threads can share. It has a connection of its own, outside the pool, which is opened
    /// by the first message. Opens nothing.
    pub fn publisher(&self, output: StreamOutput) -> Publisher {
        Publisher {
            shared: Arc::new(Shared {
                pool: self.pool().clone(),
                queue: Mutex::new(Queue {
                    batch: Batch::new(),
                    encoder: AddEncoder::new(output.clone()),
                    encoded: Vec::new(),
                    messages: 0,
                    busy: false,
                    last_messages: 0,
                    last_round_trip: Duration::ZERO,
                }),
                room: Condvar::new(),
                gathered: Condvar::new(),
                connection: Mutex::new(None),
                output,
            }),
        }
    }
}

impl Publisher {
    /// Appends a message to the stream and waits until the server has confirmed it (`XADD`, `PEXPIRE`). Messages of one
    /// caller keep their order.
    ///
    /// Waits for the turn before its own and for its own. Each takes at most `socket_timeout`; after an idle time, a `PING`
    /// of at most `socket_timeout` comes first, and where the connection is lost, `socket_connect_timeout`. At most 1,024
    /// messages, or a mebibyte, gather for a turn; who finds it full waits for a later one. Nothing is ever sent twice.
    ///
    /// # Errors
    /// Those of [`StepStream::publish`], for exactly the callers they concern: a refused message is its own caller's error,
    /// a lost connection that of all whose message was under way without a confirmation.
    pub fn publish<'a>(&self, message: impl Into<Message<'a>>) -> Result<EntryId> {
        let message = message.into();
        self.shared.output.check()?;
        check_message(&message)?;
        let (batch, position, my_turn) = self.enqueue(&message);
        if my_turn || batch.wait() {
            self.take_turn();
        }
        batch.result(position)
    }

    /// Puts a message into the queue: its batch, its position there, and whether the connection is free for it.
    fn enqueue(&self, message: &Message<'_>) -> (Arc<Batch>, usize, bool) {
        let shared = &*self.shared;
        let mut queue = lock(&shared.queue);
        while queue.messages >= QUEUE_MESSAGES || queue.encoded.len() >= QUEUE_BYTES {
            queue = shared.room.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        let waiting = &mut *queue;
        waiting.encoder.encode(&mut waiting.encoded, message);
        let position = queue.messages;
        queue.messages += 1;
        if queue.messages == queue.last_messages {
            shared.gathered.notify_one();
        }
        let my_turn = !std::mem::replace(&mut queue.busy, true);
        (Arc::clone(&queue.batch), position, my_turn)
    }

    /// Publishes all that has gathered, this caller's message among it, and passes the turn on.
    fn take_turn(&self) {
        let shared = &*self.shared;
        let mut queue = self.linger();
        let batch = std::mem::replace(&mut queue.batch, Batch::new());
        let encoded = std::mem::take(&mut queue.encoded);
        let messages = std::mem::take(&mut queue.messages);
        let was_full = messages >= QUEUE_MESSAGES || encoded.len() >= QUEUE_BYTES;
        drop(queue);
        if was_full {
            shared.room.notify_all();
        }

        let started = Instant::now();
        let results = self.round_trip(&encoded, messages);
        let round_trip = started.elapsed();

        let mut queue = lock(&shared.queue);
        // After a failure nobody is waited for.
        queue.last_messages = if results.iter().any(Result::is_ok) { messages } else { 0 };
        queue.last_round_trip = round_trip;
        if queue.encoded.capacity() == 0 {
            queue.encoded = encoded;
            queue.encoded.clear();
        }
        let next = (queue.messages > 0).then(|| Arc::clone(&queue.batch));
        queue.busy = next.is_some();
        drop(queue);
        // First the next turn, which has the server wait; then the callers of this one.
        if let Some(next) = next {
            next.pass_turn();
        }
        batch.finish(results);
    }

    /// When the last turn carried more messages than have gathered now, their callers are likely on their way back: a moment's
    /// wait for them saves them a whole round trip.
    fn linger(&self) -> MutexGuard<'_, Queue> {
        let queue = lock(&self.shared.queue);
        let limit = (queue.last_round_trip / 4).clamp(*LINGER.start(), *LINGER.end());
        let on_their_way = |queue: &mut Queue| queue.messages < queue.last_messages;
        let waited = self.shared.gathered.wait_timeout_while(queue, limit, on_their_way);
        waited.unwrap_or_else(PoisonError::into_inner).0
    }

    /// One result for each message.
    fn round_trip(&self, encoded: &[u8], messages: usize) -> Vec<Result<EntryId>> {
        let mut held = lock(&self.shared.connection);
        let mut results = Vec::with_capacity(messages);
        let sent = self.usable(&mut held).and_then(|connection| {
            connection.append(messages, |request| request.extend_from_slice(encoded));
            if let Some(ttl) = self.shared.output.ttl {
                commands::encode_refresh(connection, &self.shared.output.stream_id, ttl);
            }
            connection.send()?;
            Ok(connection)
        });
        match sent {
            Ok(connection) => {
                while results.len() < messages {
                    let result = commands::receive_id(connection, "XADD");
                    let failed = connection.is_failed();
                    results.push(result.clone());
                    if failed {
                        results.resize(messages, result);
                    }
                }
                conclude_add(connection, &self.shared.output);
                if connection.is_broken() {
                    *held = None;
                }
            }
            Err(error) => {
                *held = None;
                results.resize(messages, Err(error));
            }
        }
        results
    }

    /// The connection, opened or looked after if need be.
    fn usable<'c>(&self, held: &'c mut Option<Connection>) -> Result<&'c mut Connection> {
        let params = self.shared.pool.params();
        if let Some(connection) = held {
            let deadline = Deadline::after(params.socket_timeout);
            if connection.check_after_idling(params.health_check_interval, deadline).is_err() {
                *held = None;
            }
        }
        match held {
            Some(connection) => Ok(connection),
            none => Ok(none.insert(self.shared.pool.connector().connect(&Interrupter::new())?)),
        }
    }
}

impl Batch {
    fn new() -> Arc<Batch> {
        Arc::new(Batch { state: Mutex::new(BatchState::Waiting), changed: Condvar::new() })
    }

    /// Waits until the batch is done, or until it is this caller's turn to see to it; whether it is.
    fn wait(&self) -> bool {
        let mut state = lock(&self.state);
        loop {
            match *state {
                BatchState::Done(_) => return false,
                BatchState::YourTurn => {
                    *state = BatchState::Waiting;
                    return true;
                }
                BatchState::Waiting => {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    fn pass_turn(&self) {
        *lock(&self.state) = BatchState::YourTurn;
        self.changed.notify_one();
    }

    fn finish(&self, results: Vec<Result<EntryId>>) {
        *lock(&self.state) = BatchState::Done(results);
        self.changed.notify_all();
    }

    fn result(&self, position: usize) -> Result<EntryId> {
        match &*lock(&self.state) {
            BatchState::Done(results) => {
                results.get(position).cloned().unwrap_or(Err(Error::reply("XADD", "no reply for this message")))
            }
            BatchState::Waiting | BatchState::YourTurn => Err(Error::reply("XADD", "no reply for this message")),
        }
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("output", &self.shared.output).field("pool", &self.shared.pool).finish()
    }
}
