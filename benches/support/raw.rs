//! The reference: a socket, requests that were encoded beforehand, and replies that are scanned where they lie.

use std::hint::black_box;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// What is read at once; the same as the library does.
const READ_SIZE: usize = 64 * 1024;

/// A connection that does nothing but what the wire demands.
#[derive(Debug)]
pub struct Raw {
    stream: TcpStream,
    buffer: Vec<u8>,
    start: usize,
    end: usize,
}

/// One element of a reply.
#[derive(Clone, Copy, Debug)]
enum Token<'a> {
    Bytes(&'a [u8]),
    Number,
    Nil,
    /// So many elements follow.
    Aggregate(usize),
}

impl Raw {
    pub fn connect(port: u16) -> Raw {
        let stream = TcpStream::connect(("127.0.0.1", port)).expect("the private server accepts");
        stream.set_nodelay(true).expect("a TCP socket");
        Raw { stream, buffer: vec![0; 2 * READ_SIZE], start: 0, end: 0 }
    }

    /// The same with a limit on each wait, as a client has that must not hang: the kernel sets a timer for each.
    pub fn limited(port: u16) -> Raw {
        const LIMIT: Option<Duration> = Some(Duration::from_secs(30));
        let raw = Raw::connect(port);
        raw.stream.set_read_timeout(LIMIT).expect("a TCP socket");
        raw.stream.set_write_timeout(LIMIT).expect("a TCP socket");
        raw
    }

    /// Sends a request and waits for its reply.
    pub fn call(&mut self, request: &[u8]) {
        self.send(request);
        self.reply();
    }

    pub fn send(&mut self, request: &[u8]) {
        self.stream.write_all(request).expect("the server reads");
    }

    /// Passes over the next reply.
    pub fn reply(&mut self) {
        let mut left = 1;
        while left > 0 {
            left -= 1;
            if let Token::Aggregate(elements) = self.token() {
                left += elements;
            }
        }
    }

    pub fn replies(&mut self, count: usize) {
        for _ in 0..count {
            self.reply();
        }
    }

    /// The entries of a reply to `XREADGROUP`: appends their ids to `ids` as arguments of a command, shows each payload to
    /// `payload`, and returns how many there were.
    pub fn entries(&mut self, ids: &mut Vec<u8>, mut payload: impl FnMut(&[u8])) -> usize {
        let Token::Aggregate(1) = self.token() else { return 0 };
        self.aggregate();
        self.token();
        let entries = self.aggregate();
        for _ in 0..entries {
            self.aggregate();
            push_argument(ids, self.bytes());
            for _ in 0..self.aggregate() / 2 {
                black_box(self.bytes());
                payload(self.bytes());
            }
        }
        entries
    }

    fn aggregate(&mut self) -> usize {
        match self.token() {
            Token::Aggregate(elements) => elements,
            other => panic!("an array was expected: {other:?}"),
        }
    }

    fn bytes(&mut self) -> &[u8] {
        match self.token() {
            Token::Bytes(bytes) => bytes,
            other => panic!("a string was expected: {other:?}"),
        }
    }

    fn token(&mut self) -> Token<'_> {
        let (kind, content) = loop {
            match scan(&self.buffer[self.start..self.end]) {
                Some((kind, from, to, length)) => {
                    let start = self.start;
                    self.start += length;
                    break (kind, start + from..start + to);
                }
                None => self.fill(),
            }
        };
        match kind {
            Kind::Bytes => Token::Bytes(&self.buffer[content]),
            Kind::Number => Token::Number,
            Kind::Nil => Token::Nil,
            Kind::Aggregate(elements) => Token::Aggregate(elements),
            Kind::Error => panic!("{}", String::from_utf8_lossy(&self.buffer[content])),
        }
    }

    fn fill(&mut self) {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.buffer.len() - self.end < READ_SIZE {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.buffer.len() - self.end < READ_SIZE {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        let read = self.stream.read(&mut self.buffer[self.end..]).expect("the server answers");
        assert!(read > 0, "the server has closed the connection");
        self.end += read;
    }
}

enum Kind {
    Bytes,
    Number,
    Nil,
    Aggregate(usize),
    Error,
}

/// The token at the start of `bytes`, where its content lies, and its length; `None` when more bytes are needed.
fn scan(bytes: &[u8]) -> Option<(Kind, usize, usize, usize)> {
    let (mut number, mut at, mut negative) = (0, 1, false);
    let kind = *bytes.first()?;
    if matches!(kind, b'+' | b'-' | b'_') {
        let end = 1 + bytes[1..].iter().position(|byte| *byte == b'\r')?;
        let kind = match kind {
            b'+' => Kind::Bytes,
            b'-' => Kind::Error,
            _ => Kind::Nil,
        };
        return (bytes.len() >= end + 2).then_some((kind, 1, end, end + 2));
    }
    loop {
        match *bytes.get(at)? {
            b'\r' => break,
            b'-' => negative = true,
            digit => number = number * 10 + usize::from(digit - b'0'),
        }
        at += 1;
    }
    let header = at + 2;
    let (kind, end, length) = match kind {
        b':' => (Kind::Number, at, header),
        _ if negative => (Kind::Nil, at, header),
        b'$' => (Kind::Bytes, header + number, header + number + 2),
        b'*' => (Kind::Aggregate(number), at, header),
        b'%' => (Kind::Aggregate(2 * number), at, header),
        other => panic!("a reply of type {:?}", char::from(other)),
    };
    (bytes.len() >= length).then_some((kind, header, end, length))
}

/// A command in the form the server reads.
pub fn request<A: AsRef<[u8]>>(arguments: &[A]) -> Vec<u8> {
    let mut request = format!("*{}\r\n", arguments.len()).into_bytes();
    for argument in arguments {
        push_argument(&mut request, argument.as_ref());
    }
    request
}

/// `XADD stream * message payload`.
pub fn add_request(stream: &str, payload: &[u8]) -> Vec<u8> {
    request(&[b"XADD", stream.as_bytes(), b"*", b"message", payload])
}

/// `XREADGROUP GROUP group consumer COUNT count [BLOCK milliseconds] STREAMS stream >`.
pub fn read_request(stream: &str, group: &str, count: usize, block: Option<u64>) -> Vec<u8> {
    let (count, block) = (count.to_string(), block.map(|block| block.to_string()));
    let mut arguments = vec!["XREADGROUP", "GROUP", group, "reader", "COUNT", &count];
    if let Some(block) = &block {
        arguments.extend(["BLOCK", block]);
    }
    arguments.extend(["STREAMS", stream, ">"]);
    request(&arguments)
}

/// Appends `XACK stream group id...`; the ids are arguments already.
pub fn push_ack(out: &mut Vec<u8>, stream: &str, group: &str, ids: &[u8], count: usize) {
    out.extend_from_slice(format!("*{}\r\n", 3 + count).as_bytes());
    for argument in ["XACK", stream, group] {
        push_argument(out, argument.as_bytes());
    }
    out.extend_from_slice(ids);
}

fn push_argument(out: &mut Vec<u8>, argument: &[u8]) {
    out.push(b'$');
    out.extend_from_slice(itoa::Buffer::new().format(argument.len()).as_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(argument);
    out.extend_from_slice(b"\r\n");
}
