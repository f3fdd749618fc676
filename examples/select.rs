//! Two consumers and a clock in one thread, with `crossbeam_channel::select!`.
//!
//! ```sh
//! # terminal 1, until Ctrl-C
//! cargo run --example select
//!
//! # terminal 2
//! cargo run --example publish -- "two coffees" "one tea"
//! cargo run --example publish -- --stream alarms "the milk boils over"
//! ```
//!
//! The server is `redis://127.0.0.1:6379`, unless `REDIS_URL` names another one. `RUST_LOG=info` tells when the server was
//! lost and found again.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

mod common;

use std::process::ExitCode;
use std::time::Duration;

use common::AnyError;
use crossbeam_channel::{RecvError, bounded, select, tick};
use step_redis::{Delivery, Result, StepPool, StepStream, StreamInput};

fn main() -> ExitCode {
    env_logger::init();
    common::exit_code(run())
}

fn run() -> Result<(), AnyError> {
    let stream = StepStream::new(StepPool::connect(common::server()?)?);
    let orders = stream.consumer(StreamInput::new("orders", "office")).spawn()?;
    let alarms = stream.consumer(StreamInput::new("alarms", "office")).spawn()?;
    let clock = tick(Duration::from_secs(1));
    let (pressed, ctrl_c) = bounded(1);
    ctrlc::set_handler(move || {
        // A second Ctrl-C finds the channel full, or closed. The first one is enough.
        let _ = pressed.try_send(());
    })?;
    println!("waiting for orders and alarms; Ctrl-C ends it");

    let mut in_this_second = 0;
    loop {
        select! {
            recv(orders.receiver()) -> order => show("order", order)?,
            recv(alarms.receiver()) -> alarm => show("ALARM", alarm)?,
            recv(clock) -> _ => {
                println!("{in_this_second} in the last second");
                in_this_second = 0;
                continue;
            }
            recv(ctrl_c) -> _ => break,
        }
        in_this_second += 1;
    }

    // What was not taken from the channels stays pending, and comes with the next run.
    let (orders, alarms) = (orders.close()?, alarms.close()?);
    println!("acknowledged {} orders and {} alarms", orders.acked, alarms.acked);
    Ok(())
}

/// The channel's own error means that the consumer has ended; it has told why before.
fn show(kind: &str, received: Result<Result<Delivery>, RecvError>) -> Result<(), AnyError> {
    let delivery = received??;
    println!("{kind} {} {}", delivery.id(), String::from_utf8_lossy(delivery.payload()));
    delivery.ack()?;
    Ok(())
}
