//! The stream interface: everything a program does with streams, through one pool.

use std::time::Duration;

use crate::commands::{self, MOST_ENTRIES};
use crate::endpoint::{StreamInput, check_ttl};
use crate::error::{Error, Result};
use crate::pool::StepPool;

mod dead_letters;
mod inspect;
mod publish;
mod receive;

/// Streams through a pool: publish, receive, claim, inspect. Clones share the pool.
///
/// Each method borrows one connection and gives it back: it waits at most `connection_available_timeout` for the connection
/// and then as long as its own documentation says. All of them fail with [`Error::PoolExhausted`], [`Error::Lost`],
/// [`Error::Timeout`] and [`Error::Server`] for the reasons told there.
///
/// ```no_run
/// use step_redis::{PoolParams, StepPool, StepStream, StreamInput, StreamOutput};
///
/// let stream = StepStream::new(StepPool::connect(PoolParams::new("127.0.0.1", 6379))?);
/// let input = StreamInput::new("orders", "billing");
/// stream.create_input_stream(&input)?;
/// stream.publish(&StreamOutput::new("orders").max_length(1000), "one coffee")?;
/// if let Some(delivery) = stream.receive(&input)? {
///     println!("{}", delivery.text()?);
///     delivery.ack()?;
/// }
/// # Ok::<(), step_redis::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct StepStream {
    pool: StepPool,
}

impl StepStream {
    /// Uses this pool. Opens nothing.
    pub fn new(pool: StepPool) -> StepStream {
        StepStream { pool }
    }

    /// The pool it uses.
    pub fn pool(&self) -> &StepPool {
        &self.pool
    }

    /// Creates the consumer group, and the stream with it if there is none (`XGROUP CREATE ... MKSTREAM`), and sets the
    /// stream's expiry if the input has one. `false`: the group was there already, and where it stands is unchanged.
    ///
    /// Waits at most `socket_timeout` for the server.
    pub fn create_input_stream(&self, input: &StreamInput) -> Result<bool> {
        input.check()?;
        let mut connection = self.pool.get()?;
        commands::create_group(&mut connection, input, input.start)
    }

    /// Lets a stream expire `ttl` from now, also where it had longer to live (`PEXPIRE`). `false`: there is no such stream; a
    /// key that holds something else is left alone.
    ///
    /// Waits at most `socket_timeout` for the server, or [longer](StreamInput::ttl) where it forbids scripts.
    pub fn update_stream_ttl(&self, stream_id: &str, ttl: Duration) -> Result<bool> {
        check_ttl(Some(ttl))?;
        commands::set_expiry(&mut *self.pool.get()?, stream_id, ttl)
    }

    /// Sends `PING`: the time from the request to its answer.
    ///
    /// Waits at most `socket_timeout` for the server.
    pub fn ping(&self) -> Result<Duration> {
        self.pool.ping()
    }
}

fn check_count(max: usize) -> Result<()> {
    match max {
        0 => Err(Error::params("max", "zero; ask for one entry at least")),
        1..=MOST_ENTRIES => Ok(()),
        _ => Err(Error::params("max", format!("more than {MOST_ENTRIES} entries; ask for fewer at a time"))),
    }
}
