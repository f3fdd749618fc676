//! Publishes messages to one stream and receives them from another, as a member of a consumer group.
//!
//! ```sh
//! cargo run --example stream_demo                 # until Ctrl-C
//! cargo run --example stream_demo -- --count 10   # ends by itself, with a summary
//!
//! REDIS_URL=redis://127.0.0.1:6379 cargo run --example stream_demo
//! ```
//!
//! With `REDIS_URL` it uses that server. Without, it starts a private `redis-server` (or `valkey-server`) in a temporary
//! folder, and stops it at the end. `RUST_LOG=debug` shows more.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

mod common;
mod private_server;

use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

use common::{AnyError, with_causes};
use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded, unbounded};
use log::{info, warn};
use private_server::PrivateServer;
use step_redis::{
    Delivery, EntryId, Error, Message, PoolParams, Result, StartId, StepPool, StepStream, StreamInput, StreamOutput,
};

/// The time between two messages.
const PAUSE: Duration = Duration::from_millis(200);
/// How long Ctrl-C lets the demo finish what it is doing.
const GRACE: Duration = Duration::from_millis(100);
/// The field in which the echo says which message it is the echo of.
const ECHO_OF: &str = "echo-of";

/// A pool with the demo's parameters.
struct DemoRedisPool(StepPool);

impl DemoRedisPool {
    fn connect(server: PoolParams) -> Result<DemoRedisPool> {
        // One connection for the demo's loop, and one for the echo. The other parameters keep their defaults: 30 s for a
        // command, 30 s to connect, a health check after 20 s of idleness, RESP3.
        let params = server.max_connections(2).connection_available_timeout(Duration::from_secs(2));
        StepPool::connect(params).map(DemoRedisPool)
    }
}

/// A stream interface that knows what the demo reads and writes.
struct DemoRedisStream {
    stream: StepStream,
    input: StreamInput,
    output: StreamOutput,
}

impl DemoRedisStream {
    fn new(pool: &DemoRedisPool, consumer_name: &str) -> DemoRedisStream {
        DemoRedisStream {
            stream: StepStream::new(pool.0.clone()),
            input: StreamInput::new("demoInputStream", "demoGroup")
                .consumer(consumer_name)
                .wait_timeout(Duration::from_secs(5))
                .ttl(Duration::from_secs(30)),
            output: StreamOutput::new("demoOutputStream").max_length(1000).ttl(Duration::from_secs(120)),
        }
    }

    /// Creates the demo input stream with its consumer group.
    fn create_demo_input_stream(&self) -> Result<()> {
        self.stream.create_input_stream(&self.input)?;
        Ok(())
    }

    /// Publishes a message to the demo output stream, which expires 120 seconds after the last one.
    fn publish_msg(&self, message: &str) -> Result<EntryId> {
        self.stream.publish(&self.output, message)
    }

    /// Waits for a message from the demo input stream.
    fn receive_msg(&self) -> Result<Option<Delivery>> {
        self.stream.receive(&self.input)
    }
}

/// Publishes and receives until `count` messages are through, or until it is told to stop.
fn demo(server: PoolParams, count: Option<u64>, events: Sender<Event>, stopped: Receiver<()>) -> Result<(), AnyError> {
    let pool = DemoRedisPool::connect(server)?;
    let stream = DemoRedisStream::new(&pool, "demo_1");
    info!("Stream input connection established");

    stream.create_demo_input_stream()?;
    start_echo(&pool, events, stopped.clone())?;

    let mut summary = Summary::default();
    for number in 1..=count.unwrap_or(u64::MAX) {
        let message = format!("Hello, this is message {number} from the Demo!");
        match publish_and_receive(&stream, &message, &mut summary) {
            // When the demo is over, the server may go away first. That is no news.
            Err(error) if !is_stopped_within(Duration::ZERO, &stopped) => {
                carry_on_after(error, || stream.create_demo_input_stream())?;
            }
            _ => {}
        }
        if is_stopped_within(PAUSE, &stopped) {
            break;
        }
    }

    let pending = stream.stream.pending(&stream.input)?.total;
    summary.print(pending);
    match count {
        Some(count) if summary.received < count && !is_stopped_within(Duration::ZERO, &stopped) => {
            Err(format!("only {} of {count} messages came back", summary.received).into())
        }
        _ => Ok(()),
    }
}

fn publish_and_receive(stream: &DemoRedisStream, message: &str, summary: &mut Summary) -> Result<()> {
    let started = Instant::now();
    let id = stream.publish_msg(message)?;
    summary.published += 1;

    while let Some(delivery) = stream.receive_msg()? {
        info!("Received message: {}", delivery.text()?);
        let is_echo = delivery.field(ECHO_OF) == Some(id.to_string().as_bytes());
        // Until here, an error would have left the message pending, and it would have come again.
        delivery.ack()?;
        // An earlier run may have left messages behind. They come first.
        if is_echo {
            summary.count_received(started.elapsed());
            return Ok(());
        }
    }
    warn!("Nothing received");
    Ok(())
}

/// Stands for the rest of the world: moves every message from the demo's output stream to its input stream. It ends with
/// the process.
fn start_echo(pool: &DemoRedisPool, events: Sender<Event>, stopped: Receiver<()>) -> Result<(), AnyError> {
    let stream = StepStream::new(pool.0.clone());
    let input = StreamInput::new("demoOutputStream", "echoGroup")
        .consumer("echo_1")
        .ttl(Duration::from_secs(120))
        .start(StartId::New);
    let output = StreamOutput::new("demoInputStream").max_length(1000).ttl(Duration::from_secs(30));
    stream.create_input_stream(&input)?;

    let echo = move || -> Result<()> {
        loop {
            if let Err(error) = echo_one(&stream, &input, &output) {
                if is_stopped_within(PAUSE, &stopped) {
                    return Ok(());
                }
                carry_on_after(error, || stream.create_input_stream(&input).map(drop))?;
            }
        }
    };
    thread::Builder::new().name("echo".into()).spawn(move || {
        if let Err(error) = echo() {
            // Fails only when the demo is over.
            let _ = events.send(Event::Ended(Err(error.into())));
        }
    })?;
    Ok(())
}

fn echo_one(stream: &StepStream, input: &StreamInput, output: &StreamOutput) -> Result<()> {
    if let Some(delivery) = stream.receive(input)? {
        let mut message = Message::new();
        for (name, value) in delivery.fields() {
            message = message.field(name, value);
        }
        stream.publish(output, message.field(ECHO_OF, delivery.id().to_string()))?;
        delivery.ack()?;
    }
    Ok(())
}

/// Most errors are no reason to give up: a stream that has expired is made again, and for a connection that was lost the
/// pool opens another.
fn carry_on_after(error: Error, create_stream: impl FnOnce() -> Result<()>) -> Result<()> {
    if error.is_group_missing() {
        warn!("Creating the stream anew: {}", with_causes(&error));
        create_stream()
    } else if error.is_retryable() {
        warn!("Trying again: {}", with_causes(&error));
        Ok(())
    } else {
        Err(error)
    }
}

/// What the demo has seen.
#[derive(Default)]
struct Summary {
    published: u64,
    received: u64,
    total: Duration,
    longest: Duration,
}

impl Summary {
    fn count_received(&mut self, took: Duration) {
        self.received += 1;
        self.total += took;
        self.longest = self.longest.max(took);
    }

    fn print(&self, pending: u64) {
        let mean = self.total.div_f64(self.received.max(1) as f64);
        println!(
            "published {}, received {}, pending {pending}; from publish to receive {mean:.1?} on average, {:.1?} at most",
            self.published, self.received, self.longest,
        );
    }
}

/// What the main thread waits for.
enum Event {
    CtrlC,
    Ended(Result<(), AnyError>),
}

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    common::exit_code(run())
}

fn run() -> Result<(), AnyError> {
    let count = count_from_arguments()?;
    let (events, event) = unbounded();
    let ctrl_c = events.clone();
    ctrlc::set_handler(move || drop(ctrl_c.send(Event::CtrlC)))?;

    // Stops the private server, whichever way this function is left.
    let private_server;
    let server = match std::env::var("REDIS_URL").ok().filter(|url| !url.is_empty()) {
        Some(url) => PoolParams::from_url(&url)?,
        None => {
            private_server = PrivateServer::start()?;
            private_server.params()
        }
    };

    // Nothing is ever sent through this channel. Closing it tells every thread that the demo is over.
    let (stop, stopped) = bounded(0);
    thread::Builder::new().name("demo".into()).spawn(move || {
        let ended = demo(server, count, events.clone(), stopped);
        // Fails only when Ctrl-C has ended the demo first.
        let _ = events.send(Event::Ended(ended));
    })?;

    let first = event.recv()?;
    drop(stop);
    match first {
        Event::Ended(ended) => ended,
        Event::CtrlC => {
            info!("Stopping");
            // A loop that is between two messages ends at once. One that is waiting for the network is left behind: what
            // it was about to receive stays pending, and comes again.
            match event.recv_timeout(GRACE) {
                Ok(Event::Ended(ended)) => ended,
                _ => Ok(()),
            }
        }
    }
}

fn is_stopped_within(time: Duration, stopped: &Receiver<()>) -> bool {
    stopped.recv_timeout(time) == Err(RecvTimeoutError::Disconnected)
}

fn count_from_arguments() -> Result<Option<u64>, AnyError> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [] => Ok(None),
        ["--count", count] => match count.parse() {
            Ok(count) if count > 0 => Ok(Some(count)),
            _ => Err(format!("--count takes a number of messages, not {count:?}").into()),
        },
        _ => Err("usage: stream_demo [--count N]".into()),
    }
}
