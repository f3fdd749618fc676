//! Every example runs as its header says: it prints what happens, Ctrl-C ends it in an orderly way, and a failure is told
//! with its causes and the exit code 1.

#[path = "../common/mod.rs"]
mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use common::{Server, end_with_parent, signal, spawn, wait_until};

/// How long an example may take for anything, on a slow, busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

/// A running example, and what it has printed so far. One that is still running when the test ends is killed.
struct Example {
    process: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Example {
    /// Starts an example with the server's address. `cargo test` has built it beside this program.
    fn start(name: &str, url: &str, arguments: &[&str]) -> Example {
        let mut command = end_with_parent(&program(name));
        command.args(arguments).env("REDIS_URL", url).env_remove("RUST_LOG");
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut process = spawn(command).unwrap_or_else(|error| panic!("the example {name} does not start: {error}"));
        let lines = Arc::default();
        let output: [Box<dyn Read + Send>; 2] =
            [Box::new(process.stdout.take().unwrap()), Box::new(process.stderr.take().unwrap())];
        let readers = output.into_iter().map(|output| collect(output, Arc::clone(&lines))).collect();
        Example { process, lines, readers }
    }

    /// Runs an example that ends by itself: its exit code and its lines.
    fn run(name: &str, url: &str, arguments: &[&str]) -> (Option<i32>, Vec<String>) {
        Example::start(name, url, arguments).wait()
    }

    fn printed(&self) -> Vec<String> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[track_caller]
    fn wait_for(&mut self, expected: &str) {
        self.wait_for_lines(1, expected);
    }

    /// Waits until so many lines contain this.
    #[track_caller]
    fn wait_for_lines(&mut self, count: usize, expected: &str) {
        wait_until(PATIENCE, || {
            let ended = self.process.try_wait().unwrap();
            let found = self.printed().iter().filter(|line| line.contains(expected)).count() >= count;
            assert!(found || ended.is_none(), "it ended without {expected:?}: {:#?}", self.printed());
            found
        });
    }

    /// Presses Ctrl-C, upon which it must end at once and be content.
    #[track_caller]
    fn press_ctrl_c(self) -> Vec<String> {
        signal(self.process.id(), "INT");
        let (code, lines) = self.wait();
        assert_eq!(code, Some(0), "{lines:#?}");
        lines
    }

    #[track_caller]
    fn wait(mut self) -> (Option<i32>, Vec<String>) {
        drop(self.process.stdin.take());
        let mut ended: Option<ExitStatus> = None;
        wait_until(PATIENCE, || {
            ended = self.process.try_wait().unwrap();
            ended.is_some()
        });
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        (ended.and_then(|status| status.code()), self.printed())
    }
}

impl Drop for Example {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn collect(output: Box<dyn Read + Send>, lines: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            lines.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        }
    })
}

/// `target/debug/deps/examples-0123 -> target/debug/examples/NAME`
fn program(name: &str) -> PathBuf {
    let this = std::env::current_exe().expect("this program has a path");
    let directory = this.parent().and_then(|deps| deps.parent()).expect("it lies in target/debug/deps");
    let program = directory.join("examples").join(name);
    let path = program.display();
    assert!(
        program.exists(),
        "{path} is missing: `cargo test` builds it, and `cargo build --examples` for `--test examples`"
    );
    program
}

#[track_caller]
fn assert_line(lines: &[String], expected: &str) {
    assert!(lines.iter().any(|line| line.contains(expected)), "no line contains {expected:?}: {lines:#?}");
}

#[track_caller]
fn publish(server: &Server, arguments: &[&str]) {
    let (code, lines) = Example::run("publish", &server.url(), arguments);
    assert_eq!(code, Some(0), "{lines:#?}");
}

fn pending(server: &Server, stream: &str, group: &str) -> i64 {
    server.command(&["XPENDING", stream, group]).array()[0].int()
}

#[test]
fn what_publish_is_given_arrives_at_consume() {
    let server = Server::start();
    let mut consume = Example::start("consume", &server.url(), &[]);
    consume.wait_for("waits for orders");
    publish(&server, &["two coffees", "one tea"]);
    let mut lines_of_input = Example::start("publish", &server.url(), &[]);
    lines_of_input.process.stdin.take().unwrap().write_all(b"soup\nbread\n").unwrap();
    assert_eq!(lines_of_input.wait().0, Some(0));
    for expected in ["two coffees", "one tea", "soup", "bread"] {
        consume.wait_for(expected);
    }
    assert_line(&consume.press_ctrl_c(), "received 4, acknowledged 4");
    assert_eq!(pending(&server, "orders", "kitchen"), 0);
}

#[test]
fn ctrl_c_ends_a_publish_that_waits_for_its_input() {
    let server = Server::start();
    let mut publish = Example::start("publish", &server.url(), &[]);
    let mut input = publish.process.stdin.take().unwrap();
    input.write_all(b"soup\n").unwrap();
    publish.wait_for("soup");
    publish.press_ctrl_c();
    drop(input);
    assert_eq!(server.command(&["XLEN", "orders"]).int(), 1);
}

#[test]
fn consume_carries_on_after_the_server_was_away() {
    let server = Server::builder().append_only().start();
    let mut consume = Example::start("consume", &server.url(), &[]);
    consume.wait_for("waits for orders");
    publish(&server, &["soup"]);
    consume.wait_for("soup");
    server.kill();
    server.restart();
    publish(&server, &["bread"]);
    consume.wait_for("bread");
    consume.press_ctrl_c();
}

#[test]
fn the_workers_try_again_and_put_aside_what_never_works() {
    let server = Server::start();
    let mut pool = Example::start("worker_pool", &server.url(), &[]);
    pool.wait_for("4 workers wait for orders");
    publish(&server, &["tea", "fails once?", "fails always!"]);
    server.command(&["XADD", "orders", "*", "message", "\u{1}"]);
    server.command(&[&b"XADD"[..], b"orders", b"*", b"message", b"\xff\xfe"]);
    // A line comes every second.
    pool.wait_for("done 3, to be tried again 4, put aside 2, queued 0, in hand 0");
    let lines = pool.press_ctrl_c();
    assert_line(&lines, "put aside: fails always! (");
    assert_line(&lines, "is not UTF-8");
    assert_eq!(pending(&server, "orders", "workers"), 0);
    assert_eq!(server.command(&["XLEN", "orders:dead"]).int(), 2);
}

#[test]
fn select_serves_two_streams_and_a_clock() {
    let server = Server::start();
    let mut select = Example::start("select", &server.url(), &[]);
    select.wait_for("waiting for orders and alarms");
    publish(&server, &["soup"]);
    publish(&server, &["--stream", "alarms", "the milk boils over"]);
    select.wait_for("order ");
    select.wait_for("the milk boils over");
    select.wait_for_lines(2, "in the last second");
    let lines = select.press_ctrl_c();
    assert_line(&lines, "acknowledged 1 orders and 1 alarms");
    assert!(lines.iter().any(|line| line.starts_with("ALARM ") && line.ends_with("the milk boils over")), "{lines:#?}");
}

#[test]
fn ctrl_c_ends_each_waiting_example_at_once() {
    let server = Server::start();
    for (name, ready) in [("consume", "waits for"), ("worker_pool", "workers wait"), ("select", "waiting for")] {
        let mut example = Example::start(name, &server.url(), &[]);
        example.wait_for(ready);
        let started = Instant::now();
        example.press_ctrl_c();
        assert!(started.elapsed() < Duration::from_secs(2), "{name}: {:?}", started.elapsed());
    }
    server.wait_until(|server| server.connected_clients() == 0);
}

#[test]
fn a_failure_is_told_with_its_causes() {
    let (gone, wrong_type) = (Server::start(), Server::start());
    gone.kill();
    wrong_type.command(&["SET", "orders", "something else"]);
    for name in ["publish", "consume", "worker_pool", "select"] {
        let (code, lines) = Example::run(name, &gone.url(), &[]);
        assert_eq!((code, lines.len()), (Some(1), 1), "{name}: {lines:#?}");
        assert_line(&lines, "error: cannot connect to 127.0.0.1:");
        assert_line(&lines, "Connection refused");
        let (code, lines) = Example::run(name, "redis://127.0.0.1/0?no_such_key=1", &[]);
        assert_eq!(code, Some(1), "{name}: {lines:#?}");
        assert_line(&lines, "bad parameter `no_such_key`");
        let (code, lines) = Example::run(name, &wrong_type.url(), if name == "publish" { &["soup"] } else { &[] });
        assert_eq!(code, Some(1), "{name}: {lines:#?}");
        assert_line(&lines, "WRONGTYPE");
    }
    let (code, lines) = Example::run("publish", &gone.url(), &["--stream"]);
    assert_eq!(code, Some(1), "{lines:#?}");
    assert_line(&lines, "--stream takes the name of a stream");
}

#[cfg(feature = "tls")]
#[test]
fn tls_makes_its_own_server_and_shows_both_sides() {
    // Its own server is asked, whatever the address says.
    let (code, lines) = Example::run("tls", "redis://127.0.0.1:1", &[]);
    assert_eq!(code, Some(0), "{lines:#?}");
    for expected in
        ["connected to 127.0.0.1:", "published ", "two coffees, in confidence", "wants a client certificate"]
    {
        assert_line(&lines, expected);
    }
}

#[test]
fn stream_demo_ends_by_itself_or_by_ctrl_c() {
    let server = Server::start();
    let (code, lines) = Example::run("stream_demo", "", &["--count", "3"]);
    assert_eq!(code, Some(0), "{lines:#?}");
    assert_line(&lines, "published 3, received 3, pending 0");
    let mut demo = Example::start("stream_demo", &server.url(), &[]);
    demo.wait_for("Received message: Hello, this is message 2 from the Demo!");
    demo.press_ctrl_c();
    let (code, lines) = Example::run("stream_demo", &server.url(), &["--count", "none"]);
    assert_eq!(code, Some(1), "{lines:#?}");
    assert_line(&lines, "--count takes a number of messages");
}
