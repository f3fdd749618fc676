//! The bounded pool: r2d2 with our connections, a checkout that never waits longer than it says, and an error that tells
//! why it failed.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use scheduled_thread_pool::{OnPoolDropBehavior, ScheduledThreadPool};

use crate::connection::{Connection, Connector};
use crate::error::{Error, Result, with_causes};
use crate::net::{Deadline, Interrupter};
use crate::params::PoolParams;
use crate::signal::lock;

/// Threads that open connections: with two of them, an attempt which hangs does not hold up all others.
const OPENING_THREADS: usize = 2;
/// Connections beyond what is needed are closed after lying idle for this long.
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);

/// A bounded pool of connections. Clones share it.
///
/// Connections are opened when they are needed, at most [`max_connections`](PoolParams::max_connections) of them, and
/// closed after ten idle minutes. [`StepStream::receive`](crate::StepStream::receive) holds one for as long as it waits; a
/// [`Consumer`](crate::Consumer) has connections of its own.
///
/// ```no_run
/// use step_redis::{PoolParams, StepPool};
///
/// let pool = StepPool::connect(PoolParams::new("127.0.0.1", 6379))?;
/// let length: usize = redis::cmd("XLEN").arg("orders").query(&mut pool.get()?)?;
/// # let _ = length;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct StepPool {
    connections: r2d2::Pool<Manager>,
    shared: Arc<Shared>,
}

/// What the pool and its manager both know.
#[derive(Debug)]
struct Shared {
    connector: Connector,
    /// Why the last attempt to connect failed, until one succeeds.
    last_failure: Mutex<Option<Arc<Error>>>,
    opened: AtomicU64,
    failed: AtomicU64,
    last_connected: Mutex<Option<Instant>>,
    /// The connection that `StepPool::connect` proved, until the pool asks for its first.
    proven: Mutex<Option<Connection>>,
}

impl Shared {
    fn open(&self) -> Result<Connection> {
        let opened = self.connector.connect(&Interrupter::new());
        let counter = if opened.is_ok() { &self.opened } else { &self.failed };
        counter.fetch_add(1, Ordering::Relaxed);
        if opened.is_ok() {
            *lock(&self.last_connected) = Some(Instant::now());
        }
        *lock(&self.last_failure) = opened.as_ref().err().map(|error| Arc::new(error.clone()));
        opened
    }
}

/// The pool's connections at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct PoolState {
    /// Open connections.
    pub connections: u32,
    /// Open connections that nobody holds.
    pub idle: u32,
    /// Connections held by callers.
    pub in_use: u32,
    /// The bound, [`PoolParams::max_connections`].
    pub max: u32,
    /// Connections opened since the pool was made.
    pub opened: u64,
    /// Attempts to open one that failed.
    pub failed: u64,
    /// Time since a connection was last opened.
    pub last_connected: Option<Duration>,
    /// Why the last attempt failed, in words, with its causes; none if it succeeded.
    pub last_error: Option<String>,
}

impl StepPool {
    /// Makes a pool and proves one connection: name lookup, socket, TLS, credentials, database and a `PING`.
    ///
    /// Waits at most `socket_connect_timeout` in total.
    ///
    /// # Errors
    /// [`Error::Params`] and [`Error::Tls`] before anything is opened; [`Error::Connect`] with the step that failed;
    /// [`Error::Auth`].
    ///
    /// # Panics
    /// As [`new`](StepPool::new) does.
    pub fn connect(params: PoolParams) -> Result<StepPool> {
        let pool = StepPool::new(params)?;
        let connection = pool.shared.open()?;
        *lock(&pool.shared.proven) = Some(connection);
        Ok(pool)
    }

    /// Makes a pool without opening a connection; the first checkout does. Reads the certificate files, if any.
    ///
    /// Waits for nothing.
    ///
    /// # Errors
    /// [`Error::Params`] and [`Error::Tls`].
    ///
    /// # Panics
    /// When the system has no thread to give: the pool starts the two that open connections, and the thread pool below it
    /// (`scheduled-thread-pool`, which r2d2 asks for) has no way to start them that returns an error.
    pub fn new(params: PoolParams) -> Result<StepPool> {
        let shared = Arc::new(Shared {
            connector: Connector::new(params)?,
            last_failure: Mutex::new(None),
            opened: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            last_connected: Mutex::default(),
            proven: Mutex::new(None),
        });
        let params = shared.connector.params();
        let threads = ScheduledThreadPool::builder()
            .num_threads(OPENING_THREADS)
            .thread_name_pattern("step-redis-pool-{}")
            .on_drop_behavior(OnPoolDropBehavior::DiscardPendingScheduled)
            .build();
        let connections = r2d2::Pool::builder()
            .max_size(params.max_connections)
            .min_idle(Some(0))
            // Our own check, after the checkout, keeps to the checkout's deadline; r2d2's would not.
            .test_on_check_out(false)
            .idle_timeout(Some(IDLE_TIMEOUT))
            .max_lifetime(None)
            .thread_pool(Arc::new(threads))
            .connection_timeout(params.connection_available_timeout)
            .error_handler(Box::new(LogFailure))
            .build_unchecked(Manager(Arc::clone(&shared)));
        Ok(StepPool { connections, shared })
    }

    /// Borrows a connection; dropping it gives it back.
    ///
    /// Waits at most `connection_available_timeout`, the health check included: a connection that lay idle for longer than
    /// `health_check_interval` is lent only after it has answered a `PING`.
    ///
    /// # Errors
    /// [`Error::PoolExhausted`] when none became free in time. Its source is the last connect error if connecting is what
    /// failed, or else what an idle connection failed with when it was checked.
    pub fn get(&self) -> Result<PooledConnection> {
        let deadline = Deadline::after(self.params().connection_available_timeout);
        let mut left = deadline.limit();
        let mut discarded = None;
        loop {
            // To take one that lies ready costs r2d2 less than to wait for one. When the time is up, what lies ready fails
            // its check, and waiting fails, so the loop ends.
            let lent = self.connections.try_get().or_else(|| self.connections.get_timeout(left).ok());
            let Some(mut connection) = lent else {
                return Err(self.exhausted(deadline.started().elapsed(), discarded));
            };
            match connection.check_after_idling(self.params().health_check_interval, deadline) {
                Ok(()) => return Ok(PooledConnection(connection)),
                // Broken now: given back, it leaves the pool, and the next one is tried.
                Err(error) => {
                    log::debug!("an idle connection is discarded: {error}");
                    discarded = Some(Arc::new(error));
                    left = deadline.left();
                }
            }
        }
    }

    /// Borrows a connection and sends `PING`: the time from the request to its answer.
    ///
    /// Waits at most `connection_available_timeout` and then `socket_timeout`.
    ///
    /// # Errors
    /// Those of [`get`](StepPool::get), and [`Error::Lost`] or [`Error::Timeout`] when the connection fails.
    pub fn ping(&self) -> Result<Duration> {
        let mut connection = self.get()?;
        let deadline = connection.command_deadline();
        let sent = Instant::now();
        connection.ping(deadline)?;
        Ok(sent.elapsed())
    }

    /// Whether these are clones of one pool.
    pub(crate) fn is_same(&self, other: &StepPool) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    pub(crate) fn connector(&self) -> &Connector {
        &self.shared.connector
    }

    /// How many connections there are. Waits for nothing.
    pub fn state(&self) -> PoolState {
        let state = self.connections.state();
        // The proven one lies ready until the first checkout.
        let proven = u32::from(lock(&self.shared.proven).is_some());
        PoolState {
            connections: state.connections + proven,
            idle: state.idle_connections + proven,
            in_use: state.connections.saturating_sub(state.idle_connections),
            max: self.connections.max_size(),
            opened: self.shared.opened.load(Ordering::Relaxed),
            failed: self.shared.failed.load(Ordering::Relaxed),
            last_connected: lock(&self.shared.last_connected).map(|at| at.elapsed()),
            last_error: lock(&self.shared.last_failure).as_deref().map(with_causes),
        }
    }

    /// The parameters that the pool was made with.
    pub fn params(&self) -> &PoolParams {
        self.shared.connector.params()
    }

    fn exhausted(&self, waited: Duration, discarded: Option<Arc<Error>>) -> Error {
        let state = self.state();
        let held_by_callers = state.in_use >= state.max;
        let source = lock(&self.shared.last_failure).clone().or(discarded).filter(|_| !held_by_callers);
        Error::PoolExhausted { waited, connections: state.connections, in_use: state.in_use, max: state.max, source }
    }
}

impl fmt::Debug for StepPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepPool")
            .field("address", self.shared.connector.address())
            .field("state", &self.state())
            .finish()
    }
}

/// A borrowed connection. It dereferences to [`Connection`], and dropping it gives it back to the pool; one that is broken,
/// or still owed a reply, is closed instead.
pub struct PooledConnection(r2d2::PooledConnection<Manager>);

impl Deref for PooledConnection {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.0
    }
}

impl DerefMut for PooledConnection {
    fn deref_mut(&mut self) -> &mut Connection {
        &mut self.0
    }
}

impl Drop for PooledConnection {
    fn drop(&mut self) {
        self.0.rest();
    }
}

impl fmt::Debug for PooledConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.deref().fmt(f)
    }
}

/// How r2d2 opens connections and tells the broken ones.
struct Manager(Arc<Shared>);

impl r2d2::ManageConnection for Manager {
    /// r2d2 moves connections about by value: a box is cheaper to move.
    type Connection = Box<Connection>;
    type Error = Error;

    fn connect(&self) -> Result<Box<Connection>> {
        let proven = lock(&self.0.proven).take();
        proven.map_or_else(|| self.0.open(), Ok).map(Box::new)
    }

    fn is_valid(&self, connection: &mut Box<Connection>) -> Result<()> {
        let deadline = connection.command_deadline();
        connection.ping(deadline)
    }

    fn has_broken(&self, connection: &mut Box<Connection>) -> bool {
        connection.is_broken()
    }
}

/// Each failed attempt is told once, at debug: the caller who waits for the connection gets it as an error's source.
#[derive(Debug)]
struct LogFailure;

impl r2d2::HandleError<Error> for LogFailure {
    fn handle_error(&self, error: Error) {
        log::debug!("the pool has no connection: {}", with_causes(&error));
    }
}
