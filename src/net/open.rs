//! Opening TCP and Unix sockets before a deadline.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use socket2::{Domain, SockAddr, TcpKeepalive, Type};

use super::{Deadline, Interrupter, interrupted, is_call_timeout};
use crate::params::PoolParams;
use crate::signal::{Signal, lock};

/// A host and a port.
type Target = (String, u16);

/// The look-ups that are under way in this process; few at any time.
static UNDER_WAY: Mutex<Vec<(Target, Arc<LookUp>)>> = Mutex::new(Vec::new());

/// What the resolver finds, for all who wait for it.
#[derive(Debug)]
struct LookUp {
    ended: Signal,
    /// The signals that somebody waits for beside this one's end.
    waiters: Mutex<Vec<Signal>>,
    found: OnceLock<Result<Vec<SocketAddr>, Arc<io::Error>>>,
}

/// The addresses of a host. The system's resolver knows no time limit, so it runs in a thread of its own, which is left
/// behind when it takes too long and ends when the resolver gives up. Until then, whoever looks for the same host and port
/// waits for that thread's result: a resolver that hangs costs one thread, however many attempts are made.
pub(super) fn look_up(
    host: &str,
    port: u16,
    deadline: Deadline,
    interrupter: &Interrupter,
) -> io::Result<Vec<SocketAddr>> {
    if let Ok(address) = host.parse() {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let look_up = begin((host.to_owned(), port), |target| target.to_socket_addrs().map(Vec::from_iter))?;
    let (remaining, interruption) = (deadline.remaining()?, &interrupter.interrupted);
    lock(&look_up.waiters).push(interruption.clone());
    let ended = interruption.wait_or(remaining, || look_up.ended.is_set());
    lock(&look_up.waiters).retain(|waiter| !waiter.is(interruption));
    if interruption.is_set() {
        return Err(interrupted());
    }
    if !ended {
        return Err(deadline.expired());
    }
    match look_up.found.get() {
        Some(Ok(addresses)) if addresses.is_empty() => {
            Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"))
        }
        Some(Ok(addresses)) => Ok(addresses.clone()),
        Some(Err(error)) => Err(io::Error::new(error.kind(), Arc::clone(error))),
        None => Err(io::Error::other("the resolver thread ended without an answer")),
    }
}

/// Starts to look this up, or joins the look-up that is under way.
fn begin(
    target: Target,
    resolve: impl FnOnce(&Target) -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> io::Result<Arc<LookUp>> {
    let mut under_way = lock(&UNDER_WAY);
    if let Some((_, look_up)) = under_way.iter().find(|(other, _)| *other == target) {
        return Ok(Arc::clone(look_up));
    }
    let look_up = Arc::new(LookUp { ended: Signal::new(), waiters: Mutex::default(), found: OnceLock::new() });
    let running = Running { target: target.clone(), look_up: Arc::clone(&look_up) };
    std::thread::Builder::new().name("step-redis-lookup".into()).spawn(move || {
        // The first and only time that it is set.
        let _ = running.look_up.found.set(resolve(&running.target).map_err(Arc::new));
    })?;
    under_way.push((target, Arc::clone(&look_up)));
    Ok(look_up)
}

/// Ends a look-up when its thread ends, however that comes about: who asks from then on begins another.
struct Running {
    target: Target,
    look_up: Arc<LookUp>,
}

impl Drop for Running {
    fn drop(&mut self) {
        lock(&UNDER_WAY).retain(|(target, _)| *target != self.target);
        self.look_up.ended.set();
        lock(&self.look_up.waiters).iter().for_each(Signal::nudge);
    }
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
    loop {
        interrupter.watch(&socket)?;
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
pub(super) fn open_unix(_: &std::path::Path, _: Deadline, _: &Interrupter) -> io::Result<Arc<socket2::Socket>> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "this system has no Unix sockets"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_wait_for_a_name_it_is_looked_up_once_at_a_time() {
        let target = || ("a-name-for-this-test.invalid".to_owned(), 1);
        let address = SocketAddr::from(([192, 0, 2, 1], 1));
        let (release, hangs) = std::sync::mpsc::channel::<()>();
        let first = begin(target(), move |_| {
            let _ = hangs.recv();
            Ok(vec![address])
        });
        let first = first.unwrap();
        let limit = Duration::from_millis(20);
        let (host, port) = target();
        for _ in 0..3 {
            let error = look_up(&host, port, Deadline::after(limit), &Interrupter::new()).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(Arc::ptr_eq(&first, &begin(target(), |_| panic!("looked up twice")).unwrap()));
        }
        std::thread::scope(|scope| {
            let waiting = [(); 3].map(|()| {
                let joined = begin(target(), |_| panic!("looked up twice")).unwrap();
                scope.spawn(move || joined.ended.wait(Duration::from_secs(20)) && joined.found.get().is_some())
            });
            drop(release);
            assert!(waiting.into_iter().all(|waiting| waiting.join().unwrap()));
        });
        // What has ended is not kept: an answer may change.
        let next = begin(target(), |_| Err(io::ErrorKind::NotFound.into())).unwrap();
        assert!(!Arc::ptr_eq(&first, &next) && next.ended.wait(Duration::from_secs(20)));
        assert_eq!(next.found.get().unwrap().as_ref().unwrap_err().kind(), io::ErrorKind::NotFound);
        assert_eq!(first.found.get().unwrap().as_ref().unwrap(), &[address]);
    }

    #[test]
    fn an_interruption_ends_the_wait_for_a_name_that_hangs() {
        let (release, hangs) = std::sync::mpsc::channel::<()>();
        let (host, port) = ("another-name-for-this-test.invalid", 1);
        let hanging = begin((host.to_owned(), port), move |_| {
            let _ = hangs.recv();
            Err(io::ErrorKind::NotFound.into())
        });
        let (deadline, interrupter) = (Deadline::after(Duration::from_secs(20)), Interrupter::new());
        let error = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| look_up(host, port, deadline, &interrupter));
            interrupter.interrupt();
            waiting.join().unwrap().unwrap_err()
        });
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
        drop(release);
        assert!(hanging.unwrap().ended.wait(Duration::from_secs(20)));
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
        let socket = open_tcp(&addresses, &params, deadline, &Interrupter::new()).unwrap();
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
