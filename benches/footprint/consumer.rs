//! A minimal consumer: prints what comes and acknowledges it.

use step_redis::{PoolParams, StepPool, StepStream, StreamInput};

fn main() -> Result<(), step_redis::Error> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "redis://127.0.0.1".to_owned());
    let stream = StepStream::new(StepPool::connect(PoolParams::from_url(&url)?)?);
    let consumer = stream.consumer(StreamInput::new("orders", "billing")).spawn()?;
    for delivery in &consumer {
        let delivery = delivery?;
        println!("{}", delivery.text()?);
        delivery.ack()?;
    }
    consumer.close()?;
    Ok(())
}
