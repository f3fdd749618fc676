//! Support for the tests and benches: a real server, hostile peers, a fault proxy, certificates, and small measurements.
//!
//! Nothing here uses the crate under test, so a bug in it cannot hide itself.
//!
//! Everything a test starts is a value that ends with its scope: threads are joined, processes are killed and waited for,
//! directories are removed. That also holds when the test process itself is killed (see `launcher.rs`).
//!
//! The launcher thread and the guardian's pipe live as long as the process. A test that compares [`thread_count`] or
//! [`open_descriptors`] before and after starts its server first and counts then.

// Several test binaries and benches include this module, and none of them uses all of it. Their `pub` reaches nobody.
#![allow(dead_code, unused_imports, unreachable_pub)]

mod acceptor;
mod builder;
mod certs;
mod conversation;
mod launcher;
mod link;
mod peer;
mod proxy;
mod resp;
mod server;
mod socket;

pub use builder::{ServerBuilder, server_speaks_tls};
pub use certs::{Certificates, Identity, KeyKind};
pub use conversation::{Behaviour, Conversation, Step};
pub use launcher::{end_with_parent, scratch_directory, signal, spawn};
pub use peer::Peer;
pub use proxy::{Direction, Proxy, Upstream};
pub use resp::{Reply, RespClient};
pub use server::Server;

use std::fs;
use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A name that no other call, in this process or another, has returned: for streams, groups and keys.
pub fn unique(name: &str) -> String {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    format!("{name}:{}:{}", std::process::id(), COUNTER.fetch_add(1, Ordering::Relaxed))
}

/// Waits until the condition holds, asking every 5 ms.
///
/// # Panics
///
/// When it does not hold within `timeout`; the message names the line of the call.
#[track_caller]
pub fn wait_until(timeout: Duration, mut condition: impl FnMut() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < timeout, "the awaited condition did not hold within {timeout:?}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// How many file descriptors this process has open.
pub fn open_descriptors() -> usize {
    // Reading the directory takes one descriptor, which lists itself.
    read_directory("/proc/self/fd") - 1
}

/// How many threads this process has.
pub fn thread_count() -> usize {
    read_directory("/proc/self/task")
}

/// How many threads of this process have a name that starts with `prefix`. The system keeps 15 bytes of a name.
pub fn threads_named(prefix: &str) -> usize {
    let prefix = &prefix.as_bytes()[..prefix.len().min(15)];
    let tasks = fs::read_dir("/proc/self/task").expect("/proc is needed to count threads");
    // A thread may end between the listing and the reading.
    tasks.flatten().filter(|task| fs::read(task.path().join("comm")).is_ok_and(|name| name.starts_with(prefix))).count()
}

/// The resident memory of a process in bytes.
pub fn resident_memory(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).expect("the process to measure has ended");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a zombie has no VmRSS");
    let kibibytes: u64 = line.trim().trim_end_matches(" kB").parse().expect("VmRSS is a number of kB");
    kibibytes * 1024
}

fn read_directory(path: &str) -> usize {
    fs::read_dir(path).unwrap_or_else(|error| panic!("cannot read {path}, which these tests need: {error}")).count()
}

/// A port on 127.0.0.1 that was free a moment ago.
///
/// It lies below the range from which the system serves outgoing connections. In that range, a client that keeps
/// connecting to a port whose server is down would one day get the port as its own and talk to itself, and a server that
/// comes back would find its port taken.
fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const FIRST: u32 = 10_000;
    const COUNT: u32 = 22_000;
    // Processes that run at the same time start at different places.
    let offset = std::process::id().wrapping_mul(7919);
    for _ in 0..COUNT {
        let candidate = FIRST + offset.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let candidate = u16::try_from(candidate).expect("the range ends below 65536");
        if TcpListener::bind(("127.0.0.1", candidate)).is_ok() {
            return candidate;
        }
    }
    panic!("no free port between {FIRST} and {}", FIRST + COUNT);
}

/// Locks even if a failed test has panicked under the lock: its own message is the one worth reading.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
