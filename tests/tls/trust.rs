//! Who is trusted and by which name, however it is said: files, bytes, a URL, a ready configuration. And sessions are
//! resumed.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use log::Level;
use rustls::client::Tls13ClientSessionValue;
use rustls::client::{ClientSessionMemoryCache, ClientSessionStore, Resumption, Tls12ClientSessionValue};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, NamedGroup, RootCertStore};
use step_redis::{ConnectStep, Error, Pem, PoolParams, StepPool, StepStream, StreamInput, TlsParams};

use crate::common::{Certificates, KeyKind, Server};
use crate::support::{capture_logs, identified, logged, mutual_server, params, refused, server, trusting, with_causes};

#[track_caller]
fn works(params: PoolParams) {
    match StepPool::connect(params) {
        Ok(pool) => drop(pool.ping().expect("the connection is proven")),
        Err(error) => panic!("{}", with_causes(&error)),
    }
}

#[test]
fn every_kind_of_key_is_accepted_by_the_server() {
    let certificates = Certificates::generate();
    let server = mutual_server(&certificates);
    for kind in [KeyKind::Pkcs8, KeyKind::Sec1, KeyKind::Pkcs1, KeyKind::Ed25519] {
        let client = certificates.client_with_key(kind);
        // Both in one file, the key first, with text around them.
        let key = fs::read_to_string(&client.key).unwrap();
        let certificate = fs::read_to_string(&client.certificate).unwrap();
        let both = certificates.write("both.pem", format!("a key\n{key}\na certificate\n{certificate}\nthe end\n"));
        works(params(&server, trusting(&certificates).client_cert(client.certificate).client_key(client.key)));
        works(params(&server, trusting(&certificates).client_cert(&both).client_key(&both)));
    }
}

#[test]
fn bytes_do_as_well_as_files() {
    let certificates = Certificates::generate();
    let server = mutual_server(&certificates);
    let bytes = |path| Pem::bytes(fs::read(path).unwrap());
    let tls = TlsParams::new()
        .ca_certs(bytes(certificates.ca()))
        .client_cert(bytes(certificates.client()))
        .client_key(bytes(certificates.client_key()));
    works(params(&server, tls));
}

#[test]
fn a_server_is_known_by_its_name_and_by_its_address() {
    let certificates = Certificates::generate();
    let server = server(&certificates);
    for host in ["127.0.0.1", "localhost"] {
        works(PoolParams::new(host, server.tls_port()).tls(trusting(&certificates)));
    }
}

#[test]
fn a_certificate_made_out_to_another_name_is_accepted_under_that_name() {
    let certificates = Certificates::for_host("elsewhere.example");
    let server = server(&certificates);
    works(params(&server, trusting(&certificates).server_name("elsewhere.example")));
    let error = refused(params(&server, trusting(&certificates).server_name("nowhere.example")));
    assert!(with_causes(&error).contains("is not valid for `nowhere.example`"), "{}", with_causes(&error));
    let error = refused(params(&server, trusting(&certificates).server_name("no name")));
    assert!(matches!(&error, Error::Tls { item, .. } if **item == *"server_name"), "{error:?}");
}

#[cfg(feature = "encrypted-keys")]
#[test]
fn a_url_says_it_all() {
    let certificates = Certificates::for_host("elsewhere.example");
    let server = Server::builder()
        .tls(&certificates)
        .require_client_certificate(true)
        .user("alice", "on >wonder+land ~* &* +@all")
        .start();
    let (ca, certificate) = (certificates.ca(), certificates.client());
    let key = certificates.encrypted_client_key("a&b");
    let url = format!(
        "rediss://alice:wonder%2Bland@127.0.0.1:{}/3?ssl_ca_certs={}&ssl_certfile={}&ssl_keyfile={}&ssl_keyfile_password=a%26b\
         &ssl_server_name=elsewhere.example&protocol=2",
        server.tls_port(),
        ca.display(),
        certificate.display(),
        key.display(),
    );
    let pool = StepPool::connect(PoolParams::from_url(&url).unwrap()).unwrap();
    let mut connection = pool.get().unwrap();
    let whoami: String = step_redis::redis::cmd("ACL").arg("WHOAMI").query(&mut *connection).unwrap();
    assert_eq!((whoami.as_str(), pool.params().db), ("alice", 3));

    // Without its own name, the certificate is not this server's; with `none`, nobody looks.
    let url = url.replace("&ssl_server_name=elsewhere.example", "");
    assert!(with_causes(&refused(PoolParams::from_url(&url).unwrap())).contains("is not valid for"));
    works(PoolParams::from_url(&format!("{url}&ssl_cert_reqs=none")).unwrap());
    assert_eq!(PoolParams::from_url("rediss://host").unwrap().port, 6379);
}

#[test]
fn accepting_invalid_certificates_is_said_aloud_once_for_a_pool() {
    capture_logs();
    let certificates = Certificates::expired();
    let server = server(&certificates);
    let dangerous = params(&server, TlsParams::new().danger_accept_invalid_certs(true));
    let warnings = || {
        let address = format!("127.0.0.1:{}", server.tls_port());
        let warnings = logged(|line| line.level == Level::Warn && line.text.contains(&address));
        assert!(
            warnings.iter().all(|line| line.text.contains("is not verified: `danger_accept_invalid_certs` is set"))
        );
        warnings.len()
    };
    let pool = StepPool::connect(dangerous.clone()).unwrap();
    assert_eq!(warnings(), 1);
    let both = (pool.get().unwrap(), pool.get().unwrap());
    assert_eq!((pool.state().connections, warnings()), (2, 1));
    drop(both);
    works(dangerous);
    assert_eq!(warnings(), 2);
    refused(params(&server, trusting(&certificates)));
    assert_eq!(warnings(), 2);
}

/// A store of sessions that counts the tickets which were used.
#[derive(Debug)]
struct Counting {
    sessions: ClientSessionMemoryCache,
    used: AtomicUsize,
}

impl ClientSessionStore for Counting {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.sessions.set_kx_hint(name, group);
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.sessions.kx_hint(name)
    }

    fn set_tls12_session(&self, name: ServerName<'static>, session: Tls12ClientSessionValue) {
        self.sessions.set_tls12_session(name, session);
    }

    fn tls12_session(&self, name: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        self.sessions.tls12_session(name)
    }

    fn remove_tls12_session(&self, name: &ServerName<'static>) {
        self.sessions.remove_tls12_session(name);
    }

    fn insert_tls13_ticket(&self, name: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.sessions.insert_tls13_ticket(name, ticket);
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let ticket = self.sessions.take_tls13_ticket(name)?;
        self.used.fetch_add(1, Ordering::Relaxed);
        Some(ticket)
    }
}

fn ready_configuration(certificates: &Certificates) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificates.ca()).unwrap()).unwrap();
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth()
}

#[test]
fn a_ready_configuration_is_used_with_its_authorities_and_its_sessions() {
    let certificates = Certificates::generate();
    let server = server(&certificates);
    let store = Arc::new(Counting { sessions: ClientSessionMemoryCache::new(32), used: AtomicUsize::new(0) });
    let mut config = ready_configuration(&certificates);
    config.resumption = Resumption::store(Arc::clone(&store) as Arc<dyn ClientSessionStore>);
    let ready = TlsParams::new().client_config(Arc::new(config));
    for used in 0..3 {
        works(params(&server, ready.clone()));
        assert_eq!(store.used.load(Ordering::Relaxed), used);
    }

    let stranger = TlsParams::new().client_config(Arc::new(ready_configuration(&Certificates::generate())));
    let error = refused(params(&server, stranger));
    assert!(matches!(error, Error::Connect { step: ConnectStep::TlsHandshake, .. }), "{error:?}");
}

/// A consumer connects twice in the thread that spawns it, so that what `rustls` logs there tells which handshakes were
/// short.
#[test]
fn all_connections_of_a_pool_but_the_first_resume_its_session() {
    capture_logs();
    let certificates = Certificates::generate();
    for version in ["TLSv1.2", "TLSv1.3"] {
        let server = Server::builder().tls(&certificates).require_client_certificate(true);
        let server = server.config("tls-protocols", version).start();
        let here = thread::current().id();
        let kinds = || {
            let mut kinds = BTreeMap::new();
            for line in logged(|line| line.thread == here && line.target.starts_with("rustls")) {
                let kind = match line.text.as_str() {
                    "Not resuming any session" => "offered nothing",
                    "Server agreed to resume" | "Resuming using PSK" => "resumed",
                    _ => continue,
                };
                *kinds.entry(kind).or_insert(0) += 1;
            }
            kinds
        };
        let before = kinds();
        let since = |kind| kinds().get(kind).unwrap_or(&0) - before.get(kind).unwrap_or(&0);

        let pool = StepPool::connect(params(&server, identified(&certificates))).unwrap();
        assert_eq!((since("offered nothing"), since("resumed")), (1, 0), "{version}");
        let consumer = StepStream::new(pool).consumer(StreamInput::new("orders", "kitchen")).spawn().unwrap();
        assert_eq!((since("offered nothing"), since("resumed")), (1, 2), "{version}");
        consumer.close().unwrap();
    }
}
