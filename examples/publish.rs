//! Publishes messages: its arguments, or else each line of its input.
//!
//! ```sh
//! # terminal 1, until Ctrl-C
//! cargo run --example consume
//!
//! # terminal 2
//! cargo run --example publish -- "two coffees" "one tea"
//! seq 1000 | cargo run --example publish
//! cargo run --example publish -- --stream alarms "the milk boils over"
//! ```
//!
//! The server is `redis://127.0.0.1:6379`, unless `REDIS_URL` names another one.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

mod common;

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use common::AnyError;
use step_redis::{StepPool, StepStream, StreamOutput};

fn main() -> ExitCode {
    common::exit_code(run())
}

fn run() -> Result<(), AnyError> {
    // Each message is at the server before the next one is read, so there is nothing to finish.
    ctrlc::set_handler(|| std::process::exit(0))?;
    let mut messages: Vec<String> = std::env::args().skip(1).collect();
    let mut stream_id = "orders".to_owned();
    if messages.first().is_some_and(|first| first == "--stream") {
        messages.remove(0);
        stream_id = messages.drain(..messages.len().min(1)).next().ok_or("--stream takes the name of a stream")?;
    }

    let stream = StepStream::new(StepPool::connect(common::server()?)?);
    // The stream keeps about the last 100,000 messages, and vanishes an hour after the last one.
    let output = StreamOutput::new(stream_id).max_length(100_000).ttl(Duration::from_secs(3600));
    let publish = |message: &str| -> Result<(), AnyError> {
        let id = stream.publish(&output, message)?;
        println!("{id} {message}");
        Ok(())
    };
    if messages.is_empty() {
        for line in io::stdin().lines() {
            publish(&line?)?;
        }
    }
    messages.iter().try_for_each(|message| publish(message))
}
