//! The port of the fault proxy: accepts clients, or refuses them, and starts a link for each.

use super::link::{End, Link};
use super::lock;
use super::proxy::Upstream;
use super::socket::Stream;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// The faults of one direction.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Faults {
    pub(super) delay: Duration,
    pub(super) drip: Option<(usize, Duration)>,
    pub(super) swallow: bool,
    /// How many bytes still pass before the connection is cut.
    pub(super) cut_after: Option<usize>,
}

/// What the proxy, its acceptor and its links share.
#[derive(Debug)]
pub(super) struct Shared {
    /// By lane: to the server, to the client.
    pub(super) faults: [Mutex<Faults>; 2],
    pub(super) forwarded: [AtomicU64; 2],
    pub(super) swallowed: [AtomicU64; 2],
    pub(super) cuts: AtomicUsize,
    pub(super) open: AtomicUsize,
    pub(super) accepted: AtomicUsize,
    pub(super) links: Mutex<Vec<Arc<Link>>>,
    pub(super) gate: Mutex<Gate>,
    /// Goes with the lock of `gate`.
    pub(super) gate_changed: Condvar,
    upstream: Upstream,
}

/// How new connections are treated.
#[derive(Debug, Default)]
pub(super) struct Gate {
    pub(super) ended: bool,
    pub(super) refuse: bool,
    pub(super) close_new: bool,
    pub(super) silence_new: bool,
    /// What the acceptor has made of it.
    pub(super) listening: bool,
}

impl Shared {
    pub(super) fn new(upstream: Upstream) -> Shared {
        Shared {
            faults: Default::default(),
            forwarded: Default::default(),
            swallowed: Default::default(),
            cuts: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            accepted: AtomicUsize::new(0),
            links: Mutex::default(),
            gate: Mutex::new(Gate { listening: true, ..Gate::default() }),
            gate_changed: Condvar::new(),
            upstream,
        }
    }

    /// Waits for a change at the gate, and not for long: a wake-up may have been spent on a client that came in between.
    pub(super) fn wait_at<'gate>(&self, gate: MutexGuard<'gate, Gate>) -> MutexGuard<'gate, Gate> {
        let slice = Duration::from_millis(20);
        self.gate_changed.wait_timeout(gate, slice).unwrap_or_else(PoisonError::into_inner).0
    }

    fn connect_upstream(&self) -> io::Result<Stream> {
        match &self.upstream {
            Upstream::Tcp(address) => {
                let stream = TcpStream::connect_timeout(address, Duration::from_secs(5))?;
                stream.set_nodelay(true)?;
                Ok(Stream::Tcp(stream))
            }
            Upstream::Unix(path) => UnixStream::connect(path).map(Stream::Unix),
        }
    }
}

/// The acceptor's thread. Whoever changes the gate connects to the port to wake it.
pub(super) fn accept(listener: TcpListener, address: SocketAddr, shared: &Arc<Shared>) {
    let mut listener = Some(listener);
    let mut threads: Vec<JoinHandle<()>> = Vec::new();
    loop {
        let mut gate = lock(&shared.gate);
        if gate.refuse {
            listener = None;
            gate.listening = false;
            shared.gate_changed.notify_all();
            while gate.refuse && !gate.ended {
                gate = shared.wait_at(gate);
            }
        }
        if gate.ended {
            break;
        }
        if listener.is_none() {
            listener = TcpListener::bind(address).ok();
            gate.listening = listener.is_some();
            shared.gate_changed.notify_all();
        }
        let Some(open) = &listener else {
            // Another program has the port for the moment.
            drop(shared.wait_at(gate));
            continue;
        };
        drop(gate);
        let Ok((client, _)) = open.accept() else { continue };
        let gate = lock(&shared.gate);
        if gate.ended || gate.refuse {
            continue;
        }
        shared.accepted.fetch_add(1, Ordering::SeqCst);
        if gate.close_new {
            continue;
        }
        let silent = gate.silence_new;
        drop(gate);
        threads.retain(|thread| !thread.is_finished());
        let shared = Arc::clone(shared);
        let link = thread::Builder::new().name("proxy-link".into()).spawn(move || serve(client, silent, &shared));
        threads.push(link.expect("a thread starts"));
    }
    for link in lock(&shared.links).drain(..) {
        link.end(End::Close);
    }
    for thread in threads {
        let _ = thread.join();
    }
}

/// A link's first thread: connects to the server and forwards until one side ends it.
fn serve(client: TcpStream, silent: bool, shared: &Arc<Shared>) {
    shared.open.fetch_add(1, Ordering::SeqCst);
    let _ = client.set_nodelay(true);
    let link = shared.connect_upstream().map(|upstream| Arc::new(Link::new(Stream::Tcp(client), upstream)));
    let Ok(link) = link else {
        shared.open.fetch_sub(1, Ordering::SeqCst);
        return;
    };
    if silent {
        link.silence();
    }
    lock(&shared.links).push(Arc::clone(&link));
    // The proxy may have ended meanwhile, and has then not seen this link.
    if lock(&shared.gate).ended {
        link.end(End::Close);
    }
    link.forward(shared);
    lock(&shared.links).retain(|other| !Arc::ptr_eq(other, &link));
}
