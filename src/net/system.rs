//! System calls that neither `std` nor `socket2` offers in the form we need.

use std::io;
use std::time::Duration;

use socket2::Socket;

/// Writes without a signal: where SIGPIPE does what it does by default, as in a C program that has loaded this library, a
/// write to a connection which the peer has closed would end the process.
pub(super) fn send(socket: &Socket, bytes: &[u8]) -> io::Result<usize> {
    #[cfg(all(unix, not(target_vendor = "apple")))]
    return Ok(rustix::net::send(socket, bytes, rustix::net::SendFlags::NOSIGNAL)?);
    // Here the socket was told once; see `without_signals`.
    #[cfg(not(all(unix, not(target_vendor = "apple"))))]
    return socket.send(bytes);
}

/// Where a write cannot be told to raise no signal, the socket is.
#[cfg_attr(not(target_vendor = "apple"), allow(unused_variables))]
pub(super) fn without_signals(socket: &Socket) -> io::Result<()> {
    #[cfg(target_vendor = "apple")]
    socket.set_nosigpipe(true)?;
    Ok(())
}

/// Looks without waiting whether there is something to read, and leaves it there. `Ok(0)` is the end, and `WouldBlock` that
/// nothing has come.
pub(super) fn peek(socket: &Socket) -> io::Result<usize> {
    #[cfg(unix)]
    {
        use rustix::net::RecvFlags;
        let (_, length) = rustix::net::recv(socket, &mut [0_u8; 1], RecvFlags::PEEK | RecvFlags::DONTWAIT)?;
        Ok(length)
    }
    #[cfg(not(unix))]
    {
        socket.set_nonblocking(true)?;
        let peeked = socket.peek(&mut [std::mem::MaybeUninit::uninit()]);
        socket.set_nonblocking(false)?;
        peeked
    }
}

/// Begins to connect a socket that does not block; whether it is connected already.
pub(super) fn begin_connect(socket: &Socket, address: std::net::SocketAddr) -> io::Result<bool> {
    match socket.connect(&address.into()) {
        Ok(()) => Ok(true),
        Err(error) if is_under_way(&error) => Ok(false),
        Err(error) => Err(error),
    }
}

fn is_under_way(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
        || error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error())
}

/// Waits until at least one of these connecting sockets is connected or has failed, at most for `limit`: for each, whether
/// it is one of them.
pub(super) fn wait_for_any<'a>(sockets: impl Iterator<Item = &'a Socket>, limit: Duration) -> io::Result<Vec<bool>> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut waiting: Vec<PollFd<'_>> = sockets.map(|socket| PollFd::new(socket, PollFlags::OUT)).collect();
    let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
    match poll(&mut waiting, Some(&limit)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => {}
        Err(error) => return Err(error.into()),
    }
    Ok(waiting.iter().map(|socket| !socket.revents().is_empty()).collect())
}
