//! A publisher for many threads: callers that publish at the same time share round trips.

mod batch;
#[cfg(all(test, step_redis_loom))]
mod model;
mod queue;
mod turn;

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use crate::commands;
use crate::connection::Connection;
use crate::deadline::Deadline;
use crate::endpoint::StreamOutput;
use crate::entry::Message;
use crate::entry_id::EntryId;
use crate::error::{Error, Result};
use crate::log_later;
use crate::net::Interrupter;
use crate::pool::StepPool;
use crate::stream::StepStream;
use crate::sync::{Condvar, Mutex, MutexGuard};
use turn::{Caller, HandOver, NotReady, RoundTrip, Told, Wake};

/// This many messages wait for their turn at most; later callers block until there is room.
const QUEUE_MESSAGES: usize = 1024;

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
    hand_over: HandOver<Result<EntryId>, Instant>,
    /// Only the caller whose turn it is locks this.
    connection: std::sync::Mutex<Option<Connection>>,
}

impl StepStream {
    /// Makes a publisher that many threads can share. It has a connection of its own, outside the pool, which is opened
    /// by the first message. Opens nothing.
    pub fn publisher(&self, output: StreamOutput) -> Publisher {
        Publisher {
            shared: Arc::new(Shared {
                pool: self.pool().clone(),
                output,
                hand_over: HandOver::new(QUEUE_MESSAGES),
                connection: std::sync::Mutex::new(None),
            }),
        }
    }
}

impl Publisher {
    /// Appends a message to the stream and waits until the server has confirmed it (`XADD`, `PEXPIRE`). Messages of one
    /// caller keep their order.
    ///
    /// Waits at most `socket_connect_timeout` + `socket_timeout`, counted from the call, whatever it waits for: room (at most
    /// 1,024 messages, or a mebibyte, gather for a turn), the turn before its own, others to join (2 ms), the connection, or
    /// the server. The server is given `socket_timeout` for a turn. Nothing is ever sent twice.
    ///
    /// A call from within a turn of the same publisher, by a TLS verifier or a logger that is called during it, would wait for
    /// itself. It goes through the pool, as [`StepStream::publish`] does.
    ///
    /// # Errors
    /// Those of [`StepStream::publish`], for exactly the callers they concern: a refused message is its own caller's error,
    /// a lost connection that of all whose message was under way without a confirmation. When its time is up,
    /// [`Error::Timeout`]: a caller whose message was not sent yet is told that it never will be, and one whose message is
    /// under way that the [outcome is unknown](Error::is_outcome_unknown).
    ///
    /// # Panics
    /// Only if the program's logger or TLS verifier panics: then in the caller whose turn it is, whose message may have been
    /// published. The others are told what became of theirs.
    pub fn publish<'a>(&self, message: impl Into<Message<'a>>) -> Result<EntryId> {
        let message = message.into();
        let shared = &*self.shared;
        if is_led_by_this_thread(shared) {
            return StepStream::new(shared.pool.clone()).publish(&shared.output, message);
        }
        shared.output.check()?;
        commands::check_message(&message)?;
        let params = shared.pool.params();
        let deadline = Deadline::after(params.socket_connect_timeout.saturating_add(params.socket_timeout));
        let ready = deadline.started();
        let mut call = Call { shared, message: &message, deadline, ready, lines: Vec::new() };
        let told = shared.hand_over.send(&mut call);
        log_later::tell(call.lines);
        let address = || Arc::clone(shared.pool.connector().address());
        let late = |outcome_unknown| Error::Timeout { address: address(), limit: deadline.limit(), outcome_unknown };
        match told {
            Told::Answer(answer) => answer,
            Told::NotSent => Err(late(false)),
            Told::Late => Err(late(true)),
            Told::Abandoned => {
                let source = Arc::new(io::Error::other("the thread that was to read the reply panicked"));
                Err(Error::Lost { address: address(), outcome_unknown: true, source })
            }
        }
    }
}

/// A call of [`Publisher::publish`].
struct Call<'c, 'm> {
    shared: &'c Shared,
    message: &'c Message<'m>,
    deadline: Deadline,
    /// When the connection was ready.
    ready: Instant,
    /// What there is to log when the turn is over.
    lines: Vec<log_later::Line>,
}

impl Caller for Call<'_, '_> {
    type Answer = Result<EntryId>;
    type Until = Instant;

    fn until(&self) -> Instant {
        // All have the same limit, so who came last can wait longest.
        self.deadline.started()
    }

    fn encode(&self, encoded: &mut Vec<u8>) {
        commands::encode_add(encoded, &self.shared.output, self.message);
    }

    fn wait<'g, T>(
        &self,
        _: &'g Mutex<T>,
        condvar: &Condvar,
        guard: MutexGuard<'g, T>,
        linger: Option<Duration>,
    ) -> (MutexGuard<'g, T>, Wake) {
        let left = self.deadline.left();
        if left.is_zero() {
            return (guard, Wake::Late);
        }
        let (limit, over) = match linger {
            Some(linger) if linger < left => (linger, Wake::Lingered),
            _ => (left, Wake::Late),
        };
        let (guard, waited) = condvar.wait_timeout(guard, limit).unwrap_or_else(PoisonError::into_inner);
        (guard, if waited.timed_out() { over } else { Wake::Called })
    }

    fn prepare(&mut self) -> Result<(), NotReady<Result<EntryId>>> {
        let _leading = Leading::begin(self.shared);
        let Call { shared, deadline, .. } = *self;
        self.ready = log_later::keep(&mut self.lines, || shared.prepare(deadline))?;
        Ok(())
    }

    fn lacks_time(&self) -> bool {
        left_at(self.ready, self.deadline) < self.shared.pool.params().socket_timeout
    }

    fn round_trip(&mut self, request: &[u8], messages: usize, answers: &mut Vec<Result<EntryId>>) -> RoundTrip {
        let _leading = Leading::begin(self.shared);
        let Call { shared, deadline, .. } = *self;
        log_later::keep(&mut self.lines, || shared.round_trip(deadline, request, messages, answers))
    }
}

impl Shared {
    /// Opens the connection, or looks after it, if need be; when it was ready.
    fn prepare(&self, deadline: Deadline) -> Result<Instant, NotReady<Result<EntryId>>> {
        let params = self.pool.params();
        let mut held = crate::latch::lock(&self.connection);
        if let Some(connection) = &mut *held {
            let mut check = Deadline::after(params.socket_timeout);
            let now = check.started();
            let left = left_at(now, deadline);
            if left < params.socket_timeout {
                check = Deadline::after(left);
            }
            // A panic may have left it in the middle of a request.
            if connection.is_reusable() && connection.check_after_idling(params.health_check_interval, check).is_ok() {
                return Ok(now);
            }
            *held = None;
        }
        let left = deadline.left();
        match self.pool.connector().connect_within(left, &Interrupter::new()) {
            Ok(connection) => {
                *held = Some(connection);
                Ok(Instant::now())
            }
            Err(error) if error.is_timeout() && left < params.socket_connect_timeout => Err(NotReady::Late(Err(error))),
            Err(error) => Err(NotReady::ForAll(Err(error))),
        }
    }

    fn round_trip(
        &self,
        deadline: Deadline,
        request: &[u8],
        messages: usize,
        answers: &mut Vec<Result<EntryId>>,
    ) -> RoundTrip {
        let started = Instant::now();
        let mut held = crate::latch::lock(&self.connection);
        let Some(connection) = &mut *held else { return RoundTrip::default() };
        connection.append(messages, |encoded| encoded.extend_from_slice(request));
        if let Some(ttl) = self.output.ttl {
            commands::encode_refresh(connection, &self.output.stream_id, ttl);
        }
        let sent = if left_at(started, deadline) < self.pool.params().socket_timeout {
            connection.send_until(deadline)
        } else {
            connection.send()
        };
        match sent {
            Ok(()) => {
                while answers.len() < messages {
                    let answer = commands::receive_id(connection, "XADD");
                    if connection.has_failed() {
                        answers.resize(messages, answer);
                    } else {
                        answers.push(answer);
                    }
                }
                commands::conclude_add(connection, &self.output);
            }
            Err(error) => answers.resize(messages, Err(error)),
        }
        if !connection.is_reusable() {
            *held = None;
        }
        RoundTrip { took: started.elapsed(), succeeded: answers.iter().any(Result::is_ok) }
    }
}

fn left_at(now: Instant, deadline: Deadline) -> Duration {
    deadline.limit().saturating_sub(now.saturating_duration_since(deadline.started()))
}

thread_local! {
    /// The publishers whose turn this thread has, by their addresses: one as a rule.
    static LED: RefCell<Vec<*const Shared>> = const { RefCell::new(Vec::new()) };
}

/// Whether this is a call from within the publisher's own turn.
fn is_led_by_this_thread(shared: &Shared) -> bool {
    // A thread that is about to end leads nothing.
    LED.try_with(|led| led.borrow().iter().any(|one| std::ptr::eq(*one, shared))).unwrap_or(false)
}

/// Marks the thread while it is at the connection, where a TLS verifier or a logger may be called.
struct Leading;

impl Leading {
    fn begin(shared: &Shared) -> Leading {
        let _ = LED.try_with(|led| led.borrow_mut().push(shared));
        Leading
    }
}

impl Drop for Leading {
    fn drop(&mut self) {
        let _ = LED.try_with(|led| led.borrow_mut().pop());
    }
}

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").field("output", &self.shared.output).field("pool", &self.shared.pool).finish()
    }
}
