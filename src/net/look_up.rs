//! Looking up host names before a deadline.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::sync::{Arc, Mutex, OnceLock};

use super::{Interrupter, interrupted};
use crate::deadline::Deadline;
use crate::latch::{Latch, lock};

/// A host and a port.
type Target = (String, u16);

/// The look-ups that are under way in this process; few at any time.
static UNDER_WAY: Mutex<Vec<(Target, Arc<LookUp>)>> = Mutex::new(Vec::new());

/// What the resolver finds, for all who wait for it.
#[derive(Debug)]
struct LookUp {
    ended: Latch,
    /// The signals that somebody waits for beside this one's end.
    waiters: Mutex<Vec<Latch>>,
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
        None => Err(io::Error::other("the resolver thread ended without an answer, or was never started")),
    }
}

/// Starts to look this up, or joins the look-up that is under way.
fn begin(
    target: Target,
    resolve: impl FnOnce(&Target) -> io::Result<Vec<SocketAddr>> + Send + 'static,
) -> io::Result<Arc<LookUp>> {
    let running = {
        let mut under_way = lock(&UNDER_WAY);
        if let Some((_, look_up)) = under_way.iter().find(|(other, _)| *other == target) {
            return Ok(Arc::clone(look_up));
        }
        let look_up = Arc::new(LookUp { ended: Latch::new(), waiters: Mutex::default(), found: OnceLock::new() });
        under_way.push((target.clone(), Arc::clone(&look_up)));
        Running { target, look_up }
    };
    let look_up = Arc::clone(&running.look_up);
    // Not under the lock: when there is no thread to be had, what was to run in it is dropped here, and `Running` with it.
    std::thread::Builder::new().name("step-redis-lookup".into()).spawn(move || {
        // The first and only time that it is set.
        let _ = running.look_up.found.set(resolve(&running.target).map_err(Arc::new));
    })?;
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
        lock(&self.look_up.waiters).iter().for_each(Latch::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

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
    fn a_thread_that_cannot_be_had_is_an_error_and_locks_no_later_look_up() {
        const IS_CHILD: &str = "STEP_REDIS_TEST_WITHOUT_THREADS";
        if std::env::var_os(IS_CHILD).is_none() {
            // No machine has room for such a stack. With one test thread, the test itself needs none.
            let name = "net::look_up::tests::a_thread_that_cannot_be_had_is_an_error_and_locks_no_later_look_up";
            let mut child = std::process::Command::new(std::env::current_exe().unwrap())
                .args(["--exact", name, "--test-threads=1"])
                .stdout(std::process::Stdio::null())
                .envs([("RUST_MIN_STACK", (1_u64 << 46).to_string()), (IS_CHILD, String::new())])
                .spawn()
                .unwrap();
            let started = std::time::Instant::now();
            while child.try_wait().unwrap().is_none() && started.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = child.kill();
            assert!(child.wait().unwrap().success());
            return;
        }
        for _ in 0..3 {
            let deadline = Deadline::after(Duration::from_secs(1));
            let error = look_up("localhost", 1, deadline, &Interrupter::new()).unwrap_err();
            assert_ne!(error.kind(), io::ErrorKind::TimedOut, "{error}");
            assert!(lock(&UNDER_WAY).is_empty());
        }
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
}
