//! How a consumer is set up and started.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::bounded;

use super::keeper::Keeper;
use super::options::{AckMode, Backoff, OnGroupLoss};
use super::reader::{Leftover, Reader, last_delivered};
use super::shared::{Settings, Shared};
use super::{Consumer, Threads};
use crate::commands;
use crate::commands::MOST_ENTRIES;
use crate::connection::Connection;
use crate::consumer_name::unique_name;
use crate::deadline::Deadline;
use crate::delivery::OnDrop;
use crate::endpoint::{StartId, StreamInput, StreamOutput};
use crate::entry_id::EntryId;
use crate::error::{Error, Result, with_causes};
use crate::pool::StepPool;
use crate::stream::StepStream;

/// Beyond this, clocks overflow.
const LONGEST: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// Sets up a [`Consumer`]; made by [`StepStream::consumer`](crate::StepStream::consumer).
///
/// ```no_run
/// use std::time::Duration;
/// use step_redis::{AckMode, Backoff, OnDrop, OnGroupLoss, PoolParams, StepPool, StepStream, StreamInput, StreamOutput};
///
/// let stream = StepStream::new(StepPool::connect(PoolParams::default())?);
/// let consumer = stream
///     .consumer(StreamInput::new("orders", "billing").claim_idle(Duration::from_secs(30)))
///     .prefetch(256)
///     .batch(128)
///     .max_deliveries(5)
///     .dead_letter(StreamOutput::new("orders:dead"))
///     .on_drop(OnDrop::Release)
///     .ack_mode(AckMode::Confirmed)
///     .on_group_loss(OnGroupLoss::Fail)
///     .backoff(Backoff::new(Duration::from_millis(50), Duration::from_secs(5)))
///     .spawn()?;
/// # drop(consumer);
/// # Ok::<(), step_redis::Error>(())
/// ```
#[derive(Clone, Debug)]
#[must_use = "a builder does nothing until `spawn()`"]
pub struct ConsumerBuilder {
    pool: StepPool,
    input: StreamInput,
    settings: Settings,
}

impl StepStream {
    /// Sets up a consumer: a thread that reads, and an iterator over what it reads. It has connections of its own and takes
    /// none from the pool, except for a delivery's `release`, `retry_after`, `dead_letter` and confirmed `ack`.
    pub fn consumer(&self, input: StreamInput) -> ConsumerBuilder {
        ConsumerBuilder::new(self.pool().clone(), input)
    }
}

impl ConsumerBuilder {
    fn new(pool: StepPool, input: StreamInput) -> ConsumerBuilder {
        let settings = Settings {
            prefetch: 256,
            prefetch_bytes: 8 << 20,
            batch: 128,
            claim: true,
            max_deliveries: None,
            on_drop: OnDrop::default(),
            ack_mode: AckMode::default(),
            on_group_loss: OnGroupLoss::default(),
            backoff: Backoff::default(),
            close_timeout: Duration::from_secs(2),
            wait_for_server: Duration::ZERO,
            generated_name: input.consumer.is_none(),
        };
        ConsumerBuilder { pool, input, settings }
    }

    /// How many deliveries the channel holds for the handlers, 1,048,576 at most. Entries in it are pending and kept fresh.
    /// Defaults to 256.
    pub fn prefetch(mut self, entries: usize) -> ConsumerBuilder {
        self.settings.prefetch = entries;
        self
    }

    /// How many bytes of deliveries wait in the channel before nothing more is read. Sizes are known only when entries have
    /// come, so the bound on memory is this and one reply, which is [`max_reply`](crate::PoolParams::max_reply) at most; a
    /// read asks for as many entries as fit, going by the sizes of those before. Defaults to 8 MiB.
    pub fn prefetch_bytes(mut self, bytes: usize) -> ConsumerBuilder {
        self.settings.prefetch_bytes = bytes;
        self
    }

    /// How many entries one read asks for at most (`XREADGROUP COUNT`), 1,048,576 at most. The first reads ask for less,
    /// and so do those after a time-out. Defaults to 128.
    pub fn batch(mut self, entries: usize) -> ConsumerBuilder {
        self.settings.batch = entries;
        self
    }

    /// Whether to take over entries that lay idle at other consumers for `claim_idle` (`XPENDING`, `XCLAIM`). Without it, what
    /// `release`, `retry_after` and `leave` gave back comes again only to consumers that claim. Defaults to true.
    pub fn claim(mut self, claim: bool) -> ConsumerBuilder {
        self.settings.claim = claim;
        self
    }

    /// How often an entry is handed out before it goes to the dead letter stream instead. The server's count decides, so it
    /// survives crashes; [what is counted](crate#what-is-a-delivery) are hand-outs to handlers. Needs
    /// [`dead_letter`](ConsumerBuilder::dead_letter). Defaults to no limit.
    ///
    /// An entry that has only one hand-out left is not read ahead: it is taken when a handler is there for it. With a limit
    /// of 1 that is every entry, and each costs a round trip of its own, or two.
    pub fn max_deliveries(mut self, deliveries: u64) -> ConsumerBuilder {
        self.settings.max_deliveries = Some(deliveries);
        self
    }

    /// Where entries go that were delivered too often, or given up on by
    /// [`Delivery::dead_letter`](crate::Delivery::dead_letter). Defaults to the input's, if it has one.
    pub fn dead_letter(mut self, output: StreamOutput) -> ConsumerBuilder {
        self.input.dead_letter = Some(output);
        self
    }

    /// What dropping a delivery does that an iterator has handed out. Defaults to [`OnDrop::Leave`].
    pub fn on_drop(mut self, on_drop: OnDrop) -> ConsumerBuilder {
        self.settings.on_drop = on_drop;
        self
    }

    /// When [`Delivery::ack`](crate::Delivery::ack) returns. Defaults to [`AckMode::Queued`].
    pub fn ack_mode(mut self, ack_mode: AckMode) -> ConsumerBuilder {
        self.settings.ack_mode = ack_mode;
        self
    }

    /// What to do when the group is gone. Defaults to [`OnGroupLoss::Recreate`].
    pub fn on_group_loss(mut self, on_group_loss: OnGroupLoss) -> ConsumerBuilder {
        self.settings.on_group_loss = on_group_loss;
        self
    }

    /// How long to wait between attempts to reach the server again. Defaults to 50 ms at first and 1 s at most.
    pub fn backoff(mut self, backoff: Backoff) -> ConsumerBuilder {
        self.settings.backoff = backoff;
        self
    }

    /// How long [`Consumer::close`] and dropping the consumer wait for the server to confirm the last acknowledgements.
    /// Defaults to 2 s.
    pub fn close_timeout(mut self, close_timeout: Duration) -> ConsumerBuilder {
        self.settings.close_timeout = close_timeout;
        self
    }

    /// How long [`spawn`](ConsumerBuilder::spawn) keeps trying to reach a server that is down, with the pauses of
    /// [`backoff`](ConsumerBuilder::backoff): for programs that start together with their server. Defaults to zero: the
    /// first failure is an error.
    pub fn wait_for_server(mut self, limit: Duration) -> ConsumerBuilder {
        self.settings.wait_for_server = limit;
        self
    }

    /// Connects, creates the group if there is none, and starts the threads. A user who may not create groups
    /// (`XGROUP`) can consume from one that is there.
    ///
    /// Waits at most twice `socket_connect_timeout` and twice `socket_timeout`, besides
    /// [`wait_for_server`](ConsumerBuilder::wait_for_server).
    ///
    /// # Errors
    /// [`Error::Params`]; the errors of [`StepPool::connect`]; [`Error::Server`] when the group cannot be created. A
    /// server that cannot be reached now is an error here, unless it is waited for; one that vanishes later always is.
    pub fn spawn(self) -> Result<Consumer> {
        let ConsumerBuilder { pool, input, settings } = self;
        check(&input, &settings)?;
        let mut key = input.consumer_key();
        if settings.generated_name {
            key.consumer = unique_name();
        }
        let (channel, receiver) = bounded(settings.prefetch);
        let shared = Arc::new(Shared::new(pool, input, key, settings));

        let prepared = connect_and_prepare(&shared)?;
        let keeper = Keeper::new(Arc::clone(&shared), prepared.keeping, prepared.connecting);
        let keeper = start("step-redis-keeper", move || keeper.run())?;
        let reader = Reader::new(Arc::clone(&shared), channel, prepared.seen);
        // If this thread cannot be had, the other must not stay.
        let reader = start("step-redis-reader", move || reader.run(prepared.reading))
            .inspect_err(|_| shared.end_keeper(Leftover::default()))?;
        Ok(Consumer { shared, receiver, threads: Some(Threads { reader, keeper }) })
    }
}

/// The two connections of a consumer, and what the group had been delivered when they were made.
struct Prepared {
    reading: Connection,
    seen: Option<EntryId>,
    keeping: Connection,
    /// How long it took to make the last one.
    connecting: Duration,
}

/// Makes the connections and sees to it that the group exists.
fn connect_and_prepare(shared: &Shared) -> Result<Prepared> {
    let (limit, mut failures) = (Deadline::after(shared.settings.wait_for_server), 0);
    loop {
        let error = match prepare(shared) {
            Err(error) if error.is_retryable() && !limit.left().is_zero() => error,
            prepared => return prepared,
        };
        match failures {
            0 => log::warn!("consumer {} waits for the server: {}", shared.key.consumer, with_causes(&error)),
            _ => log::debug!("consumer {}, attempt {failures}: {}", shared.key.consumer, with_causes(&error)),
        }
        thread::sleep(shared.settings.backoff.wait(failures).min(limit.left()));
        failures += 1;
    }
}

fn prepare(shared: &Shared) -> Result<Prepared> {
    let mut connection = shared.connector().connect(&shared.reader.interrupter)?;
    // What is there now is not new later: if the group is lost before anything came, it must miss nothing.
    let seen = match shared.input.start {
        StartId::New => last_delivered(&mut connection, &shared.key)?,
        _ => None,
    };
    match commands::create_group(&mut connection, &shared.input, shared.input.start) {
        Err(error) if error.code() == Some("NOPERM") && connection.is_reusable() => {
            if !commands::group_exists(&mut connection, &shared.key)? {
                return Err(error);
            }
        }
        created => drop(created?),
    }
    let started = Instant::now();
    let keeping = shared.connector().connect(&shared.keeper_interrupter)?;
    Ok(Prepared { reading: connection, seen, keeping, connecting: started.elapsed() })
}

fn check(input: &StreamInput, settings: &Settings) -> Result<()> {
    input.check()?;
    check_entries("prefetch", settings.prefetch)?;
    check_entries("batch", settings.batch)?;
    if settings.prefetch_bytes == 0 {
        return Err(Error::params("prefetch_bytes", "zero; nothing would ever be read"));
    }
    if settings.max_deliveries == Some(0) {
        return Err(Error::params("max_deliveries", "zero; nothing would ever be handed out"));
    }
    if settings.max_deliveries.is_some() && input.dead_letter.is_none() {
        return Err(Error::params("max_deliveries", "no dead letter stream is named; set `dead_letter` too"));
    }
    if settings.backoff.first.is_zero() || settings.backoff.longest < settings.backoff.first {
        return Err(Error::params("backoff", "the first wait must be more than zero, and the longest no shorter"));
    }
    let durations = [
        ("wait_timeout", input.wait_timeout),
        ("ttl", input.ttl.unwrap_or_default()),
        ("claim_idle", input.claim_idle),
        ("backoff", settings.backoff.longest),
        ("close_timeout", settings.close_timeout),
        ("wait_for_server", settings.wait_for_server),
    ];
    if let Some((field, _)) = durations.into_iter().find(|(_, duration)| *duration > LONGEST) {
        return Err(Error::params(field, "longer than a hundred years"));
    }
    if matches!(settings.ack_mode, AckMode::Queued { max: 0, .. }) {
        return Err(Error::params("ack_mode", "`max` is zero; send one acknowledgement at a time at least"));
    }
    Ok(())
}

fn check_entries(field: &'static str, entries: usize) -> Result<()> {
    match entries {
        0 => Err(Error::params(field, "zero; one entry at least must be asked for")),
        1..=MOST_ENTRIES => Ok(()),
        _ => Err(Error::params(field, format!("more than {MOST_ENTRIES} entries"))),
    }
}

fn start<T: Send + 'static>(name: &str, run: impl FnOnce() -> T + Send + 'static) -> Result<thread::JoinHandle<T>> {
    thread::Builder::new().name(name.to_owned()).spawn(run).map_err(|source| Error::Thread { source: Arc::new(source) })
}
