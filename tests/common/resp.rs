//! The smallest RESP2 client: one request, one reply. For what a test asks or tells the server beside the crate under test.

use super::socket::Stream;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// How long a reply may take. Far longer than any healthy server needs.
const REPLY_LIMIT: Duration = Duration::from_secs(10);

/// One reply of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// A status such as `OK`.
    Simple(String),
    /// An error with its code, such as `WRONGTYPE Operation against ...`.
    Error(String),
    /// A number.
    Int(i64),
    /// A string of bytes.
    Bulk(Vec<u8>),
    /// No value.
    Nil,
    /// A list of replies.
    Array(Vec<Reply>),
}

impl Reply {
    /// The number, also of a text that is one. Panics for anything else.
    #[track_caller]
    pub fn int(&self) -> i64 {
        match self {
            Reply::Int(number) => *number,
            other => other.text().parse().unwrap_or_else(|_| panic!("not a number: {self:?}")),
        }
    }

    /// The text of a status, an error, a number or a string. Panics for a list and for no value.
    #[track_caller]
    pub fn text(&self) -> String {
        match self {
            Reply::Simple(text) | Reply::Error(text) => text.clone(),
            Reply::Int(number) => number.to_string(),
            Reply::Bulk(bytes) => String::from_utf8_lossy(bytes).into_owned(),
            Reply::Nil | Reply::Array(_) => panic!("not a text: {self:?}"),
        }
    }

    /// The elements of a list; an absent list has none. Panics for anything else.
    #[track_caller]
    pub fn array(&self) -> &[Reply] {
        match self {
            Reply::Array(elements) => elements,
            Reply::Nil => &[],
            other => panic!("not a list: {other:?}"),
        }
    }

    /// Whether this is the status `OK`.
    pub fn is_ok(&self) -> bool {
        matches!(self, Reply::Simple(text) if text == "OK")
    }

    /// Whether this is an error.
    pub fn is_error(&self) -> bool {
        matches!(self, Reply::Error(_))
    }
}

/// A connection that speaks RESP2.
#[derive(Debug)]
pub struct RespClient {
    stream: BufReader<Stream>,
}

impl RespClient {
    /// Connects to a port on 127.0.0.1.
    pub fn connect_tcp(port: u16) -> io::Result<RespClient> {
        Ok(RespClient::new(Stream::Tcp(TcpStream::connect(("127.0.0.1", port))?)))
    }

    /// Connects to a Unix socket.
    pub fn connect_unix(path: &Path) -> io::Result<RespClient> {
        Ok(RespClient::new(Stream::Unix(UnixStream::connect(path)?)))
    }

    fn new(stream: Stream) -> RespClient {
        RespClient { stream: BufReader::new(stream) }
    }

    /// Sends one command and reads its reply, waiting at most 10 seconds. An error of the server is an `Ok` reply here.
    pub fn command<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> io::Result<Reply> {
        self.send(arguments)?;
        self.receive(REPLY_LIMIT)
    }

    /// Sends one command without reading its reply: for blocking commands, MONITOR and SUBSCRIBE.
    pub fn send<A: AsRef<[u8]>>(&mut self, arguments: &[A]) -> io::Result<()> {
        let mut request = format!("*{}\r\n", arguments.len()).into_bytes();
        for argument in arguments {
            let argument = argument.as_ref();
            request.extend_from_slice(format!("${}\r\n", argument.len()).as_bytes());
            request.extend_from_slice(argument);
            request.extend_from_slice(b"\r\n");
        }
        self.stream.get_ref().set_timeout(REPLY_LIMIT)?;
        self.stream.get_mut().write_all(&request)
    }

    /// Reads the next reply. Each read waits at most `limit`; after an error the connection is of no more use.
    pub fn receive(&mut self, limit: Duration) -> io::Result<Reply> {
        self.stream.get_ref().set_timeout(limit)?;
        self.read_reply()
    }

    /// Whether the server has closed the connection, or has said something unasked. Does not wait.
    pub(super) fn is_closed(&self) -> bool {
        let stream = self.stream.get_ref();
        let quiet =
            |mut stream: &Stream| stream.read(&mut [0]).is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        stream.set_nonblocking(true).is_err() || !quiet(stream) || stream.set_nonblocking(false).is_err()
    }

    fn read_reply(&mut self) -> io::Result<Reply> {
        let line = self.read_line()?;
        let (kind, rest) = line.split_at_checked(1).ok_or_else(|| malformed(&line))?;
        let number = || rest.parse::<i64>().map_err(|_| malformed(&line));
        match kind {
            "+" => Ok(Reply::Simple(rest.to_owned())),
            "-" => Ok(Reply::Error(rest.to_owned())),
            ":" => Ok(Reply::Int(number()?)),
            "$" => match usize::try_from(number()?) {
                Err(_) => Ok(Reply::Nil),
                Ok(length) => {
                    let mut bytes = vec![0; length + 2];
                    self.stream.read_exact(&mut bytes)?;
                    bytes.truncate(length);
                    Ok(Reply::Bulk(bytes))
                }
            },
            "*" => match usize::try_from(number()?) {
                Err(_) => Ok(Reply::Nil),
                Ok(length) => (0..length).map(|_| self.read_reply()).collect::<io::Result<_>>().map(Reply::Array),
            },
            _ => Err(malformed(&line)),
        }
    }

    fn read_line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        if !line.ends_with("\r\n") {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection"));
        }
        line.truncate(line.len() - 2);
        Ok(line)
    }
}

fn malformed(line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not a RESP2 reply: {line:?}"))
}
