//! What a consumer in a process of its own writes down, a line for each thing, and the process itself.

use std::cell::Cell;
use std::env;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write, stdin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use step_redis::{EntryId, StatsHandle};

use crate::consumers::{Control, Job, Record};
use crate::journal;
use crate::ledger::{Ending, How, Outcome, Stats};
use crate::lines::Line;
use crate::messages::{Lane, Name};
use crate::tools::{Random, now, setting};

/// One line of the file.
pub(crate) enum Note {
    HandedOut {
        name: Name,
        id: EntryId,
        number: u64,
        at: u64,
    },
    /// With the number of acknowledgements that were confirmed by then.
    Settled {
        name: Name,
        outcome: Outcome,
        acked: u64,
    },
    Ended(Ending),
}

/// An outcome is written as its place among them.
const OUTCOMES: [Outcome; 11] = [
    Outcome::Acking,
    Outcome::Acked(true),
    Outcome::Acked(false),
    Outcome::Released(true),
    Outcome::Released(false),
    Outcome::Retried(true),
    Outcome::Retried(false),
    Outcome::DeadLettered(true),
    Outcome::DeadLettered(false),
    Outcome::Dropped,
    Outcome::Panicked,
];

impl Note {
    pub(crate) fn read(line: &str) -> Note {
        Note::try_read(line).unwrap_or_else(|| panic!("a process has written down {line:?}"))
    }

    fn try_read(line: &str) -> Option<Note> {
        let mut words = line.split(' ');
        let kind = words.next()?;
        if kind == "ended" {
            let numbers: Vec<u64> = words.map(|word| word.parse().ok()).collect::<Option<_>>()?;
            let (told, stats) = numbers.split_at_checked(5)?;
            let how = if told[0] == 0 { How::Closed } else { How::Dropped };
            let stats = Stats::from_fields(stats.try_into().ok()?);
            let (from, until, unconfirmed, troubled) = (told[1], told[2], told[3], told[4] != 0);
            return Some(Note::Ended(Ending { how, from, until, unconfirmed, troubled, stats }));
        }
        let name = words.next()?.parse().ok()?;
        match kind {
            "had" => {
                let (id, number) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
                Some(Note::HandedOut { name, id, number, at: words.next()?.parse().ok()? })
            }
            _ => {
                let number: usize = words.next()?.parse().ok()?;
                Some(Note::Settled { name, outcome: *OUTCOMES.get(number)?, acked: words.next()?.parse().ok()? })
            }
        }
    }

    fn written(&self) -> String {
        match self {
            Note::HandedOut { name, id, number, at } => format!("had {name} {id} {number} {at}\n"),
            Note::Settled { name, outcome, acked } => {
                let outcome = OUTCOMES.iter().position(|known| known == outcome).expect("all outcomes are listed");
                format!("did {name} {outcome} {acked}\n")
            }
            Note::Ended(Ending { how, from, until, unconfirmed, troubled, stats }) => {
                let (how, troubled) = (u8::from(*how != How::Closed), u8::from(*troubled));
                let stats = stats.fields().map(|number| number.to_string()).join(" ");
                format!("ended {how} {from} {until} {unconfirmed} {troubled} {stats}\n")
            }
        }
    }
}

struct Notebook {
    file: File,
    acks: Cell<u64>,
}

impl Notebook {
    fn note(&self, note: &Note) {
        // One write, so that SIGKILL leaves whole lines.
        (&self.file).write_all(note.written().as_bytes()).unwrap();
    }
}

impl Record for Notebook {
    fn handed_out(&self, name: Name, id: EntryId, number: u64) {
        self.note(&Note::HandedOut { name, id, number, at: now() });
    }

    fn settled(&self, name: Name, outcome: Outcome, stats: &StatsHandle) {
        if outcome == Outcome::Acked(true) {
            self.acks.set(self.acks.get() + 1);
        }
        self.note(&Note::Settled { name, outcome, acked: stats.stats().acked });
    }

    fn acks(&self) -> u64 {
        self.acks.get()
    }
}

/// Consumes until the standard input ends, if this process was started for it.
pub(crate) fn consume_as_told() {
    let Ok(words) = env::var("CHAOS_LINE") else { return };
    let given = |name: &str| env::var(name).unwrap_or_else(|_| panic!("{name} comes with CHAOS_LINE"));
    journal::begin();
    let is_calm = setting::<u8>("CHAOS_CALM") == Some(1);
    let control = Arc::new(Control { calm: AtomicBool::new(is_calm), ..Control::default() });
    let heeding = Arc::clone(&control);
    thread::spawn(move || {
        let _ = stdin().read_to_end(&mut Vec::new());
        heeding.ended.store(true, Ordering::SeqCst);
    });
    let file = OpenOptions::new().create(true).append(true).open(given("CHAOS_RECORD")).unwrap();
    let notebook = Notebook { file, acks: Cell::new(0) };
    let (stream, name) = (Line::from_words(&words).stream(), given("CHAOS_CONSUMER"));
    let mut random = Random::new(setting("CHAOS_SEED").expect("a seed comes with CHAOS_LINE"));
    let job = Job { lane: Lane::Orders, stream: &stream, consumer: Some(&name), control: &control };
    while !control.ended.load(Ordering::SeqCst) {
        if let Some(consumer) = job.start(&mut random) {
            let ending = job.work(consumer, &notebook, &mut random, Duration::MAX);
            notebook.note(&Note::Ended(ending));
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
}
