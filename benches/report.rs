//! Makes one table and one chart of what the benches have measured last: `cargo bench --bench report -- --help`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod support;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Command, exit};

use support::record::{self, Ratio, Row};

const HELP: &str = "\
Makes results.md and chart.svg in target/bench of what the benches have measured last.

    cargo bench --bench report [-- OPTIONS]

  --record  also puts them into benches/, where the README shows them
  --help    this text
";

const BENCHES: [&str; 5] = ["publish", "receive", "latency", "connect", "footprint"];

fn main() {
    let mut keep = false;
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            // cargo's own.
            "--bench" => {}
            "--record" => keep = true,
            "--help" => {
                print!("{HELP}");
                return;
            }
            other => {
                eprintln!("unknown option {other}\n\n{HELP}");
                exit(2);
            }
        }
    }
    let rows: Vec<Row> = BENCHES.iter().flat_map(|bench| record::read(bench)).collect();
    let targets = targets(&rows);
    println!("{targets}");
    let instructions = fs::read_to_string(record::directory().join("instructions.md")).unwrap_or_default();
    let mut text = format!("# Results\n\n{}\n\n{targets}\n", machine());
    if !instructions.is_empty() {
        let _ = write!(text, "## Instructions\n\n{instructions}\n");
    }
    for bench in BENCHES {
        text += &table(bench, &rows);
    }
    let mut folders = vec![record::directory()];
    if keep {
        folders.push(Path::new(env!("CARGO_MANIFEST_DIR")).join("benches"));
    }
    for folder in folders {
        for (name, content) in [("results.md", &text), ("chart.svg", &chart(&rows))] {
            let path = folder.join(name);
            if let Err(error) = fs::write(&path, content) {
                eprintln!("{}: {error}", path.display());
                exit(1);
            }
            println!("{}", path.display());
        }
    }
}

/// What the numbers depend on.
fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(": unknown processor");
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let server = Command::new("redis-server").arg("--version").output().map(|output| output.stdout).unwrap_or_default();
    let server =
        String::from_utf8_lossy(&server).split_whitespace().find_map(|word| word.strip_prefix("v=").map(str::to_owned));
    format!(
        "{}, {cores} cores; Linux {}; Redis {}. Medians of interleaved rounds; a ratio is computed round by round, and the \
         lowest and highest of them stand behind it.",
        model.trim_start_matches([' ', '\t', ':']).trim(),
        kernel.trim(),
        server.unwrap_or_else(|| "of unknown version".to_owned()),
    )
}

/// What a contender is to reach, as a ratio to a reference.
struct Target {
    what: &'static str,
    bench: &'static str,
    scenario: &'static str,
    cores: &'static str,
    contender: &'static str,
    reference: &'static str,
    bound: Bound,
}

enum Bound {
    AtLeast(f64),
    AtMost(f64),
}

impl Target {
    const fn new(
        what: &'static str,
        [bench, scenario, cores]: [&'static str; 3],
        contender: &'static str,
        reference: &'static str,
        bound: Bound,
    ) -> Target {
        Target { what, bench, scenario, cores, contender, reference, bound }
    }
}

const ONE: &str = "one core";
const TWO: &str = "two cores";
const PUBLISHER: &str = "step-redis publisher()";
/// The bound of all publishers for many threads.
const BY_THREADS: &str = "raw by threads";

#[rustfmt::skip]
const TARGETS: &[Target] = &[
    Target::new("publish one at a time", ["publish", "one at a time", ONE], "step-redis", "raw", Bound::AtLeast(0.95)),
    Target::new("publish in batches of 128", ["publish", "batches of 128", ONE], "step-redis, one call", "raw pipelined", Bound::AtLeast(0.95)),
    Target::new("publish in batches of 128", ["publish", "batches of 128", TWO], "step-redis, one call", "raw pipelined", Bound::AtLeast(0.95)),
    Target::new("8 threads over one pool", ["publish", "8 threads", ONE], "step-redis, pool of 8", "raw", Bound::AtLeast(0.95)),
    Target::new("8 threads over one pool", ["publish", "8 threads", TWO], "step-redis, pool of 8", "raw", Bound::AtLeast(0.95)),
    Target::new("8 threads through publisher()", ["publish", "8 threads", ONE], PUBLISHER, "step-redis, pool of 8", Bound::AtLeast(4.0)),
    Target::new("8 threads through publisher()", ["publish", "8 threads", ONE], PUBLISHER, BY_THREADS, Bound::AtLeast(0.85)),
    Target::new("8 threads through publisher()", ["publish", "8 threads", TWO], PUBLISHER, "raw pipelined", Bound::AtLeast(1.0)),
    Target::new("8 threads through publisher()", ["publish", "8 threads", TWO], PUBLISHER, BY_THREADS, Bound::AtLeast(0.85)),
    Target::new("64 threads through publisher()", ["publish", "64 threads", ONE], PUBLISHER, "step-redis, pool of 10", Bound::AtLeast(3.0)),
    Target::new("64 threads through publisher()", ["publish", "64 threads", TWO], PUBLISHER, "step-redis, pool of 10", Bound::AtLeast(3.0)),
    Target::new("64 threads, 1 ms away", ["publish", "64 threads, 1 ms away", ONE], PUBLISHER, "step-redis, pool of 10", Bound::AtLeast(20.0)),
    Target::new("64 threads, 1 ms away", ["publish", "64 threads, 1 ms away", TWO], PUBLISHER, "step-redis, pool of 10", Bound::AtLeast(20.0)),
    Target::new("64 threads, 1 ms away", ["publish", "64 threads, 1 ms away", TWO], PUBLISHER, "step-redis, one thread", Bound::AtLeast(20.0)),
    Target::new("ack_and_receive_batch", ["receive", "everything, acknowledged", ONE], "step-redis ack_and_receive_batch", "raw pipelined", Bound::AtLeast(0.90)),
    Target::new("ack_and_receive_batch", ["receive", "everything, acknowledged", TWO], "step-redis ack_and_receive_batch", "raw pipelined", Bound::AtLeast(0.90)),
    Target::new("consumer iterator and ack", ["receive", "everything, acknowledged", ONE], "step-redis consumer", "raw pipelined", Bound::AtLeast(0.65)),
    Target::new("consumer iterator and ack", ["receive", "everything, acknowledged", TWO], "step-redis consumer", "raw pipelined", Bound::AtLeast(0.65)),
    Target::new("queued acks", ["receive", "everything, acknowledged", ONE], "step-redis consumer", "step-redis consumer, acks by batch", Bound::AtLeast(0.95)),
    Target::new("queued acks", ["receive", "everything, acknowledged", TWO], "step-redis consumer", "step-redis consumer, acks by batch", Bound::AtLeast(0.95)),
    Target::new("one confirmed ack per entry", ["receive", "one confirmed ack per entry", ONE], "step-redis", "raw", Bound::AtLeast(0.95)),
    Target::new("latency of receive, p50", ["latency", "one entry every 1ms", ONE], "step-redis receive", "raw", Bound::AtMost(1.10)),
    Target::new("latency of receive, p50", ["latency", "one entry every 1ms", TWO], "step-redis receive", "raw", Bound::AtMost(1.10)),
    Target::new("latency of the consumer, p50", ["latency", "one entry every 1ms", ONE], "step-redis consumer", "raw", Bound::AtMost(1.7)),
    Target::new("latency of the consumer, p50", ["latency", "one entry every 1ms", TWO], "step-redis consumer", "raw", Bound::AtMost(1.7)),
    Target::new("connect with TLS", ["connect", "TLS", ONE], "step-redis", "bare TLS", Bound::AtLeast(1.0 / 1.5)),
    Target::new("connect with TLS, resumed", ["connect", "TLS resumed", ONE], "step-redis", "bare TLS", Bound::AtLeast(1.0 / 1.5)),
];

fn targets(rows: &[Row]) -> String {
    let mut text = String::from(
        "## Targets\n\n| what | cores | payload | ratio to | target | measured | |\n|---|---|---:|---|---:|---:|---|\n",
    );
    for target in TARGETS {
        let found = rows.iter().filter(|row| {
            row.bench == target.bench
                && row.scenario == target.scenario
                && row.cores == target.cores
                && row.contender == target.contender
        });
        for row in found {
            let Some(ratio) = ratio(row, target.reference) else { continue };
            let (bound, met) = match target.bound {
                Bound::AtLeast(bound) => (format!(">= {bound:.2}"), rounded(ratio.median) >= rounded(bound)),
                Bound::AtMost(bound) => (format!("<= {bound:.2}"), rounded(ratio.median) <= rounded(bound)),
            };
            let payload = if row.payload > 0 { format!("{} B", row.payload) } else { String::new() };
            let _ = writeln!(
                text,
                "| {} | {} | {payload} | {} | {bound} | {:.2} ({:.2}..{:.2}) | {} |",
                target.what,
                target.cores,
                target.reference,
                ratio.median,
                ratio.lowest,
                ratio.highest,
                if met { "met" } else { "missed" },
            );
        }
    }
    text
}

/// To the digits that are printed.
fn rounded(ratio: f64) -> f64 {
    (ratio * 100.0).round()
}

fn ratio<'a>(row: &'a Row, reference: &str) -> Option<&'a Ratio> {
    row.ratios.iter().find(|ratio| ratio.reference == reference)
}

fn table(bench: &str, rows: &[Row]) -> String {
    if bench == "footprint" {
        return footprint(rows);
    }
    let mut text = String::new();
    let mut scenario = None;
    for row in rows.iter().filter(|row| row.bench == bench) {
        let this = (&row.cores, &row.scenario, row.payload);
        if scenario != Some(this) {
            let payload = if row.payload > 0 { format!(", {} B", row.payload) } else { String::new() };
            let cores = if row.cores == "-" { String::new() } else { format!(", {}", row.cores) };
            let _ = write!(text, "\n### {bench}: {}{cores}{payload}\n\n| | result |", row.scenario);
            row.ratios.iter().for_each(|ratio| text += &format!(" of {} |", ratio.reference));
            text += "\n|---|---:|";
            row.ratios.iter().for_each(|_| text += "---:|");
            text.push('\n');
            scenario = Some(this);
        }
        let _ = write!(text, "| {} | {} |", row.contender, row.result);
        for ratio in &row.ratios {
            let _ = write!(text, " {:.2} ({:.2}..{:.2}) |", ratio.median, ratio.lowest, ratio.highest);
        }
        text.push('\n');
    }
    text
}

/// One line for each program.
fn footprint(rows: &[Row]) -> String {
    let mut text = String::from("\n### footprint of a minimal consumer\n");
    let rows: Vec<&Row> = rows.iter().filter(|row| row.bench == "footprint").collect();
    let Some(first) = rows.first() else { return String::new() };
    let columns = rows.iter().filter(|row| row.contender == first.contender).count();
    for (line, program) in rows.chunks(columns).enumerate() {
        if line == 0 {
            text += "\n| |";
            program.iter().for_each(|row| text += &format!(" {} |", row.scenario));
            text += "\n|---|";
            program.iter().for_each(|_| text += "---:|");
        }
        let _ = write!(text, "\n| {} |", program.first().map_or("", |row| &row.contender));
        program.iter().for_each(|row| text += &format!(" {} |", row.result));
    }
    text + "\n"
}

/// A group of bars: a scenario, the reference that is the full width, and the contenders.
struct Group {
    title: &'static str,
    bench: &'static str,
    scenario: &'static str,
    reference: &'static str,
    bars: &'static [(&'static str, &'static str)],
}

const GROUPS: &[Group] = &[
    Group {
        title: "publish, one at a time",
        bench: "publish",
        scenario: "one at a time",
        reference: "raw",
        bars: &[("step-redis", "step-redis"), ("redis", "redis")],
    },
    Group {
        title: "publish, batches of 128",
        bench: "publish",
        scenario: "batches of 128",
        reference: "raw pipelined",
        bars: &[("step-redis, one call", "step-redis"), ("redis", "redis, pipe()")],
    },
    Group {
        title: "publish from 64 threads",
        bench: "publish",
        scenario: "64 threads",
        reference: BY_THREADS,
        bars: &[(PUBLISHER, "step-redis, publisher()"), ("redis", "redis, 64 connections")],
    },
    Group {
        title: "receive and acknowledge",
        bench: "receive",
        scenario: "everything, acknowledged",
        reference: "raw pipelined",
        bars: &[
            ("step-redis ack_and_receive_batch", "step-redis, in batches"),
            ("step-redis consumer", "step-redis, consumer"),
            ("redis", "redis"),
        ],
    },
    Group {
        title: "one confirmed ack per entry",
        bench: "receive",
        scenario: "one confirmed ack per entry",
        reference: "raw",
        bars: &[("step-redis", "step-redis"), ("redis", "redis")],
    },
];

/// Bars for the share of what the raw socket reaches; one core, 100 B.
fn chart(rows: &[Row]) -> String {
    const LEFT: f64 = 250.0;
    const FULL: f64 = 380.0;
    const BAR: f64 = 18.0;
    let mut body = String::new();
    let mut top = 58.0;
    for group in GROUPS {
        let bars: Vec<_> = group
            .bars
            .iter()
            .filter_map(|(contender, label)| {
                let row = rows.iter().find(|row| {
                    row.bench == group.bench
                        && row.scenario == group.scenario
                        && row.cores == ONE
                        && row.payload == 100
                        && row.contender == *contender
                })?;
                Some((*contender, *label, ratio(row, group.reference)?.median, &row.result))
            })
            .collect();
        if bars.is_empty() {
            continue;
        }
        let _ = writeln!(body, r#"<text x="12" y="{top:.0}" class="title">{}</text>"#, group.title);
        top += 9.0;
        for (contender, label, share, result) in bars {
            let class = if contender.starts_with("step-redis") { "ours" } else { "other" };
            let (width, middle) = (share.min(1.25) * FULL, top + BAR - 5.0);
            let _ = writeln!(body, r#"<text x="{:.0}" y="{middle:.0}" text-anchor="end">{label}</text>"#, LEFT - 8.0);
            let _ = writeln!(
                body,
                r#"<rect x="{LEFT}" y="{top:.0}" width="{width:.0}" height="{BAR}" rx="2" class="{class}"/>"#
            );
            let _ = writeln!(
                body,
                r#"<text x="{:.0}" y="{middle:.0}">{share:.2}  ({result})</text>"#,
                LEFT + width.max(FULL) + 8.0
            );
            top += BAR + 4.0;
        }
        top += 22.0;
    }
    let (height, line, full) = (top + 4.0, LEFT + FULL, top - 30.0);
    format!(
        r#"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 800 {height:.0}" font-family="sans-serif" font-size="13">
<style>
text {{ fill: #1f2328 }} .title {{ font-weight: bold }} .ours {{ fill: #2f81f7 }} .other {{ fill: #9ea7b3 }} line {{ stroke: #1f2328 }}
@media (prefers-color-scheme: dark) {{ text {{ fill: #e6edf3 }} .other {{ fill: #656d76 }} line {{ stroke: #e6edf3 }} }}
</style>
<text x="12" y="20">Share of what a raw socket with prebuilt requests reaches (1.00); one core for client and server, 100 B</text>
<line x1="{line}" y1="36" x2="{line}" y2="{full:.0}" stroke-dasharray="4 3"/>
{body}</svg>
"#
    )
}
