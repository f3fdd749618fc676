//! The ways to publish and to consume that are compared: on the raw socket, with the `redis` crate, and with ours.

use std::hint::black_box;
use std::time::Duration;

use redis::Value;
use step_redis::{Delivery, PoolParams, StepPool, StepStream, StreamInput, StreamOutput};

use super::raw::{Raw, add_request, push_ack, read_request};

pub const GROUP: &str = "bench";
const READER: &str = "reader";

/// A payload of this many bytes.
pub fn payload(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| b'a' + (at % 26) as u8).collect()
}

/// Our interface to the server, with so many connections at most.
pub fn step(port: u16, connections: u32) -> StepStream {
    let params = PoolParams::new("127.0.0.1", port)
        .max_connections(connections)
        .connection_available_timeout(Duration::from_secs(30));
    StepStream::new(StepPool::connect(params).expect("the private server accepts"))
}

pub fn input(stream: &str) -> StreamInput {
    StreamInput::new(stream, GROUP).consumer(READER)
}

pub fn output(stream: &str) -> StreamOutput {
    StreamOutput::new(stream)
}

/// The `redis` crate's own connection.
pub fn redis(port: u16) -> redis::Connection {
    let client = redis::Client::open(("127.0.0.1", port)).expect("an address");
    let connection = client.get_connection().expect("the private server accepts");
    connection.set_read_timeout(Some(Duration::from_secs(30))).expect("a TCP socket");
    connection
}

/// A stream with `count` entries and a group that has seen none of them.
pub fn fill(raw: &mut Raw, stream: &str, payload: &[u8], count: usize) {
    clear(raw, stream);
    let request = add_request(stream, payload);
    let mut left = count;
    while left > 0 {
        let piece = left.min(256);
        raw.send(&request.repeat(piece));
        raw.replies(piece);
        left -= piece;
    }
    raw.call(&super::raw::request(&["XGROUP", "CREATE", stream, GROUP, "0", "MKSTREAM"]));
}

pub fn clear(raw: &mut Raw, stream: &str) {
    raw.call(&super::raw::request(&["DEL", stream]));
}

/// How many entries were delivered and not acknowledged.
pub fn pending(connection: &mut redis::Connection, stream: &str) -> u64 {
    let summary: Value = redis::cmd("XPENDING").arg(stream).arg(GROUP).query(connection).expect("a group");
    match summary {
        Value::Array(parts) => match parts.first() {
            Some(Value::Int(count)) => *count as u64,
            other => panic!("XPENDING answers {other:?}"),
        },
        other => panic!("XPENDING answers {other:?}"),
    }
}

// Publishing: `count` messages, each confirmed before the next.

pub fn raw_publish(raw: &mut Raw, request: &[u8], count: usize) {
    for _ in 0..count {
        raw.call(request);
    }
}

pub fn redis_publish(connection: &mut redis::Connection, stream: &str, payload: &[u8], count: usize) {
    for _ in 0..count {
        let id: String = add_command(stream, payload).query(connection).expect("the server answers");
        black_box(id);
    }
}

pub fn step_publish(step: &StepStream, output: &StreamOutput, payload: &[u8], count: usize) {
    for _ in 0..count {
        black_box(step.publish(output, payload).expect("the server answers"));
    }
}

// Publishing in batches, each confirmed before the next.

pub fn raw_publish_batches(raw: &mut Raw, requests: &[u8], batch: usize, batches: usize) {
    for _ in 0..batches {
        raw.send(requests);
        raw.replies(batch);
    }
}

/// The same with two batches under way.
pub fn raw_publish_pipelined(raw: &mut Raw, requests: &[u8], batch: usize, batches: usize) {
    raw.send(requests);
    for _ in 1..batches {
        raw.send(requests);
        raw.replies(batch);
    }
    raw.replies(batch);
}

pub fn redis_publish_batches(
    connection: &mut redis::Connection,
    stream: &str,
    payload: &[u8],
    batch: usize,
    batches: usize,
) {
    for _ in 0..batches {
        let mut pipe = redis::Pipeline::with_capacity(batch);
        for _ in 0..batch {
            pipe.add_command(add_command(stream, payload));
        }
        let ids: Vec<String> = pipe.query(connection).expect("the server answers");
        black_box(ids);
    }
}

pub fn step_publish_batches(step: &StepStream, output: &StreamOutput, payload: &[u8], batch: usize, batches: usize) {
    for _ in 0..batches {
        let ids = step.publish_batch(output, std::iter::repeat_n(payload, batch)).expect("the server answers");
        black_box(ids);
    }
}

fn add_command(stream: &str, payload: &[u8]) -> redis::Cmd {
    let mut command = redis::cmd("XADD");
    command.arg(stream).arg("*").arg("message").arg(payload);
    command
}

// Consuming: `count` entries, which are all there, in reads of `batch`.

/// Looks at a payload, as a handler would.
pub fn look_at(payload: &[u8]) {
    black_box(payload.first());
}

/// Reads without acknowledging.
pub fn raw_read(raw: &mut Raw, stream: &str, count: usize, batch: usize) {
    let read = read_request(stream, GROUP, batch, None);
    let (mut ids, mut taken) = (Vec::new(), 0);
    while taken < count {
        ids.clear();
        raw.send(&read);
        taken += some(raw.entries(&mut ids, look_at));
    }
}

/// A read, an acknowledgement of all it brought, the next read: each reply is awaited.
pub fn raw_consume(raw: &mut Raw, stream: &str, count: usize, batch: usize) {
    let read = read_request(stream, GROUP, batch, None);
    let (mut ids, mut acks, mut taken) = (Vec::new(), Vec::new(), 0);
    while taken < count {
        ids.clear();
        raw.send(&read);
        let entries = some(raw.entries(&mut ids, look_at));
        taken += entries;
        acks.clear();
        push_ack(&mut acks, stream, GROUP, &ids, entries);
        raw.call(&acks);
    }
}

/// Two reads under way, and the acknowledgements ride with the next read.
pub fn raw_consume_pipelined(raw: &mut Raw, stream: &str, count: usize, batch: usize) {
    let read = read_request(stream, GROUP, batch, None);
    let (mut ids, mut out, mut taken, mut asked) = (Vec::new(), Vec::new(), 0, 0);
    // For each request under way, whether an acknowledgement goes before the read.
    let mut under_way = std::collections::VecDeque::new();
    for _ in 0..2 {
        if asked < count {
            raw.send(&read);
            under_way.push_back((false, true));
            asked += batch;
        }
    }
    while let Some((with_ack, with_read)) = under_way.pop_front() {
        if with_ack {
            raw.reply();
        }
        if !with_read {
            continue;
        }
        ids.clear();
        let entries = some(raw.entries(&mut ids, look_at));
        taken += entries;
        out.clear();
        push_ack(&mut out, stream, GROUP, &ids, entries);
        let more = asked < count;
        if more {
            out.extend_from_slice(&read);
            asked += batch;
        }
        raw.send(&out);
        under_way.push_back((true, more));
    }
    assert!(taken >= count, "{taken} of {count} entries");
}

/// A read of one entry, its acknowledgement, the next read: each reply is awaited.
pub fn raw_consume_each(raw: &mut Raw, stream: &str, count: usize) {
    raw_consume(raw, stream, count, 1);
}

/// Reads without acknowledging.
pub fn redis_read(connection: &mut redis::Connection, stream: &str, count: usize, batch: usize) {
    let mut taken = 0;
    while taken < count {
        let reply: Value = read_command(stream, batch).query(connection).expect("the server answers");
        taken += some(decode(reply).len());
    }
}

/// The `redis` crate's best: the acknowledgements of the last read go with the next one, and the reply is taken apart
/// without its own types for streams, which copy it all once more.
pub fn redis_consume(connection: &mut redis::Connection, stream: &str, count: usize, batch: usize) {
    let mut taken = 0;
    let mut ids: Vec<Vec<u8>> = Vec::new();
    while taken < count {
        let mut pipe = redis::pipe();
        if !ids.is_empty() {
            pipe.cmd("XACK").arg(stream).arg(GROUP).arg(&ids).ignore();
        }
        pipe.add_command(read_command(stream, batch));
        let (reply,): (Value,) = pipe.query(connection).expect("the server answers");
        let entries = decode(reply);
        taken += some(entries.len());
        ids = entries.into_iter().map(|(id, _)| id).collect();
    }
    redis_ack(connection, stream, &ids);
}

pub fn redis_consume_each(connection: &mut redis::Connection, stream: &str, count: usize) {
    for _ in 0..count {
        let reply: Value = read_command(stream, 1).query(connection).expect("the server answers");
        for (id, _) in decode(reply) {
            redis_ack(connection, stream, &[id]);
        }
    }
}

pub fn redis_ack(connection: &mut redis::Connection, stream: &str, ids: &[Vec<u8>]) {
    let _: u64 = redis::cmd("XACK").arg(stream).arg(GROUP).arg(ids).query(connection).expect("the server answers");
}

fn read_command(stream: &str, batch: usize) -> redis::Cmd {
    let mut command = redis::cmd("XREADGROUP");
    command.arg("GROUP").arg(GROUP).arg(READER).arg("COUNT").arg(batch).arg("STREAMS").arg(stream).arg(">");
    command
}

/// The ids and payloads of a reply to `XREADGROUP`.
pub fn decode(reply: Value) -> Vec<(Vec<u8>, Vec<u8>)> {
    let Value::Array(streams) = reply else { return Vec::new() };
    let Some(Value::Array(stream)) = streams.into_iter().next() else { return Vec::new() };
    let Some(Value::Array(entries)) = stream.into_iter().nth(1) else { return Vec::new() };
    entries.into_iter().filter_map(entry).collect()
}

fn entry(entry: Value) -> Option<(Vec<u8>, Vec<u8>)> {
    let Value::Array(parts) = entry else { return None };
    let mut parts = parts.into_iter();
    let (Some(Value::BulkString(id)), Some(Value::Array(fields))) = (parts.next(), parts.next()) else { return None };
    let Some(Value::BulkString(payload)) = fields.into_iter().nth(1) else { return None };
    look_at(&payload);
    Some((id, payload))
}

/// Receives without acknowledging.
pub fn step_read(step: &StepStream, input: &StreamInput, count: usize, batch: usize) {
    let mut taken = 0;
    while taken < count {
        let deliveries = step.receive_batch(input, batch).expect("the server answers");
        taken += some(deliveries.len());
        for delivery in deliveries {
            look_at(delivery.payload());
            delivery.leave();
        }
    }
}

/// A read, one XACK for all it brought, the next read.
pub fn step_consume(step: &StepStream, input: &StreamInput, count: usize, batch: usize) {
    let mut taken = 0;
    while taken < count {
        let deliveries = step.receive_batch(input, batch).expect("the server answers");
        taken += some(deliveries.len());
        deliveries.iter().map(Delivery::payload).for_each(look_at);
        Delivery::ack_batch(deliveries).expect("the server answers");
    }
}

/// The acknowledgements go with the next read.
pub fn step_consume_riding(step: &StepStream, input: &StreamInput, count: usize, batch: usize) {
    let (mut deliveries, mut taken) = (Vec::new(), 0);
    while taken < count {
        deliveries = step.ack_and_receive_batch(deliveries, input, batch).expect("the server answers");
        taken += some(deliveries.len());
        deliveries.iter().map(Delivery::payload).for_each(look_at);
    }
    Delivery::ack_batch(deliveries).expect("the server answers");
}

pub fn step_consume_each(step: &StepStream, input: &StreamInput, count: usize) {
    for _ in 0..count {
        let delivery = step.receive(input).expect("the server answers").expect("an entry is there");
        look_at(delivery.payload());
        delivery.ack().expect("the server answers");
    }
}

/// A read that brings nothing would be repeated for ever.
fn some(entries: usize) -> usize {
    assert!(entries > 0, "fewer entries than were filled in");
    entries
}
