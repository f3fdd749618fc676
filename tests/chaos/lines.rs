//! The ways to the server: RESP3 and RESP2 over TCP, a Unix socket, and TLS where there is any; all but the socket through a
//! fault proxy.

use std::path::PathBuf;
use std::time::Duration;

use step_redis::{PoolParams, Protocol, StepPool, StepStream};

use crate::common::{Certificates, Proxy, Server, Upstream};

/// The limit of each wait for the server. Every call takes a small multiple of it at most.
pub(crate) const LIMIT: Duration = Duration::from_millis(500);

/// One way to the server, as another process can be told it.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) kind: Kind,
    port: u16,
    /// The Unix socket, or the certificate authority.
    path: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Resp3,
    Resp2,
    Unix,
    #[cfg(feature = "tls")]
    Tls,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Resp3 => "RESP3",
            Kind::Resp2 => "RESP2",
            Kind::Unix => "Unix",
            #[cfg(feature = "tls")]
            Kind::Tls => "TLS",
        }
    }

    fn named(name: &str) -> Option<Kind> {
        let all = [
            Kind::Resp3,
            Kind::Resp2,
            Kind::Unix,
            #[cfg(feature = "tls")]
            Kind::Tls,
        ];
        all.into_iter().find(|kind| kind.name() == name)
    }
}

impl Line {
    /// Opens nothing: the line may be cut at the moment.
    pub(crate) fn stream(&self) -> StepStream {
        let tcp = PoolParams::new("127.0.0.1", self.port);
        let params = match self.kind {
            Kind::Resp3 => tcp,
            Kind::Resp2 => tcp.protocol(Protocol::Resp2),
            Kind::Unix => PoolParams::default().unix_socket(&self.path),
            #[cfg(feature = "tls")]
            Kind::Tls => tcp.tls(step_redis::TlsParams::new().ca_certs(self.path.clone())),
        };
        let params = params
            .socket_timeout(LIMIT)
            .socket_connect_timeout(LIMIT)
            .connection_available_timeout(LIMIT)
            .health_check_interval(LIMIT);
        StepStream::new(StepPool::new(params).expect("the parameters are good"))
    }

    /// Everything in one word, for an environment variable.
    pub(crate) fn in_words(&self) -> String {
        format!("{},{},{}", self.kind.name(), self.port, self.path.display())
    }

    pub(crate) fn from_words(words: &str) -> Line {
        let mut parts = words.splitn(3, ',');
        let mut next = || parts.next().expect("a line is written with three parts");
        let kind = Kind::named(next()).expect("a line is of a known kind");
        Line { kind, port: next().parse().expect("a port is a number"), path: next().into() }
    }
}

/// The server's lines, and the proxies in them.
pub(crate) struct Network {
    lines: Vec<Line>,
    pub(crate) proxies: Vec<(&'static str, Proxy)>,
}

impl Network {
    /// `certificates` are the server's, if it speaks TLS.
    pub(crate) fn new(server: &Server, certificates: Option<&Certificates>) -> Network {
        let mut network = Network { lines: Vec::new(), proxies: Vec::new() };
        // Not to a port: while the server is down, another program's server could get it, and confirm what is sent there.
        network.add(Kind::Resp3, server.unix_path(), PathBuf::new());
        network.add(Kind::Resp2, server.unix_path(), PathBuf::new());
        network.lines.push(Line { kind: Kind::Unix, port: 0, path: server.unix_path() });
        #[cfg(feature = "tls")]
        if let Some(certificates) = certificates {
            network.add(Kind::Tls, server.tls_port(), certificates.ca());
        }
        #[cfg(not(feature = "tls"))]
        assert!(certificates.is_none(), "without TLS there is nobody to show certificates to");
        network
    }

    fn add(&mut self, kind: Kind, upstream: impl Into<Upstream>, path: PathBuf) {
        let proxy = Proxy::start(upstream);
        self.lines.push(Line { kind, port: proxy.port(), path });
        self.proxies.push((kind.name(), proxy));
    }

    /// Lines by number, in turn.
    pub(crate) fn line(&self, number: u16) -> &Line {
        &self.lines[usize::from(number) % self.lines.len()]
    }

    pub(crate) fn heal(&self) {
        self.proxies.iter().for_each(|(_, proxy)| proxy.heal());
    }
}
