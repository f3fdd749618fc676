//! Hostile peers: listeners that do to a client what no healthy server does.
//!
//! ```ignore
//! let peer = Peer::tcp(Behaviour::Silent);
//! let peer = Peer::unix(Behaviour::Drip(b"+PONG\r\n".to_vec(), Duration::from_millis(200)));
//! let peer = Peer::tcp(Behaviour::Script(vec![Step::Handshake, Step::Request, Step::Send(b"$5\r\nab".to_vec()), Step::Reset]));
//! let peer = Peer::tcp(Behaviour::custom(|talk| { let request = talk.request()?; talk.send(b"+OK\r\n") }));
//! let peer = Peer::tcp_each(|index| if index == 0 { Behaviour::Silent } else { Behaviour::Garbage(b"?".to_vec()) });
//! let peer = Peer::tcp_full();   // connecting never succeeds
//! ```
//!
//! After its behaviour has ended, a connection stays open and silent until the client leaves, unless the behaviour closed
//! it. Dropping the peer ends and joins everything at once.

use super::conversation::{Behaviour, Conversation};
use super::socket::Stream;
use super::{lock, scratch_directory, wait_until};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;
use tempfile::TempDir;

/// A listening hostile peer; see the module's text.
#[derive(Debug)]
pub struct Peer {
    address: Address,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
    /// The sockets of a peer that never accepts: its listener, and the connections that fill its backlog.
    backlog: Vec<Socket>,
    directory: Option<TempDir>,
}

#[derive(Debug, Clone)]
enum Address {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

/// What the peer, its acceptor and its conversations share.
#[derive(Debug, Default)]
pub(super) struct Shared {
    pub(super) ended: AtomicBool,
    pub(super) connections: Mutex<Vec<Connection>>,
    /// Woken when the peer ends; goes with the lock of `connections`.
    pub(super) changed: Condvar,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

#[derive(Debug)]
pub(super) struct Connection {
    /// Gone when the conversation is over.
    stream: Option<Arc<Stream>>,
    open: bool,
    pub(super) received: Vec<u8>,
}

type Choice = Box<dyn Fn(usize) -> Behaviour + Send + Sync>;

impl Peer {
    /// Listens on a port of 127.0.0.1 and treats every connection the same way.
    pub fn tcp(behaviour: Behaviour) -> Peer {
        Peer::tcp_each(move |_| behaviour.clone())
    }

    /// Listens on a Unix socket and treats every connection the same way.
    pub fn unix(behaviour: Behaviour) -> Peer {
        Peer::unix_each(move |_| behaviour.clone())
    }

    /// Listens on a port of 127.0.0.1; the function chooses the behaviour by the number of the connection, from 0.
    pub fn tcp_each(choose: impl Fn(usize) -> Behaviour + Send + Sync + 'static) -> Peer {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = Address::Tcp(listener.local_addr().expect("a bound listener has an address"));
        let accept = move || {
            let (stream, _) = listener.accept()?;
            // As a real server does: otherwise a small piece may wait for the client's word that it has the one before.
            let _ = stream.set_nodelay(true);
            Ok(Stream::Tcp(stream))
        };
        Peer::serve(address, None, accept, Box::new(choose))
    }

    /// Listens on a Unix socket; the function chooses the behaviour by the number of the connection, from 0.
    pub fn unix_each(choose: impl Fn(usize) -> Behaviour + Send + Sync + 'static) -> Peer {
        let directory = scratch_directory("peer-");
        let path = directory.path().join("peer.sock");
        let listener = UnixListener::bind(&path).expect("a new path can be bound");
        let accept = move || listener.accept().map(|(stream, _)| Stream::Unix(stream));
        Peer::serve(Address::Unix(path), Some(directory), accept, Box::new(choose))
    }

    /// Listens on a port of 127.0.0.1 with a full backlog: the system drops every further attempt to connect, so it
    /// takes until the client gives up.
    pub fn tcp_full() -> Peer {
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into()).expect("a free port");
        listener.listen(0).expect("a bound socket listens");
        let address = listener.local_addr().expect("a bound socket has an address");
        let mut backlog = vec![listener];
        loop {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            // On loopback a connection takes microseconds while there is room.
            if socket.connect_timeout(&address, Duration::from_millis(50)).is_err() {
                break;
            }
            backlog.push(socket);
        }
        let address = address.as_socket().expect("an Internet address");
        Peer { address: Address::Tcp(address), shared: Arc::default(), acceptor: None, backlog, directory: None }
    }

    /// Listens on a Unix socket with a full backlog: connecting blocks, or fails at once when the socket does not block.
    pub fn unix_full() -> Peer {
        let directory = scratch_directory("peer-");
        let path = directory.path().join("peer.sock");
        let address = SockAddr::unix(&path).expect("the path is short");
        let listener = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
        listener.bind(&address).expect("a new path can be bound");
        listener.listen(0).expect("a bound socket listens");
        let mut backlog = vec![listener];
        loop {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
            socket.set_nonblocking(true).expect("a new socket takes options");
            if socket.connect(&address).is_err() {
                break;
            }
            backlog.push(socket);
        }
        let address = Address::Unix(path);
        Peer { address, shared: Arc::default(), acceptor: None, backlog, directory: Some(directory) }
    }

    /// The TCP address. Panics for a Unix socket.
    #[track_caller]
    pub fn address(&self) -> SocketAddr {
        match &self.address {
            Address::Tcp(address) => *address,
            Address::Unix(_) => panic!("the peer listens on a Unix socket"),
        }
    }

    /// The TCP port. Panics for a Unix socket.
    #[track_caller]
    pub fn port(&self) -> u16 {
        self.address().port()
    }

    /// The path of the Unix socket. Panics for a TCP port.
    #[track_caller]
    pub fn path(&self) -> &Path {
        match &self.address {
            Address::Unix(path) => path,
            Address::Tcp(_) => panic!("the peer listens on a TCP port"),
        }
    }

    /// `redis://127.0.0.1:port` or `unix:///path`.
    pub fn url(&self) -> String {
        match &self.address {
            Address::Tcp(address) => format!("redis://{address}"),
            Address::Unix(path) => format!("unix://{}", path.display()),
        }
    }

    /// How many connections have been accepted so far.
    pub fn connections(&self) -> usize {
        lock(&self.shared.connections).len()
    }

    /// How many connections are still open on both sides. A client's leaving shows once the behaviour reads or writes.
    pub fn open(&self) -> usize {
        lock(&self.shared.connections).iter().filter(|connection| connection.open).count()
    }

    /// Everything that the client of this connection has sent and the behaviour has read.
    pub fn received(&self, index: usize) -> Vec<u8> {
        lock(&self.shared.connections).get(index).map(|connection| connection.received.clone()).unwrap_or_default()
    }

    /// Waits until the condition holds. Panics after 10 seconds, naming the line of the call.
    #[track_caller]
    pub fn wait_until(&self, mut condition: impl FnMut(&Peer) -> bool) {
        wait_until(Duration::from_secs(10), || condition(self));
    }

    fn serve(
        address: Address,
        directory: Option<TempDir>,
        accept: impl Fn() -> io::Result<Stream> + Send + 'static,
        choose: Choice,
    ) -> Peer {
        let shared = Arc::<Shared>::default();
        let acceptor = {
            let shared = Arc::clone(&shared);
            thread::Builder::new().name("peer-accept".into()).spawn(move || {
                while let Ok(stream) = accept() {
                    if shared.ended.load(Ordering::Relaxed) {
                        break;
                    }
                    converse(stream, &shared, &choose);
                }
            })
        };
        let acceptor = Some(acceptor.expect("a thread starts"));
        Peer { address, shared, acceptor, backlog: Vec::new(), directory }
    }
}

/// Starts the conversation with one client in a thread of its own.
fn converse(stream: Stream, shared: &Arc<Shared>, choose: &Choice) {
    let stream = Arc::new(stream);
    let mut connections = lock(&shared.connections);
    let index = connections.len();
    connections.push(Connection { stream: Some(Arc::clone(&stream)), open: true, received: Vec::new() });
    drop(connections);
    let behaviour = choose(index);
    let mut conversation = Conversation { stream, shared: Arc::clone(shared), index, unread: Vec::new() };
    let thread = thread::Builder::new().name(format!("peer-{index}")).spawn(move || {
        conversation.run(&behaviour);
        // A reset takes place when the last handle of the socket goes, so the list must not keep one.
        let shared = Arc::clone(&conversation.shared);
        let kept = lock(&shared.connections)[index].stream.take();
        drop((kept, conversation));
        lock(&shared.connections)[index].open = false;
    });
    let mut threads = lock(&shared.threads);
    // A thread that has ended keeps its stack until it is joined.
    for ended in threads.extract_if(.., |thread| thread.is_finished()) {
        // A behaviour that has panicked has printed why.
        let _ = ended.join();
    }
    threads.push(thread.expect("a thread starts"));
}

impl Drop for Peer {
    fn drop(&mut self) {
        {
            let _connections = lock(&self.shared.connections);
            self.shared.ended.store(true, Ordering::Relaxed);
            self.shared.changed.notify_all();
        }
        if let Some(acceptor) = self.acceptor.take() {
            // Wakes the acceptor, which then sees that the peer has ended.
            let _ = match &self.address {
                Address::Tcp(address) => TcpStream::connect(address).map(drop),
                Address::Unix(path) => UnixStream::connect(path).map(drop),
            };
            let _ = acceptor.join();
        }
        for stream in lock(&self.shared.connections).iter().filter_map(|connection| connection.stream.as_ref()) {
            stream.shutdown(Shutdown::Both);
        }
        let threads = std::mem::take(&mut *lock(&self.shared.threads));
        for thread in threads {
            // A behaviour that has panicked has printed why.
            let _ = thread.join();
        }
    }
}
