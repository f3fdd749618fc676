//! The names that consumers have if they were given none.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// A consumer name for this process: the host, the process id, and a random part, as ids come again after a restart and in
/// containers.
pub(crate) fn process_name() -> Arc<str> {
    static NAME: OnceLock<Arc<str>> = OnceLock::new();
    let name = NAME.get_or_init(|| {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname")
            .ok()
            .or_else(|| std::env::var("HOSTNAME").ok())
            .map(|host| host.trim().to_owned())
            .filter(|host| !host.is_empty())
            .unwrap_or_else(|| "host".to_owned());
        let random = RandomState::new().build_hasher().finish();
        format!("{host}-{}-{:08x}", std::process::id(), random as u32).into()
    });
    Arc::clone(name)
}

/// The process's name and a number: each consumer of a process is one of its own to the server.
pub(crate) fn unique_name() -> Arc<str> {
    static CONSUMERS: AtomicU64 = AtomicU64::new(1);
    format!("{}-{}", process_name(), CONSUMERS.fetch_add(1, Ordering::Relaxed)).into()
}
