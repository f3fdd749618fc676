//! How many instructions an entry costs on the client's side: `cargo bench --bench instructions -- --help`.
//!
//! Each job runs under `valgrind --tool=callgrind`, once for many entries and once for a quarter of them; the difference
//! divided by the entries between is the cost of one, without start and end. The counts hardly depend on the machine or on
//! what else it does, so a regression shows that no stopwatch would.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod support;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio, exit};

use step_redis::AckMode;
use support::common::Server;
use support::raw::{Raw, add_request};
use support::ways::{self, GROUP};

const HELP: &str = "\
Counts the instructions that one entry costs, with callgrind.

    cargo bench --bench instructions [-- OPTIONS]

  --quick          a quarter of the entries
  --payload BYTES  only this payload (default: 100 and 1024)
  --job NAME       only jobs whose name contains this
  --top COUNT      also list the functions with the highest cost of their own, per entry
                   (their names need CARGO_PROFILE_BENCH_DEBUG=true)
  --help           this text
";

const STREAM: &str = "bench";
/// Entries of a batch and of a read.
const BATCH: usize = 128;
const ENTRIES: usize = 16_384;

/// What is counted: a name, whether the stream is filled before, and the work.
struct Job {
    name: &'static str,
    filled: bool,
    work: fn(&Task),
}

struct Task {
    port: u16,
    payload: Vec<u8>,
    entries: usize,
}

const JOBS: &[Job] = &[
    Job { name: "publish/raw", filled: false, work: publish_raw },
    Job { name: "publish/redis", filled: false, work: publish_redis },
    Job { name: "publish/step-redis", filled: false, work: publish_step },
    Job { name: "publish/publisher", filled: false, work: publish_publisher },
    Job { name: "batch/raw", filled: false, work: batch_raw },
    Job { name: "batch/redis", filled: false, work: batch_redis },
    Job { name: "batch/step-redis", filled: false, work: batch_step },
    Job { name: "receive/raw", filled: true, work: receive_raw },
    Job { name: "receive/redis", filled: true, work: receive_redis },
    Job { name: "receive/step-redis", filled: true, work: receive_step },
    Job { name: "receive+ack/raw", filled: true, work: consume_raw },
    Job { name: "receive+ack/redis", filled: true, work: consume_redis },
    Job { name: "receive+ack/step-redis", filled: true, work: consume_step },
    Job { name: "ack with next/step-redis", filled: true, work: riding_step },
    Job { name: "single+ack/raw", filled: true, work: each_raw },
    Job { name: "single+ack/redis", filled: true, work: each_redis },
    Job { name: "single+ack/step-redis", filled: true, work: each_step },
    Job { name: "consumer/step-redis", filled: true, work: iterate_step },
    Job { name: "consumer+ack/step-redis", filled: true, work: iterate_ack_step },
];

fn publish_raw(task: &Task) {
    ways::raw_publish(&mut Raw::connect(task.port), &add_request(STREAM, &task.payload), task.entries);
}

fn publish_redis(task: &Task) {
    ways::redis_publish(&mut ways::redis(task.port), STREAM, &task.payload, task.entries);
}

fn publish_step(task: &Task) {
    ways::step_publish(&ways::step(task.port, 1), &ways::output(STREAM), &task.payload, task.entries);
}

fn publish_publisher(task: &Task) {
    let publisher = ways::step(task.port, 1).publisher(ways::output(STREAM));
    for _ in 0..task.entries {
        publisher.publish(&*task.payload).expect("the server answers");
    }
}

fn batch_raw(task: &Task) {
    let requests = add_request(STREAM, &task.payload).repeat(BATCH);
    ways::raw_publish_batches(&mut Raw::connect(task.port), &requests, BATCH, task.entries / BATCH);
}

fn batch_redis(task: &Task) {
    ways::redis_publish_batches(&mut ways::redis(task.port), STREAM, &task.payload, BATCH, task.entries / BATCH);
}

fn batch_step(task: &Task) {
    let step = ways::step(task.port, 1);
    ways::step_publish_batches(&step, &ways::output(STREAM), &task.payload, BATCH, task.entries / BATCH);
}

fn receive_raw(task: &Task) {
    ways::raw_read(&mut Raw::connect(task.port), STREAM, task.entries, BATCH);
}

fn receive_redis(task: &Task) {
    ways::redis_read(&mut ways::redis(task.port), STREAM, task.entries, BATCH);
}

fn receive_step(task: &Task) {
    ways::step_read(&ways::step(task.port, 1), &ways::input(STREAM), task.entries, BATCH);
}

fn consume_raw(task: &Task) {
    ways::raw_consume(&mut Raw::connect(task.port), STREAM, task.entries, BATCH);
}

fn consume_redis(task: &Task) {
    ways::redis_consume(&mut ways::redis(task.port), STREAM, task.entries, BATCH);
}

fn consume_step(task: &Task) {
    ways::step_consume(&ways::step(task.port, 1), &ways::input(STREAM), task.entries, BATCH);
}

fn riding_step(task: &Task) {
    ways::step_consume_riding(&ways::step(task.port, 1), &ways::input(STREAM), task.entries, BATCH);
}

fn each_raw(task: &Task) {
    ways::raw_consume_each(&mut Raw::connect(task.port), STREAM, task.entries);
}

fn each_redis(task: &Task) {
    ways::redis_consume_each(&mut ways::redis(task.port), STREAM, task.entries);
}

fn each_step(task: &Task) {
    ways::step_consume_each(&ways::step(task.port, 1), &ways::input(STREAM), task.entries);
}

fn iterate_step(task: &Task) {
    iterate(task, false);
}

fn iterate_ack_step(task: &Task) {
    iterate(task, true);
}

fn iterate(task: &Task, acknowledge: bool) {
    let consumer = ways::step(task.port, 1)
        .consumer(ways::input(STREAM))
        .ack_mode(AckMode::default())
        .spawn()
        .expect("the private server accepts");
    for delivery in consumer.iter().take(task.entries) {
        let delivery = delivery.expect("the server answers");
        ways::look_at(delivery.payload());
        if acknowledge {
            delivery.ack().expect("the consumer is open");
        } else {
            delivery.leave();
        }
    }
}

#[derive(Default)]
struct Options {
    quick: bool,
    payload: Option<usize>,
    job: Option<String>,
    top: Option<usize>,
    /// Set for the program that is counted: its job, its entries and its server.
    counted: Option<(usize, u16)>,
}

fn main() {
    let options = match options() {
        Ok(options) => options,
        Err(reason) => {
            eprintln!("{reason}\n\n{HELP}");
            exit(2);
        }
    };
    if let Some((entries, port)) = options.counted {
        let name = options.job.as_deref().unwrap_or_default();
        let job = JOBS.iter().find(|job| job.name == name).expect("a job's name");
        (job.work)(&Task { port, payload: ways::payload(options.payload.unwrap_or(100)), entries });
        return;
    }
    if let Err(reason) = count(&options) {
        eprintln!("{reason}");
        exit(1);
    }
}

fn options() -> Result<Options, String> {
    let mut options = Options::default();
    let (mut entries, mut port) = (None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
        let number = |text: String| text.parse::<usize>().map_err(|_| format!("{text} is no number"));
        match argument.as_str() {
            // cargo's own.
            "--bench" => {}
            "--help" => {
                print!("{HELP}");
                exit(0);
            }
            "--quick" => options.quick = true,
            "--payload" => options.payload = Some(number(value()?)?),
            "--job" => options.job = Some(value()?),
            "--top" => options.top = Some(number(value()?)?),
            "--entries" => entries = Some(number(value()?)?),
            "--port" => port = value()?.parse::<u16>().ok(),
            other => return Err(format!("unknown option {other}")),
        }
    }
    options.counted = entries.zip(port);
    Ok(options)
}

fn count(options: &Options) -> Result<(), String> {
    let found = Command::new("valgrind").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !found.is_ok_and(|status| status.success()) {
        return Err("valgrind is missing: apt-get install valgrind".to_owned());
    }
    let server = Server::start();
    let directory = support::record::directory();
    let entries = if options.quick { ENTRIES / 4 } else { ENTRIES };
    let payloads = options.payload.map_or(vec![100, 1024], |payload| vec![payload]);
    let mut table = String::from("| instructions per entry |");
    for payload in &payloads {
        let _ = write!(table, " {payload} B |");
    }
    table += "\n|---|";
    table += &"---:|".repeat(payloads.len());
    table.push('\n');
    for job in JOBS.iter().filter(|job| options.job.as_deref().is_none_or(|part| job.name.contains(part))) {
        let _ = write!(table, "| {} |", job.name);
        for payload in &payloads {
            let many = run(&server, &directory, job, *payload, entries)?;
            let few = run(&server, &directory, job, *payload, entries / 4)?;
            let between = (entries - entries / 4) as u64;
            let cost = many.total.saturating_sub(few.total) / between;
            println!("{:26} {payload:5} B  {cost:6} instructions per entry", job.name);
            let _ = write!(table, " {cost} |");
            if let Some(top) = options.top {
                list(&many.functions()?, &few.functions()?, between, top);
            }
        }
        table.push('\n');
    }
    let path = directory.join("instructions.md");
    std::fs::write(&path, &table).map_err(|error| format!("{}: {error}", path.display()))?;
    println!("\n{table}");
    Ok(())
}

/// One run under callgrind.
struct Run {
    total: u64,
    profile: PathBuf,
}

fn run(server: &Server, directory: &Path, job: &Job, payload: usize, entries: usize) -> Result<Run, String> {
    let mut raw = Raw::connect(server.port());
    if job.filled {
        ways::fill(&mut raw, STREAM, &ways::payload(payload), entries);
    } else {
        ways::clear(&mut raw, STREAM);
    }
    let program = std::env::current_exe().map_err(|error| error.to_string())?;
    let profile = directory.join(format!("callgrind.{}.{payload}.{entries}", job.name.replace('/', "-")));
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--quiet"])
        .arg(format!("--callgrind-out-file={}", profile.display()))
        .arg(program)
        .args(["--job", job.name, "--payload", &payload.to_string(), "--entries", &entries.to_string()])
        .args(["--port", &server.port().to_string()])
        .output()
        .map_err(|error| format!("valgrind: {error}"))?;
    if !output.status.success() {
        return Err(format!("{} failed:\n{}", job.name, String::from_utf8_lossy(&output.stderr)));
    }
    if job.name.contains("ack") && job.name.ends_with("step-redis") {
        let pending = server.command(&["XPENDING", STREAM, GROUP]);
        let pending = pending.array().first().map_or(0, support::common::Reply::int);
        if pending != 0 {
            return Err(format!("{}: {pending} entries are still pending", job.name));
        }
    }
    let text = std::fs::read_to_string(&profile).map_err(|error| format!("{}: {error}", profile.display()))?;
    let total = text.lines().rev().find_map(|line| line.strip_prefix("totals: "));
    let total = total.and_then(|total| total.trim().parse().ok());
    Ok(Run { total: total.ok_or_else(|| format!("no total in {}", profile.display()))?, profile })
}

impl Run {
    /// The functions' own costs, the highest first.
    fn functions(&self) -> Result<Vec<(String, u64)>, String> {
        let output = Command::new("callgrind_annotate")
            .args(["--threshold=99.9", "--show-percs=no", "--auto=no"])
            .arg(&self.profile)
            .output()
            .map_err(|error| format!("callgrind_annotate: {error}"))?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let lines = text.lines().filter_map(|line| {
            let (cost, function) = line.trim_start().split_once("  ")?;
            let cost = cost.replace(',', "").parse().ok()?;
            let function = function.split(" [").next()?.split_once(':').map_or(function, |(_, name)| name);
            Some((function.trim().to_owned(), cost))
        });
        Ok(lines.collect())
    }
}

fn list(many: &[(String, u64)], few: &[(String, u64)], between: u64, top: usize) {
    let sum = |list: &[(String, u64)], name: &str| -> u64 {
        list.iter().filter(|(function, _)| function == name).map(|(_, cost)| cost).sum()
    };
    let mut costs: Vec<(&str, u64)> = Vec::new();
    for (name, _) in many.iter().filter(|(name, _)| !name.starts_with("PROGRAM TOTALS")) {
        if !costs.iter().any(|(known, _)| known == name) {
            costs.push((name, sum(many, name).saturating_sub(sum(few, name)) / between));
        }
    }
    costs.sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
    for (name, cost) in costs.iter().take(top) {
        println!("    {cost:6}  {name}");
    }
}
