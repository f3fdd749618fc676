//! Consumers in processes of their own: this program again, with a part to play. The test talks to it through its standard
//! input, whose end means "stop", and a file, which survives SIGKILL.

use crate::common::{end_with_parent, open_descriptors, spawn, thread_count, threads_named, wait_until};
use crate::support::{Bench, GROUP, LONG, distinct, number, stream_at};
use std::env;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write, stdin};
use std::path::PathBuf;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};
use step_redis::{Consumer, Delivery, StepStream, StreamInput, StreamOutput};

/// How long the workers' entries must lie idle.
pub(crate) const WORKER_IDLE: Duration = Duration::from_secs(1);
/// How often a worker's entry is delivered. Entries in the channel of a killed worker count as delivered, so this is more
/// than an entry can meet by bad luck.
pub(crate) const WORKER_DELIVERIES: u64 = 12;
/// How long the slow handler's entry must lie idle.
pub(crate) const SLOW_IDLE: Duration = Duration::from_millis(500);

/// A process that plays a part. Killed when dropped.
pub(crate) struct Child {
    process: std::process::Child,
    record: PathBuf,
}

impl Child {
    pub(crate) fn start(bench: &Bench, part: &str, name: &str) -> Child {
        let record = bench.server.directory().join(format!("{part}-{name}"));
        let mut command = end_with_parent(&env::current_exe().unwrap());
        command.args(["--exact", "child::a_child_plays_the_part_it_is_given", "--nocapture", "--test-threads=1"]);
        command.env("STEP_CHILD_PART", part).env("STEP_CHILD_URL", bench.server.url());
        command.env("STEP_CHILD_STREAM", &bench.key).env("STEP_CHILD_NAME", name).env("STEP_CHILD_RECORD", &record);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        Child { process: spawn(command).unwrap(), record }
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }

    /// Whether it has ended by itself.
    pub(crate) fn has_ended(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }

    /// What it has recorded, by lines; without a line that was not finished.
    pub(crate) fn lines(&self) -> Vec<String> {
        let text = std::fs::read_to_string(&self.record).unwrap_or_default();
        text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')).map(str::to_owned).collect()
    }

    #[track_caller]
    pub(crate) fn wait_for_line(&self, start: &str) -> String {
        self.wait_for_line_within(LONG, start)
    }

    #[track_caller]
    pub(crate) fn wait_for_line_within(&self, limit: Duration, start: &str) -> String {
        wait_until(limit, || self.lines().iter().any(|line| line.starts_with(start)));
        self.lines().into_iter().find(|line| line.starts_with(start)).unwrap()
    }

    /// Tells it to stop, and waits until it has ended well.
    #[track_caller]
    pub(crate) fn finish(&mut self) {
        drop(self.process.stdin.take());
        let started = Instant::now();
        wait_until(LONG, || self.process.try_wait().unwrap().is_some());
        let status = self.process.wait().unwrap();
        assert!(status.success(), "the child failed: {status} after {:?}", started.elapsed());
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Whether a worker's handler fails. Some entries always do.
pub(crate) fn is_poison(number: usize) -> bool {
    number % 2_500 == 7
}

struct Part {
    stream: StepStream,
    input: StreamInput,
    dead: StreamOutput,
    record: File,
}

impl Part {
    fn note(&mut self, line: &str) {
        // One write, so that SIGKILL leaves whole lines.
        self.record.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}

/// Plays no part and passes when it is run as a test among others.
#[test]
fn a_child_plays_the_part_it_is_given() {
    let Ok(part) = env::var("STEP_CHILD_PART") else { return };
    let given = |name: &str| env::var(format!("STEP_CHILD_{name}")).unwrap();
    let key = given("STREAM");
    let set = Part {
        stream: stream_at(&given("URL")),
        input: StreamInput::new(key.as_str(), GROUP).consumer(given("NAME")),
        dead: StreamOutput::new(format!("{key}:dead")),
        record: OpenOptions::new().create(true).append(true).open(given("RECORD")).unwrap(),
    };
    match part.as_str() {
        "worker" => work(set),
        "slow" => handle_slowly(set),
        "backlog" => consume_backlog(set),
        "large" => consume_large_entries(set),
        "stopped" => stop_with_a_full_queue(set),
        "tidy" => leave_nothing_behind(set),
        "aborting" => abort_at_poison(set),
        other => panic!("no such part: {other}"),
    }
}

fn wait_for_end_of_input() {
    let _ = stdin().read_to_end(&mut Vec::new());
}

/// Records each entry and whether it is done, before it says so to the server.
fn work(mut set: Part) {
    let input = set.input.clone().claim_idle(WORKER_IDLE);
    let consumer =
        set.stream.consumer(input).max_deliveries(WORKER_DELIVERIES).dead_letter(set.dead.clone()).spawn().unwrap();
    let handle = consumer.stop_handle();
    thread::spawn(move || {
        wait_for_end_of_input();
        handle.stop();
    });
    for delivery in &consumer {
        let delivery = delivery.unwrap();
        let number = number(&delivery);
        if is_poison(number) || fails(&delivery, number) {
            set.note(&format!("failed {number}"));
            give_back(delivery, number);
        } else {
            set.note(&format!("done {number}"));
            delivery.ack().unwrap();
        }
    }
    consumer.close().unwrap();
}

/// One handling in twenty.
fn fails(delivery: &Delivery, number: usize) -> bool {
    (31 * number as u64 + 17 * delivery.delivery_count()).is_multiple_of(20)
}

fn give_back(delivery: Delivery, number: usize) {
    match (number as u64 + delivery.delivery_count()) % 3 {
        0 => delivery.release().unwrap(),
        1 => delivery.retry_after(WORKER_IDLE / 10).unwrap(),
        _ => drop(delivery),
    }
}

/// Holds one entry until it is told to stop, and then tells what became of it.
fn handle_slowly(mut set: Part) {
    let consumer = set.stream.consumer(set.input.clone().claim_idle(SLOW_IDLE)).spawn().unwrap();
    let delivery = consumer.iter().next().unwrap().unwrap();
    set.note(&format!("got {}", number(&delivery)));
    wait_for_end_of_input();
    set.note(&format!("lost {}", consumer.stats().taken_over));
    drop(delivery);
    consumer.close().unwrap();
}

/// Lets the channel fill up first, then takes what it is told to.
fn consume_backlog(mut set: Part) {
    const ENTRIES: usize = 100_000;
    let consumer = set.stream.consumer(set.input.clone()).spawn().unwrap();
    wait_until(LONG, || consumer.stats().queued == 256);
    set.note("full");
    for delivery in consumer.iter().take(ENTRIES) {
        delivery.unwrap().ack().unwrap();
    }
    set.note("taken");
    wait_for_end_of_input();
    consumer.close().unwrap();
}

/// Waits until the consumer reads no further ahead; how many entries it has queued.
fn wait_until_full(consumer: &Consumer) -> usize {
    let mut last = 0;
    wait_until(LONG, || {
        thread::sleep(Duration::from_millis(300));
        let queued = consumer.stats().queued;
        queued > 0 && std::mem::replace(&mut last, queued) == queued
    });
    last
}

/// Takes entries of 1 MiB that have piled up, in its own time.
fn consume_large_entries(mut set: Part) {
    const ENTRIES: usize = 600;
    let consumer = set.stream.consumer(set.input.clone()).spawn().unwrap();
    set.note(&format!("full {}", wait_until_full(&consumer)));
    let numbers = consumer.timeout_iter(LONG).take(ENTRIES).map(|delivery| {
        let delivery = delivery.unwrap();
        let number = number(&delivery);
        delivery.ack().unwrap();
        number
    });
    let numbers = distinct(numbers.collect());
    set.note(&format!("taken {} of {:?}", numbers.len(), consumer.stats()));
    wait_for_end_of_input();
    consumer.close().unwrap();
}

/// Stops while nobody takes what has been read, and waits.
fn stop_with_a_full_queue(mut set: Part) {
    let consumer = set.stream.consumer(set.input.clone()).spawn().unwrap();
    wait_until_full(&consumer);
    consumer.stop_handle().stop();
    set.note("stopped");
    wait_for_end_of_input();
    consumer.close().unwrap();
}

/// Entries whose text begins like this bring the process down.
pub(crate) const POISON: &str = "poison";
/// How often such an entry is handed out.
pub(crate) const POISON_DELIVERIES: u64 = 3;

/// Handles entries until one of them is poison, which is the end of it.
fn abort_at_poison(mut set: Part) {
    let builder = set.stream.consumer(set.input.clone()).prefetch(256);
    let consumer = builder.max_deliveries(POISON_DELIVERIES).dead_letter(set.dead.clone()).spawn().unwrap();
    let handle = consumer.stop_handle();
    thread::spawn(move || {
        wait_for_end_of_input();
        handle.stop();
    });
    for delivery in &consumer {
        let delivery = delivery.unwrap();
        let text = delivery.text().unwrap();
        set.note(&format!("got {text}"));
        if text.starts_with(POISON) {
            std::process::abort();
        }
        delivery.ack().unwrap();
    }
    consumer.close().unwrap();
}

/// Starts and ends consumers in every way: no thread and no descriptor stays.
fn leave_nothing_behind(mut set: Part) {
    let one = |round: usize| {
        let consumer = set.stream.consumer(set.input.clone()).spawn().unwrap();
        match round % 4 {
            0 => drop(consumer),
            1 => drop(consumer.close().unwrap()),
            2 => {
                consumer.stop_handle().stop();
                assert!(consumer.into_iter().next().is_none());
            }
            _ => {
                let receiver = consumer.receiver().clone();
                drop(consumer);
                assert!(receiver.recv().is_err());
            }
        }
    };
    // A thread that was joined is gone from the list only when the system has run it to its end, which takes a while on a
    // busy machine.
    let only_the_pool_is_left = || threads_named("step-redis") == threads_named("step-redis-pool");
    one(0);
    wait_until(LONG, only_the_pool_is_left);
    let before = (thread_count(), open_descriptors());
    (0..40).for_each(one);
    wait_until(LONG, only_the_pool_is_left);
    assert_eq!((thread_count(), open_descriptors()), before);
    set.note("tidy");
    wait_for_end_of_input();
}
