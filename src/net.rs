//! The socket: connecting, reading and writing under one deadline, and interrupting all of it from another thread.
//!
//! Every call is bounded by a [`Deadline`] as a whole, not by a time limit for each system call: a peer that sends a byte
//! now and then gains nothing. TLS stands on top of the same bounded socket, so its handshake and records obey too.

#[cfg(feature = "tls")]
mod encrypted;
mod look_up;
mod open;
mod system;

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use crate::deadline::Deadline;
use crate::error::{ConnectStep, Error, Result};
use crate::latch::{Latch, lock};
use crate::params::PoolParams;
#[cfg(feature = "tls")]
use encrypted::TlsStream;
use look_up::look_up;
use open::{open_tcp, open_unix};

/// Ends a connection's blocking calls from another thread, at once and without the server's help.
///
/// [`interrupt`](Interrupter::interrupt) shuts the socket down: the call that is blocked in connecting, reading or writing
/// fails, and the connection is never used again. Clones interrupt the same connection. One that was asked of a pooled
/// connection ends with the loan, and does nothing from then on.
#[derive(Clone, Debug)]
pub struct Interrupter {
    /// Several, while more than one address is tried.
    sockets: Arc<Mutex<Vec<Weak<socket2::Socket>>>>,
    interrupted: Latch,
}

impl Interrupter {
    pub(crate) fn new() -> Interrupter {
        Interrupter { sockets: Arc::default(), interrupted: Latch::new() }
    }

    /// Shuts the connection down. The call returns at once; a second call does nothing.
    pub fn interrupt(&self) {
        let sockets = lock(&self.sockets);
        self.interrupted.set();
        for socket in sockets.iter().filter_map(Weak::upgrade) {
            // Fails only when the peer was faster, which is just as good.
            let _ = socket.shutdown(std::net::Shutdown::Both);
        }
    }

    /// From now on an interruption hits nothing; whether one has come before.
    pub(crate) fn end(&self) -> bool {
        lock(&self.sockets).clear();
        self.is_interrupted()
    }

    pub(crate) fn is_interrupted(&self) -> bool {
        self.interrupted.is_set()
    }

    /// Waits for an interruption, at most for `limit`; whether it came.
    pub(crate) fn wait(&self, limit: Duration) -> bool {
        self.interrupted.wait(limit)
    }

    /// From now on an interruption hits this socket. Fails when it has already come.
    fn watch(&self, socket: &Arc<socket2::Socket>) -> io::Result<()> {
        // Under the lock, so that an interruption comes either before, and is seen here, or after, and finds the socket.
        let mut watched = lock(&self.sockets);
        if self.interrupted.is_set() {
            return Err(interrupted());
        }
        watched.retain(|socket| socket.strong_count() > 0);
        watched.push(Arc::downgrade(socket));
        Ok(())
    }
}

fn interrupted() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "interrupted from another thread")
}

/// A plain socket whose reads and writes end at a deadline.
#[derive(Debug)]
pub(crate) struct BoundedSocket {
    socket: Arc<socket2::Socket>,
    deadline: Deadline,
    /// Nothing has happened since the deadline began that could take time: what is left of it need not be asked from the
    /// clock.
    fresh: bool,
    /// The peer takes nothing any more. What it said before may still be there to read.
    write_failed: bool,
    /// What the kernel was last told, so that it is told again only when it matters.
    read_timeout: Duration,
    write_timeout: Duration,
}

impl BoundedSocket {
    fn new(socket: Arc<socket2::Socket>, deadline: Deadline) -> BoundedSocket {
        BoundedSocket {
            socket,
            deadline,
            fresh: false,
            write_failed: false,
            read_timeout: Duration::MAX,
            write_timeout: Duration::MAX,
        }
    }

    fn remaining(&self) -> io::Result<Duration> {
        let limit = self.deadline.limit();
        if self.fresh && !limit.is_zero() { Ok(limit) } else { self.deadline.remaining() }
    }

    /// Whether something can be read at once; an error when the peer has closed the connection.
    fn has_data(&self) -> io::Result<bool> {
        match system::peek(&self.socket) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// The kernel's time limit for one system call, when the one it has would overshoot the deadline noticeably, or would wake
/// us up in vain again and again.
fn new_timeout(current: Duration, remaining: Duration) -> Option<Duration> {
    if current == remaining {
        return None;
    }
    let tolerated = remaining.saturating_add((remaining / 16).min(Duration::from_millis(20)));
    // A zero would mean no limit at all.
    (current > tolerated || current < remaining / 2).then(|| remaining.max(Duration::from_millis(1)))
}

impl Read for BoundedSocket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let remaining = self.remaining()?;
            self.fresh = false;
            if let Some(timeout) = new_timeout(self.read_timeout, remaining) {
                self.socket.set_read_timeout(Some(timeout))?;
                self.read_timeout = timeout;
            }
            match (&*self.socket).read(buffer) {
                Err(error) if is_call_timeout(&error) => {}
                result => return result,
            }
        }
    }
}

impl Write for BoundedSocket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        loop {
            let remaining = self.remaining()?;
            if let Some(timeout) = new_timeout(self.write_timeout, remaining) {
                self.socket.set_write_timeout(Some(timeout))?;
                self.write_timeout = timeout;
            }
            match system::send(&self.socket, buffer) {
                Err(error) if is_call_timeout(&error) => self.fresh = false,
                result => {
                    self.write_failed |= result.as_ref().is_err_and(is_hang_up);
                    return result;
                }
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// One system call's limit ran out, or a signal came: the deadline decides whether to go on. (On Unix, `TimedOut` means
/// that the kernel gave the connection up.)
fn is_call_timeout(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
        || cfg!(windows) && error.kind() == io::ErrorKind::TimedOut
}

/// Whether the peer has closed the connection, in one way or another.
pub(crate) fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
    matches!(error.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
}

/// Whether this is a [`Deadline`]'s own error, not the kernel's verdict on the connection.
pub(crate) fn is_deadline(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::TimedOut && error.raw_os_error().is_none()
}

/// The address of a server by which it was reached the last time.
#[derive(Clone, Debug, Default)]
pub(crate) struct LastGood(Arc<Mutex<Option<SocketAddr>>>);

impl LastGood {
    /// The server there was not the one to talk to: from now on the addresses are tried in the resolver's order.
    pub(crate) fn forget(&self) {
        *lock(&self.0) = None;
    }
}

/// The connection's byte stream: plain, or TLS on top of the plain one.
#[derive(Debug)]
pub(crate) enum Socket {
    Plain(BoundedSocket),
    #[cfg(feature = "tls")]
    Tls(Box<TlsStream>),
}

impl Socket {
    /// Opens the TCP or Unix socket that `params` name. All of it ends at the deadline: the name lookup, every address,
    /// the connect itself.
    pub(crate) fn open(
        params: &PoolParams,
        address: &Arc<str>,
        last_good: &LastGood,
        deadline: Deadline,
        interrupter: &Interrupter,
    ) -> Result<Socket> {
        let socket = match &params.unix_socket {
            Some(path) => open_unix(path, deadline, interrupter)
                .map_err(|error| Error::connect(address, ConnectStep::Open, error))?,
            None => {
                let addresses = look_up(&params.host, params.port, deadline, interrupter)
                    .map_err(|error| Error::connect(address, ConnectStep::Resolve, error))?;
                let tried_first = *lock(&last_good.0);
                let (socket, good) = open_tcp(&addresses, tried_first, params, deadline, interrupter)
                    .map_err(|error| Error::connect(address, ConnectStep::Open, error))?;
                *lock(&last_good.0) = Some(good);
                socket
            }
        };
        Ok(Socket::Plain(BoundedSocket::new(socket, deadline)))
    }

    /// From now on reads and writes end at this deadline.
    pub(crate) fn set_deadline(&mut self, deadline: Deadline) {
        let socket = self.bounded_mut();
        socket.deadline = deadline;
        socket.fresh = false;
    }

    /// Reads and writes end after `limit`, which begins now. A write is to follow at once; a `short` one, which the
    /// system's buffer takes without waiting, and a read behind it need no clock.
    pub(crate) fn start_deadline(&mut self, limit: Duration, short: bool) {
        let socket = self.bounded_mut();
        socket.deadline = Deadline::after(limit);
        socket.fresh = short;
    }

    pub(crate) fn deadline(&self) -> Deadline {
        self.bounded().deadline
    }

    /// An interrupter for this socket alone.
    pub(crate) fn interrupter(&self) -> Interrupter {
        let socket = Arc::downgrade(&self.bounded().socket);
        Interrupter { sockets: Arc::new(Mutex::new(vec![socket])), interrupted: Latch::new() }
    }

    /// Looks whether a read would return something, without waiting; an error when the peer has closed the connection.
    #[inline]
    pub(crate) fn has_data(&mut self) -> io::Result<bool> {
        match self {
            Socket::Plain(socket) => socket.has_data(),
            #[cfg(feature = "tls")]
            Socket::Tls(stream) => encrypted::has_data(stream),
        }
    }

    fn bounded(&self) -> &BoundedSocket {
        match self {
            Socket::Plain(socket) => socket,
            #[cfg(feature = "tls")]
            Socket::Tls(stream) => &stream.sock,
        }
    }

    fn bounded_mut(&mut self) -> &mut BoundedSocket {
        match self {
            Socket::Plain(socket) => socket,
            #[cfg(feature = "tls")]
            Socket::Tls(stream) => &mut stream.sock,
        }
    }
}

impl Read for Socket {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Socket::Plain(socket) => socket.read(buffer),
            #[cfg(feature = "tls")]
            // With TLS 1.3 the server's verdict on our certificate comes with the first record after the handshake.
            Socket::Tls(stream) => match stream.sock.write_failed {
                false => stream.read(buffer).map_err(crate::tls::explain::explain_read),
                true => encrypted::read_after_failed_write(stream, buffer),
            },
        }
    }
}

impl Write for Socket {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Socket::Plain(socket) => socket.write(buffer),
            #[cfg(feature = "tls")]
            Socket::Tls(stream) => stream.write(buffer).map_err(|error| encrypted::explained_write(stream, error)),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Socket::Plain(socket) => socket.flush(),
            #[cfg(feature = "tls")]
            Socket::Tls(stream) => stream.flush().map_err(|error| encrypted::explained_write(stream, error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_limit_overflows_nothing() {
        let deadline = Deadline::after(Duration::MAX);
        assert!(deadline.left() > Duration::from_secs(u64::MAX / 2));
        assert_eq!(new_timeout(Duration::MAX, Duration::MAX), None);
        assert_eq!(new_timeout(Duration::ZERO, Duration::MAX), Some(Duration::MAX));
    }

    #[test]
    fn the_address_that_worked_is_kept_for_the_next_time() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let params = PoolParams::new("127.0.0.1", address.port());
        let (last_good, deadline) = (LastGood::default(), Deadline::after(Duration::from_secs(20)));
        let open = || Socket::open(&params, &params.address(), &last_good, deadline, &Interrupter::new());
        open().unwrap();
        assert_eq!(*lock(&last_good.0), Some(address));
        drop(listener);
        open().unwrap_err();
        assert_eq!(*lock(&last_good.0), Some(address), "a server that is down for a while is the same one");
    }

    /// Whether a write on a connected socket is tried.
    fn writes(set: impl FnOnce(&mut Socket)) -> io::Result<usize> {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        let plain = std::net::TcpStream::connect(listener.local_addr()?)?;
        let mut socket = Socket::Plain(BoundedSocket::new(Arc::new(plain.into()), Deadline::after(Duration::ZERO)));
        set(&mut socket);
        socket.write(b"x")
    }

    #[test]
    fn only_a_deadline_that_begins_now_is_taken_for_whole() {
        let limit = Duration::from_millis(1);
        let over = Deadline::after(limit);
        std::thread::sleep(limit);
        let error = writes(|socket| socket.set_deadline(over)).unwrap_err();
        assert!(is_deadline(&error), "{error:?}");
        // Not even when one that began just now was set before and not used.
        let error = writes(|socket| {
            socket.start_deadline(Duration::from_secs(20), true);
            socket.set_deadline(over);
        });
        assert!(is_deadline(&error.unwrap_err()));
        assert_eq!(writes(|socket| socket.start_deadline(Duration::from_secs(20), true)).unwrap(), 1);
    }
}
