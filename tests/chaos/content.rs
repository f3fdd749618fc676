//! What is at the server in the end: the two streams, and their dead letters.

use std::collections::HashMap;

use step_redis::EntryId;

use crate::common::{Reply, Server};
use crate::consumers::GIVEN_UP;
use crate::messages::{GROUP, Lane, Name};

/// A copy in the dead letter stream.
#[derive(Clone, Debug)]
pub(crate) struct Buried {
    pub(crate) at: EntryId,
    pub(crate) origin: EntryId,
    pub(crate) deliveries: u64,
    /// By a handler, and not because it had its hand-outs.
    pub(crate) is_given_up: bool,
}

#[derive(Default)]
pub(crate) struct Content {
    /// Each message with the ids under which it is there.
    pub(crate) entries: HashMap<Name, Vec<EntryId>>,
    pub(crate) buried: HashMap<Name, Vec<Buried>>,
}

impl Content {
    pub(crate) fn of(server: &Server) -> Content {
        let mut content = Content::default();
        for lane in Lane::ALL {
            for_each_entry(server, lane.stream(), |id, fields| {
                content.entries.entry(name_in(&fields)).or_default().push(id);
            });
            for_each_entry(server, lane.dead(), |at, fields| {
                let field = |name: &str| {
                    let found = fields.chunks(2).find(|pair| pair[0].text() == name);
                    found.unwrap_or_else(|| panic!("dead letter {at} has no field {name}"))[1].text()
                };
                assert_eq!((field("origin-stream").as_str(), field("origin-group").as_str()), (lane.stream(), GROUP));
                let buried = Buried {
                    at,
                    origin: field("origin-id").parse().expect("an id"),
                    deliveries: field("deliveries").parse().expect("a number"),
                    is_given_up: field("reason") == GIVEN_UP,
                };
                content.buried.entry(name_in(&fields)).or_default().push(buried);
            });
        }
        content
    }

    pub(crate) fn ids(&self, name: Name) -> &[EntryId] {
        self.entries.get(&name).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn buried(&self, name: Name) -> &[Buried] {
        self.buried.get(&name).map_or(&[], Vec::as_slice)
    }

    /// How many entries or dead letters there are in a lane.
    pub(crate) fn count<T>(lane: Lane, found: &HashMap<Name, Vec<T>>) -> u64 {
        found.iter().filter(|(name, _)| name.lane() == lane).map(|(_, found)| found.len() as u64).sum()
    }
}

fn name_in(fields: &[Reply]) -> Name {
    let Some([_, Reply::Bulk(payload)]) = fields.get(..2) else { panic!("no message in {fields:?}") };
    Name::of(payload).unwrap_or_else(|problem| panic!("{problem}"))
}

fn for_each_entry(server: &Server, stream: &str, mut each: impl FnMut(EntryId, Vec<Reply>)) {
    let mut from = "-".to_owned();
    loop {
        let page = server.command(&["XRANGE", stream, &from, "+", "COUNT", "500"]);
        let Some(last) = page.array().last() else { return };
        from = format!("({}", last.array()[0].text());
        for entry in page.array() {
            each(entry.array()[0].text().parse().expect("an id"), entry.array()[1].array().to_vec());
        }
    }
}

/// Whether all that is there was read and nothing is pending, in both streams.
pub(crate) fn is_settled(server: &Server) -> bool {
    Lane::ALL.into_iter().all(|lane| {
        let Ok(Reply::Array(pending)) = server.try_command(&["XPENDING", lane.stream(), GROUP]) else { return false };
        let Ok(Reply::Array(groups)) = server.try_command(&["XINFO", "GROUPS", lane.stream()]) else { return false };
        let Some(Reply::Array(group)) = groups.first() else { return false };
        let property = |name: &str| group.chunks(2).find(|pair| pair[0].text() == name).map(|pair| pair[1].text());
        let last = server.command(&["XREVRANGE", lane.stream(), "+", "-", "COUNT", "1"]);
        let last = last.array().first().map(|entry| entry.array()[0].text());
        pending[0].int() == 0 && last.is_none_or(|last| property("last-delivered-id") == Some(last))
    })
}
