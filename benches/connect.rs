//! How long a connection takes: `cargo bench --bench connect -- --help`.

mod support;

use std::hint::black_box;

use step_redis::{PoolParams, StepPool};
use support::common::Server;
use support::raw::{Raw, request};
use support::rounds::{Scenario, compare, contender, timed};
use support::session::{Cores, Session};
use support::ways;

const ABOUT: &str = "\
Opens connections and closes them again: on a raw socket, with the redis crate, and with step-redis, whose connect() also
makes the pool.

  raw        a TcpStream and a PING
  redis      the redis crate's own connection and a PING
  bare TLS   a TcpStream, a rustls handshake with the same configuration, and a PING

Handshakes are full ones, or they resume the session of an earlier connection.";

fn main() {
    let session = Session::start("connect", ABOUT, &[Cores::One, Cores::Two]);
    plain(&session);
    #[cfg(feature = "tls")]
    tls::measure(&session);
}

fn plain(session: &Session) {
    let name = "plain";
    if !session.wants(name) {
        return;
    }
    let server = Server::start();
    let port = server.port();
    let count = session.scaled(300);
    let scenario = Scenario {
        name,
        payload: 0,
        count,
        unit: "connections",
        rounds: session.rounds(7),
        references: &["raw", "redis"],
    };
    let ping = request(&["PING"]);
    compare(
        session,
        &scenario,
        vec![
            contender("raw", || timed(|| (0..count).for_each(|_| Raw::connect(port).call(&ping)))),
            contender("redis", || {
                timed(|| {
                    for _ in 0..count {
                        let answer: String =
                            redis::cmd("PING").query(&mut ways::redis(port)).expect("the server answers");
                        black_box(answer);
                    }
                })
            }),
            contender("step-redis", || {
                let params = PoolParams::new("127.0.0.1", port);
                timed(|| {
                    for _ in 0..count {
                        black_box(StepPool::connect(params.clone()).expect("the server answers"));
                    }
                })
            }),
        ],
    );
}

#[cfg(feature = "tls")]
mod tls {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::Arc;

    use step_redis::rustls::client::Resumption;
    use step_redis::rustls::pki_types::pem::PemObject;
    use step_redis::rustls::pki_types::{CertificateDer, ServerName};
    use step_redis::rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto};
    use step_redis::{PoolParams, StepPool, TlsParams};

    use super::support::common::{Certificates, Server};
    use super::support::rounds::{Scenario, compare, contender, timed};
    use super::support::session::Session;

    pub(crate) fn measure(session: &Session) {
        let certificates = Certificates::generate();
        let server = Server::builder().tls(&certificates).start();
        for (name, resume) in [("TLS", false), ("TLS resumed", true)] {
            if session.wants(name) {
                handshakes(session, name, &certificates, server.tls_port(), resume);
            }
        }
    }

    fn handshakes(session: &Session, name: &str, certificates: &Certificates, port: u16, resume: bool) {
        let count = session.scaled(80);
        let scenario = Scenario {
            name,
            payload: 0,
            count,
            unit: "connections",
            rounds: session.rounds(7),
            references: &["bare TLS"],
        };
        let (bare, ours) = (config(certificates, resume), config(certificates, resume));
        let params = PoolParams::new("127.0.0.1", port).tls(TlsParams::new().client_config(ours));
        compare(
            session,
            &scenario,
            vec![
                contender("bare TLS", || timed(|| (0..count).for_each(|_| handshake(&bare, port)))),
                contender("step-redis", || {
                    timed(|| {
                        for _ in 0..count {
                            drop(StepPool::connect(params.clone()).expect("the server answers"));
                        }
                    })
                }),
            ],
        );
    }

    fn config(certificates: &Certificates, resume: bool) -> Arc<ClientConfig> {
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(certificates.ca()).expect("the file is there") {
            roots.add(certificate.expect("a certificate")).expect("a root");
        }
        let mut config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("the provider knows the versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        if !resume {
            config.resumption = Resumption::disabled();
        }
        Arc::new(config)
    }

    /// The tickets that later connections resume with come along with the answer to the `PING`.
    fn handshake(config: &Arc<ClientConfig>, port: u16) {
        let name = ServerName::try_from("127.0.0.1").expect("an address");
        let session = ClientConnection::new(Arc::clone(config), name).expect("a configuration");
        let socket = TcpStream::connect(("127.0.0.1", port)).expect("the private server accepts");
        socket.set_nodelay(true).expect("a TCP socket");
        let mut stream = StreamOwned::new(session, socket);
        stream.write_all(b"*1\r\n$4\r\nPING\r\n").expect("the server reads");
        let mut answer = [0; 7];
        stream.read_exact(&mut answer).expect("the server answers");
        assert_eq!(&answer, b"+PONG\r\n");
    }
}
