//! What a minimal consumer weighs: `cargo bench --bench footprint -- --help`.

#![allow(clippy::print_stdout, clippy::print_stderr)]

mod support;

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio, exit};
use std::time::{Duration, Instant};

use support::common::{Certificates, Server, end_with_parent, resident_memory, spawn, wait_until};
use support::record::{Record, Row, directory};

const HELP: &str = "\
Builds a minimal consumer in release, stripped, with and without TLS; runs it; prints the size of the program, the memory
it has resident once it has handled a few entries, its threads, and the crates it consists of.

    cargo bench --bench footprint [-- OPTIONS]

  --all     also with TLS but without `encrypted-keys`, and the same program written by hand on the redis crate, with one
            thread and a channel
  --clean   build from nothing each time, and tell how long that takes
  --quick   without TLS only
  --help    this text
";

const OURS: &str = include_str!("footprint/consumer.rs");
const BARE: &str = include_str!("footprint/bare.rs");

struct Program {
    name: &'static str,
    source: &'static str,
    dependency: String,
    tls: bool,
}

fn main() {
    let (mut all, mut clean, mut quick) = (false, false, false);
    for argument in std::env::args().skip(1) {
        match argument.as_str() {
            // cargo's own.
            "--bench" => {}
            "--all" => all = true,
            "--clean" => clean = true,
            "--quick" => quick = true,
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
    Record::begin("footprint");
    let record = Record::append("footprint");
    println!(
        "{:24} {:>10} {:>12} {:>8} {:>7} {:>9}",
        "minimal consumer", "program", "resident", "threads", "crates", "build"
    );
    for program in programs(all, quick) {
        match weigh(&program, clean) {
            Ok(weight) => {
                println!("{}", weight.line(program.name));
                for (scenario, result) in weight.results() {
                    record.add(&Row {
                        bench: "footprint".to_owned(),
                        cores: "-".to_owned(),
                        scenario: scenario.to_owned(),
                        payload: 0,
                        contender: program.name.to_owned(),
                        result,
                        ratios: Vec::new(),
                    });
                }
            }
            Err(reason) => {
                eprintln!("{}: {reason}", program.name);
                exit(1);
            }
        }
    }
}

fn programs(all: bool, quick: bool) -> Vec<Program> {
    let path = env!("CARGO_MANIFEST_DIR");
    let ours = |features: &str| format!("step-redis = {{ path = {path:?}{features} }}");
    let bare =
        |features: &str| format!("redis = {{ version = \"1\", default-features = false, features = [{features}] }}");
    let mut programs = vec![
        Program { name: "step-redis", source: OURS, dependency: ours(", default-features = false"), tls: false },
        Program { name: "step-redis, TLS", source: OURS, dependency: ours(""), tls: true },
    ];
    if all {
        let dependency = ours(", default-features = false, features = [\"tls\"]");
        programs.push(Program { name: "step-redis, `tls` alone", source: OURS, dependency, tls: true });
        let tls = r#""streams", "tls-rustls", "tls-rustls-insecure""#;
        // The provider of the handshake's arithmetic must be chosen; ours is `ring` too.
        let provider =
            "rustls = { version = \"0.23\", default-features = false, features = [\"ring\", \"std\", \"tls12\"] }";
        programs.push(Program { name: "redis by hand", source: BARE, dependency: bare(r#""streams""#), tls: false });
        let dependency = format!("{}\n{provider}", bare(tls));
        programs.push(Program { name: "redis by hand, TLS", source: BARE, dependency, tls: true });
    }
    programs.retain(|program| !(quick && program.tls));
    programs
}

struct Weight {
    program: u64,
    resident: u64,
    threads: usize,
    crates: usize,
    /// From nothing.
    build: Option<Duration>,
}

impl Weight {
    fn line(&self, name: &str) -> String {
        let [program, resident, threads, crates, build] = self.results().map(|(_, result)| result);
        format!("{name:24} {program:>10} {resident:>12} {threads:>8} {crates:>7} {build:>9}")
    }

    fn results(&self) -> [(&'static str, String); 5] {
        [
            ("program", format!("{:.2} MB", self.program as f64 / 1e6)),
            ("resident", format!("{:.1} MB", self.resident as f64 / 1e6)),
            ("threads", self.threads.to_string()),
            ("crates", self.crates.to_string()),
            ("build", self.build.map_or("-".to_owned(), |build| format!("{:.0} s", build.as_secs_f64()))),
        ]
    }
}

fn weigh(program: &Program, clean: bool) -> Result<Weight, String> {
    let package = package(program).map_err(|error| error.to_string())?;
    let target = directory().join("footprint").join("target");
    if clean {
        let _ = fs::remove_dir_all(&target);
    }
    let started = Instant::now();
    run_cargo(&package, &["build", "--release", "--quiet"], Some(&target))?;
    let build = clean.then(|| started.elapsed());
    let tree = run_cargo(&package, &["tree", "--edges", "normal", "--prefix", "none"], None)?;
    let mut crates: Vec<&str> = tree.lines().filter_map(|line| line.split(" (").next()).collect();
    crates.sort_unstable();
    crates.dedup();

    let binary = target.join("release").join("minimal");
    let size = fs::metadata(&binary).map_err(|error| format!("{}: {error}", binary.display()))?.len();
    let (resident, threads) = run(&binary, program)?;
    // The program itself is none of its dependencies.
    Ok(Weight { program: size, resident, threads, crates: crates.len() - 1, build })
}

/// A package of its own, as a user would have: no dev-dependency adds its features.
fn package(program: &Program) -> std::io::Result<PathBuf> {
    let package = directory().join("footprint").join(program.name.replace([' ', ',', '`'], "-"));
    fs::create_dir_all(package.join("src"))?;
    let manifest = format!(
        "[package]\nname = \"minimal\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[dependencies]\n{}\n\n\
         [profile.release]\nstrip = true\n\n[workspace]\n",
        program.dependency
    );
    fs::write(package.join("Cargo.toml"), manifest)?;
    fs::write(package.join("src/main.rs"), program.source)?;
    // The same versions as ours.
    let lock = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.lock");
    if lock.is_file() {
        fs::copy(lock, package.join("Cargo.lock"))?;
    }
    Ok(package)
}

fn run_cargo(package: &Path, arguments: &[&str], target: Option<&Path>) -> Result<String, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.args(arguments).current_dir(package).stderr(Stdio::inherit());
    if let Some(target) = target {
        command.env("CARGO_TARGET_DIR", target);
    }
    let output = command.output().map_err(|error| format!("cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!("cargo {} failed", arguments.join(" ")));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Lets it handle a few entries, and looks at it then.
fn run(binary: &Path, program: &Program) -> Result<(u64, usize), String> {
    const ENTRIES: usize = 100;
    let certificates = program.tls.then(Certificates::generate);
    let server = match &certificates {
        Some(certificates) => Server::builder().tls(certificates).start(),
        None => Server::start(),
    };
    let mut command = end_with_parent(binary);
    let ours = program.source == OURS;
    match &certificates {
        Some(certificates) if ours => {
            command.arg(format!("{}?ssl_ca_certs={}", server.tls_url(), certificates.ca().display()));
        }
        // The crate's own URL knows no certificate file.
        Some(_) => {
            command.arg(format!("{}#insecure", server.tls_url()));
        }
        None => {
            command.arg(server.url());
        }
    }
    command.stdout(Stdio::piped());
    let mut child = Running(spawn(command).map_err(|error| error.to_string())?);
    let mut lines = BufReader::new(child.0.stdout.take().ok_or("no output")?).lines();
    wait_until(Duration::from_secs(10), || {
        !server.try_command(&["XINFO", "GROUPS", "orders"]).is_ok_and(|reply| reply.is_error())
    });
    for _ in 0..ENTRIES {
        server.command(&["XADD", "orders", "*", "message", "one coffee"]);
    }
    for _ in 0..ENTRIES {
        lines.next().ok_or("it ended early")?.map_err(|error| error.to_string())?;
    }
    let pid = child.0.id();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_err(|error| error.to_string())?.count();
    Ok((resident_memory(pid), threads))
}

/// A process that is ended and waited for.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.stdout.take().map(|mut output| output.read(&mut [0]));
        let _ = self.0.wait();
    }
}
