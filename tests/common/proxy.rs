//! A fault proxy between client and server, whose faults the test switches while it runs. It forwards bytes as they are,
//! so it serves plain connections and TLS alike.
//!
//! ```ignore
//! let proxy = Proxy::start(server.port());             // or a socket address, or the path of a Unix socket
//! proxy.delay(Direction::Both, Duration::from_millis(1));
//! proxy.cut_after(Direction::ToClient, 100);           // in the middle of a reply
//! proxy.swallow(Direction::Both, true);                // half-open: everything vanishes, connections stay
//! proxy.wait_until(|proxy| proxy.swallowed(Direction::ToServer) > 0);
//! proxy.heal();
//! ```
//!
//! A fault takes effect at once, also for bytes that are already under way in the proxy. Each direction of a connection has
//! a thread that reads and one that writes, so a delay adds to the latency and does not limit the throughput.

use super::acceptor::{Faults, Shared, accept};
use super::link::{End, Link};
use super::{free_port, lock, wait_until};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Requests.
    ToServer,
    /// Replies.
    ToClient,
    /// Both ways.
    Both,
}

impl Direction {
    fn lanes(self) -> &'static [usize] {
        match self {
            Direction::ToServer => &[0],
            Direction::ToClient => &[1],
            Direction::Both => &[0, 1],
        }
    }
}

/// Where the proxy connects to: from a port on 127.0.0.1, a socket address, or the path of a Unix socket.
#[derive(Debug, Clone)]
pub enum Upstream {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl From<u16> for Upstream {
    fn from(port: u16) -> Upstream {
        Upstream::Tcp((Ipv4Addr::LOCALHOST, port).into())
    }
}

impl From<SocketAddr> for Upstream {
    fn from(address: SocketAddr) -> Upstream {
        Upstream::Tcp(address)
    }
}

impl From<PathBuf> for Upstream {
    fn from(path: PathBuf) -> Upstream {
        Upstream::Unix(path)
    }
}

impl From<&Path> for Upstream {
    fn from(path: &Path) -> Upstream {
        Upstream::Unix(path.to_path_buf())
    }
}

/// A running proxy; see the module's text.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Listens on a port of 127.0.0.1 and forwards each connection to `upstream`.
    pub fn start(upstream: impl Into<Upstream>) -> Proxy {
        let (listener, address) = (0..20)
            .find_map(|_| {
                let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_port()));
                TcpListener::bind(address).ok().map(|listener| (listener, address))
            })
            .expect("one of twenty free ports can be bound");
        let shared = Arc::new(Shared::new(upstream.into()));
        let acceptor = {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("proxy-accept".into()).spawn(move || accept(listener, address, &shared))
        };
        Proxy { address, shared, acceptor: Some(acceptor.expect("a thread starts")) }
    }

    /// Where clients connect to.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The port on 127.0.0.1 where clients connect to.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// `redis://127.0.0.1:port`.
    pub fn url(&self) -> String {
        format!("redis://{}", self.address)
    }

    /// Each byte arrives this much later. Zero ends the fault.
    pub fn delay(&self, direction: Direction, delay: Duration) {
        self.change(direction, |faults| faults.delay = delay);
    }

    /// At most so many bytes pass in each interval, on each connection. Zero bytes end the fault.
    pub fn drip(&self, direction: Direction, bytes: usize, every: Duration) {
        self.change(direction, |faults| faults.drip = (bytes > 0).then_some((bytes, every)));
    }

    /// After so many more bytes in this direction, counted over all connections, the connection that carried the last one is
    /// closed and the fault is over; [`Proxy::cuts`] counts it. `Both` arms each direction by itself.
    pub fn cut_after(&self, direction: Direction, bytes: usize) {
        self.change(direction, |faults| faults.cut_after = Some(bytes));
    }

    /// Half-open: bytes vanish, and so does the news that one side has left. Connections stay and new ones are accepted.
    /// When the fault ends, connections that lost something are reset, since what follows would make no sense.
    pub fn swallow(&self, direction: Direction, on: bool) {
        self.change(direction, |faults| faults.swallow = on);
    }

    /// Whether the port refuses connections, as if nothing ran there. Existing connections stay. In force on return.
    pub fn refuse(&self, on: bool) {
        let mut gate = lock(&self.shared.gate);
        gate.refuse = on;
        self.shared.gate_changed.notify_all();
        if on && gate.listening {
            drop(gate);
            self.wake_acceptor();
            gate = lock(&self.shared.gate);
        }
        while gate.listening == on {
            gate = self.shared.wait_at(gate);
        }
    }

    /// Whether new connections are accepted and closed at once. Existing connections stay.
    pub fn close_new(&self, on: bool) {
        lock(&self.shared.gate).close_new = on;
    }

    /// Closes all connections in an orderly way, both sides. What was still under way in the proxy is lost.
    pub fn close(&self) {
        self.end_all(End::Close);
    }

    /// Resets all connections (RST), both sides.
    pub fn reset(&self) {
        self.end_all(End::Reset);
    }

    /// Closes the clients' sides of all connections. The server's sides stay open, and what the server sends is lost, as
    /// when a firewall in between has forgotten them.
    pub fn abandon(&self) {
        for link in lock(&self.shared.links).iter() {
            link.end(End::Client);
        }
    }

    /// The same, and what the clients have sent by then reaches the server `late` after they sent it.
    pub fn abandon_late(&self, late: Duration) {
        for link in lock(&self.shared.links).iter() {
            link.end_client(late);
        }
    }

    /// Silences the connection that the server knows by this address (`addr` in `CLIENT LIST`), for good: whatever is sent
    /// on it vanishes, and so does the news that one side has left. Panics if there is none.
    pub fn silence(&self, address: &str) {
        self.link(address).silence();
    }

    /// Whether new connections are accepted and silent from the start. Existing connections stay as they are.
    pub fn silence_new(&self, on: bool) {
        lock(&self.shared.gate).silence_new = on;
    }

    /// How many bytes of this connection wait to be forwarded to the server. Panics as [`Proxy::silence`].
    pub fn waiting(&self, address: &str) -> usize {
        self.link(address).waiting()
    }

    /// Ends all faults.
    pub fn heal(&self) {
        self.change(Direction::Both, |faults| *faults = Faults::default());
        self.close_new(false);
        self.silence_new(false);
        self.refuse(false);
    }

    /// How many connections have been accepted so far.
    pub fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// How many connections are open. One whose client has left does not count, even if the server has not noticed yet.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// How many bytes have passed.
    pub fn forwarded(&self, direction: Direction) -> u64 {
        direction.lanes().iter().map(|lane| self.shared.forwarded[*lane].load(Ordering::SeqCst)).sum()
    }

    /// How many bytes have vanished under [`Proxy::swallow`].
    pub fn swallowed(&self, direction: Direction) -> u64 {
        direction.lanes().iter().map(|lane| self.shared.swallowed[*lane].load(Ordering::SeqCst)).sum()
    }

    /// How many connections [`Proxy::cut_after`] has cut.
    pub fn cuts(&self) -> usize {
        self.shared.cuts.load(Ordering::SeqCst)
    }

    /// Waits until the condition holds. Panics after 10 seconds, naming the line of the call.
    #[track_caller]
    pub fn wait_until(&self, mut condition: impl FnMut(&Proxy) -> bool) {
        wait_until(Duration::from_secs(10), || condition(self));
    }

    /// The link that the server knows by this address.
    fn link(&self, address: &str) -> Arc<Link> {
        let links = lock(&self.shared.links);
        let is_meant = |link: &&Arc<Link>| link.address_at_server().is_some_and(|its| its.to_string() == address);
        Arc::clone(links.iter().find(is_meant).expect("a connection of this proxy"))
    }

    fn change(&self, direction: Direction, change: impl Fn(&mut Faults)) {
        for lane in direction.lanes() {
            change(&mut lock(&self.shared.faults[*lane]));
        }
        for link in lock(&self.shared.links).iter() {
            link.wake();
        }
    }

    /// Ends all links and waits until their sockets are closed: they are when the threads have let go of the link.
    fn end_all(&self, end: End) {
        let links = std::mem::take(&mut *lock(&self.shared.links));
        let ending: Vec<_> = links.iter().map(Arc::downgrade).collect();
        for link in links {
            link.end(end);
        }
        wait_until(Duration::from_secs(10), || ending.iter().all(|link| link.strong_count() == 0));
    }

    fn wake_acceptor(&self) {
        // Refused when the acceptor has seen the change already.
        let _ = TcpStream::connect(self.address);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        lock(&self.shared.gate).ended = true;
        self.shared.gate_changed.notify_all();
        self.wake_acceptor();
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}
