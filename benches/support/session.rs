//! The command line of a bench, and the cores it runs on.

use std::path::Path;
use std::process::exit;

use super::common::{end_with_parent, spawn};
use super::record::Record;

/// Set in the processes that measure; the one that was started has only arranged for the cores.
const PINNED: &str = "STEP_REDIS_BENCH_CORES";

const OPTIONS: &str = "
  --one-core          client and server share one core: shows what the library costs, as no time passes in waking
                      another core
  --two-cores         client and server have two cores between them
                      (default: one after the other)
  --payload BYTES     only this payload
  --scenario NAME     only scenarios whose name contains this
  --rounds COUNT      so many interleaved rounds
  --quick             few and short rounds: shows that the bench works, not what it measures
  --help              this text
";

/// How many cores client and server have between them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cores {
    One,
    Two,
}

impl Cores {
    pub fn name(self) -> &'static str {
        match self {
            Cores::One => "one core",
            Cores::Two => "two cores",
        }
    }

    fn option(self) -> &'static str {
        match self {
            Cores::One => "--one-core",
            Cores::Two => "--two-cores",
        }
    }
}

/// One run of a bench on certain cores.
#[derive(Debug)]
pub struct Session {
    pub cores: Cores,
    pub quick: bool,
    pub rounds: Option<usize>,
    payload: Option<usize>,
    scenario: Option<String>,
    pub record: Record,
}

impl Session {
    /// Reads the command line. Returns in the processes that measure only; the one that was started runs them one after
    /// the other and ends.
    pub fn start(bench: &'static str, about: &str, modes: &[Cores]) -> Session {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        let usage = || format!("{about}\n\n    cargo bench --bench {bench} [-- OPTIONS]\n{OPTIONS}");
        let (mut chosen, mut quick, mut rounds, mut payload, mut scenario) = (Vec::new(), false, None, None, None);
        let mut rest = arguments.iter();
        while let Some(argument) = rest.next() {
            let mut value =
                || rest.next().cloned().unwrap_or_else(|| refuse(&format!("{argument} needs a value"), &usage()));
            let number = |text: String| -> usize {
                text.parse().unwrap_or_else(|_| refuse(&format!("{text} is no number"), &usage()))
            };
            match argument.as_str() {
                // cargo's own.
                "--bench" => {}
                "--one-core" => chosen.push(Cores::One),
                "--two-cores" => chosen.push(Cores::Two),
                "--quick" => quick = true,
                "--rounds" => rounds = Some(number(value())),
                "--payload" => payload = Some(number(value())),
                "--scenario" => scenario = Some(value()),
                "--help" => {
                    print!("{}", usage());
                    exit(0);
                }
                other => refuse(&format!("unknown option {other}"), &usage()),
            }
        }
        let modes = if chosen.is_empty() { modes } else { &chosen };
        let pinned = std::env::var(PINNED).ok();
        if let ([cores], Some(_)) = (modes, pinned) {
            return Session { cores: *cores, quick, rounds, payload, scenario, record: Record::append(bench) };
        }
        Record::begin(bench);
        for cores in modes {
            run_pinned(*cores, &arguments);
        }
        exit(0);
    }

    /// How many rounds: fewer when it is to be quick.
    pub fn rounds(&self, usual: usize) -> usize {
        self.rounds.unwrap_or(if self.quick { 3 } else { usual })
    }

    /// How much work a round is: less when it is to be quick.
    pub fn scaled(&self, usual: usize) -> usize {
        if self.quick { (usual / 8).max(1) } else { usual }
    }

    /// Whether a scenario with this name is wanted.
    pub fn wants(&self, scenario: &str) -> bool {
        self.scenario.as_deref().is_none_or(|part| scenario.contains(part))
    }

    /// The payloads in bytes, of those that the bench knows.
    pub fn payloads(&self, usual: &[usize]) -> Vec<usize> {
        self.payload.map_or_else(|| usual.to_vec(), |payload| vec![payload])
    }
}

fn refuse(reason: &str, usage: &str) -> ! {
    eprintln!("{reason}\n\n{usage}");
    exit(2);
}

/// Runs this program again on these cores. A server that it starts inherits them.
fn run_pinned(cores: Cores, arguments: &[String]) {
    let allowed = allowed_cores();
    let wanted = match cores {
        Cores::One => 1,
        Cores::Two => 2,
    };
    let Some(list) = allowed.get(..wanted) else {
        eprintln!("{} left out: this process may use core {} only", cores.name(), allowed.join(","));
        return;
    };
    let mut command = end_with_parent(Path::new("taskset"));
    command.arg("-c").arg(list.join(",")).arg(std::env::current_exe().expect("the path of this program"));
    command.args(arguments.iter().filter(|argument| !matches!(argument.as_str(), "--one-core" | "--two-cores")));
    command.arg(cores.option()).env(PINNED, list.join(","));
    let mut child = spawn(command).unwrap_or_else(|error| {
        eprintln!("taskset, of util-linux, is needed to choose the cores: {error}");
        exit(1);
    });
    let status = child.wait().expect("a child can be waited for");
    if !status.success() {
        eprintln!("the run on {} failed: {status}", cores.name());
        exit(1);
    }
}

/// The cores that this process may use, as `/proc` lists them: `0-3,8`.
fn allowed_cores() -> Vec<String> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).unwrap_or("0").trim();
    let mut cores = Vec::new();
    for range in list.split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let bounds = first.parse::<u32>().ok().zip(last.parse::<u32>().ok());
        cores.extend(bounds.into_iter().flat_map(|(first, last)| first..=last).map(|core| core.to_string()));
    }
    cores
}
