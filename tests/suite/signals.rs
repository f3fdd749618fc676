//! In a process where SIGPIPE ends it, as in a C program that loads this crate, a peer that hangs up is an error like any
//! other.

use std::os::unix::process::ExitStatusExt;
use std::thread;
use std::time::{Duration, Instant};

use step_redis::redis;

use crate::common::end_with_parent;
use crate::context::{Context, Variant};

const IS_CHILD: &str = "STEP_REDIS_TEST_SIGPIPE";

/// More than the buffers of both sides take.
const LARGE: usize = 64 * 1024 * 1024;

#[test]
fn a_peer_that_hangs_up_ends_no_process() {
    let mut child = end_with_parent(&std::env::current_exe().unwrap());
    child.args(["--exact", "signals::the_child_writes_to_peers_that_hang_up", "--nocapture"]).env(IS_CHILD, "yes");
    let status = child.status().unwrap();
    assert_eq!(status.signal(), None);
    assert!(status.success(), "{status}");
}

#[test]
fn the_child_writes_to_peers_that_hang_up() {
    if std::env::var_os(IS_CHILD).is_none() {
        return;
    }
    sigpipe::reset();
    let variants = [
        Variant::Resp2Tcp,
        Variant::Resp3Unix,
        #[cfg(feature = "tls")]
        Variant::Resp2Tls,
        #[cfg(feature = "tls")]
        Variant::Resp3MutualTls,
    ];
    for variant in variants {
        let context = Context::from(variant);
        let mut connection = context.pool().get().unwrap();
        let interrupter = connection.interrupter();
        // It reads no more, so the write gets stuck; when it is interrupted then, the system says "broken pipe".
        context.server.pause();
        let error = thread::scope(|scope| {
            let payload = vec![b'x'; LARGE];
            let mut set = redis::cmd("SET");
            set.arg("key").arg(payload);
            let packed = set.get_packed_command();
            let connection = &mut connection;
            let writing =
                scope.spawn(move || redis::ConnectionLike::req_packed_command(&mut **connection, &packed).unwrap_err());
            wait_until_stuck();
            interrupter.interrupt();
            writing.join().unwrap()
        });
        context.server.resume();
        let kind = std::error::Error::source(&error).map(ToString::to_string);
        assert!(error.is_connection_dropped(), "{variant:?}: {error:?} {kind:?}");
        assert!(error.to_string().contains("outcome is unknown"), "{variant:?}: {error}");
        drop(connection);
        context.pool().ping().unwrap();
    }
}

/// Until this process has used no processor time for a while.
fn wait_until_stuck() {
    let used = || {
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
        let fields: Vec<_> = stat.rsplit(')').next().unwrap().split(' ').map(str::to_owned).collect();
        (fields[12].clone(), fields[13].clone())
    };
    let started = Instant::now();
    loop {
        let before = used();
        thread::sleep(Duration::from_millis(100));
        if used() == before {
            return;
        }
        assert!(started.elapsed() < Duration::from_secs(20));
    }
}
