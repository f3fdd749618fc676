//! What the server knows about a stream, its groups and their pending entries.

use super::StepStream;
use crate::commands::{self, Pending, StreamInfo};
use crate::endpoint::StreamInput;
use crate::error::Result;

impl StepStream {
    /// How many entries are pending in the input's group, and for whom (`XPENDING`).
    ///
    /// Waits at most `socket_timeout` for the server.
    pub fn pending(&self, input: &StreamInput) -> Result<Pending> {
        input.check()?;
        commands::pending_summary(&mut *self.pool.get()?, &input.consumer_key())
    }

    /// The stream's length, ids and groups (`XINFO STREAM`, `XINFO GROUPS`, one round trip).
    ///
    /// Waits at most `socket_timeout` for the server.
    ///
    /// # Errors
    /// [`Error::Server`](crate::Error::Server) with `ERR no such key` when there is no such stream.
    pub fn info(&self, stream_id: &str) -> Result<StreamInfo> {
        commands::stream_info(&mut *self.pool.get()?, stream_id)
    }
}
