//! What to read and what to write: the two ends of a stream, as plain data.

use std::fmt;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::consumer_name::process_name;
use crate::entry_id::EntryId;
use crate::error::{Error, Result};

/// The end of the year 9999 in milliseconds: who gives more counts in another unit.
const LATEST_ID: u64 = 253_402_300_799_999;

/// Where a consumer group starts to read when it is created.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum StartId {
    /// With the first entry that the stream holds. The default: nothing that was published earlier is missed.
    #[default]
    Beginning,
    /// With the first entry published after the group was created.
    New,
    /// With the first entry behind this one.
    After(EntryId),
}

impl StartId {
    /// The id as `XGROUP CREATE` takes it.
    pub(crate) fn argument(self) -> String {
        match self {
            StartId::Beginning => "0".to_owned(),
            StartId::New => "$".to_owned(),
            StartId::After(id) => id.to_string(),
        }
    }
}

/// What to read: a stream, a consumer group, and how.
///
/// ```
/// use std::time::Duration;
/// use step_redis::{StartId, StreamInput};
///
/// let input = StreamInput::new("orders", "billing")
///     .consumer("billing-1")
///     .wait_timeout(Duration::from_secs(5))
///     .ttl(Duration::from_secs(30))
///     .start(StartId::Beginning);
/// # let _ = input;
/// ```
#[derive(Clone, Debug)]
pub struct StreamInput {
    pub(crate) stream_id: Arc<str>,
    pub(crate) group: Arc<str>,
    pub(crate) consumer: Option<Arc<str>>,
    pub(crate) wait_timeout: Duration,
    pub(crate) ttl: Option<Duration>,
    pub(crate) start: StartId,
    pub(crate) claim_idle: Duration,
    pub(crate) dead_letter: Option<StreamOutput>,
}

impl StreamInput {
    /// Reads the stream `stream_id` as a member of the consumer group `group`.
    pub fn new(stream_id: impl Into<Arc<str>>, group: impl Into<Arc<str>>) -> StreamInput {
        StreamInput {
            stream_id: stream_id.into(),
            group: group.into(),
            consumer: None,
            wait_timeout: Duration::from_secs(5),
            ttl: None,
            start: StartId::default(),
            claim_idle: Duration::from_secs(60),
            dead_letter: None,
        }
    }

    /// This reader's name in the group. The server keeps a list of pending entries for each name, so no two readers that
    /// run at the same time may share one. Defaults to a generated name that stays the same for the life of the process.
    pub fn consumer(mut self, name: impl Into<Arc<str>>) -> StreamInput {
        self.consumer = Some(name.into());
        self
    }

    /// How long a read waits for an entry (`XREADGROUP BLOCK`). The server looks at its clock ten times a second, so a wait
    /// can be up to 0.1 s longer. Zero does not wait at all. Defaults to 5 s.
    pub fn wait_timeout(mut self, wait_timeout: Duration) -> StreamInput {
        self.wait_timeout = wait_timeout;
        self
    }

    /// Lets the stream expire this long after its last use (`PEXPIRE`), refreshed with every read. Millisecond resolution.
    /// Defaults to none: a reader without one leaves the lifetime alone.
    ///
    /// Readers and publishers of a stream may name different lifetimes: each only ever makes it longer, so the longest one
    /// holds, and a reader never takes away what a publisher's [`ttl`](StreamOutput::ttl) promises. A stream without any
    /// lifetime gets one from the first who names one; whoever wants entries kept for ever must see that nobody does.
    ///
    /// The refresh is a script that goes along with the command. Where the server forbids scripts (`EVAL`), each refresh
    /// is two more round trips, and the call may wait for `socket_timeout` in each.
    pub fn ttl(mut self, ttl: Duration) -> StreamInput {
        self.ttl = Some(ttl);
        self
    }

    /// Where the group starts if it has to be created. Defaults to [`StartId::Beginning`].
    pub fn start(mut self, start: StartId) -> StreamInput {
        self.start = start;
        self
    }

    /// How long an entry must lie idle before another consumer may take it over. Claims, leases,
    /// [`release`](crate::Delivery::release) and [`retry_after`](crate::Delivery::retry_after) all count from it, so all
    /// consumers of a group must use the same value. Defaults to 60 s.
    pub fn claim_idle(mut self, claim_idle: Duration) -> StreamInput {
        self.claim_idle = claim_idle;
        self
    }

    /// Where [`Delivery::dead_letter`](crate::Delivery::dead_letter) puts entries. Defaults to none.
    pub fn dead_letter(mut self, output: StreamOutput) -> StreamInput {
        self.dead_letter = Some(output);
        self
    }

    /// The stream's key.
    pub fn stream_id(&self) -> &str {
        &self.stream_id
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.stream_id.is_empty() {
            return Err(Error::params("stream_id", "empty; name the stream to read"));
        }
        if self.group.is_empty() {
            return Err(Error::params("group", "empty; name the consumer group"));
        }
        if self.consumer.as_deref().is_some_and(str::is_empty) {
            return Err(Error::params("consumer", "empty; name the consumer or leave it out for a generated name"));
        }
        check_ttl(self.ttl)?;
        if self.claim_idle < Duration::from_millis(1) {
            return Err(Error::params("claim_idle", "shorter than one millisecond"));
        }
        match &self.dead_letter {
            Some(output) if output.stream_id == self.stream_id => Err(Error::params(
                "dead_letter",
                "the stream that is read; a dead letter would come again as a new entry",
            )),
            Some(output) => output.check(),
            None => Ok(()),
        }
    }

    /// The stream, the group and the consumer's name, given or generated.
    pub(crate) fn consumer_key(&self) -> ConsumerKey {
        ConsumerKey {
            stream_id: Arc::clone(&self.stream_id),
            group: Arc::clone(&self.group),
            consumer: self.consumer.clone().unwrap_or_else(process_name),
        }
    }
}

/// One consumer of one group of one stream.
#[derive(Clone, Debug)]
pub(crate) struct ConsumerKey {
    pub(crate) stream_id: Arc<str>,
    pub(crate) group: Arc<str>,
    pub(crate) consumer: Arc<str>,
}

/// What a stream keeps when something is published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Retention {
    /// Everything. The default.
    #[default]
    All,
    /// About this many entries, never fewer (`MAXLEN ~`): the server trims when a whole node of its tree can go, which is
    /// much cheaper than being exact.
    ApproximateLength(u64),
    /// Exactly this many entries at most (`MAXLEN =`).
    ExactLength(u64),
    /// No entry before this id (`MINID =`).
    MinId(EntryId),
}

/// What to write: a stream, and what it keeps. Best made once and used for many messages: what is the same in all commands
/// is encoded with the first.
///
/// ```
/// use std::time::Duration;
/// use step_redis::StreamOutput;
///
/// let output = StreamOutput::new("orders").max_length(1000).ttl(Duration::from_secs(120));
/// # let _ = output;
/// ```
#[derive(Clone)]
pub struct StreamOutput {
    pub(crate) stream_id: Arc<str>,
    pub(crate) retention: Retention,
    pub(crate) ttl: Option<Duration>,
    /// `XADD` up to the first field, encoded by the first message.
    pub(crate) add_start: OnceLock<AddStart>,
}

/// The encoded start of `XADD`, which is the same for all messages.
#[derive(Clone, Debug)]
pub(crate) struct AddStart {
    /// For a message that is a payload: up to the value of its only field.
    pub(crate) with_payload: Vec<u8>,
    /// For any other: from the command's name to the first field, and how many arguments that is.
    pub(crate) without_fields: Vec<u8>,
    pub(crate) arguments: usize,
}

impl StreamOutput {
    /// Writes to the stream `stream_id`, which is created by the first message and keeps everything.
    pub fn new(stream_id: impl Into<Arc<str>>) -> StreamOutput {
        StreamOutput { stream_id: stream_id.into(), retention: Retention::All, ttl: None, add_start: OnceLock::new() }
    }

    /// Keeps about this many entries, never fewer: [`Retention::ApproximateLength`]. Zero is refused by the call that would
    /// publish ([`Error::Params`](crate::Error::Params)).
    pub fn max_length(self, entries: u64) -> StreamOutput {
        self.retention(Retention::ApproximateLength(entries))
    }

    /// Keeps at most this many entries: [`Retention::ExactLength`]. Zero, which would keep nothing, is refused by the call
    /// that would publish ([`Error::Params`](crate::Error::Params)).
    pub fn exact_length(self, entries: u64) -> StreamOutput {
        self.retention(Retention::ExactLength(entries))
    }

    /// Drops entries before this id: [`Retention::MinId`].
    pub fn min_id(self, id: EntryId) -> StreamOutput {
        self.retention(Retention::MinId(id))
    }

    /// Sets what the stream keeps. Entries that are trimmed are gone even for groups that have not read them.
    pub fn retention(mut self, retention: Retention) -> StreamOutput {
        self.retention = retention;
        self.add_start = OnceLock::new();
        self
    }

    /// Lets the stream expire this long after the last message (`PEXPIRE`), or later where another publisher or reader
    /// [names more](StreamInput::ttl). Millisecond resolution. Defaults to none. Where the server forbids scripts, it
    /// [costs more round trips](StreamInput::ttl).
    pub fn ttl(mut self, ttl: Duration) -> StreamOutput {
        self.ttl = Some(ttl);
        self
    }

    /// The stream's key.
    pub fn stream_id(&self) -> &str {
        &self.stream_id
    }

    pub(crate) fn check(&self) -> Result<()> {
        if self.stream_id.is_empty() {
            return Err(Error::params("stream_id", "empty; name the stream to write"));
        }
        match self.retention {
            Retention::ApproximateLength(0) | Retention::ExactLength(0) => {
                Err(Error::params("retention", "a length of 0 keeps nothing, not even what is being published"))
            }
            Retention::MinId(id) if id.milliseconds > LATEST_ID => Err(Error::params(
                "retention",
                "an id that lies in no time to come drops all; its first part is milliseconds",
            )),
            _ => check_ttl(self.ttl),
        }
    }
}

impl fmt::Debug for StreamOutput {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamOutput")
            .field("stream_id", &self.stream_id)
            .field("retention", &self.retention)
            .field("ttl", &self.ttl)
            .finish()
    }
}

pub(crate) fn check_ttl(ttl: Option<Duration>) -> Result<()> {
    match ttl {
        Some(ttl) if ttl < Duration::from_millis(1) => {
            Err(Error::params("ttl", "shorter than one millisecond; the stream would be gone at once"))
        }
        _ => Ok(()),
    }
}

/// Milliseconds for a command's argument, at least one where there is any time at all: a zero would mean "for ever" or
/// "never" to the server.
pub(crate) fn milliseconds(duration: Duration) -> u64 {
    let rounded_up = duration.as_nanos().div_ceil(1_000_000);
    // The server counts in signed 64-bit milliseconds and adds the current time.
    u64::try_from(rounded_up).unwrap_or(u64::MAX).min(u64::MAX / 4)
}
