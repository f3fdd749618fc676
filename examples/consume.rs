//! Receives messages as a member of a consumer group, until Ctrl-C.
//!
//! ```sh
//! # terminal 1, and any number of others: each message goes to one of them
//! cargo run --example consume
//!
//! # terminal 2
//! cargo run --example publish -- "two coffees" "one tea"
//! ```
//!
//! The server is `redis://127.0.0.1:6379`, unless `REDIS_URL` names another one. `RUST_LOG=info` tells when the server was
//! lost and found again.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

mod common;

use std::process::ExitCode;

use common::AnyError;
use step_redis::{StepPool, StepStream, StreamInput};

fn main() -> ExitCode {
    env_logger::init();
    common::exit_code(run())
}

fn run() -> Result<(), AnyError> {
    let stream = StepStream::new(StepPool::connect(common::server()?)?);
    let consumer = stream.consumer(StreamInput::new("orders", "kitchen")).spawn()?;
    let stop = consumer.stop_handle();
    ctrlc::set_handler(move || stop.stop())?;
    println!("{} waits for orders; Ctrl-C ends it", consumer.name());

    for delivery in &consumer {
        let delivery = delivery?;
        println!("{} {}", delivery.id(), String::from_utf8_lossy(delivery.payload()));
        // If this line is not reached, the message comes again: to another member of the group, or to the next run.
        delivery.ack()?;
    }

    let stats = consumer.close()?;
    println!("received {}, acknowledged {}", stats.received, stats.acked);
    Ok(())
}
