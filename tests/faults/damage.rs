//! Real replies, truncated and with flipped bits: an error or a valid value, never a panic, a hang or memory that only an
//! announcement asked for.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redis::{Cmd, ConnectionLike};
use step_redis::redis;
use step_redis::{Protocol, Result, StepPool, StepStream, StreamInput, StreamOutput};

use crate::common::{Behaviour, Peer, resident_memory};
use crate::support::{Scene, quick};

const TRIALS: usize = 10_000;
/// A damaged length may keep the client waiting for bytes; the peer hangs up, so this long only when something is wrong.
const SOCKET_TIMEOUT: Duration = Duration::from_secs(5);
const MOST_MEMORY: u64 = 128 * 1024 * 1024;

/// How a reply is asked for.
type Ask = fn(&StepStream, &StreamInput, &StreamOutput) -> Result<()>;

#[test]
fn ten_thousand_damaged_replies_are_errors_or_values() {
    let asks: Vec<(Ask, Vec<u8>, Vec<u8>)> = recorded();
    let next = Arc::new(Mutex::new(Vec::<u8>::new()));
    let reply = Arc::clone(&next);
    // Answers the handshake, then one request with what is to be tried, and hangs up.
    let peer = Peer::tcp(Behaviour::custom(move |conversation| {
        conversation.handshake()?;
        conversation.request()?;
        let bytes = reply.lock().unwrap().clone();
        conversation.send(&bytes)?;
        conversation.close();
        Ok(())
    }));
    let params = |protocol| {
        let params = quick(peer.port()).socket_timeout(SOCKET_TIMEOUT).protocol(protocol).max_connections(1);
        StepStream::new(StepPool::new(params).unwrap())
    };
    let (resp2, resp3) = (params(Protocol::Resp2), params(Protocol::Resp3));
    let (input, output) = (input(), StreamOutput::new("orders"));
    let memory = resident_memory(std::process::id());
    let mut random = Random(0x9E37_79B9_7F4A_7C15);
    let (mut values, mut hung) = (0, Vec::new());

    for trial in 0..TRIALS {
        let (ask, in_resp2, in_resp3) = &asks[trial % asks.len()];
        let (stream, whole) = if trial % 2 == 0 { (&resp2, in_resp2) } else { (&resp3, in_resp3) };
        let bytes = random.damage(whole);
        next.lock().unwrap().clone_from(&bytes);
        let started = Instant::now();
        if ask(stream, &input, &output).is_ok() {
            values += 1;
        }
        let took = started.elapsed();
        if took >= SOCKET_TIMEOUT {
            hung.push((trial, took, String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
    assert!(hung.is_empty(), "{hung:?}");
    assert!(values > 0 && values < TRIALS, "{values} of {TRIALS} were values");
    let grown = resident_memory(std::process::id()).saturating_sub(memory);
    assert!(grown < MOST_MEMORY, "{grown} bytes more than before");
}

fn input() -> StreamInput {
    StreamInput::new("orders", "group").consumer("consumer").wait_timeout(Duration::ZERO)
}

/// The calls, each with what a real server answers in RESP2 and in RESP3.
fn recorded() -> Vec<(Ask, Vec<u8>, Vec<u8>)> {
    let scene = Scene::new();
    let setup: [&[&str]; 6] = [
        &["XADD", "orders", "1-1", "message", "one coffee", "table", "7"],
        &["XADD", "orders", "2-1", "message", "deux cafés", "table", "7"],
        &["XADD", "orders", "3-1", "message", &"x".repeat(300)],
        &["XGROUP", "CREATE", "orders", "group", "0"],
        &["HSET", "hash", "pi", "3.14159", "empty", ""],
        &["SADD", "set", "member", "other"],
    ];
    for command in setup {
        scene.server.command(command);
    }
    let record = |commands: &[&str]| {
        [2, 3].map(|protocol| {
            scene.server.command(&["XGROUP", "SETID", "orders", "group", "0"]);
            answers(scene.server.port(), protocol, commands)
        })
    };
    let calls: [(Ask, &[&str]); 9] = [
        (
            |stream, input, _| stream.receive_batch(input, 10).map(drop),
            &["XREADGROUP GROUP group consumer COUNT 10 STREAMS orders >"],
        ),
        (
            |stream, input, _| stream.claim(input, Duration::ZERO, 10).map(drop),
            &["XAUTOCLAIM orders group consumer 0 0-0", "XPENDING orders group 1-1 1-1 1 consumer"],
        ),
        (|stream, input, _| stream.pending(input).map(drop), &["XPENDING orders group"]),
        (|stream, _, output| stream.publish(output, "text").map(drop), &["XADD orders * message text"]),
        (|stream, _, output| stream.publish_batch(output, ["text"]).map(drop), &["XADD hash * message text"]),
        (|stream, _, _| stream.info("orders").map(drop), &["XINFO STREAM orders", "XINFO GROUPS orders"]),
        (|stream, _, _| query(stream, "HGETALL", "hash"), &["HGETALL hash"]),
        (|stream, _, _| query(stream, "SMEMBERS", "set"), &["SMEMBERS set"]),
        (|stream, _, _| stream.update_stream_ttl("orders", SOCKET_TIMEOUT).map(drop), &["PEXPIRE orders 60000"]),
    ];
    calls
        .map(|(ask, commands)| {
            let [in_resp2, in_resp3] = record(commands);
            (ask, in_resp2, in_resp3)
        })
        .into()
}

fn query(stream: &StepStream, command: &str, key: &str) -> Result<()> {
    let mut connection = stream.pool().get()?;
    // Whether it is a value or an error is all the same; that it is one of them counts.
    let _ = connection.req_packed_command(&Cmd::new().arg(command).arg(key).get_packed_command());
    Ok(())
}

/// The bytes with which a real server answers, and nothing else.
fn answers(port: u16, protocol: u8, commands: &[&str]) -> Vec<u8> {
    let mut socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    exchange(&mut socket, &format!("HELLO {protocol}"));
    commands.iter().flat_map(|command| exchange(&mut socket, command)).collect()
}

/// Sends a command and, to mark the end of its answer, an `ECHO`.
fn exchange(socket: &mut TcpStream, command: &str) -> Vec<u8> {
    const MARK: &[u8] = b"$9\r\n--mark--!\r\n";
    let mut words = Cmd::new();
    command.split(' ').for_each(|word| {
        words.arg(word);
    });
    let mut request = words.get_packed_command();
    request.extend(Cmd::new().arg("ECHO").arg("--mark--!").get_packed_command());
    socket.write_all(&request).unwrap();
    let mut bytes = Vec::new();
    while !bytes.ends_with(MARK) {
        let mut buffer = [0; 4096];
        let count = socket.read(&mut buffer).unwrap();
        assert!(count > 0, "the server hung up");
        bytes.extend_from_slice(&buffer[..count]);
    }
    bytes.truncate(bytes.len() - MARK.len());
    bytes
}

/// A xorshift generator: the same damage in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound as u64) as usize
    }

    /// Cuts the end off, flips up to three bits, or both.
    fn damage(&mut self, whole: &[u8]) -> Vec<u8> {
        let mut bytes = whole.to_vec();
        let how = self.below(3);
        if how != 0 {
            for _ in 0..=self.below(3) {
                let at = self.below(bytes.len());
                bytes[at] ^= 1 << self.below(8);
            }
        }
        if how != 1 {
            bytes.truncate(self.below(bytes.len()));
        }
        bytes
    }
}
