//! The same by hand on the `redis` crate: one thread that reads, and a channel. No reconnect, no leases, no claims.

use redis::Value;
use redis::streams::{StreamReadOptions, StreamReadReply};
use redis::TypedCommands;

fn main() -> redis::RedisResult<()> {
    let url = std::env::args().nth(1).unwrap_or_else(|| "redis://127.0.0.1".to_owned());
    let client = redis::Client::open(url)?;
    let (mut reading, mut acking) = (client.get_connection()?, client.get_connection()?);
    let _: redis::RedisResult<()> = reading.xgroup_create_mkstream("orders", "billing", "$");
    let (sender, receiver) = std::sync::mpsc::sync_channel(256);
    std::thread::spawn(move || -> redis::RedisResult<()> {
        let options = StreamReadOptions::default().group("billing", "bare").count(128).block(5000);
        loop {
            let reply: Option<StreamReadReply> = reading.xread_options(&["orders"], &[">"], &options)?;
            for entry in reply.into_iter().flat_map(|reply| reply.keys).flat_map(|key| key.ids) {
                if sender.send(entry).is_err() {
                    return Ok(());
                }
            }
        }
    });
    for entry in receiver {
        if let Some(Value::BulkString(text)) = entry.map.get("message") {
            println!("{}", String::from_utf8_lossy(text));
        }
        let _ = acking.xack("orders", "billing", &[&entry.id])?;
    }
    Ok(())
}
