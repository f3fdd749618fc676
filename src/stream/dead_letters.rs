//! Reading dead letters back, and giving them another chance.

use super::{StepStream, check_count};
use crate::commands;
use crate::dead_letter::DeadLetter;
use crate::endpoint::StreamOutput;
use crate::entry_id::EntryId;
use crate::error::{Error, Result};

impl StepStream {
    /// The oldest dead letters, up to `max` (`XRANGE`). Entries that are no dead letters are left out.
    ///
    /// Waits at most `socket_timeout` for the server.
    pub fn dead_letters(&self, output: &StreamOutput, max: usize) -> Result<Vec<DeadLetter>> {
        output.check()?;
        check_count(max)?;
        let mut connection = self.pool.get()?;
        connection.command("XRANGE", 6).arg(&*output.stream_id).arg("-").arg("+").arg("COUNT").number(max as u64);
        let entries = connection.request()?.decode("XRANGE", commands::entries)?;
        Ok(entries.into_iter().filter_map(DeadLetter::from_entry).collect())
    }

    /// Publishes a dead letter's original fields to the stream it came from and deletes it from the dead letter stream, in
    /// one step at the server (`XADD`, `XDEL`): it is in one of the two at any time. Returns its new id.
    ///
    /// Waits at most `socket_timeout` for the server.
    ///
    /// # Errors
    /// [`Error::NoSuchEntry`] when it is not in the dead letter stream any more; nothing is published then.
    pub fn requeue(&self, output: &StreamOutput, dead_letter: &DeadLetter) -> Result<EntryId> {
        output.check()?;
        let origin = StreamOutput::new(dead_letter.stream_id());
        let fields: Vec<_> = dead_letter.fields().collect();
        commands::requeue(&mut *self.pool.get()?, output, dead_letter.id(), &origin, &fields)?
            .ok_or_else(|| Error::NoSuchEntry { stream_id: output.stream_id.to_string(), id: dead_letter.id() })
    }
}
