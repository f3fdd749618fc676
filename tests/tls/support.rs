//! What these tests share: servers with TLS, parameters for them, refusals, and everything that is logged.

use std::error::Error as StdError;
use std::fmt::Write as _;
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use log::{Level, LevelFilter, Log, Metadata, Record};
use step_redis::{Error, PoolParams, StepPool, TlsParams};

use crate::common::{Certificates, Server};

/// The time limit for connecting. No mistake takes that long to be noticed, however busy the machine.
pub(crate) const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// A server that asks clients for no certificate.
pub(crate) fn server(certificates: &Certificates) -> Server {
    Server::builder().tls(certificates).start()
}

/// A server that demands a certificate.
pub(crate) fn mutual_server(certificates: &Certificates) -> Server {
    Server::builder().tls(certificates).require_client_certificate(true).start()
}

/// How to reach the server's TLS port.
pub(crate) fn params(server: &Server, tls: TlsParams) -> PoolParams {
    PoolParams::new("127.0.0.1", server.tls_port()).tls(tls).socket_connect_timeout(CONNECT_LIMIT)
}

/// Trusts the test's authority, and shows nothing.
pub(crate) fn trusting(certificates: &Certificates) -> TlsParams {
    TlsParams::new().ca_certs(certificates.ca())
}

/// Trusts the test's authority, and shows the client's certificate.
pub(crate) fn identified(certificates: &Certificates) -> TlsParams {
    trusting(certificates).client_cert(certificates.client()).client_key(certificates.client_key())
}

/// Connects, which must fail, and before the time limit.
#[track_caller]
pub(crate) fn refused(params: PoolParams) -> Error {
    let (started, limit) = (Instant::now(), params.socket_connect_timeout);
    let connected = StepPool::connect(params);
    let took = started.elapsed();
    let error = connected.expect_err("this should not have connected");
    assert!(took < limit, "it took {took:?} until: {}", with_causes(&error));
    error
}

/// An error with all its causes, as a user would print it.
pub(crate) fn with_causes(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}

/// One line that was logged.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    pub(crate) level: Level,
    pub(crate) target: String,
    pub(crate) thread: ThreadId,
    pub(crate) text: String,
}

/// Keeps every line that this process logs, at all levels.
struct Capture {
    lines: Mutex<Vec<Line>>,
}

static CAPTURE: Capture = Capture { lines: Mutex::new(Vec::new()) };

impl Log for Capture {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        self.lines().push(Line {
            level: record.level(),
            target: record.target().to_owned(),
            thread: thread::current().id(),
            text: record.args().to_string(),
        });
    }

    fn flush(&self) {}
}

impl Capture {
    fn lines(&self) -> MutexGuard<'_, Vec<Line>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts to keep what is logged, at trace. The tests run in parallel, so others' lines are among it.
pub(crate) fn capture_logs() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        log::set_logger(&CAPTURE).expect("nobody else sets a logger here");
        log::set_max_level(LevelFilter::Trace);
    });
}

/// What was logged since [`capture_logs`] and satisfies the condition.
pub(crate) fn logged(condition: impl Fn(&Line) -> bool) -> Vec<Line> {
    CAPTURE.lines().iter().filter(|line| condition(line)).cloned().collect()
}
