//! The bounded pool: a checkout that never waits longer than it says, and an error that tells why it failed.

mod attempt;
mod lending;
mod loan;
#[cfg(all(test, step_redis_loom))]
mod model;
mod places;
mod state;
mod surroundings;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::connection::Connector;
use crate::error::{Error, Result, with_causes};
use crate::params::PoolParams;
use lending::{Denied, Lending};
pub use loan::PooledConnection;
use state::Counts;
use surroundings::Surroundings;

/// Connections beyond what is needed are closed after lying idle for this long,
const IDLE_TIMEOUT: Duration = Duration::from_secs(600);
/// or at most this much longer.
const SWEEP_INTERVAL: Duration = Duration::from_secs(30);

/// A bounded pool of connections. Clones share it.
///
/// Connections are opened when they are needed, at most [`max_connections`](PoolParams::max_connections) of them, and
/// closed after ten idle minutes. [`StepStream::receive`](crate::StepStream::receive) holds one for as long as it waits; a
/// [`Consumer`](crate::Consumer) has connections of its own.
///
/// The pool connects only while a caller waits for a connection: as many at a time as callers wait, and after a failure one
/// every 100 ms. Each attempt has a thread of its own for as long as it lasts. An attempt that hangs is not waited for: after
/// a second another one is begun beside it, and where no place is left for that, the oldest gives way.
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
    shared: Arc<Shared>,
}

/// What the clones of a pool share. What is lent, and what connects, outlives it and is closed when it ends.
struct Shared {
    lending: Arc<Lending<Surroundings>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.lending.close();
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
        match pool.shared.lending.open() {
            Ok(()) => Ok(pool),
            Err(Some(error)) => Err(Arc::unwrap_or_clone(error)),
            Err(None) => Err(pool.exhausted(Duration::ZERO, Counts { idle: 0, lent: 0 }, None)),
        }
    }

    /// Makes a pool without opening a connection; the first checkout does. Reads the certificate files, if any.
    ///
    /// Waits for nothing but the thread that all pools share, which makes the places for connections.
    ///
    /// # Errors
    /// [`Error::Params`] and [`Error::Tls`]; [`Error::Thread`] when the thread does not run.
    ///
    /// # Panics
    /// When the system has no thread to give: the first pool of a program starts the one that all of them share, and the
    /// thread pool below it (`scheduled-thread-pool`, which r2d2 asks for) has no way to start it that returns an error.
    pub fn new(params: PoolParams) -> Result<StepPool> {
        let connector = Connector::new(params)?;
        let thread = places::thread_of_all_pools();
        let places = places::places(connector.params().max_connections, Arc::clone(&thread))?;
        let surroundings = Surroundings { connector, places };
        let pace = surroundings.pace();
        let lending = Arc::new(Lending::new(surroundings, pace));
        let swept = Arc::downgrade(&lending);
        thread.execute_with_dynamic_delay(SWEEP_INTERVAL, move || {
            let lending = swept.upgrade()?;
            let now = Instant::now();
            let over = lending.take_idle_while(|connection| connection.idle_since(now) >= IDLE_TIMEOUT);
            if !over.is_empty() {
                drop(over);
                lending.place_is_free();
            }
            Some(SWEEP_INTERVAL)
        });
        Ok(StepPool { shared: Arc::new(Shared { lending }) })
    }

    /// Borrows a connection; dropping it gives it back.
    ///
    /// Waits at most `connection_available_timeout`, the health check included: a connection that lay idle for longer than
    /// `health_check_interval` is lent only after it has answered a `PING`. One that does not answer soon is not waited for:
    /// the next one is asked, or another one opened.
    ///
    /// # Errors
    /// [`Error::PoolExhausted`] when none became free in time. Its source is the last connect error if connecting is what
    /// failed, or else what an idle connection failed with when it was checked, or else what is still under way. An error
    /// that trying again does not mend, as [`Error::Auth`], is returned as it is, at once.
    pub fn get(&self) -> Result<PooledConnection> {
        self.get_timeout(self.params().connection_available_timeout)
    }

    /// Borrows a connection as [`get`](StepPool::get) does, and waits at most `limit` for it.
    ///
    /// # Errors
    /// Those of [`get`](StepPool::get).
    pub fn get_timeout(&self, limit: Duration) -> Result<PooledConnection> {
        let denied = match self.shared.lending.checkout(limit) {
            Ok(loan) => return Ok(PooledConnection(loan)),
            Err(denied) => denied,
        };
        Err(match denied {
            Denied::Refused(error) => Arc::unwrap_or_clone(error),
            // Nobody has a pool that is closed.
            Denied::Closed => self.exhausted(Duration::ZERO, Counts { idle: 0, lent: 0 }, None),
            Denied::TimeIsUp { waited, counts, cause, under_way } => {
                let surroundings = &self.shared.lending.world;
                let unfinished = under_way.map(|(handle, age)| Arc::new(surroundings.unfinished(&handle, age)));
                self.exhausted(waited, counts, cause.or(unfinished))
            }
        })
    }

    /// Borrows a connection if one lies ready. Waits for nothing and opens nothing.
    pub fn try_get(&self) -> Option<PooledConnection> {
        self.shared.lending.checkout_ready().map(PooledConnection)
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
        &self.shared.lending.world.connector
    }

    /// How many connections there are. Waits for nothing.
    pub fn state(&self) -> PoolState {
        let (counts, history) = self.shared.lending.state();
        PoolState {
            connections: count(counts.idle + counts.lent),
            idle: count(counts.idle),
            in_use: count(counts.lent),
            max: self.params().max_connections,
            opened: history.opened,
            failed: history.failed,
            last_connected: history.last_opened.map(|at| at.elapsed()),
            last_error: history.last_failure.as_deref().map(with_causes),
        }
    }

    /// The parameters that the pool was made with.
    pub fn params(&self) -> &PoolParams {
        self.connector().params()
    }

    fn exhausted(&self, waited: Duration, counts: Counts, cause: Option<Arc<Error>>) -> Error {
        let (lent, max) = (count(counts.lent), self.params().max_connections);
        // Where callers hold them all, no failure is the reason.
        let source = cause.filter(|_| lent < max);
        Error::PoolExhausted { waited, connections: count(counts.idle + counts.lent), in_use: lent, max, source }
    }
}

/// There are no more than places.
fn count(connections: usize) -> u32 {
    u32::try_from(connections).unwrap_or(u32::MAX)
}

impl fmt::Debug for StepPool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StepPool").field("address", self.connector().address()).field("state", &self.state()).finish()
    }
}
