//! Publishing, consuming, losing connections and starting anew, over and over: memory and descriptors stay where they are.
//!
//! `SOAK_MINUTES` says how long (a tenth of a minute if unset). What is measured is printed.

#[path = "common/mod.rs"]
mod common;

use std::thread;
use std::time::{Duration, Instant};

use common::{Proxy, Server, open_descriptors, resident_memory, thread_count, wait_until};
use step_redis::{Backoff, Consumer, ConsumerBuilder, PoolParams, StepPool, StepStream, StreamInput, StreamOutput};

/// How long one step of a cycle may take.
const STEP: Duration = Duration::from_secs(30);
/// Messages of a cycle, of each kind.
const MESSAGES: usize = 100;
/// What the allocator may keep more in the second half of the run than in the first.
const GROWTH: u64 = 4 * 1024 * 1024;
/// Cycles before the first measurement, in which buffers and the allocator find their sizes.
const WARM_UP: usize = 3;

#[test]
fn memory_and_descriptors_stay_flat() {
    let minutes: f64 =
        std::env::var("SOAK_MINUTES").map_or(0.1, |text| text.parse().expect("SOAK_MINUTES is a number"));
    let server = Server::start();
    let proxy = Proxy::start(server.port());
    let steady = Steady::start(&server, &proxy);
    (0..WARM_UP).for_each(|_| steady.cycle());
    // The reader's and the keeper's connection, the publisher's, and one in the pool. The keeper makes its own when it next
    // has something to do, which it has once a second.
    wait_until(STEP, || server.connected_clients() == 4);
    let (threads, descriptors) = (thread_count(), open_descriptors());

    let (started, limit) = (Instant::now(), Duration::from_secs_f64(minutes * 60.0));
    let mut memory = Vec::new();
    // Enough cycles for a comparison, however slow the machine is.
    while started.elapsed() < limit || memory.len() < 10 {
        steady.cycle();
        wait_until(STEP, || thread_count() <= threads && open_descriptors() <= descriptors);
        memory.push(resident_memory(std::process::id()));
    }

    let (first, second) = memory.split_at(memory.len() / 2);
    let (first, second) = (median(first), median(second));
    report(&format!(
        "{} cycles, {} KiB in the first half, {} KiB in the second",
        memory.len(),
        first / 1024,
        second / 1024
    ));
    assert!(second < first + GROWTH, "from {first} to {second} bytes in {} cycles: {memory:?}", memory.len());
    drop(steady);
    wait_until(STEP, || server.connected_clients() == 0);
}

/// What lives as long as the run: a pool, a publisher and a consumer, whose connections are cut in each cycle.
struct Steady<'run> {
    server: &'run Server,
    proxy: &'run Proxy,
    stream: StepStream,
    output: StreamOutput,
    publisher: step_redis::Publisher,
    consumer: Consumer,
}

impl<'run> Steady<'run> {
    fn start(server: &'run Server, proxy: &'run Proxy) -> Steady<'run> {
        let stream = connect(proxy);
        let output = StreamOutput::new("steady").max_length(1000);
        let publisher = stream.publisher(output.clone());
        let consumer = builder(&stream, "steady").spawn().unwrap();
        Steady { server, proxy, stream, output, publisher, consumer }
    }

    fn cycle(&self) {
        self.publish_and_take();
        self.lose_connections();
        self.publish_and_take();
        self.start_anew();
        assert_eq!(self.consumer.stats().in_flight, 0);
    }

    fn publish_and_take(&self) {
        let messages = || (0..MESSAGES).map(|number| format!("message {number} {}", "x".repeat(number)));
        self.stream.publish_batch(&self.output, messages()).unwrap();
        for message in messages() {
            self.publisher.publish(message).unwrap();
        }
        take(&self.consumer, 2 * MESSAGES);
        wait_until(STEP, || self.consumer.stats().in_flight == 0);
    }

    /// The connections are lost, and everybody has found another.
    fn lose_connections(&self) {
        let reconnects = self.consumer.stats().reconnects;
        self.proxy.reset();
        self.server.command(&["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]);
        wait_until(STEP, || self.consumer.stats().reconnects > reconnects);
        wait_until(STEP, || self.stream.publish(&self.output, "again").is_ok());
        wait_until(STEP, || self.publisher.publish("again").is_ok());
        take(&self.consumer, 2);
    }

    /// A pool and a consumer that live for a moment.
    fn start_anew(&self) {
        let stream = connect(self.proxy);
        let output = StreamOutput::new("short").max_length(1000);
        let consumer = builder(&stream, "short").spawn().unwrap();
        thread::scope(|scope| {
            for number in 0..4 {
                let (stream, output) = (&stream, &output);
                scope.spawn(move || {
                    for _ in 0..10 {
                        stream.publish(output, format!("{number}")).unwrap();
                    }
                });
            }
        });
        take(&consumer, 40);
        consumer.close().unwrap();
    }
}

fn connect(proxy: &Proxy) -> StepStream {
    StepStream::new(StepPool::connect(PoolParams::new("127.0.0.1", proxy.port())).unwrap())
}

fn builder(stream: &StepStream, name: &str) -> ConsumerBuilder {
    stream.consumer(StreamInput::new(name, "group")).backoff(Backoff::new(Duration::from_millis(5), STEP))
}

fn take(consumer: &Consumer, count: usize) {
    let mut taken = 0;
    for delivery in consumer.timeout_iter(STEP).take(count) {
        delivery.unwrap().ack().unwrap();
        taken += 1;
    }
    assert_eq!(taken, count);
}

fn median(values: &[u64]) -> u64 {
    let mut values = values.to_vec();
    values.sort_unstable();
    values[values.len() / 2]
}

#[expect(clippy::print_stderr, reason = "a long run wants its result")]
fn report(text: &str) {
    eprintln!("{text}");
}
