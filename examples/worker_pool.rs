//! Threads that share the work of one consumer. What fails is tried again, a little later each time, and what fails too
//! often is put aside.
//!
//! ```sh
//! # terminal 1, until Ctrl-C
//! cargo run --example worker_pool
//!
//! # terminal 2
//! seq 1000 | cargo run --example publish
//! cargo run --example publish -- "fails once?" "fails always!"
//! ```
//!
//! The server is `redis://127.0.0.1:6379`, unless `REDIS_URL` names another one. `RUST_LOG=info` tells when the server was
//! lost and found again.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for the terminal")]

mod common;

use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use common::AnyError;
use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};
use step_redis::{Consumer, ConsumerStats, Delivery, Result, StepPool, StepStream, StreamInput, StreamOutput};

const WORKERS: usize = 4;
/// How often a job is tried.
const MOST_TRIES: u64 = 3;
/// The time between the first two tries of a job. It doubles from one to the next.
const FIRST_DELAY: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    env_logger::init();
    common::exit_code(run())
}

fn run() -> Result<(), AnyError> {
    let stream = StepStream::new(StepPool::connect(common::server()?)?);
    let put_aside = StreamOutput::new("orders:dead");
    let consumer = stream
        .consumer(StreamInput::new("orders", "workers"))
        .max_deliveries(MOST_TRIES)
        .dead_letter(put_aside.clone())
        .spawn()?;
    // The channel ends when the consumer has stopped and the last job in it is taken. That ends the workers.
    let stop = consumer.stop_handle();
    ctrlc::set_handler(move || stop.stop())?;
    println!("{WORKERS} workers wait for orders; Ctrl-C ends them");

    let worked = work_in_threads(&consumer);
    show(&consumer.close()?);
    for letter in stream.dead_letters(&put_aside, 10)? {
        println!("put aside: {} ({})", String::from_utf8_lossy(letter.payload()), letter.reason());
    }
    worked
}

/// Works until the consumer stops or fails, and tells every second how it goes.
fn work_in_threads(consumer: &Consumer) -> Result<(), AnyError> {
    thread::scope(|scope| {
        // Nothing is ever sent through this channel. It is closed when the last worker has ended.
        let (working, all_ended) = bounded::<()>(0);
        let mut workers = Vec::new();
        for number in 1..=WORKERS {
            let working = working.clone();
            let worker = thread::Builder::new().name(format!("worker-{number}")).spawn_scoped(scope, move || {
                let worked = work(consumer.receiver());
                drop(working);
                worked
            })?;
            workers.push(worker);
        }
        drop(working);

        while all_ended.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
            show(&consumer.stats());
        }
        for worker in workers {
            worker.join().map_err(|_| "a worker panicked")??;
        }
        Ok(())
    })
}

/// One worker's life. The only error that comes through the channel is one that ends the consumer.
fn work(jobs: &Receiver<Result<Delivery>>) -> Result<()> {
    for delivery in jobs {
        let delivery = delivery?;
        let id = delivery.id();
        // Whichever way it ends: as long as the server has not heard of it, the job stays pending and comes again.
        let ended = match delivery.text().map(|job| carry_out(job, delivery.delivery_count())) {
            Ok(Ok(())) => delivery.ack(),
            Ok(Err(_)) => {
                let doublings = delivery.delivery_count().clamp(1, MOST_TRIES) - 1;
                delivery.retry_after(FIRST_DELAY * (1 << doublings))
            }
            // No repetition makes it text.
            Err(not_text) => delivery.dead_letter(&not_text.to_string()),
        };
        if let Err(error) = ended {
            log::warn!("job {id} comes again: {}", common::with_causes(&error));
        }
    }
    Ok(())
}

/// Stands for real work.
fn carry_out(job: &str, tries: u64) -> Result<(), &'static str> {
    thread::sleep(Duration::from_millis(5));
    match job.chars().last() {
        Some('?') if tries == 1 => Err("not at the first try"),
        Some('!') => Err("never"),
        _ => Ok(()),
    }
}

fn show(stats: &ConsumerStats) {
    println!(
        "received {}, done {}, to be tried again {}, put aside {}, queued {}, in hand {}",
        stats.received, stats.acked, stats.released, stats.dead_lettered, stats.queued, stats.in_flight,
    );
}
