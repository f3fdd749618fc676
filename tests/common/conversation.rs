//! What a hostile peer does with one connection: ready-made behaviours, scripts, and functions.

use super::lock;
use super::peer::Shared;
use super::socket::Stream;
use std::fmt;
use std::io::{self, Read};
use std::net::Shutdown;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

/// What a peer does with one connection.
#[derive(Clone)]
pub enum Behaviour {
    /// Reads, says nothing.
    Silent,
    /// Neither reads nor says anything, so that a client's large write blocks.
    Deaf,
    /// From the client's first bytes on, sends these bytes one by one, one in each interval.
    Drip(Vec<u8>, Duration),
    /// Like `Drip`, and when the bytes are used up, the last one is sent again and again, for ever.
    EndlessDrip(Vec<u8>, Duration),
    /// Answers each request with these bytes. What is not RESP, such as a TLS hello, counts as one request per read.
    Garbage(Vec<u8>),
    /// Answers a connection's handshake as a healthy server would, and then each request with these bytes.
    GarbageAfterHandshake(Vec<u8>),
    /// One step after the other.
    Script(Vec<Step>),
    /// A function; see [`Behaviour::custom`].
    Custom(Custom),
}

/// The function of [`Behaviour::Custom`].
pub type Custom = Arc<dyn Fn(&mut Conversation) -> io::Result<()> + Send + Sync>;

impl Behaviour {
    /// A function that holds the conversation. It ends when the function returns, with `Ok` or with an error.
    pub fn custom(function: impl Fn(&mut Conversation) -> io::Result<()> + Send + Sync + 'static) -> Behaviour {
        Behaviour::Custom(Arc::new(function))
    }
}

impl fmt::Debug for Behaviour {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Behaviour::Silent => "Silent",
            Behaviour::Deaf => "Deaf",
            Behaviour::Drip(..) => "Drip",
            Behaviour::EndlessDrip(..) => "EndlessDrip",
            Behaviour::Garbage(_) => "Garbage",
            Behaviour::GarbageAfterHandshake(_) => "GarbageAfterHandshake",
            Behaviour::Script(steps) => return formatter.debug_tuple("Script").field(steps).finish(),
            Behaviour::Custom(_) => "Custom",
        };
        formatter.write_str(name)
    }
}

/// One step of a script.
#[derive(Debug, Clone)]
pub enum Step {
    /// Answers HELLO, AUTH, CLIENT, SELECT and PING as a healthy server would, until another command comes. That command
    /// is left for the next step.
    Handshake,
    /// Waits for a whole request.
    Request,
    /// Waits for this many bytes, whatever they are.
    Bytes(usize),
    /// Sends the bytes.
    Send(Vec<u8>),
    /// Sends the bytes one by one, one in each interval.
    Drip(Vec<u8>, Duration),
    /// Waits.
    Pause(Duration),
    /// From here on answers each request with these bytes.
    AnswerEach(Vec<u8>),
    /// Closes the connection in an orderly way.
    Close,
    /// Closes it with a reset (over a Unix socket, which knows none, it is a plain close).
    Reset,
}

/// One connection in the hands of its behaviour. Every method fails with an error once the client has left or the peer is
/// dropped, so `?` is all a behaviour needs to end in time.
#[derive(Debug)]
pub struct Conversation {
    pub(super) stream: Arc<Stream>,
    pub(super) shared: Arc<Shared>,
    pub(super) index: usize,
    /// What has been read and belongs to no request yet.
    pub(super) unread: Vec<u8>,
}

impl Conversation {
    /// The number of the connection, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// Waits for a whole request and returns its arguments.
    pub fn request(&mut self) -> io::Result<Vec<Vec<u8>>> {
        let (arguments, length) = self.peek_request()?;
        self.unread.drain(..length);
        Ok(arguments)
    }

    /// Waits for this many bytes.
    pub fn bytes(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.unread.len() < count {
            self.read_more()?;
        }
        Ok(self.unread.drain(..count).collect())
    }

    /// Sends the bytes.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self.stream.write_unless(bytes, || self.shared.ended.load(Ordering::Relaxed))? {
            true => Ok(()),
            false => Err(dropped()),
        }
    }

    /// Sends the bytes one by one, one in each interval.
    pub fn drip(&mut self, bytes: &[u8], every: Duration) -> io::Result<()> {
        bytes.iter().try_for_each(|byte| {
            self.pause(every)?;
            self.send(&[*byte])
        })
    }

    /// Waits, unless the peer is dropped meanwhile.
    pub fn pause(&mut self, duration: Duration) -> io::Result<()> {
        let end = Instant::now() + duration;
        let mut guard = lock(&self.shared.connections);
        while !self.shared.ended.load(Ordering::Relaxed) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            guard = self.shared.changed.wait_timeout(guard, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Err(dropped())
    }

    /// Answers a handshake; see [`Step::Handshake`].
    pub fn handshake(&mut self) -> io::Result<()> {
        loop {
            let (arguments, length) = self.peek_request()?;
            let word = |index: usize| arguments.get(index).map(|word| word.to_ascii_uppercase()).unwrap_or_default();
            let answer: &[u8] = match word(0).as_slice() {
                b"HELLO" if word(1) == b"3" => {
                    b"%4\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.0.0\r\n$5\r\nproto\r\n:3\r\n$4\r\nrole\r\n$6\r\nmaster\r\n"
                }
                b"HELLO" => {
                    b"*8\r\n$6\r\nserver\r\n$5\r\nredis\r\n$7\r\nversion\r\n$5\r\n7.0.0\r\n$5\r\nproto\r\n:2\r\n$4\r\nrole\r\n$6\r\nmaster\r\n"
                }
                b"AUTH" | b"CLIENT" | b"SELECT" => b"+OK\r\n",
                b"PING" => b"+PONG\r\n",
                _ => return Ok(()),
            };
            self.unread.drain(..length);
            self.send(answer)?;
        }
    }

    /// Answers each request with these bytes until the client leaves.
    pub fn answer_each(&mut self, bytes: &[u8]) -> io::Result<()> {
        loop {
            self.request()?;
            self.send(bytes)?;
        }
    }

    /// Closes the connection, unless it is to be reset.
    pub fn close(&mut self) {
        self.stream.shutdown(Shutdown::Both);
    }

    /// Closes the connection with a reset once the behaviour returns, which it should do now.
    pub fn reset(&mut self) {
        self.stream.reset_on_close();
        // Wakes nobody and sends nothing, but no further read will wait.
        self.stream.shutdown(Shutdown::Read);
    }

    fn read_more(&mut self) -> io::Result<()> {
        let mut buffer = [0; 16 * 1024];
        let count = (&*self.stream).read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.unread.extend_from_slice(&buffer[..count]);
        if let Some(connection) = lock(&self.shared.connections).get_mut(self.index) {
            connection.received.extend_from_slice(&buffer[..count]);
        }
        Ok(())
    }

    /// The arguments of the next request and its length, leaving it unread.
    fn peek_request(&mut self) -> io::Result<(Vec<Vec<u8>>, usize)> {
        loop {
            if self.unread.first().is_some_and(|byte| *byte != b'*') {
                return Ok((vec![self.unread.clone()], self.unread.len()));
            }
            if let Some(request) = parse_request(&self.unread) {
                return Ok(request);
            }
            self.read_more()?;
        }
    }

    /// Goes through the behaviour, and then waits for the client to leave.
    pub(super) fn run(&mut self, behaviour: &Behaviour) {
        if self.perform(behaviour).is_ok() {
            while self.read_more().is_ok() {}
        }
    }

    fn perform(&mut self, behaviour: &Behaviour) -> io::Result<()> {
        match behaviour {
            Behaviour::Silent => Ok(()),
            Behaviour::Deaf => self.pause(Duration::from_secs(3600)),
            Behaviour::Drip(bytes, every) => {
                self.read_more()?;
                self.drip(bytes, *every)
            }
            Behaviour::EndlessDrip(bytes, every) => {
                self.read_more()?;
                self.drip(bytes, *every)?;
                let last = *bytes.last().expect("an endless drip needs a byte");
                self.drip_for_ever(last, *every)
            }
            Behaviour::Garbage(bytes) => self.answer_each(bytes),
            Behaviour::GarbageAfterHandshake(bytes) => {
                self.handshake()?;
                self.answer_each(bytes)
            }
            Behaviour::Script(steps) => steps.iter().try_for_each(|step| self.take(step)),
            Behaviour::Custom(function) => function(self),
        }
    }

    fn take(&mut self, step: &Step) -> io::Result<()> {
        match step {
            Step::Handshake => self.handshake(),
            Step::Request => self.request().map(drop),
            Step::Bytes(count) => self.bytes(*count).map(drop),
            Step::Send(bytes) => self.send(bytes),
            Step::Drip(bytes, every) => self.drip(bytes, *every),
            Step::Pause(duration) => self.pause(*duration),
            Step::AnswerEach(bytes) => self.answer_each(bytes),
            Step::Close => {
                self.close();
                Err(dropped())
            }
            Step::Reset => {
                self.reset();
                Err(dropped())
            }
        }
    }

    fn drip_for_ever(&mut self, byte: u8, every: Duration) -> io::Result<()> {
        loop {
            self.drip(&[byte], every)?;
        }
    }
}

fn dropped() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the conversation is over")
}

/// The arguments and the length of the request at the start of the bytes, if it is complete.
fn parse_request(bytes: &[u8]) -> Option<(Vec<Vec<u8>>, usize)> {
    let mut position = 0;
    let number = |position: &mut usize| -> Option<usize> {
        let rest = bytes.get(*position..)?;
        let end = rest.windows(2).position(|pair| pair == b"\r\n")?;
        *position += end + 2;
        std::str::from_utf8(rest.get(1..end)?).ok()?.parse().ok()
    };
    let count = number(&mut position)?;
    let mut arguments = Vec::new();
    for _ in 0..count {
        let length = number(&mut position)?;
        arguments.push(bytes.get(position..position + length)?.to_vec());
        position += length + 2;
    }
    (position <= bytes.len()).then_some((arguments, position))
}
