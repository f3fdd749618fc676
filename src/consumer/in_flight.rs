//! The entries this consumer holds: queued, in a handler, or acknowledged and not confirmed.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::delivery::Receipt;
use crate::entry::Entry;
use crate::entry_id::EntryId;
use crate::latch::lock;

/// Which entries are held here. It keeps them leased, keeps them from being handed out twice, tells which guard is the one
/// that may settle an entry, and tells their age.
#[derive(Debug, Default)]
pub(super) struct InFlight {
    state: Mutex<State>,
    /// Some delivery was void before its guard was settled: whoever hands out has to look.
    any_void: AtomicBool,
    /// Some delivery that was the last one permitted is acknowledged, and the server may not know yet.
    any_acked: AtomicBool,
}

#[derive(Debug, Default)]
struct State {
    entries: HashMap<EntryId, Holding, foldhash::fast::RandomState>,
    /// The last generation that was given out.
    generation: u64,
    /// Deliveries that are the last ones permitted, and are not settled yet.
    last_chances: Vec<LastChance>,
}

#[derive(Clone, Copy, Debug)]
struct LastChance {
    id: EntryId,
    generation: u64,
    /// When its handler was done, which the server has not confirmed.
    acked: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
struct Holding {
    generation: u64,
    /// When it was delivered.
    since: Instant,
    /// When the server last counted it as fresh, at the latest.
    fresh: Instant,
    phase: Phase,
}

/// Where an entry stands that is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// Queued, in a handler, or acknowledged and not confirmed.
    Held,
    /// Given back, and pending for this consumer still: a claim may bring it again, rereading what is pending must not.
    Parked,
    /// Sent by the server and lost on the way: it is kept until it is asked for again.
    Expected,
    /// Held, but no longer pending at the server: acknowledged by somebody, or lost with the group. The handler may go on.
    Settled,
}

/// How deliveries were admitted.
#[derive(Debug)]
pub(super) struct Admission {
    pub(super) generation: u64,
    /// Ids that were held already: the server has delivered them as new, so the stream is another one with the same ids.
    pub(super) replaced: Vec<EntryId>,
}

impl InFlight {
    /// Takes entries that the server has delivered as new. One that is held already belonged to a stream that was deleted
    /// and made again: its old guard is void.
    /// The server has counted them as fresh since `fresh`, at the latest.
    pub(super) fn admit_new(&self, delivered: &[(Entry, u64)], fresh: Instant) -> Admission {
        let now = Instant::now();
        let mut state = lock(&self.state);
        state.generation += 1;
        let generation = state.generation;
        let mut replaced = Vec::new();
        for (entry, _) in delivered {
            let holding = Holding { generation, since: now, fresh, phase: Phase::Held };
            match state.entries.entry(entry.id()) {
                Slot::Vacant(slot) => drop(slot.insert(holding)),
                Slot::Occupied(mut slot) => {
                    if slot.insert(holding).phase.is_here() {
                        replaced.push(entry.id());
                    }
                }
            }
        }
        if !replaced.is_empty() {
            state.last_chances.retain(|chance| !replaced.contains(&chance.id));
            self.any_void.store(true, Ordering::Release);
        }
        Admission { generation, replaced }
    }

    /// Takes entries that this consumer has made its own again, with the numbers of their hand-outs.
    pub(super) fn admit_again(&self, delivered: &[(Entry, u64)], fresh: Instant) -> u64 {
        self.admit_new(delivered, fresh).generation
    }

    /// Entries that the server has sent to this consumer and that have not arrived: they are kept like those that have. They
    /// were kept `at` last.
    pub(super) fn expect(&self, ids: &[EntryId], at: Instant) {
        let mut state = lock(&self.state);
        state.generation += 1;
        let holding = Holding { generation: state.generation, since: at, fresh: at, phase: Phase::Expected };
        for id in ids {
            let known = state.entries.entry(*id).or_insert(holding);
            if known.phase == Phase::Expected {
                *known = holding;
            }
        }
    }

    /// What is known about an entry.
    pub(super) fn phase(&self, id: EntryId) -> Option<Phase> {
        lock(&self.state).entries.get(&id).map(|holding| holding.phase)
    }

    /// Whether this delivery is the one that is held, so that its guard may settle it.
    pub(super) fn is_current(&self, receipt: &Receipt) -> bool {
        lock(&self.state).is_current(receipt)
    }

    /// Whether this delivery should not be handed out any more: another consumer has taken it over.
    pub(super) fn is_void(&self, receipt: &Receipt) -> bool {
        self.any_void.load(Ordering::Acquire) && !self.is_current(receipt)
    }

    /// Of acknowledgements on their way to the server, keeps those that it still has to be told. Those of deliveries that
    /// are void are dropped; those of entries that are no longer pending are returned, as done.
    pub(super) fn retain_pending(&self, acks: &mut Vec<Receipt>) -> Vec<Receipt> {
        let mut state = lock(&self.state);
        let mut done = Vec::new();
        acks.retain(|receipt| match state.entries.get(&receipt.id) {
            Some(holding) if holding.generation == receipt.generation => {
                if holding.phase == Phase::Settled {
                    done.push(*receipt);
                }
                holding.phase == Phase::Held
            }
            _ => {
                state.finish_last_chance(receipt);
                false
            }
        });
        done
    }

    /// It is pending still, and not ours to keep. Whether this delivery was the one that is held.
    pub(super) fn park(&self, receipt: &Receipt) -> bool {
        let mut state = lock(&self.state);
        let Slot::Occupied(mut slot) = state.entries.entry(receipt.id) else { return false };
        let holding = slot.get_mut();
        if holding.generation != receipt.generation {
            return false;
        }
        if holding.phase == Phase::Settled {
            slot.remove();
        } else {
            (holding.phase, holding.fresh) = (Phase::Parked, Instant::now());
        }
        state.finish_last_chance(receipt);
        true
    }

    /// An entry that is pending for this consumer and cannot be handed out now: rereading leaves it alone, a claim may take
    /// it later. Its generation.
    pub(super) fn set_aside(&self, id: EntryId) -> u64 {
        let now = Instant::now();
        let mut state = lock(&self.state);
        state.generation += 1;
        let generation = state.generation;
        let holding = Holding { generation, since: now, fresh: now, phase: Phase::Parked };
        state.entries.insert(id, holding);
        generation
    }

    /// These deliveries are done with; how many of them were still the ones held.
    pub(super) fn remove(&self, receipts: &[Receipt]) -> usize {
        let mut state = lock(&self.state);
        let mut removed = 0;
        for receipt in receipts {
            if let Slot::Occupied(slot) = state.entries.entry(receipt.id)
                && slot.get().generation == receipt.generation
            {
                slot.remove();
                removed += 1;
            }
            state.finish_last_chance(receipt);
        }
        removed
    }

    /// The stream no longer holds these, and they are off the pending list.
    pub(super) fn forget(&self, ids: &[EntryId]) {
        let mut state = lock(&self.state);
        for id in ids {
            state.entries.remove(id);
        }
    }

    /// These were taken over by somebody else. How many of them were held: the others had been given back or settled.
    pub(super) fn give_up(&self, ids: &[EntryId]) -> usize {
        let mut state = lock(&self.state);
        let mut held = 0;
        for id in ids {
            let was_held = state.entries.remove(id).is_some_and(|holding| holding.phase == Phase::Held);
            held += usize::from(was_held);
            state.last_chances.retain(|chance| chance.id != *id);
        }
        if held > 0 {
            self.any_void.store(true, Ordering::Release);
        }
        held
    }

    /// These are pending for nobody. Their handlers may go on, and there is nothing to keep fresh.
    pub(super) fn note_settled(&self, ids: &[EntryId]) {
        let mut state = lock(&self.state);
        for id in ids {
            match state.entries.get_mut(id) {
                Some(holding) if !holding.phase.is_here() => drop(state.entries.remove(id)),
                Some(holding) => holding.phase = Phase::Settled,
                None => {}
            }
        }
    }

    /// The group is lost, and with it everything that was pending.
    pub(super) fn note_group_loss(&self) {
        let mut state = lock(&self.state);
        state.entries.retain(|_, holding| {
            let was_here = holding.phase.is_here();
            holding.phase = Phase::Settled;
            was_here
        });
    }

    /// Entries to be kept whose lease is older than `age`, to be renewed now.
    pub(super) fn due(&self, age: Duration) -> Vec<EntryId> {
        self.older_than(age, Phase::is_kept)
    }

    /// Entries that were given back `age` ago and have not come again: perhaps somebody else has them.
    pub(super) fn parked_for(&self, age: Duration) -> Vec<EntryId> {
        self.older_than(age, |phase| phase == Phase::Parked)
    }

    fn older_than(&self, age: Duration, is_meant: impl Fn(Phase) -> bool) -> Vec<EntryId> {
        let now = Instant::now();
        let state = lock(&self.state);
        let old = |holding: &Holding| is_meant(holding.phase) && now.duration_since(holding.fresh) >= age;
        state.entries.iter().filter(|(_, holding)| old(holding)).map(|(id, _)| *id).collect()
    }

    /// Of these, those that are to be kept.
    pub(super) fn kept_among(&self, ids: &[EntryId]) -> Vec<EntryId> {
        let state = lock(&self.state);
        let kept = |id: &EntryId| state.entries.get(id).is_some_and(|holding| holding.phase.is_kept());
        ids.iter().copied().filter(kept).collect()
    }

    /// The server counts them as fresh since `at`, or was asked about them then.
    pub(super) fn renewed(&self, ids: &[EntryId], at: Instant) {
        let mut state = lock(&self.state);
        for id in ids {
            if let Some(holding) = state.entries.get_mut(id) {
                holding.fresh = at;
            }
        }
    }

    /// This delivery is the last one permitted: nothing like it is offered until its handler is done.
    pub(super) fn begin_last_chance(&self, id: EntryId, generation: u64) {
        lock(&self.state).last_chances.push(LastChance { id, generation, acked: None });
    }

    /// Its handler is done with it; if the process ended before the server knows, it would be buried all the same.
    pub(super) fn ack_last_chance(&self, receipt: &Receipt) {
        let mut state = lock(&self.state);
        if let Some(chance) = state.last_chances.iter_mut().find(|chance| chance.is(receipt)) {
            chance.acked = Some(Instant::now());
            self.any_acked.store(true, Ordering::SeqCst);
        }
    }

    /// Whether a handler has an entry for the last time.
    pub(super) fn has_last_chance(&self) -> bool {
        lock(&self.state).last_chances.iter().any(|chance| chance.acked.is_none())
    }

    /// Whether the server has yet to confirm that such an entry is done.
    pub(super) fn has_acked_last_chance(&self) -> bool {
        self.last_acked().is_some()
    }

    /// Whether its handler was done not longer ago than this.
    pub(super) fn has_just_acked_last_chance(&self, age: Duration) -> bool {
        self.last_acked().is_some_and(|at| at.elapsed() < age)
    }

    fn last_acked(&self) -> Option<Instant> {
        if !self.any_acked.load(Ordering::SeqCst) {
            return None;
        }
        let state = lock(&self.state);
        let last = state.last_chances.iter().filter_map(|chance| chance.acked).max();
        self.any_acked.store(last.is_some(), Ordering::SeqCst);
        last
    }

    /// How many are held, and since when the oldest.
    pub(super) fn held(&self) -> (usize, Option<Duration>) {
        let state = lock(&self.state);
        let held = state.entries.values().filter(|holding| holding.phase.is_here());
        let oldest = held.clone().map(|holding| holding.since).min();
        (held.count(), oldest.map(|since| since.elapsed()))
    }
}

impl Phase {
    /// A delivery of it exists.
    fn is_here(self) -> bool {
        matches!(self, Phase::Held | Phase::Settled)
    }

    /// Nobody else is to take it.
    fn is_kept(self) -> bool {
        matches!(self, Phase::Held | Phase::Expected)
    }
}

impl State {
    fn is_current(&self, receipt: &Receipt) -> bool {
        self.entries.get(&receipt.id).is_some_and(|holding| holding.generation == receipt.generation)
    }

    fn finish_last_chance(&mut self, receipt: &Receipt) {
        if !self.last_chances.is_empty() {
            self.last_chances.retain(|chance| !chance.is(receipt));
        }
    }
}

impl LastChance {
    fn is(&self, receipt: &Receipt) -> bool {
        (self.id, self.generation) == (receipt.id, receipt.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64) -> (Entry, u64) {
        (Entry::without_fields(EntryId::new(number, 0)), 1)
    }

    fn receipt(number: u64, generation: u64) -> Receipt {
        Receipt { id: EntryId::new(number, 0), deliveries: 1, generation }
    }

    #[test]
    fn a_held_id_that_comes_as_new_makes_the_old_guard_and_its_ack_void() {
        let in_flight = InFlight::default();
        let old = in_flight.admit_new(&[entry(1)], Instant::now());
        assert!(old.replaced.is_empty() && !in_flight.is_void(&receipt(1, old.generation)));
        let new = in_flight.admit_new(&[entry(1)], Instant::now());
        assert_eq!(new.replaced, [EntryId::new(1, 0)]);
        assert!(in_flight.is_void(&receipt(1, old.generation)) && !in_flight.is_void(&receipt(1, new.generation)));
        let mut acks = vec![receipt(1, old.generation), receipt(1, new.generation)];
        assert!(in_flight.retain_pending(&mut acks).is_empty());
        assert_eq!(acks, [receipt(1, new.generation)]);
        in_flight.park(&receipt(1, old.generation));
        assert_eq!(in_flight.phase(EntryId::new(1, 0)), Some(Phase::Held), "the old guard parks nothing");
        assert_eq!(in_flight.remove(&[receipt(1, old.generation)]), 0);
        assert_eq!(in_flight.remove(&[receipt(1, new.generation)]), 1);
    }

    #[test]
    fn an_old_guard_settles_nothing_after_a_takeover_and_a_claim_back() {
        let in_flight = InFlight::default();
        let first = in_flight.admit_new(&[entry(1)], Instant::now()).generation;
        assert_eq!(in_flight.give_up(&[EntryId::new(1, 0)]), 1);
        assert!(in_flight.is_void(&receipt(1, first)));
        let second = in_flight.admit_again(&[entry(1)], Instant::now());
        in_flight.park(&receipt(1, first));
        assert_eq!(in_flight.phase(EntryId::new(1, 0)), Some(Phase::Held));
        assert!(in_flight.is_current(&receipt(1, second)));
    }

    #[test]
    fn what_is_pending_for_nobody_is_acknowledged_without_the_server() {
        let in_flight = InFlight::default();
        let generation = in_flight.admit_new(&[entry(1), entry(2), entry(3)], Instant::now()).generation;
        in_flight.note_settled(&[EntryId::new(1, 0)]);
        in_flight.park(&receipt(3, generation));
        let mut acks = vec![receipt(1, generation), receipt(2, generation), receipt(3, generation)];
        assert_eq!(in_flight.retain_pending(&mut acks), [receipt(1, generation)]);
        assert_eq!(acks, [receipt(2, generation)]);
        in_flight.note_group_loss();
        assert_eq!(in_flight.phase(EntryId::new(3, 0)), None, "there is nothing left to come again");
        assert_eq!(in_flight.held().0, 2);
    }

    #[test]
    fn what_is_expected_is_kept_and_counts_as_held_only_when_it_has_come() {
        let in_flight = InFlight::default();
        let id = EntryId::new(1, 0);
        in_flight.expect(&[id], Instant::now());
        assert_eq!((in_flight.due(Duration::ZERO), in_flight.held().0), (vec![id], 0));
        assert!(in_flight.admit_new(&[entry(1)], Instant::now()).replaced.is_empty());
        in_flight.expect(&[id], Instant::now());
        assert_eq!(in_flight.phase(id), Some(Phase::Held), "what is here is not expected");
    }

    #[test]
    fn a_last_chance_ends_with_its_own_delivery() {
        let in_flight = InFlight::default();
        let generation = in_flight.admit_again(&[entry(1)], Instant::now());
        in_flight.begin_last_chance(EntryId::new(1, 0), generation);
        in_flight.remove(&[receipt(1, generation - 1)]);
        assert!(in_flight.has_last_chance());
        in_flight.ack_last_chance(&receipt(1, generation));
        assert!(!in_flight.has_last_chance() && in_flight.has_acked_last_chance());
        in_flight.remove(&[receipt(1, generation)]);
        assert!(!in_flight.has_acked_last_chance());

        let generation = in_flight.admit_again(&[entry(1)], Instant::now());
        in_flight.begin_last_chance(EntryId::new(1, 0), generation);
        in_flight.park(&receipt(1, generation));
        assert!(!in_flight.has_last_chance());
    }
}
