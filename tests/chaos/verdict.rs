//! The verdict: what must be true of every entry once all is settled, and what each bound follows from.
//!
//! On the orders, which lose nothing, everything is exact:
//!
//! - A confirmed message is in the stream once, under the id that its publisher was told, and was handled, or is a dead
//!   letter. One of unknown outcome is there once or not at all; one that was not sent is not there.
//! - Each hand-out of an entry has a number of its own, from 1 to the limit. Two hand-outs under one number would be one
//!   too many before it is buried (late).
//! - A dead letter by the limit has had all numbers (not early), except for those that were marked when a consumer ended in
//!   trouble: it was killed, or its end did not reach the server, and what it had queued is counted although no handler had
//!   it. Such an end costs an entry that it meets one number, and it met it between the hand-outs before and after. Without one
//!   the count is exact. That no handler had it at all is not excused by anything.
//! - An entry comes again after `ack()` took it, to a handler or to be buried, only if the acknowledgement did not reach the
//!   server: as many entries of a consumer's life as `close()` said, none if it said `Ok`; for one that was killed or
//!   dropped, as many as were acknowledged and not confirmed by then.
//!
//! A busy machine may take so long to bring consumers back to the server that leases of orders run out after all. Entries
//! that were with a handler or queued then are handed out to others, and each such time costs an entry that it meets what
//! the end of a consumer costs it.
//!
//! On the shifting stream an entry may be lost where it was removed or pending at the loss of the group, and only there. A
//! new group counts anew, so an entry is handed out at most as often as the limit for each group there was.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::content::{Buried, Content};
use crate::events::History;
use crate::ledger::{Books, HandOut, Outcome, Told};
use crate::messages::{Lane, Name};
use crate::removals::Removals;

pub(crate) struct Evidence<'run> {
    pub(crate) books: &'run Books,
    pub(crate) content: &'run Content,
    pub(crate) removals: &'run Removals,
    pub(crate) history: &'run History,
    /// Times in which leases of orders may have run out.
    pub(crate) lapses: Vec<(u64, u64)>,
}

/// What is wrong with an entry, or in general.
pub(crate) struct Finding {
    pub(crate) name: Option<Name>,
    pub(crate) problem: String,
}

/// What the table at the end shows beside the events.
#[derive(Debug, Default)]
pub(crate) struct Totals {
    pub(crate) confirmed: u64,
    pub(crate) unknown: u64,
    pub(crate) not_sent: u64,
    pub(crate) out_of_memory: u64,
    pub(crate) buried: u64,
    pub(crate) given_up: u64,
    /// Dead letters of the orders that had all their hand-outs, those that did not, and how many those missed.
    pub(crate) exact: u64,
    pub(crate) excused: u64,
    pub(crate) missed: u64,
    pub(crate) hand_outs: BTreeMap<&'static str, u64>,
    pub(crate) duplicates: u64,
    pub(crate) duplicates_bound: u64,
    pub(crate) shifting_duplicates: u64,
    pub(crate) ends: BTreeMap<String, u64>,
}

impl Evidence<'_> {
    pub(crate) fn judge(&self) -> (Totals, Vec<Finding>) {
        let (mut totals, mut findings) = (Totals::default(), Vec::new());
        for (name, told) in &self.books.told {
            match told {
                Told::Confirmed(_) => totals.confirmed += 1,
                Told::Unknown => totals.unknown += 1,
                Told::NotSent => totals.not_sent += 1,
                Told::OutOfMemory => totals.out_of_memory += 1,
            }
            let problems = match name.lane() {
                Lane::Orders => self.judge_order(*name, *told, &mut totals),
                Lane::Shifting => self.judge_shifting(*name, *told, &mut totals),
            };
            let problems = problems.into_iter().chain(self.judge_hand_outs(*name, *told));
            findings.extend(problems.map(|problem| Finding { name: Some(*name), problem }));
        }
        let mut general = Vec::new();
        self.judge_strangers(&mut general);
        self.judge_order_of_callers(&mut general);
        self.judge_duplicates(&mut totals, &mut findings);
        self.judge_statistics(&mut general);
        findings.extend(general.into_iter().map(|problem| Finding { name: None, problem }));
        (totals, findings)
    }

    fn judge_order(&self, name: Name, told: Told, totals: &mut Totals) -> Vec<String> {
        let mut problems = Vec::new();
        let (ids, buried) = (self.content.ids(name), self.content.buried(name));
        let hand_outs = self.books.hand_outs(name);
        let done = hand_outs.iter().any(|hand_out| hand_out.outcome.is_done());
        match told {
            Told::Confirmed(id) if ids != [id] => problems.push(format!("confirmed as {id}, and is there as {ids:?}")),
            Told::Unknown if ids.len() > 1 => problems.push(format!("is there more than once: {ids:?}")),
            told if told.is_refusal() && !ids.is_empty() => problems.push(format!("{told:?}, and is there as {ids:?}")),
            _ => {}
        }
        if !ids.is_empty() && !done && buried.is_empty() {
            problems.push("nobody has handled it, and it is no dead letter".into());
        }
        if name.is_poison() && ids.len() > buried.len() {
            problems.push("it always fails, and is no dead letter".into());
        }
        let mut numbers = BTreeSet::new();
        for hand_out in hand_outs {
            if !numbers.insert(hand_out.number) {
                problems.push(format!("handed out twice as number {}", hand_out.number));
            }
        }
        if buried.len() > 1 {
            problems.push(format!("buried more than once: {buried:?}"));
        }
        for buried in buried {
            self.judge_burial(hand_outs, buried, totals, &mut problems);
        }
        problems
    }

    fn judge_burial(&self, had: &[HandOut], buried: &Buried, totals: &mut Totals, problems: &mut Vec<String>) {
        totals.buried += 1;
        if had.is_empty() {
            problems.push("buried, and no handler ever had it".into());
        }
        if let Some(after) = had.iter().find(|hand_out| hand_out.at > buried.at.milliseconds + 1) {
            problems.push(format!("buried at {}, and handed out after that: {after:?}", buried.at));
        }
        let limit = Lane::Orders.max_deliveries();
        let expected = if buried.is_given_up {
            totals.given_up += 1;
            if !had.iter().any(|hand_out| matches!(hand_out.outcome, Outcome::DeadLettered(_) | Outcome::Unfinished)) {
                problems.push("a dead letter of a handler's, and no handler has given up on it".into());
            }
            buried.deliveries
        } else {
            limit
        };
        if buried.deliveries != expected || buried.deliveries > limit {
            problems.push(format!("buried after {} deliveries of {limit}", buried.deliveries));
        }
        let missed = self.judge_numbers(had, buried, expected, problems);
        totals.exact += u64::from(missed == 0);
        totals.excused += u64::from(missed > 0);
        totals.missed += missed;
    }

    /// Numbers of hand-outs that no handler had: each was marked by a consumer whose end came between the hand-outs before
    /// and after. How many there are.
    fn judge_numbers(&self, had: &[HandOut], buried: &Buried, expected: u64, problems: &mut Vec<String>) -> u64 {
        let times: BTreeMap<u64, u64> = had.iter().map(|hand_out| (hand_out.number, hand_out.at)).collect();
        let (mut from, mut before, mut missed) = (buried.origin.milliseconds, 0, 0);
        let burial = [(expected + 1, buried.at.milliseconds)];
        for (number, at) in times.range(..=expected).map(|(number, at)| (*number, *at)).chain(burial) {
            let gap = number - before - 1;
            let ends = if gap > 0 { self.ends_in_trouble(from, at) + self.lapses(from, at) } else { 0 };
            if gap > ends {
                problems
                    .push(format!("buried without its hand-outs from {} on: {gap} of them, {ends} ends", before + 1));
            }
            (from, before, missed) = (at, number, missed + gap);
        }
        missed
    }

    /// How many consumers of the orders ended in trouble in a span of time. A connection that breaks while its consumer ends
    /// tells nobody.
    fn ends_in_trouble(&self, from: u64, until: u64) -> u64 {
        let endings = self.books.endings(Lane::Orders).map(|(_, end)| end);
        let endings = endings.filter(|end| end.from <= until && end.until >= from);
        endings.filter(|end| end.troubled || self.history.may_have_broken(end.from, end.until)).count() as u64
    }

    /// In how many outages leases may have run out in a span of time.
    pub(crate) fn lapses(&self, from: u64, until: u64) -> u64 {
        let late = Lane::Orders.claim_idle().as_millis() as u64;
        self.lapses.iter().filter(|lapse| lapse.0 <= until && lapse.1 + late >= from).count() as u64
    }

    fn judge_shifting(&self, name: Name, told: Told, totals: &mut Totals) -> Vec<String> {
        let mut problems = Vec::new();
        let (ids, buried) = (self.content.ids(name), self.content.buried(name));
        let hand_outs = self.books.hand_outs(name);
        let done = hand_outs.iter().any(|hand_out| hand_out.outcome.is_done());
        totals.buried += buried.len() as u64;
        if !buried.is_empty() && hand_outs.is_empty() {
            problems.push("buried, and no handler ever had it".into());
        }
        let removed = self.removals.removed(name);
        match told {
            Told::Confirmed(id) => {
                if ids.iter().chain(&removed).ne([&id]) {
                    problems.push(format!("confirmed as {id}, and is there as {ids:?}, removed as {removed:?}"));
                }
                if !done && buried.is_empty() && !self.removals.excuse(name, id) {
                    problems.push("nobody has handled it, nor was it removed or forgotten".into());
                }
            }
            Told::Unknown if ids.len() + usize::from(removed.is_some()) > 1 => {
                problems.push(format!("is there more than once: {ids:?}, removed as {removed:?}"));
            }
            told if told.is_refusal() && (!ids.is_empty() || removed.is_some()) => {
                problems.push(format!("{told:?}, and is there"));
            }
            _ => {}
        }
        // Groups are destroyed on their own, and with the stream.
        let counts = self.history.counts();
        let losses: usize = ["group destroyed", "stream deleted"].iter().filter_map(|kind| counts.get(kind)).sum();
        let most = Lane::Shifting.max_deliveries() as usize * (losses + 1);
        if hand_outs.len() > most {
            problems.push(format!("handed out {} times, and {most} are the most", hand_outs.len()));
        }
        let done = hand_outs.iter().filter(|hand_out| hand_out.outcome.is_done()).count() as u64;
        totals.shifting_duplicates += done.saturating_sub(1);
        problems
    }

    fn judge_hand_outs(&self, name: Name, told: Told) -> Vec<String> {
        let mut problems = Vec::new();
        let limit = name.lane().max_deliveries();
        for hand_out in self.books.hand_outs(name) {
            match told {
                Told::Confirmed(id) if id != hand_out.id => problems.push(format!("{id}, handed out as {hand_out:?}")),
                told if told.is_refusal() => problems.push(format!("{told:?}, and handed out: {hand_out:?}")),
                _ => {}
            }
            if hand_out.number == 0 || hand_out.number > limit {
                problems.push(format!("handed out as number {} of {limit}", hand_out.number));
            }
        }
        problems
    }

    fn judge_strangers(&self, problems: &mut Vec<String>) {
        let found = self.content.entries.keys().chain(self.content.buried.keys()).chain(self.books.hand_outs.keys());
        let strangers: BTreeSet<_> = found.filter(|name| !self.books.told.contains_key(name)).collect();
        if !strangers.is_empty() {
            problems.push(format!("nobody has published {strangers:?}"));
        }
    }

    /// What one caller was told grows: the next message is sent when the one before is confirmed.
    fn judge_order_of_callers(&self, problems: &mut Vec<String>) {
        let mut last = None;
        for (name, told) in &self.books.told {
            let Told::Confirmed(id) = told else { continue };
            if let Some((before, earlier)) = last.replace((*name, *id))
                && before.caller == name.caller
                && earlier >= *id
                && name.lane() == Lane::Orders
            {
                problems.push(format!("{before} was confirmed as {earlier}, and {name} after it as {id}"));
            }
        }
    }

    fn judge_duplicates(&self, totals: &mut Totals, findings: &mut Vec<Finding>) {
        // For each life: entries that it acknowledged and that came again all the same.
        let mut again_after: BTreeMap<usize, Vec<Name>> = BTreeMap::new();
        for (name, hand_outs) in &self.books.hand_outs {
            for (at, hand_out) in hand_outs.iter().enumerate() {
                *totals.hand_outs.entry(kind_of(hand_out.outcome)).or_default() += 1;
                // It comes again to be buried, too.
                let came_again = at + 1 < hand_outs.len() || !self.content.buried(*name).is_empty();
                if name.lane() != Lane::Orders || !hand_out.outcome.is_done() || !came_again {
                    continue;
                }
                totals.duplicates += 1;
                let buried = self.content.buried(*name).first().map(|buried| buried.at.milliseconds);
                let came = hand_outs.get(at + 1).map(|next| next.at).or(buried).unwrap_or(u64::MAX);
                if self.lapses(hand_out.at, came) > 0 {
                    totals.duplicates_bound += 1;
                } else if hand_out.outcome == Outcome::Acked(true) {
                    again_after.entry(hand_out.life).or_default().push(*name);
                }
            }
            let unsure = |hand_out: &&HandOut| matches!(hand_out.outcome, Outcome::Acked(false) | Outcome::Acking);
            let unsure = hand_outs.iter().filter(unsure).count();
            totals.duplicates_bound += if name.lane() == Lane::Orders { unsure as u64 } else { 0 };
        }
        for (number, life) in self.books.lives.iter().enumerate() {
            let Some(end) = &life.ending else { continue };
            let trouble = if end.troubled { " in trouble" } else { "" };
            *totals.ends.entry(format!("{:?}{trouble}", end.how).to_lowercase()).or_default() += 1;
            if life.lane != Lane::Orders {
                continue;
            }
            totals.duplicates_bound += end.unconfirmed;
            let again = again_after.get(&number).map_or(&[][..], Vec::as_slice);
            if again.len() as u64 > end.unconfirmed {
                let problem = format!(
                    "{} entries came again that {} had acknowledged, and it ended like this: {end}",
                    again.len(),
                    life.consumer
                );
                findings.push(Finding { name: again.first().copied(), problem });
            }
        }
    }
}

fn kind_of(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Unfinished => "killed meanwhile",
        Outcome::Acking => "killed while acking",
        Outcome::Acked(true) => "acked",
        Outcome::Acked(false) => "ack failed",
        Outcome::Released(_) => "released",
        Outcome::Retried(_) => "to be retried",
        Outcome::Dropped => "dropped",
        Outcome::Panicked => "panicked",
        Outcome::DeadLettered(_) => "given up",
    }
}
