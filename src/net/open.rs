//! Opening TCP and Unix sockets before a deadline.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{bounded, select};
use socket2::{Domain, SockAddr, TcpKeepalive, Type};

use super::{Deadline, Interrupter, interrupted, is_call_timeout};
use crate::params::PoolParams;

/// The addresses of a host. The system's resolver knows no time limit, so it runs in a thread of its own, which is left
/// behind when it takes too long and ends when the resolver gives up.
pub(super) fn look_up(
    host: &str,
    port: u16,
    deadline: Deadline,
    interrupter: &Interrupter,
) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let (sender, found) = bounded(1);
    let target = (host.to_owned(), port);
    std::thread::Builder::new().name("step-redis-lookup".into()).spawn(move || {
        // Nobody waits any more when this fails.
        let _ = sender.send(target.to_socket_addrs().map(Vec::from_iter));
    })?;
    let remaining = deadline.remaining()?;
    let addresses = select! {
        recv(found) -> found => found.map_err(|_| io::Error::other("the resolver thread ended without an answer"))??,
        recv(interrupter.interrupted.waiters()) -> _ => return Err(interrupted()),
        default(remaining) => return Err(deadline.expired()),
    };
    if addresses.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(addresses)
}

/// Tries the addresses in turn. Each gets its share of the time that is left, so that a first one which swallows packets
/// does not use up the chance of the next.
pub(super) fn open_tcp(
    addresses: &[SocketAddr],
    params: &PoolParams,
    deadline: Deadline,
    interrupter: &Interrupter,
) -> io::Result<Arc<socket2::Socket>> {
    let mut failure = None;
    for (index, address) in addresses.iter().enumerate() {
        let addresses_left = u32::try_from(addresses.len() - index).unwrap_or(u32::MAX);
        let share = deadline.remaining()? / addresses_left;
        match open_tcp_address(*address, params, share, interrupter) {
            Ok(socket) => return Ok(socket),
            Err(error) => failure = Some(error),
        }
    }
    match failure {
        Some(error) if error.kind() == io::ErrorKind::TimedOut => Err(deadline.expired()),
        Some(error) => Err(error),
        None => Err(io::ErrorKind::NotFound.into()),
    }
}

fn open_tcp_address(
    address: SocketAddr,
    params: &PoolParams,
    limit: Duration,
    interrupter: &Interrupter,
) -> io::Result<Arc<socket2::Socket>> {
    let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(socket2::Protocol::TCP))?;
    let socket = Arc::new(socket);
    // Requests are written in one piece each: waiting to fill a segment only costs time.
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new().with_time(params.socket_keep_idle).with_interval(params.socket_keep_alive);
    #[cfg(not(any(target_os = "windows", target_os = "openbsd")))]
    let keepalive = keepalive.with_retries(params.socket_keep_cnt);
    socket.set_tcp_keepalive(&keepalive)?;
    // Keepalive watches an idle connection only; this bounds unacknowledged data by the same time (tcp(7)).
    #[cfg(any(target_os = "linux", target_os = "android"))]
    {
        let silence = params.socket_keep_idle + params.socket_keep_alive * params.socket_keep_cnt;
        // The kernel counts the milliseconds in an `int`.
        socket.set_tcp_user_timeout(Some(silence.min(Duration::from_millis(i32::MAX as u64))))?;
    }
    interrupter.watch(&socket)?;
    socket.connect_timeout(&SockAddr::from(address), limit.max(Duration::from_millis(1)))?;
    Ok(socket)
}

/// A full backlog makes the connect of a Unix socket wait, and only a send timeout bounds that (unix(7)).
#[cfg(unix)]
pub(super) fn open_unix(
    path: &std::path::Path,
    deadline: Deadline,
    interrupter: &Interrupter,
) -> io::Result<Arc<socket2::Socket>> {
    let socket = Arc::new(socket2::Socket::new(Domain::UNIX, Type::STREAM, None)?);
    interrupter.watch(&socket)?;
    loop {
        socket.set_write_timeout(Some(deadline.remaining()?.max(Duration::from_millis(1))))?;
        match socket.connect(&SockAddr::unix(path)?) {
            Ok(()) => return Ok(socket),
            Err(error) if is_call_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(not(unix))]
pub(super) fn open_unix(_: &std::path::Path, _: Deadline, _: &Interrupter) -> io::Result<Arc<socket2::Socket>> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "this system has no Unix sockets"))
}
