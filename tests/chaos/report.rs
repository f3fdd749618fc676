//! What a run tells at its end: a table, and the story of what went wrong.

use std::collections::BTreeMap;

use crate::common::Server;
use crate::events::History;
use crate::journal;
use crate::ledger::{Stats, Told};
use crate::lines::Network;
use crate::messages::Lane;
use crate::tools::{now, say};
use crate::verdict::{Evidence, Finding, Totals};

/// How many findings are told in full.
const STORIES: usize = 3;
/// How long before and after an entry's life things may have to do with it.
const AROUND: u64 = 1500;
/// How far the account of a run that was not finished goes back, in milliseconds, and in lines of the server's log.
const BEFORE_THE_END: u64 = 10_000;
const SERVER_LINES: usize = 60;

/// Each kind of event and its count, and what became of all messages.
pub(crate) fn table(evidence: &Evidence<'_>, totals: &Totals, network: &Network) {
    let Evidence { books, content, history, .. } = evidence;
    say("\nevents");
    for (kind, count) in history.counts() {
        row(kind, count as u64);
    }
    row("times in which leases may have run out", evidence.lapses.len() as u64);
    say("messages");
    row("confirmed", totals.confirmed);
    row("of unknown outcome", totals.unknown);
    row("not sent", totals.not_sent);
    row("refused for want of memory", totals.out_of_memory);
    let mut by_line: BTreeMap<&str, u64> = BTreeMap::new();
    for (name, told) in &books.told {
        let confirmed = u64::from(matches!(told, Told::Confirmed(_)));
        *by_line.entry(network.line(name.caller).kind.name()).or_default() += confirmed;
    }
    for (line, count) in by_line {
        row(&format!("confirmed over {line}"), count);
    }
    row("large ones in the streams", content.entries.keys().filter(|name| name.is_large()).count() as u64);
    say("hand-outs");
    for (kind, count) in &totals.hand_outs {
        row(kind, *count);
    }
    say("ends of consumers");
    for (kind, count) in &totals.ends {
        row(kind, *count);
    }
    say("dead letters");
    row("all", totals.buried);
    row("of orders, given up by handlers", totals.given_up);
    row("of orders, with all their hand-outs", totals.exact);
    row("of orders, early by ends in trouble", totals.excused);
    row("hand-outs that those missed", totals.missed);
    say("duplicates");
    row("of orders", totals.duplicates);
    row("of orders, at most", totals.duplicates_bound);
    row("of the shifting stream", totals.shifting_duplicates);
    say("statistics of consumers");
    for lane in Lane::ALL {
        let sum = |value: fn(&Stats) -> u64| books.endings(lane).map(|(_, end)| value(&end.stats)).sum::<u64>();
        for (name, value) in [
            ("received", sum(|stats| stats.received)),
            ("acked", sum(|stats| stats.acked)),
            ("taken over", sum(|stats| stats.taken_over)),
            ("trimmed", sum(|stats| stats.trimmed)),
            ("missed", sum(|stats| stats.missed)),
            ("groups made again", sum(|stats| stats.groups_recreated)),
            ("reconnects", sum(|stats| stats.reconnects)),
        ] {
            row(&format!("{}: {name}", lane.stream()), value);
        }
    }
}

fn row(name: &str, count: u64) {
    say(&format!("  {name:<40} {count:>9}"));
}

/// The findings, the first of them with all that is known about the entry.
pub(crate) fn tell(findings: &[Finding], evidence: &Evidence<'_>) {
    for (at, finding) in findings.iter().enumerate().take(100) {
        match finding.name {
            Some(name) => say(&format!("message {name}: {}", finding.problem)),
            None => say(&finding.problem),
        }
        if at < STORIES {
            tell_story(finding, evidence);
        }
    }
    if findings.len() > 100 {
        say(&format!("and {} more", findings.len() - 100));
    }
}

/// What happened before a run failed.
pub(crate) fn last_events(history: &History, server: &Server) {
    let end = now();
    for event in history.between(end.saturating_sub(BEFORE_THE_END), end) {
        say(&format!("  {:9.3} s  {}", (event.from as f64 - end as f64) / 1000.0, event.story));
    }
    let log = server.log();
    // What a server that has crashed says, from the start of it, or else its last words.
    let crash: Vec<&str> = log.lines().skip_while(|line| !line.contains("BUG REPORT START")).collect();
    let words = if crash.is_empty() { log.lines().rev().take(SERVER_LINES).collect() } else { crash };
    words.iter().take(SERVER_LINES).for_each(|line| say(&format!("  server: {line}")));
}

fn tell_story(finding: &Finding, evidence: &Evidence<'_>) {
    let Some(name) = finding.name else { return };
    let Evidence { books, content, removals, history, .. } = evidence;
    let (ids, buried, hand_outs) = (content.ids(name), content.buried(name), books.hand_outs(name));
    say(&format!("  its publisher was told {:?}", books.told.get(&name)));
    say(&format!("  in the stream as {ids:?}, removed as {:?}, buried as {buried:?}", removals.removed(name)));
    let told = books.told.get(&name).and_then(|told| told.id());
    if let Some(told) = told {
        let others = content.entries.iter().filter(|(other, ids)| other.lane() == name.lane() && ids.contains(&told));
        let others: Vec<String> = others.map(|(other, _)| other.to_string()).collect();
        say(&format!("  under {told} there are {others:?}, and were {:?}", removals.removed_as(told)));
    }
    let published = ids.iter().copied().chain(hand_outs.iter().map(|hand_out| hand_out.id)).chain(told).min();
    let mut lines = Vec::new();
    for hand_out in hand_outs {
        let consumer = &books.lives[hand_out.life].consumer;
        let text = format!("life {} of {consumer}: number {}, {:?}", hand_out.life, hand_out.number, hand_out.outcome);
        lines.push((hand_out.at, text));
    }
    let times = lines.iter().map(|(at, _)| *at).chain(published.map(|id| id.milliseconds));
    let times: Vec<u64> = times.chain(buried.iter().map(|buried| buried.at.milliseconds)).collect();
    let (Some(first), Some(last)) = (times.iter().min(), times.iter().max()) else { return };
    let (from, until) = (first - AROUND, last + AROUND);
    for event in history.between(from, until) {
        lines.push((event.from, format!("{} ({} ms)", event.story, event.until - event.from)));
    }
    for lane in Lane::ALL {
        for (life, end) in books.endings(lane).filter(|(_, end)| end.from <= until && end.until >= from) {
            lines.push((end.from, format!("{} ended: {end}", life.consumer)));
        }
    }
    let mut words: Vec<String> = hand_outs.iter().map(|had| books.lives[had.life].consumer.clone()).collect();
    words.extend(published.map(|id| id.to_string()));
    lines.extend(journal::between(from, until, &words));
    lines.sort();
    for (at, text) in lines {
        say(&format!("  {:+9.3} s  {text}", (at as f64 - *first as f64) / 1000.0));
    }
}
