//! What is taken from the shifting stream on purpose, and what of it nobody can be expected to handle. Each is one script at
//! the server, which tells exactly what it has hit.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use step_redis::EntryId;

use crate::common::{Reply, Server};
use crate::messages::{GROUP, Lane, Name};
use crate::tools::Random;

const NAMES: &str = "\
local function names(entries)
  local found={}
  for _,entry in ipairs(entries) do found[#found+1]=entry[1]..' '..string.match(entry[2][2],'^[^:]+') end
  return found
end
";

const DESTROY: &str = "\
local pending=redis.pcall('XPENDING',KEYS[1],ARGV[1],'-','+',1000000)
if pending.err then return false end
local found={}
for _,row in ipairs(pending) do
  for _,name in ipairs(names(redis.call('XRANGE',KEYS[1],row[1],row[1]))) do found[#found+1]=name end
end
redis.call('XGROUP','DESTROY',KEYS[1],ARGV[1])
return found";

const DELETE: &str = "\
if redis.call('EXISTS',KEYS[1])==0 then return false end
local found=names(redis.call('XRANGE',KEYS[1],'-','+'))
redis.call('DEL',KEYS[1])
return found";

/// Trims what is older than the entry at a part of the stream: what is pending, and at times what nobody has read.
const TRIM: &str = "\
local length=redis.call('XLEN',KEYS[1])
if length<2 then return false end
local entries=redis.call('XRANGE',KEYS[1],'-','+','COUNT',math.ceil(length*tonumber(ARGV[1])/100)+1)
local first=table.remove(entries)
redis.call('XTRIM',KEYS[1],'MINID',first[1])
return names(entries)";

/// Deletes some entries that are pending.
const DELETE_PENDING: &str = "\
local rows=redis.pcall('XPENDING',KEYS[1],ARGV[1],'-','+',ARGV[2])
if rows.err then return {} end
local found={}
for _,row in ipairs(rows) do
  for _,name in ipairs(names(redis.call('XRANGE',KEYS[1],row[1],row[1]))) do found[#found+1]=name end
  redis.call('XDEL',KEYS[1],row[1])
end
return found";

#[derive(Default)]
pub(crate) struct Removals {
    /// No longer in the stream, with the ids they had.
    removed: Mutex<HashMap<Name, EntryId>>,
    /// Pending when the group was lost.
    forgotten: Mutex<HashSet<Name>>,
    /// A stream was deleted after an entry in this millisecond: a new one may have begun with ids that were seen already.
    last_milliseconds: Mutex<HashSet<u64>>,
}

impl Removals {
    /// The id of a removed entry.
    pub(crate) fn removed(&self, name: Name) -> Option<EntryId> {
        self.removed.lock().unwrap().get(&name).copied()
    }

    /// What was removed under an id.
    pub(crate) fn removed_as(&self, id: EntryId) -> Vec<String> {
        let removed = self.removed.lock().unwrap();
        removed.iter().filter(|(_, its)| **its == id).map(|(name, _)| name.to_string()).collect()
    }

    /// Whether nobody can be expected to handle it.
    pub(crate) fn excuse(&self, name: Name, id: EntryId) -> bool {
        self.removed(name).is_some()
            || self.forgotten.lock().unwrap().contains(&name)
            || self.last_milliseconds.lock().unwrap().contains(&id.milliseconds)
    }

    fn remove(&self, removed: Vec<(Name, EntryId)>) -> String {
        let story = format!("{} entries gone", removed.len());
        self.removed.lock().unwrap().extend(removed);
        story
    }
}

pub(crate) fn destroy_group(server: &Server, removals: &Removals) -> Option<String> {
    let pending = run(server, DESTROY, &[GROUP])?;
    let story = format!("with {} entries pending", pending.len());
    removals.forgotten.lock().unwrap().extend(pending.into_iter().map(|(name, _)| name));
    Some(story)
}

pub(crate) fn delete_stream(server: &Server, removals: &Removals) -> Option<String> {
    let removed = run(server, DELETE, &[])?;
    if let Some((_, last)) = removed.last() {
        removals.last_milliseconds.lock().unwrap().insert(last.milliseconds);
    }
    Some(removals.remove(removed))
}

pub(crate) fn trim_stream(server: &Server, removals: &Removals, random: &mut Random) -> Option<String> {
    if random.one_in(2) {
        let removed = run(server, DELETE_PENDING, &[GROUP, &(1 + random.below(20)).to_string()])?;
        return Some(format!("by XDEL, {}", removals.remove(removed)));
    }
    let removed = run(server, TRIM, &[&random.below(101).to_string()])?;
    Some(removals.remove(removed))
}

/// None: there was nothing to do it to.
fn run(server: &Server, script: &str, arguments: &[&str]) -> Option<Vec<(Name, EntryId)>> {
    let script = format!("{NAMES}{script}");
    let mut command = vec!["EVAL", &script, "1", Lane::Shifting.stream()];
    command.extend(arguments);
    let reply = server.command(&command);
    let read = |found: &Reply| {
        let found = found.text();
        let (id, name) = found.split_once(' ').expect("an id and a name");
        (name.parse().unwrap_or_else(|problem: String| panic!("{problem}")), id.parse().expect("an id"))
    };
    if reply == Reply::Nil { None } else { Some(reply.array().iter().map(read).collect()) }
}
