//! Where a stream and a group stand, as far as noticing losses needs it.

use super::{optional_id, optional_number};
use crate::entry_id::EntryId;
use crate::resp::{Cursor, Malformed};

/// A stream's and a group's counters at one moment.
#[derive(Clone, Debug)]
pub(crate) struct StreamProgress {
    pub(crate) length: u64,
    pub(crate) first_id: Option<EntryId>,
    pub(crate) last_id: EntryId,
    pub(crate) max_deleted: EntryId,
    pub(crate) entries_added: u64,
    pub(crate) last_delivered: EntryId,
    pub(crate) entries_read: Option<u64>,
}

/// The seven properties as the script of [`look_around`](super::look_around) lists them. `None`: the server does not have
/// them, or the group does not exist.
pub(super) fn decode_progress(reply: &mut Cursor<'_>) -> Result<Option<StreamProgress>, Malformed> {
    match reply.array()? {
        None => return Ok(None),
        Some(7) => {}
        Some(_) => return Err("not the seven properties that were asked for"),
    }
    Ok(Some(StreamProgress {
        length: optional_number(reply)?.unwrap_or_default(),
        first_id: optional_id(reply)?,
        last_id: optional_id(reply)?.unwrap_or_default(),
        max_deleted: optional_id(reply)?.unwrap_or_default(),
        entries_added: optional_number(reply)?.unwrap_or_default(),
        last_delivered: optional_id(reply)?.unwrap_or_default(),
        entries_read: optional_number(reply)?,
    }))
}
