//! The entries this consumer holds: queued, in a handler, or acknowledged and not confirmed.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::entry::{Entry, EntryId};
use crate::signal::lock;

/// Which entries are held here. It keeps them leased, keeps them from being handed out twice, and tells their age.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    entries: Mutex<HashMap<EntryId, Holding, foldhash::fast::RandomState>>,
}

#[derive(Clone, Copy, Debug)]
struct Holding {
    /// When it was delivered.
    since: Instant,
    /// When the server last counted it as fresh, at the latest.
    fresh: Instant,
    /// It was given back and is pending still: a claim may bring it again, rereading what is pending must not.
    parked: bool,
}

impl InFlight {
    /// Takes entries that were just delivered. Those that are held already are left out: they were delivered twice.
    pub(super) fn admit(&self, delivered: &mut Vec<(Entry, u64)>) {
        let now = Instant::now();
        let mut entries = lock(&self.entries);
        delivered.retain(|(entry, _)| match entries.entry(entry.id()) {
            Slot::Occupied(slot) if !slot.get().parked => false,
            Slot::Occupied(mut slot) => {
                slot.insert(Holding { since: now, fresh: now, parked: false });
                true
            }
            Slot::Vacant(slot) => {
                slot.insert(Holding { since: now, fresh: now, parked: false });
                true
            }
        });
    }

    /// Whether it is held or parked.
    pub(super) fn knows(&self, id: EntryId) -> bool {
        lock(&self.entries).contains_key(&id)
    }

    /// Whether it is held.
    pub(super) fn holds(&self, id: EntryId) -> bool {
        lock(&self.entries).get(&id).is_some_and(|holding| !holding.parked)
    }

    /// These were taken over by somebody else. How many of them were still held: the others were settled meanwhile.
    pub(super) fn give_up(&self, ids: &[EntryId]) -> usize {
        let mut entries = lock(&self.entries);
        ids.iter().filter(|id| entries.remove(id).is_some()).count()
    }

    /// It is pending still, and not ours to keep.
    pub(super) fn park(&self, id: EntryId) {
        if let Some(holding) = lock(&self.entries).get_mut(&id) {
            *holding = Holding { parked: true, fresh: Instant::now(), ..*holding };
        }
    }

    /// They are done with, or somebody else's.
    pub(super) fn remove(&self, ids: &[EntryId]) {
        let mut entries = lock(&self.entries);
        for id in ids {
            entries.remove(id);
        }
    }

    /// Held entries whose lease is older than `age`, to be renewed now. Parked ones that nobody brought back for that long
    /// are forgotten: somebody else has them.
    pub(super) fn due(&self, age: Duration, parked_age: Duration) -> Vec<EntryId> {
        let now = Instant::now();
        let mut entries = lock(&self.entries);
        entries.retain(|_, holding| !holding.parked || now.duration_since(holding.fresh) < parked_age);
        entries
            .iter()
            .filter(|(_, holding)| !holding.parked && now.duration_since(holding.fresh) >= age)
            .map(|(id, _)| *id)
            .collect()
    }

    /// The server counts them as fresh since `at`.
    pub(super) fn renewed(&self, ids: &[EntryId], at: Instant) {
        let mut entries = lock(&self.entries);
        for id in ids {
            if let Some(holding) = entries.get_mut(id) {
                holding.fresh = at;
            }
        }
    }

    /// How many are held, and since when the oldest.
    pub(super) fn held(&self) -> (usize, Option<Duration>) {
        let entries = lock(&self.entries);
        let held = entries.values().filter(|holding| !holding.parked);
        let oldest = held.clone().map(|holding| holding.since).min();
        (held.count(), oldest.map(|since| since.elapsed()))
    }
}
