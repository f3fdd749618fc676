//! Stream entries straight from a reply's bytes, without a `redis::Value` in between.

use super::decode_id;
use crate::entry::{Entry, FieldPacker};
use crate::entry_id::EntryId;
use crate::resp::{Cursor, Malformed, Token};

/// The reply of `XREADGROUP`.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Received {
    /// The entries, each with the number of its deliveries: this is the first.
    pub(crate) entries: Vec<(Entry, u64)>,
    /// Pending entries whose content was trimmed or deleted.
    pub(crate) deleted: Vec<EntryId>,
}

/// The reply of `XAUTOCLAIM`.
#[derive(Debug, Default)]
pub(crate) struct Claimed {
    /// Where to go on; `0-0` when the whole pending list was seen.
    pub(crate) next: EntryId,
    pub(crate) entries: Vec<Entry>,
    /// Pending entries whose content is gone. Servers from 7.0 have already taken them off the pending list.
    pub(crate) deleted: Vec<EntryId>,
    /// Before 7.0, an entry whose content is gone shows as a hole without an id, and stays pending.
    pub(crate) deleted_unnamed: usize,
}

/// One element of a list of entries.
enum Element {
    Entry(Entry),
    /// The entry is pending, but its content was trimmed or deleted.
    Deleted(EntryId),
    /// Before Redis 7.0, what is left of an entry whose content is gone.
    DeletedUnnamed,
}

/// Decodes the reply of `XREADGROUP` for one stream: an array of pairs in RESP2, a map in RESP3, null when nothing came.
pub(crate) fn received(reply: &mut Cursor<'_>) -> Result<Received, Malformed> {
    let streams = match reply.next()? {
        Token::Nil => return Ok(Received::default()),
        Token::Map(streams) => streams,
        Token::Array(streams) => {
            for _ in 0..streams.min(1) {
                if reply.array()? != Some(2) {
                    return Err("a stream that is not a pair of name and entries");
                }
            }
            streams
        }
        _ => return Err("something else where streams belong"),
    };
    match streams {
        0 => Ok(Received::default()),
        1 => {
            reply.bytes()?;
            let count = reply.array()?.unwrap_or_default();
            // A complete reply really holds this many entries, so the capacity is not the peer's to choose.
            let mut received = Received { entries: Vec::with_capacity(count), deleted: Vec::new() };
            let mut packer = FieldPacker::default();
            for _ in 0..count {
                match one(reply, &mut packer)? {
                    Element::Entry(entry) => received.entries.push((entry, 1)),
                    Element::Deleted(id) => received.deleted.push(id),
                    Element::DeletedUnnamed => {}
                }
            }
            Ok(received)
        }
        _ => Err("more streams than were asked for"),
    }
}

/// Decodes the reply of `XAUTOCLAIM`: two elements and null entries before Redis 7.0, three elements since.
pub(crate) fn claimed(reply: &mut Cursor<'_>) -> Result<Claimed, Malformed> {
    let parts = reply.array()?.unwrap_or_default();
    if parts < 2 {
        return Err("fewer than two elements in the reply of XAUTOCLAIM");
    }
    let mut packer = FieldPacker::default();
    let mut claimed = Claimed { next: decode_id(reply)?, ..Claimed::default() };
    for _ in 0..reply.array()?.unwrap_or_default() {
        match one(reply, &mut packer)? {
            Element::Entry(entry) => claimed.entries.push(entry),
            Element::Deleted(id) => claimed.deleted.push(id),
            Element::DeletedUnnamed => claimed.deleted_unnamed += 1,
        }
    }
    if parts > 2 {
        for _ in 0..reply.array()?.unwrap_or_default() {
            claimed.deleted.push(decode_id(reply)?);
        }
    }
    for _ in 3..parts {
        reply.skip()?;
    }
    Ok(claimed)
}

/// Decodes a plain list of entries, as `XRANGE` answers.
pub(crate) fn entries(reply: &mut Cursor<'_>) -> Result<Vec<Entry>, Malformed> {
    let mut entries = Vec::new();
    let mut packer = FieldPacker::default();
    for _ in 0..reply.array()?.unwrap_or_default() {
        if let Element::Entry(entry) = one(reply, &mut packer)? {
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// One `[id, fields]`; null where a server before 7.0 has nothing but a hole to show.
fn one(reply: &mut Cursor<'_>, packer: &mut FieldPacker) -> Result<Element, Malformed> {
    let Some(parts) = reply.array()? else { return Ok(Element::DeletedUnnamed) };
    if parts < 2 {
        return Err("an entry without fields");
    }
    let id = decode_id(reply)?;
    let element = fields(reply, id, packer)?;
    for _ in 2..parts {
        reply.skip()?;
    }
    Ok(element)
}

fn fields(reply: &mut Cursor<'_>, id: EntryId, packer: &mut FieldPacker) -> Result<Element, Malformed> {
    let Some(elements) = reply.array()? else { return Ok(Element::Deleted(id)) };
    if elements % 2 != 0 {
        return Err("a field without a value");
    }
    for _ in 0..elements / 2 {
        let (name, value) = (reply.bytes()?, reply.bytes()?);
        packer.push(name, value).ok_or("a field longer than 4 GiB")?;
    }
    Ok(Element::Entry(packer.take(id)))
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use proptest::sample::{Index, select};

    use super::*;

    fn entry(id: &str, fields: &[(&str, &str)]) -> Entry {
        let mut packer = FieldPacker::default();
        for (name, value) in fields {
            packer.push(name.as_bytes(), value.as_bytes()).unwrap();
        }
        packer.take(id.parse().unwrap())
    }

    #[test]
    fn both_shapes_of_a_read_reply() {
        let body = "$1\r\ns\r\n*2\r\n*2\r\n$3\r\n1-1\r\n*4\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\na\r\n$0\r\n\r\n*2\r\n$3\r\n1-2\r\n*-1\r\n";
        let expected = Received {
            entries: vec![(entry("1-1", &[("a", "b"), ("a", "")]), 1)],
            deleted: vec!["1-2".parse().unwrap()],
        };
        for prefix in ["*1\r\n*2\r\n", "%1\r\n"] {
            let reply = format!("{prefix}{body}");
            assert_eq!(received(&mut Cursor::new(reply.as_bytes())).unwrap(), expected);
        }
        for nothing in ["*-1\r\n", "_\r\n", "*0\r\n", "%0\r\n"] {
            assert_eq!(received(&mut Cursor::new(nothing.as_bytes())).unwrap(), Received::default());
        }
    }

    #[test]
    fn both_shapes_of_a_claim_reply() {
        let old = "*2\r\n$3\r\n0-0\r\n*2\r\n*-1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n";
        let new = "*3\r\n$3\r\n5-0\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n*1\r\n$3\r\n1-2\r\n";
        let claimed_old = claimed(&mut Cursor::new(old.as_bytes())).unwrap();
        assert_eq!(claimed_old.entries, [entry("1-1", &[("a", "b")])]);
        assert_eq!((claimed_old.next, claimed_old.deleted.len()), (EntryId::MIN, 0));
        let claimed_new = claimed(&mut Cursor::new(new.as_bytes())).unwrap();
        assert_eq!(claimed_new.entries, [entry("1-1", &[("a", "b")])]);
        assert_eq!((claimed_new.next, claimed_new.deleted.as_slice()), (EntryId::new(5, 0), &[EntryId::new(1, 2)][..]));
    }

    /// What a server answered to `XREADGROUP`, `XAUTOCLAIM` and `XRANGE`.
    const REPLIES: [&str; 6] = [
        "%1\r\n$1\r\ns\r\n*2\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n*2\r\n$3\r\n2-2\r\n_\r\n",
        "*1\r\n*2\r\n$1\r\ns\r\n*2\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\na\r\n$0\r\n\r\n*2\r\n$3\r\n2-2\r\n*-1\r\n",
        "*2\r\n$3\r\n0-0\r\n*2\r\n*2\r\n$3\r\n1-1\r\n*4\r\n$1\r\na\r\n$1\r\nb\r\n$1\r\na\r\n$1\r\nb\r\n*-1\r\n",
        "*3\r\n$3\r\n5-0\r\n*1\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n*1\r\n$3\r\n2-2\r\n",
        "*2\r\n*2\r\n$3\r\n1-1\r\n*2\r\n$1\r\na\r\n$1\r\nb\r\n*2\r\n$3\r\n3-3\r\n*2\r\n$1\r\nb\r\n$2\r\n\r\n\r\n",
        "_\r\n",
    ];

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn damaged_replies_are_refused_or_still_entries(
            reply in select(REPLIES.to_vec()),
            edits in vec((any::<Index>(), 0..3_usize, "[*%~$:+|_][0-9-]{0,2}|[0-9]-[0-9]|[a-z]"), 1..4),
        ) {
            let mut lines: Vec<String> = reply.split_inclusive("\r\n").map(str::to_owned).collect();
            crate::fuzzing::decode_entries(lines.concat().as_bytes());
            for (at, removed, added) in edits {
                let at = at.index(lines.len());
                let end = lines.len().min(at + removed);
                lines.splice(at..end, [added + "\r\n"]);
                crate::fuzzing::decode_entries(lines.concat().as_bytes());
            }
        }
    }
}
