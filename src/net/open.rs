//! Opening TCP and Unix sockets before a deadline.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, TcpKeepalive, Type};

use super::system::{begin_connect, wait_for_any, without_signals};
use super::{Interrupter, interrupted, is_call_timeout};
use crate::deadline::Deadline;
use crate::params::PoolParams;

/// How long an address has to answer before the next one is tried beside it (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);
/// The least that it has.
const SHORTEST_DELAY: Duration = Duration::from_millis(10);

/// Tries the addresses, the next one whenever those before have failed or were silent for a while, and takes the first that
/// answers ("Happy Eyeballs", RFC 8305): an address that swallows packets costs a moment, not the time limit. `last_good`
/// is tried first, if it is among them.
pub(super) fn open_tcp(
    addresses: &[SocketAddr],
    last_good: Option<SocketAddr>,
    params: &PoolParams,
    deadline: Deadline,
    interrupter: &Interrupter,
) -> io::Result<(Arc<Socket>, SocketAddr)> {
    let mut untried = in_order(addresses, last_good).into_iter().peekable();
    // When all others have failed, a silent address gets its share of the time, not all of it: they are tried again sooner.
    let count = u32::try_from(addresses.len()).unwrap_or(u32::MAX).max(1);
    let share = deadline.limit() / count;
    // Where there is little time, each still gets its turn.
    let delay = ATTEMPT_DELAY.min(deadline.limit() / count.saturating_add(1)).max(SHORTEST_DELAY);
    let mut under_way: Vec<Attempt> = Vec::new();
    let mut next_attempt = Instant::now();
    let mut failure = None;
    loop {
        let remaining = deadline.remaining()?;
        if under_way.is_empty() || next_attempt <= Instant::now() {
            match untried.next() {
                Some(address) => {
                    match Attempt::begin(address, params, interrupter) {
                        Ok((attempt, true)) => return attempt.finish(),
                        Ok((attempt, false)) => under_way.push(attempt),
                        Err(error) => {
                            failure = Some(error);
                            continue;
                        }
                    }
                    next_attempt = Instant::now() + delay;
                }
                None if under_way.is_empty() => {
                    return Err(failure.unwrap_or_else(|| io::ErrorKind::NotFound.into()));
                }
                None => {}
            }
        }
        // Never for much longer than until the next attempt: not everywhere does shutting a socket down end this wait.
        let until_next = next_attempt.saturating_duration_since(Instant::now());
        let pause = if untried.peek().is_some() { until_next } else { delay };
        let ready = wait_for_any(under_way.iter().map(|attempt| &*attempt.socket), pause.min(remaining))?;
        if interrupter.interrupted.is_set() {
            return Err(interrupted());
        }
        let mut silent = Vec::new();
        for (attempt, is_ready) in under_way.into_iter().zip(ready) {
            match is_ready.then(|| attempt.outcome()) {
                None => silent.push(attempt),
                Some(Ok(())) => return attempt.finish(),
                Some(Err(error)) => {
                    failure = Some(error);
                    next_attempt = Instant::now();
                }
            }
        }
        under_way = silent;
        if failure.is_some() && untried.peek().is_none() {
            under_way.retain(|attempt| attempt.begun.elapsed() < share);
        }
    }
}

/// The one that worked the last time first, and then one of each family in turn: when one of the two leads nowhere, it holds up
/// the other once at most. Otherwise as the resolver sorted them.
fn in_order(addresses: &[SocketAddr], last_good: Option<SocketAddr>) -> Vec<SocketAddr> {
    let first = last_good.filter(|address| addresses.contains(address));
    let rest = || addresses.iter().copied().filter(|address| Some(*address) != first);
    let family = first.or(addresses.first().copied()).is_some_and(|address| address.is_ipv6());
    let mut same = rest().filter(|address| address.is_ipv6() == family);
    let mut other = rest().filter(|address| address.is_ipv6() != family);
    let mut ordered = Vec::with_capacity(addresses.len());
    ordered.extend(first.or_else(|| same.next()));
    while ordered.len() < addresses.len() {
        let length = ordered.len();
        ordered.extend(other.next());
        ordered.extend(same.next());
        if ordered.len() == length {
            break;
        }
    }
    ordered
}

/// A TCP connection that is being made.
struct Attempt {
    address: SocketAddr,
    socket: Arc<Socket>,
    begun: Instant,
}

impl Attempt {
    /// Begins; whether it is done already.
    fn begin(address: SocketAddr, params: &PoolParams, interrupter: &Interrupter) -> io::Result<(Attempt, bool)> {
        let socket = Arc::new(Socket::new(Domain::for_address(address), Type::STREAM, Some(socket2::Protocol::TCP))?);
        configure(&socket, params)?;
        interrupter.watch(&socket)?;
        socket.set_nonblocking(true)?;
        let is_done = begin_connect(&socket, address)?;
        Ok((Attempt { address, socket, begun: Instant::now() }, is_done))
    }

    /// How it ended.
    fn outcome(&self) -> io::Result<()> {
        self.socket.take_error()?.map_or(Ok(()), Err)
    }

    fn finish(self) -> io::Result<(Arc<Socket>, SocketAddr)> {
        self.socket.set_nonblocking(false)?;
        Ok((self.socket, self.address))
    }
}

fn configure(socket: &Socket, params: &PoolParams) -> io::Result<()> {
    without_signals(socket)?;
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
    Ok(())
}

/// A full backlog makes the connect of a Unix socket wait, and only a send timeout bounds that (unix(7)).
#[cfg(unix)]
pub(super) fn open_unix(
    path: &std::path::Path,
    deadline: Deadline,
    interrupter: &Interrupter,
) -> io::Result<Arc<Socket>> {
    let socket = Arc::new(Socket::new(Domain::UNIX, Type::STREAM, None)?);
    without_signals(&socket)?;
    interrupter.watch(&socket)?;
    loop {
        if interrupter.interrupted.is_set() {
            return Err(interrupted());
        }
        // In slices, as shutting the socket down does not end this wait.
        let slice = deadline.remaining()?.min(Duration::from_millis(50));
        socket.set_write_timeout(Some(slice.max(Duration::from_millis(1))))?;
        match socket.connect(&SockAddr::unix(path)?) {
            Ok(()) => return Ok(socket),
            Err(error) if is_call_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(not(unix))]
pub(super) fn open_unix(_: &std::path::Path, _: Deadline, _: &Interrupter) -> io::Result<Arc<Socket>> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "this system has no Unix sockets"))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv6Addr, TcpListener, TcpStream};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    /// An address that answers nothing: the queue of connections that nobody accepts is full.
    struct Hole {
        address: SocketAddr,
        _listener: Socket,
        _queued: Vec<TcpStream>,
    }

    impl Hole {
        fn dig(at: &str) -> Hole {
            let address: SocketAddr = at.parse().unwrap();
            let listener = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
            listener.bind(&address.into()).unwrap();
            listener.listen(0).unwrap();
            let address = listener.local_addr().unwrap().as_socket().unwrap();
            let mut queued = Vec::new();
            while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
                queued.push(stream);
            }
            Hole { address, _listener: listener, _queued: queued }
        }
    }

    fn open(addresses: &[SocketAddr], last_good: Option<SocketAddr>, limit: Duration) -> io::Result<SocketAddr> {
        let (params, interrupter) = (PoolParams::default(), Interrupter::new());
        let opened = open_tcp(addresses, last_good, &params, Deadline::after(limit), &interrupter);
        opened.map(|(socket, address)| {
            assert!(!socket.nonblocking().unwrap());
            assert_eq!(socket.peer_addr().unwrap().as_socket(), Some(address));
            address
        })
    }

    #[test]
    fn an_address_that_answers_nothing_costs_a_moment_and_the_one_that_worked_is_tried_first() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let holes = [Hole::dig("127.0.0.1:0"), Hole::dig("127.0.0.1:0")];
        let addresses = [holes[0].address, holes[1].address, good];
        let started = Instant::now();
        assert_eq!(open(&addresses, None, LONG).unwrap(), good);
        let took = started.elapsed();
        assert!(took >= 2 * ATTEMPT_DELAY && took < LONG / 4, "{took:?}");
        // None is given up because the next was tried: a slow one may still be the only one.
        drop(listener);
        let error = open(&addresses, None, 4 * ATTEMPT_DELAY).unwrap_err();
        assert!(matches!(error.kind(), io::ErrorKind::TimedOut | io::ErrorKind::ConnectionRefused), "{error}");

        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let started = Instant::now();
        assert_eq!(open(&[holes[0].address, good], Some(good), LONG).unwrap(), good);
        assert!(started.elapsed() < ATTEMPT_DELAY);
        // What worked once and is no address of the host any more is not tried.
        assert_eq!(open(&[good], Some(holes[0].address), LONG).unwrap(), good);
    }

    #[test]
    fn a_refusal_does_not_wait_for_the_next_turn() {
        let refused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let good = listener.local_addr().unwrap();
        let started = Instant::now();
        assert_eq!(open(&[refused, refused, good], None, LONG).unwrap(), good);
        assert!(started.elapsed() < ATTEMPT_DELAY);
        assert_eq!(open(&[refused, refused], None, LONG).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(open(&[], None, LONG).unwrap_err().kind(), io::ErrorKind::NotFound);
        // With one that is silent it takes the share of that one, not all of the time.
        let hole = Hole::dig("127.0.0.1:0");
        let limit = 8 * ATTEMPT_DELAY;
        let started = Instant::now();
        let error = open(&[hole.address, refused], None, limit).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(started.elapsed() >= limit / 2 && started.elapsed() < limit, "{:?}", started.elapsed());
        let started = Instant::now();
        let error = open(&[hole.address], None, limit).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(started.elapsed() >= limit, "{:?}", started.elapsed());
    }

    #[test]
    fn an_interruption_ends_the_wait_for_addresses_that_answer_nothing() {
        let holes = [Hole::dig("127.0.0.1:0"), Hole::dig("127.0.0.1:0")];
        let addresses = [holes[0].address, holes[1].address];
        let (params, interrupter, deadline) = (PoolParams::default(), Interrupter::new(), Deadline::after(LONG));
        let error = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| open_tcp(&addresses, None, &params, deadline, &interrupter));
            let started = Instant::now();
            while crate::latch::lock(&interrupter.sockets).len() < addresses.len() {
                assert!(started.elapsed() < LONG, "the second address was not tried");
                std::thread::yield_now();
            }
            let interrupted_at = Instant::now();
            interrupter.interrupt();
            let error = waiting.join().unwrap().unwrap_err();
            assert!(interrupted_at.elapsed() < LONG / 10);
            error
        });
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        let error = open_tcp(&addresses, None, &params, deadline, &interrupter).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }

    #[test]
    fn the_families_take_turns() {
        let v4 = |last| SocketAddr::from(([192, 0, 2, last], 1));
        let v6 = |last| SocketAddr::from((Ipv6Addr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]), 1));
        let resolved = [v6(1), v6(2), v6(3), v4(1)];
        assert_eq!(in_order(&resolved, None), [v6(1), v4(1), v6(2), v6(3)]);
        assert_eq!(in_order(&resolved, Some(v4(1))), [v4(1), v6(1), v6(2), v6(3)]);
        assert_eq!(in_order(&resolved, Some(v6(2))), [v6(2), v4(1), v6(1), v6(3)]);
        assert_eq!(in_order(&resolved, Some(v4(9))), [v6(1), v4(1), v6(2), v6(3)]);
        assert_eq!(in_order(&[v4(1), v4(1)], None), [v4(1), v4(1)]);
        assert_eq!(in_order(&[], None), []);
    }

    #[test]
    fn a_socket_has_the_options_that_its_parameters_say() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let params = PoolParams {
            socket_keep_idle: Duration::from_secs(7),
            socket_keep_alive: Duration::from_secs(3),
            socket_keep_cnt: 4,
            ..PoolParams::default()
        };
        let deadline = Deadline::after(Duration::from_secs(20));
        let addresses = [listener.local_addr().unwrap()];
        let socket = open_tcp(&addresses, None, &params, deadline, &Interrupter::new()).unwrap().0;
        assert!(socket.tcp_nodelay().unwrap() && socket.keepalive().unwrap());
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            assert_eq!(socket.tcp_keepalive_time().unwrap(), Duration::from_secs(7));
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), Duration::from_secs(3));
            assert_eq!(socket.tcp_keepalive_retries().unwrap(), 4);
            assert_eq!(socket.tcp_user_timeout().unwrap(), Some(Duration::from_secs(7 + 3 * 4)));
        }
    }
}
