//! A TLS verifier that belongs to the program: it may publish itself, and it may panic.

use std::collections::BTreeSet;
use std::error::Error as _;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Barrier, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use step_redis::{Error, StepPool, StepStream, StreamOutput, TlsParams};

use crate::common::{Certificates, Server};
use crate::support::{params, server};

const LIMIT: Duration = Duration::from_secs(20);

type First = Box<dyn FnMut() + Send>;

/// Accepts everybody, and does something else first.
struct Verifier {
    first: Mutex<Option<First>>,
}

impl Verifier {
    /// A verifier, and a pool with one connection that uses it and has been made before it does anything else.
    fn new(server: &Server) -> (Arc<Verifier>, StepPool) {
        let verifier = Arc::new(Verifier { first: Mutex::default() });
        let mut config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
            .with_no_client_auth();
        // Each connection is to be verified.
        config.resumption = rustls::client::Resumption::disabled();
        let pool = StepPool::connect(params(server, TlsParams::new().client_config(Arc::new(config)))).unwrap();
        // The pool has it for good now.
        pool.ping().unwrap();
        (verifier, pool)
    }

    fn set(&self, first: impl FnMut() + Send + 'static) {
        *self.first.lock().unwrap() = Some(Box::new(first));
    }
}

impl std::fmt::Debug for Verifier {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Verifier")
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        // Not under the lock: it may open further connections.
        let first = self.first.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut first) = first {
            let result = catch_unwind(AssertUnwindSafe(&mut first));
            if let Err(panic) = result {
                *self.first.lock().unwrap() = Some(first);
                resume_unwind(panic);
            }
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::ring::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

fn texts(server: &Server) -> Vec<String> {
    let entries = server.command(&["XRANGE", "orders", "-", "+"]);
    entries.array().iter().map(|entry| entry.array()[1].array()[1].text()).collect()
}

#[test]
fn a_verifier_that_publishes_through_the_same_publisher_does_not_wait_for_itself() {
    let server = server(&Certificates::generate());
    let (verifier, pool) = Verifier::new(&server);
    let publisher = StepStream::new(pool).publisher(StreamOutput::new("orders"));
    let (told, outcome) = crossbeam_channel::bounded(2);
    thread::spawn(move || {
        let (again, tell) = (publisher.clone(), told.clone());
        verifier.set(move || tell.send(again.publish("inner")).unwrap());
        told.send(publisher.publish("outer")).unwrap();
    });
    for _ in 0..2 {
        outcome.recv_timeout(LIMIT).expect("the verifier waits for itself").unwrap();
    }
    assert_eq!(texts(&server), ["inner", "outer"]);
}

#[test]
fn a_verifier_that_panics_costs_nobody_but_the_caller_whose_turn_it_is() {
    const CALLERS: usize = 12;
    const PANICS: usize = 5;
    let server = server(&Certificates::generate());
    let (verifier, pool) = Verifier::new(&server);
    let publisher = StepStream::new(pool).publisher(StreamOutput::new("orders"));
    let mut left = PANICS;
    verifier.set(move || {
        if left > 0 {
            left -= 1;
            resume_unwind(Box::new("the verifier was told to panic"));
        }
    });
    let (told, outcomes) = crossbeam_channel::unbounded();
    let start = Arc::new(Barrier::new(CALLERS));
    for caller in 0..CALLERS {
        let (publisher, told, start) = (publisher.clone(), told.clone(), Arc::clone(&start));
        thread::spawn(move || {
            start.wait();
            let text = format!("{caller}");
            let outcome = catch_unwind(AssertUnwindSafe(|| publisher.publish(&*text)));
            told.send((text, outcome.ok())).unwrap();
        });
    }
    let mut confirmed = BTreeSet::new();
    for _ in 0..CALLERS {
        let (text, outcome) = outcomes.recv_timeout(LIMIT).expect("a caller waits for somebody who is gone");
        if let Some(told) = outcome {
            told.unwrap();
            confirmed.insert(text);
        }
    }
    assert_eq!(confirmed.len(), CALLERS - PANICS);
    let texts = texts(&server);
    assert_eq!(texts.len(), confirmed.len());
    assert_eq!(texts.into_iter().collect::<BTreeSet<_>>(), confirmed);
}

#[test]
fn a_verifier_that_panics_costs_the_pool_no_place_and_is_told() {
    let server = server(&Certificates::generate());
    let (verifier, pool) = Verifier::new(&server);
    let held = pool.get().unwrap();
    verifier.set(|| resume_unwind(Box::new("the verifier was told to panic")));
    // More often than there are places.
    while pool.state().failed <= u64::from(pool.state().max) {
        let error = pool.get_timeout(Duration::from_millis(300)).unwrap_err();
        let Error::PoolExhausted { in_use: 1, source: Some(source), .. } = &error else { panic!("{error:?}") };
        assert!(source.source().unwrap().to_string().contains("panicked"), "{source:?}");
    }
    assert!(pool.state().last_error.is_some_and(|error| error.contains("panicked")));
    verifier.set(|| {});
    let all: Vec<_> = (1..pool.state().max).map(|_| pool.get().unwrap()).collect();
    assert_eq!(pool.state().last_error, None);
    drop((held, all));
}
