//! Consumers in processes of their own, which are killed: this program again. The end of their
//! standard input tells them to end, and they write down what they had in a file, which survives SIGKILL.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use crate::common::{end_with_parent, spawn, wait_until};
use crate::ledger::{Ending, How, Ledger, Stats};
use crate::lines::Network;
use crate::messages::Lane;
use crate::notes::Note;
use crate::tools::{Random, now};

const PROCESSES: u16 = 3;
/// Nobody waits that long for a process to end.
const PATIENCE: Duration = Duration::from_secs(20);

/// The processes of a run.
pub(crate) struct Processes<'run> {
    pub(crate) ledger: &'run Ledger,
    pub(crate) network: &'run Network,
    pub(crate) directory: &'run Path,
    members: Mutex<Vec<Process>>,
}

struct Process {
    child: Child,
    consumer: String,
    record: PathBuf,
}

impl<'run> Processes<'run> {
    pub(crate) fn start(ledger: &'run Ledger, network: &'run Network, directory: &'run Path, seed: u64) -> Self {
        let processes = Processes { ledger, network, directory, members: Mutex::default() };
        let members = (0..PROCESSES).map(|number| processes.begin(number, seed, false)).collect();
        *processes.members.lock().unwrap() = members;
        processes
    }

    fn begin(&self, number: u16, seed: u64, calm: bool) -> Process {
        let (consumer, began) = (format!("process-{number}"), now());
        let record = self.directory.join(format!("{consumer}-{began}-{seed}"));
        let mut command = end_with_parent(&env::current_exe().expect("a test program has a path"));
        command.args(["--exact", "a_consumer_process_plays_its_part", "--nocapture", "--test-threads=1"]);
        // Each on another line, and none on the first: that one is for those who share a process.
        command.env("CHAOS_LINE", self.network.line(1 + number).in_words());
        command.env("CHAOS_CONSUMER", &consumer).env("CHAOS_RECORD", &record).env("CHAOS_SEED", seed.to_string());
        command.env("CHAOS_CALM", u8::from(calm).to_string());
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        Process { child: spawn(command).expect("this program starts again"), consumer, record }
    }

    /// Kills one of them, and starts it again under the same name.
    pub(crate) fn kill_one(&self, random: &mut Random) -> String {
        let mut members = self.members.lock().unwrap();
        let (number, seed) = (random.below(members.len()), random.below(1 << 30) as u64);
        let process = &mut members[number];
        assert!(process.child.try_wait().unwrap().is_none(), "{} ended by itself", process.consumer);
        let from = now();
        process.child.kill().unwrap();
        process.child.wait().unwrap();
        process.enter_into(self.ledger, Some((from, now())));
        members[number] = self.begin(number as u16, seed, false);
        members[number].consumer.clone()
    }

    /// Asks one of them to end, and starts it again under the same name.
    pub(crate) fn restart_one(&self, random: &mut Random) -> String {
        let mut members = self.members.lock().unwrap();
        let (number, seed) = (random.below(members.len()), random.below(1 << 30) as u64);
        members[number].finish(self.ledger);
        members[number] = self.begin(number as u16, seed, false);
        members[number].consumer.clone()
    }

    /// Starts all of them again, with handlers that fail with poison only.
    pub(crate) fn calm(&self) {
        for (number, process) in self.members.lock().unwrap().iter_mut().enumerate() {
            process.finish(self.ledger);
            *process = self.begin(number as u16, 0, true);
        }
    }

    pub(crate) fn finish(&self) {
        self.members.lock().unwrap().iter_mut().for_each(|process| process.finish(self.ledger));
    }
}

impl Process {
    fn finish(&mut self, ledger: &Ledger) {
        drop(self.child.stdin.take());
        wait_until(PATIENCE, || self.child.try_wait().unwrap().is_some());
        let status = self.child.wait().unwrap();
        assert!(status.success(), "{} failed: {status}", self.consumer);
        self.enter_into(ledger, None);
    }

    /// Enters what it has written down into the ledger. When it was killed is known from here.
    fn enter_into(&self, ledger: &Ledger, killed: Option<(u64, u64)>) {
        let life = ledger.begin_life(&self.consumer, Lane::Orders);
        let text = fs::read_to_string(&self.record).unwrap_or_default();
        let (mut acked, mut ending) = (0, None);
        // A line without an end was not written to its end.
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            match Note::read(line) {
                Note::HandedOut { name, id, number, at } => ledger.hand_out(life, name, id, number, at),
                Note::Settled { name, outcome, acked: confirmed } => {
                    ledger.settle(life, name, outcome);
                    acked = confirmed;
                }
                Note::Ended(end) => ending = Some(end),
            }
        }
        if let Some((from, until)) = killed {
            let unconfirmed = ledger.acks(life).saturating_sub(acked);
            let stats = Stats { acked, ..Stats::default() };
            ending = Some(Ending { how: How::Killed, from, until, unconfirmed, troubled: true, stats });
        }
        if let Some(ending) = ending {
            ledger.end_life(life, ending);
        }
        // The directory is the server's, and a long run kills many.
        let _ = fs::remove_file(&self.record);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
