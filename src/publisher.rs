//! A publisher for many threads: callers that publish at the same time share round trips.

use std::fmt;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::commands;
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
/// A caller whose turn is under way lets other threads run so many times before it sleeps, if round trips are short: being
/// put to sleep and woken again costs more than a message does.
const YIELDS: usize = 8;
const SHORT_ROUND_TRIP: Duration = Duration::from_millis(1);

/// Publishes for many threads over one connection; made by [`StepStream::publisher`]. Clones share it.
///
/// [`publish`](Publisher::publish) returns when the server has confirmed the message, as
/// [`StepStream::publish`] does. What is different is what happens when several threads publish at once: while one request
/// is under way, the messages of the others gather, and go together with the next. Before it goes, it
/// waits for as many callers as there were a moment ago, for a quarter of a round trip and at most 2 ms. Where round trips take
/// less than a millisecond, a caller gives way to other threads a few times before it sleeps.
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
    /// Only the caller whose turn it is locks this.
    connection: Mutex<Option<Connection>>,
}

/// What waits for the next turn.
struct Queue {
    batch: Arc<Batch>,
    encoded: Vec<u8>,
    messages: usize,
    turn: Turn,
    /// The callers there were when the last turn ended, each with one message: so many are likely to come again.
    expected: usize,
    last_round_trip: Duration,
}

/// Who sees to it that what waits is sent. Exactly one of the callers does, or is told to.
#[derive(Clone, Copy, PartialEq)]
enum Turn {
    /// Nobody: nothing waits.
    Free,
    /// The caller with whose message the expected ones are complete, or the one who waits for them when that takes too long.
    Open,
    /// A caller who is at the connection, or was told to go there.
    Taken,
}

/// The messages of one turn, and the place where their callers wait.
struct Batch {
    state: Mutex<BatchState>,
    changed: Condvar,
    /// The state is no longer [`Phase::Waiting`]: for callers who look without locking it.
    has_news: AtomicBool,
}

struct BatchState {
    phase: Phase,
    /// Callers to be woken.
    asleep: usize,
}

enum Phase {
    Waiting,
    /// The connection is free: one of the waiting callers is to see to the next turn.
    YourTurn,
    Done(Vec<Result<EntryId>>),
}

/// Why a caller stopped waiting.
#[derive(PartialEq)]
enum Woken {
    Done,
    YourTurn,
    TimeIsUp,
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
                    encoded: Vec::new(),
                    messages: 0,
                    turn: Turn::Free,
                    expected: 0,
                    last_round_trip: Duration::ZERO,
                }),
                room: Condvar::new(),
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
    /// Waits for the turn before its own and for its own. Each takes at most `socket_timeout`, and 2 ms for others to join;
    /// after an idle time, a `PING` of at most `socket_timeout` comes first, and where the connection is lost,
    /// `socket_connect_timeout`. At most 1,024 messages, or a mebibyte, gather for a turn; who finds it full waits for a
    /// later one. Nothing is ever sent twice.
    ///
    /// # Errors
    /// Those of [`StepStream::publish`], for exactly the callers they concern: a refused message is its own caller's error,
    /// a lost connection that of all whose message was under way without a confirmation.
    ///
    /// # Panics
    /// Only if the program's logger panics: then in the caller whose turn it is, whose message may have been published. The
    /// others are told what became of theirs.
    pub fn publish<'a>(&self, message: impl Into<Message<'a>>) -> Result<EntryId> {
        let message = message.into();
        self.shared.output.check()?;
        check_message(&message)?;
        let (queue, position) = self.enqueue(&message);
        let batch = Arc::clone(&queue.batch);
        self.see_to(&batch, queue);
        batch.result(position)
    }

    /// Puts a message into the queue; its position in the queue's batch.
    fn enqueue(&self, message: &Message<'_>) -> (MutexGuard<'_, Queue>, usize) {
        let shared = &*self.shared;
        let mut queue = lock(&shared.queue);
        while queue.is_full() {
            queue = shared.room.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        commands::encode_add(&mut queue.encoded, &shared.output, message);
        let position = queue.messages;
        queue.messages += 1;
        (queue, position)
    }

    /// Returns when the batch is done, with this caller's help if it is called upon.
    fn see_to<'p>(&'p self, batch: &Batch, mut queue: MutexGuard<'p, Queue>) {
        loop {
            // Callers who are likely on their way save a whole round trip if they are waited for a moment.
            let complete = queue.messages >= queue.expected || queue.is_full();
            let limit = match queue.turn {
                Turn::Free | Turn::Open if complete => return self.take_turn(queue),
                Turn::Free => {
                    queue.turn = Turn::Open;
                    Some((queue.last_round_trip / 4).clamp(*LINGER.start(), *LINGER.end()))
                }
                Turn::Open | Turn::Taken => None,
            };
            let yields = if queue.last_round_trip < SHORT_ROUND_TRIP { YIELDS } else { 0 };
            drop(queue);
            let mut woken = batch.wait(yields, limit);
            if woken == Woken::TimeIsUp {
                queue = lock(&self.shared.queue);
                if queue.is_open_for(batch) {
                    return self.take_turn(queue);
                }
                // Another caller completed it, and has sent it or is about to.
                drop(queue);
                woken = batch.wait(0, None);
            }
            if woken == Woken::Done {
                return;
            }
            queue = lock(&self.shared.queue);
            queue.turn = Turn::Free;
        }
    }

    /// Publishes all that has gathered, this caller's message among it, and passes the turn on.
    fn take_turn(&self, queue: MutexGuard<'_, Queue>) {
        // Dropping it answers the callers.
        TurnUnderWay::begin(&self.shared, queue).round_trip();
    }
}

/// A turn from taking what has gathered to answering its callers. They are answered, and the turn is passed on, when it is
/// dropped: by a panic too, such as one of the program's logger, so that nobody waits for a caller who is gone.
struct TurnUnderWay<'p> {
    shared: &'p Shared,
    batch: Arc<Batch>,
    encoded: Vec<u8>,
    messages: usize,
    started: Instant,
    /// The request may have left.
    sent: bool,
    /// In the order of the messages.
    results: Vec<Result<EntryId>>,
}

impl<'p> TurnUnderWay<'p> {
    fn begin(shared: &'p Shared, mut queue: MutexGuard<'_, Queue>) -> TurnUnderWay<'p> {
        queue.turn = Turn::Taken;
        let was_full = queue.is_full();
        let batch = std::mem::replace(&mut queue.batch, Batch::new());
        let encoded = std::mem::take(&mut queue.encoded);
        let messages = std::mem::take(&mut queue.messages);
        drop(queue);
        if was_full {
            shared.room.notify_all();
        }
        let results = Vec::with_capacity(messages);
        TurnUnderWay { shared, batch, encoded, messages, started: Instant::now(), sent: false, results }
    }

    fn round_trip(&mut self) {
        let mut held = lock(&self.shared.connection);
        let output = &self.shared.output;
        let sent = self.shared.usable(&mut held).and_then(|connection| {
            connection.append(self.messages, |request| request.extend_from_slice(&self.encoded));
            if let Some(ttl) = output.ttl {
                commands::encode_refresh(connection, &output.stream_id, ttl);
            }
            self.sent = true;
            connection.send()?;
            Ok(connection)
        });
        match sent {
            Ok(connection) => {
                while self.results.len() < self.messages {
                    let result = commands::receive_id(connection, "XADD");
                    if connection.is_failed() {
                        self.results.resize(self.messages, result);
                    } else {
                        self.results.push(result);
                    }
                }
                conclude_add(connection, output);
                if connection.is_broken() {
                    *held = None;
                }
            }
            Err(error) => {
                *held = None;
                self.results.resize(self.messages, Err(error));
            }
        }
    }
}

impl Drop for TurnUnderWay<'_> {
    fn drop(&mut self) {
        let round_trip = self.started.elapsed();
        if self.results.len() < self.messages {
            let address = Arc::clone(self.shared.pool.connector().address());
            let source = Arc::new(io::Error::other("the thread that was to read the reply panicked"));
            self.results.resize(self.messages, Err(Error::Lost { address, outcome_unknown: self.sent, source }));
        }
        let mut queue = lock(&self.shared.queue);
        // After a failure nobody is waited for.
        queue.expected = if self.results.iter().any(Result::is_ok) { self.messages + queue.messages } else { 0 };
        queue.last_round_trip = round_trip;
        if queue.encoded.capacity() == 0 {
            queue.encoded = std::mem::take(&mut self.encoded);
            queue.encoded.clear();
            queue.encoded.shrink_to(QUEUE_BYTES);
        }
        let next = (queue.messages > 0).then(|| Arc::clone(&queue.batch));
        if next.is_none() {
            queue.turn = Turn::Free;
        }
        drop(queue);
        // First the next turn, which has the server wait; then the callers of this one.
        if let Some(next) = next {
            next.pass_turn();
        }
        self.batch.finish(std::mem::take(&mut self.results));
    }
}

impl Shared {
    /// The connection, opened or looked after if need be.
    fn usable<'c>(&self, held: &'c mut Option<Connection>) -> Result<&'c mut Connection> {
        let params = self.pool.params();
        if let Some(connection) = held {
            let deadline = Deadline::after(params.socket_timeout);
            // A panic may have left it in the middle of a request.
            if connection.is_broken() || connection.check_after_idling(params.health_check_interval, deadline).is_err()
            {
                *held = None;
            }
        }
        match held {
            Some(connection) => Ok(connection),
            none => Ok(none.insert(self.pool.connector().connect(&Interrupter::new())?)),
        }
    }
}

impl Queue {
    fn is_full(&self) -> bool {
        self.messages >= QUEUE_MESSAGES || self.encoded.len() >= QUEUE_BYTES
    }

    /// Whether this batch waits still for somebody to send it.
    fn is_open_for(&self, batch: &Batch) -> bool {
        self.turn == Turn::Open && std::ptr::eq(&*self.batch, batch)
    }
}

impl Batch {
    fn new() -> Arc<Batch> {
        Arc::new(Batch {
            state: Mutex::new(BatchState { phase: Phase::Waiting, asleep: 0 }),
            changed: Condvar::new(),
            has_news: AtomicBool::new(false),
        })
    }

    /// Waits until the batch is done, until it is this caller's turn, or for `limit`, sleeping only after so many yields.
    fn wait(&self, yields: usize, limit: Option<Duration>) -> Woken {
        for _ in 0..yields {
            if self.has_news.load(Ordering::Acquire) {
                break;
            }
            std::thread::yield_now();
        }
        let mut state = lock(&self.state);
        loop {
            match state.phase {
                Phase::Done(_) => return Woken::Done,
                Phase::YourTurn => {
                    state.phase = Phase::Waiting;
                    self.has_news.store(false, Ordering::Release);
                    return Woken::YourTurn;
                }
                Phase::Waiting => {}
            }
            state.asleep += 1;
            let time_is_up;
            (state, time_is_up) = match limit {
                None => (self.changed.wait(state).unwrap_or_else(PoisonError::into_inner), false),
                Some(limit) => {
                    let (state, waited) =
                        self.changed.wait_timeout(state, limit).unwrap_or_else(PoisonError::into_inner);
                    (state, waited.timed_out())
                }
            };
            state.asleep -= 1;
            if time_is_up && matches!(state.phase, Phase::Waiting) {
                return Woken::TimeIsUp;
            }
        }
    }

    fn pass_turn(&self) {
        if self.change(Phase::YourTurn) > 0 {
            self.changed.notify_one();
        }
    }

    fn finish(&self, results: Vec<Result<EntryId>>) {
        if self.change(Phase::Done(results)) > 0 {
            self.changed.notify_all();
        }
    }

    /// How many callers are to be woken for it.
    fn change(&self, phase: Phase) -> usize {
        let mut state = lock(&self.state);
        state.phase = phase;
        self.has_news.store(true, Ordering::Release);
        state.asleep
    }

    fn result(&self, position: usize) -> Result<EntryId> {
        match &lock(&self.state).phase {
            Phase::Done(results) => {
                results.get(position).cloned().unwrap_or(Err(Error::reply("XADD", "no reply for this message")))
            }
            Phase::Waiting | Phase::YourTurn => Err(Error::reply("XADD", "no reply for this message")),
        }
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("output", &self.shared.output).field("pool", &self.shared.pool).finish()
    }
}
