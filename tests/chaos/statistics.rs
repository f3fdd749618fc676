//! The statistics of consumers against the ledger and the server.

use crate::content::Content;
use crate::ledger::{How, Outcome, Stats};
use crate::messages::Lane;
use crate::verdict::Evidence;

impl Evidence<'_> {
    pub(crate) fn judge_statistics(&self, problems: &mut Vec<String>) {
        for lane in Lane::ALL {
            for (life, end) in self.books.endings(lane).filter(|(_, end)| end.how != How::Killed) {
                let (stats, who) = (&end.stats, &life.consumer);
                if stats.received < life.handed_out {
                    problems.push(format!("{who} received {} and handed out {}", stats.received, life.handed_out));
                }
                // What is given back is there to be given back, unless somebody has taken it over.
                let least = if lane == Lane::Orders { life.releases.saturating_sub(stats.taken_over) } else { 0 };
                if !(least..=life.releases + life.drops).contains(&stats.released) {
                    let (told, dropped) = (life.releases, life.drops);
                    problems.push(format!("{who}: {told} given back, {dropped} dropped, {} counted", stats.released));
                }
                // An acknowledgement is confirmed, or `close()` says that it is not.
                let least = life.acks.saturating_sub(stats.taken_over);
                if lane == Lane::Orders && !(least..=life.acks).contains(&(stats.acked + end.unconfirmed)) {
                    problems
                        .push(format!("{who} has taken {} acknowledgements, and ended like this: {end}", life.acks));
                }
                if lane == Lane::Orders && (stats.trimmed, stats.missed, stats.groups_recreated) != (0, 0, 0) {
                    problems.push(format!("nothing is trimmed or lost among the orders, but {who}: {end}"));
                }
                if lane == Lane::Orders && stats.taken_over > 0 && self.lapses(0, end.until) == 0 {
                    problems.push(format!("no outage was long enough to take over anything, but {who}: {end}"));
                }
            }
        }
        self.judge_sums(problems);
    }

    fn judge_sums(&self, problems: &mut Vec<String>) {
        for lane in Lane::ALL {
            let sum =
                |value: fn(&Stats) -> u64| self.books.endings(lane).map(|(_, end)| value(&end.stats)).sum::<u64>();
            let (counted, buried) = (sum(|stats| stats.dead_lettered), Content::count(lane, &self.content.buried));
            // A burial whose reply was lost is nobody's: each connection that broke can have hidden one, a handler's
            // broke without being counted, and one that was killed tells nothing.
            let hidden = sum(|stats| stats.reconnects) + self.failures(Outcome::DeadLettered(false));
            let killed = self.books.endings(lane).filter(|(_, end)| end.how == How::Killed);
            let killed = killed.map(|(life, _)| life.handed_out).sum::<u64>();
            if counted > buried || buried > counted + hidden + killed + self.ends(lane) {
                problems.push(format!("{}: {buried} dead letters, and consumers count {counted}", lane.stream()));
            }
        }
        let acked: u64 = self.books.endings(Lane::Orders).map(|(_, end)| end.stats.acked).sum();
        let unconfirmed: u64 = self.books.endings(Lane::Orders).map(|(_, end)| end.unconfirmed).sum();
        let settled =
            Content::count(Lane::Orders, &self.content.entries) - Content::count(Lane::Orders, &self.content.buried);
        // Each entry that is no dead letter was acknowledged by somebody, whether or not it was confirmed.
        let unsure = self.failures(Outcome::Acked(false)) + self.failures(Outcome::Acking);
        if settled > acked + unconfirmed + unsure {
            problems.push(format!("{settled} orders are settled, and {acked} acknowledgements confirmed"));
        }
    }

    fn ends(&self, lane: Lane) -> u64 {
        self.books.endings(lane).filter(|(_, end)| end.troubled).count() as u64
    }

    fn failures(&self, outcome: Outcome) -> u64 {
        let hand_outs = self.books.hand_outs.values().flatten();
        hand_outs.filter(|hand_out| hand_out.outcome == outcome).count() as u64
    }
}
