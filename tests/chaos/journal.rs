//! What the library logs: the end of the story when a run fails, and the evidence that a consumer's end was not a clean one.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Mutex;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::tools::now;

/// How many lines are kept.
const LINES: usize = 20_000;

static JOURNAL: Journal = Journal { state: Mutex::new(State { lines: VecDeque::new(), troubled: BTreeSet::new() }) };

struct Journal {
    state: Mutex<State>,
}

struct State {
    lines: VecDeque<(u64, String)>,
    /// Consumers whose reader is out of reach of the server, or whose last words did not reach it.
    troubled: BTreeSet<String>,
}

/// From here on everything that the library logs is kept.
pub(crate) fn begin() {
    // The first of two tests in one process does it for both.
    if log::set_logger(&JOURNAL).is_ok() {
        log::set_max_level(LevelFilter::Debug);
    }
}

/// Whether the consumer is out of reach of the server as far as it knows, or has failed to give back what it held.
pub(crate) fn is_troubled(consumer: &str) -> bool {
    JOURNAL.state.lock().unwrap().troubled.contains(consumer)
}

/// Whether any consumer of this process is out of reach of the server.
pub(crate) fn is_any_troubled() -> bool {
    !JOURNAL.state.lock().unwrap().troubled.is_empty()
}

/// A consumer has ended, and what was known about it is no longer of interest.
pub(crate) fn forget(consumer: &str) {
    JOURNAL.state.lock().unwrap().troubled.remove(consumer);
}

/// What was logged in a span of time, and contains one of the words.
pub(crate) fn between(from: u64, until: u64, words: &[String]) -> Vec<(u64, String)> {
    let state = JOURNAL.state.lock().unwrap();
    let lines = state.lines.iter().filter(|(at, _)| (from..=until).contains(at));
    lines.filter(|(_, text)| words.iter().any(|word| text.contains(word))).cloned().collect()
}

impl State {
    fn note(&mut self, text: String) {
        if let Some(rest) = text.strip_prefix("consumer ") {
            let consumer = rest.split([' ', ':']).next().unwrap_or_default();
            if rest.contains(" lost the server ") || rest.contains(" did not end tidily") {
                self.troubled.insert(consumer.to_owned());
            } else if rest.contains(" reads again ") {
                self.troubled.remove(consumer);
            }
        }
        if self.lines.len() == LINES {
            self.lines.pop_front();
        }
        self.lines.push_back((now(), text));
    }
}

impl Log for Journal {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("step_redis") && metadata.level() <= Level::Debug
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            self.state.lock().unwrap().note(record.args().to_string());
        }
    }

    fn flush(&self) {}
}
