//! Each mistake with authorities, certificates, keys and ports has an error of its own, which says which file and which
//! step, within the time limit for connecting.

use std::path::Path;
use std::time::{Duration, Instant};

use step_redis::{ConnectStep, Error, PoolParams, StepPool, TlsParams};

use crate::common::{Behaviour, Certificates, Direction, Peer, Proxy, Server};
use crate::support::{identified, mutual_server, params, refused, server, trusting, with_causes};

/// A fault of the set-up: nothing was opened. It names the parameter and its file.
#[track_caller]
fn assert_set_up(error: &Error, parameter: &str, file: &Path, expected: &str) {
    let Error::Tls { item, reason, .. } = error else { panic!("not a fault of the set-up: {error:?}") };
    assert_eq!(**item, *format!("{parameter} {}", file.display()));
    assert!(reason.contains(expected), "{reason}");
    assert!(!error.is_retryable());
}

/// A fault that shows at this step of connecting.
#[track_caller]
fn assert_step(error: &Error, step: ConnectStep, expected: &str) {
    let text = with_causes(error);
    let Error::Connect { step: found, .. } = error else { panic!("not a fault of connecting: {text}") };
    assert_eq!(*found, step, "{text}");
    assert!(text.contains(expected), "{text}");
}

/// A fault of the handshake that no repetition heals.
#[track_caller]
fn assert_refused_for_good(error: &Error, expected: &str) {
    assert_step(error, ConnectStep::TlsHandshake, expected);
    assert!(!error.is_retryable(), "{}", with_causes(error));
}

/// The client's certificate, and this key, which cannot be used. No server is needed: nothing is opened.
fn refused_key(certificates: &Certificates, key: &Path, password: Option<&str>) -> Error {
    let mut tls = trusting(certificates).client_cert(certificates.client()).client_key(key);
    tls.client_key_password = password.map(str::to_owned);
    let untouched = Peer::tcp(Behaviour::Silent);
    let error = refused(PoolParams::new("127.0.0.1", untouched.port()).tls(tls.clone()));
    let lazily =
        StepPool::new(PoolParams::new("127.0.0.1", untouched.port()).tls(tls)).expect_err("the key is no good");
    assert_eq!(lazily.to_string(), error.to_string());
    assert_eq!(untouched.connections(), 0);
    error
}

#[test]
fn an_unknown_authority() {
    let certificates = Certificates::generate();
    let (server, stranger) = (server(&certificates), certificates.other_ca());
    let error = refused(params(&server, TlsParams::new().ca_certs(&stranger)));
    assert_refused_for_good(&error, &format!("none of the authorities in ca_certs {}", stranger.display()));
    let error = refused(params(&server, TlsParams::new()));
    assert_refused_for_good(&error, "none of the authorities that this system trusts");
}

#[test]
fn an_expired_certificate() {
    let certificates = Certificates::expired();
    let error = refused(params(&server(&certificates), trusting(&certificates)));
    assert_refused_for_good(&error, "the server's certificate expired");
}

#[test]
fn a_wrong_host_name() {
    let certificates = Certificates::for_host("elsewhere.example");
    let error = refused(params(&server(&certificates), trusting(&certificates)));
    assert_refused_for_good(&error, "is not valid for `127.0.0.1` but for `elsewhere.example`");
}

#[test]
fn a_missing_client_certificate() {
    let certificates = Certificates::generate();
    for protocols in ["TLSv1.2", "TLSv1.3"] {
        let server = Server::builder().tls(&certificates).require_client_certificate(true);
        let server = server.config("tls-protocols", protocols).start();
        let expected = match protocols {
            // The older protocol has one alert for everything.
            "TLSv1.2" => "it wants a client certificate (`client_cert` and `client_key`)",
            _ => "the server wants a client certificate: give `client_cert` and `client_key`",
        };
        // The newer one tells it after the handshake, while we are greeting already.
        for _ in 0..50 {
            assert_refused_for_good(&refused(params(&server, trusting(&certificates))), expected);
        }
    }
}

#[test]
fn a_client_certificate_that_the_server_does_not_accept() {
    let (certificates, strangers) = (Certificates::generate(), Certificates::generate());
    let (server, expired) = (mutual_server(&certificates), certificates.expired_client());
    let tls = trusting(&certificates).client_cert(expired.certificate).client_key(expired.key);
    assert_refused_for_good(&refused(params(&server, tls)), "our `client_cert` has expired");
    let tls = trusting(&certificates).client_cert(strangers.client()).client_key(strangers.client_key());
    assert_refused_for_good(&refused(params(&server, tls)), "our `client_cert`");
}

#[test]
fn a_key_that_does_not_match_the_certificate() {
    let certificates = Certificates::generate();
    let key = certificates.other_client_key();
    let error = refused_key(&certificates, &key, None);
    let certificate = certificates.client();
    let expected = format!("is not the key of the certificate in client_cert {}", certificate.display());
    assert_set_up(&error, "client_key", &key, &expected);
}

#[test]
fn an_authority_file_without_a_certificate() {
    let certificates = Certificates::generate();
    for (file, expected) in [
        (certificates.client_key(), "has no certificate in it, but PRIVATE KEY"),
        (certificates.write("empty.pem", ""), "has no certificate in it: there is no line"),
    ] {
        let error = refused(PoolParams::new("127.0.0.1", 1).tls(TlsParams::new().ca_certs(&file)));
        assert_set_up(&error, "ca_certs", &file, expected);
    }
}

#[test]
fn a_key_file_without_a_key() {
    let certificates = Certificates::generate();
    let file = certificates.client();
    let error = refused_key(&certificates, &file, None);
    assert_set_up(&error, "client_key", &file, "has no private key in it, but CERTIFICATE");
}

#[cfg(feature = "encrypted-keys")]
#[test]
fn an_encrypted_key_without_its_password() {
    let certificates = Certificates::generate();
    let key = certificates.encrypted_client_key("correct horse");
    let error = refused_key(&certificates, &key, None);
    assert_set_up(&error, "client_key", &key, "is encrypted; give its password as `client_key_password`");
    let error = refused_key(&certificates, &key, Some("battery staple"));
    assert_set_up(&error, "client_key", &key, "`client_key_password` is not its password");
}

#[test]
fn a_key_encrypted_in_the_old_format_comes_with_the_command_that_helps() {
    let certificates = Certificates::generate();
    let key = certificates.legacy_encrypted_client_key("correct horse");
    let command = format!("openssl pkcs8 -topk8 -v2 aes-256-cbc -in {} -out <new file>", key.display());
    for password in [None, Some("correct horse")] {
        assert_set_up(&refused_key(&certificates, &key, password), "client_key", &key, &command);
    }
}

#[test]
fn files_that_cannot_be_read() {
    let certificates = Certificates::generate();
    let missing = certificates.directory().join("missing.pem");
    // A directory cannot be read even by those who may read everything.
    for file in [missing.as_path(), certificates.directory()] {
        let error = refused_key(&certificates, file, None);
        assert_set_up(&error, "client_key", file, "the file cannot be read");
        assert!(with_causes(&error).contains("(os error"), "{error:?}");
        let ca = refused(PoolParams::new("127.0.0.1", 1).tls(TlsParams::new().ca_certs(file)));
        assert_set_up(&ca, "ca_certs", file, "the file cannot be read");
        let tls = TlsParams::new().client_cert(file).client_key(certificates.client_key());
        assert_set_up(&refused(PoolParams::new("127.0.0.1", 1).tls(tls)), "client_cert", file, "cannot be read");
    }
}

#[test]
fn a_client_without_tls_at_a_tls_port() {
    let certificates = Certificates::generate();
    let server = server(&certificates);
    let error = refused(PoolParams::new("127.0.0.1", server.tls_port()));
    assert_step(&error, ConnectStep::Hello, "TLS on this port");
    // OpenSSL resets; others say what they think of it.
    let polite = Peer::tcp(Behaviour::Garbage(b"\x15\x03\x01\x00\x02\x02\x0a".to_vec()));
    let error = refused(PoolParams::new("127.0.0.1", polite.port()));
    assert_step(&error, ConnectStep::Hello, "the server speaks TLS on this port: set `tls`, or write `rediss://`");
}

#[test]
fn a_client_with_tls_at_a_plain_port() {
    let certificates = Certificates::generate();
    let server = Server::start();
    let params = PoolParams::new("127.0.0.1", server.port()).tls(trusting(&certificates));
    // Redis takes the hello for the beginning of a line, and waits for its end, unless there is one in it by chance.
    let error = refused_at(params.socket_connect_timeout(Duration::from_millis(400)));
    assert_step(&error, ConnectStep::TlsHandshake, "does not speak TLS on this port");
    let answering = Peer::tcp(Behaviour::Garbage(b"-ERR unknown command\r\n".to_vec()));
    let error = refused(PoolParams::new("127.0.0.1", answering.port()).tls(trusting(&certificates)));
    assert_refused_for_good(&error, "does not speak TLS on this port");
}

/// Connects, which must fail by the time limit, and not much later.
#[track_caller]
fn refused_at(params: PoolParams) -> Error {
    let (started, limit) = (Instant::now(), params.socket_connect_timeout);
    let error = StepPool::connect(params).expect_err("nobody completes the handshake");
    let took = started.elapsed();
    assert!(took < limit + limit / 8 + Duration::from_millis(250), "it took {took:?} until: {}", with_causes(&error));
    error
}

#[test]
fn a_peer_that_stalls_inside_the_handshake() {
    let certificates = Certificates::generate();
    let limit = Duration::from_millis(400);
    for behaviour in [Behaviour::Silent, Behaviour::Deaf] {
        let peer = Peer::tcp(behaviour);
        let params = PoolParams::new("127.0.0.1", peer.port()).tls(trusting(&certificates));
        let error = refused_at(params.socket_connect_timeout(limit));
        assert_step(&error, ConnectStep::TlsHandshake, "did not answer to the start of the TLS handshake");
        assert!(error.is_timeout() && error.is_retryable());
    }

    let server = mutual_server(&certificates);
    let proxy = Proxy::start(server.tls_port());
    // The server's hello passes, and what follows takes for ever, though a byte comes now and then.
    proxy.drip(Direction::ToClient, 150, Duration::from_millis(150));
    let params = PoolParams::new("127.0.0.1", proxy.port()).tls(identified(&certificates));
    let error = refused_at(params.clone().socket_connect_timeout(limit));
    assert_step(&error, ConnectStep::TlsHandshake, "began the TLS handshake and did not complete it in time");
    assert!(error.is_timeout() && error.is_retryable());
    proxy.heal();
    StepPool::connect(params).expect("the network is well again");

    // A peer that drips the beginning of a record.
    let dripping = Peer::tcp(Behaviour::EndlessDrip(b"\x16\x03\x03\x40\x00\x02".to_vec(), Duration::from_millis(20)));
    let params = PoolParams::new("127.0.0.1", dripping.port()).tls(trusting(&certificates));
    refused_at(params.socket_connect_timeout(limit));
}

#[test]
fn a_peer_that_hangs_up_inside_the_handshake() {
    let certificates = Certificates::generate();
    let server = server(&certificates);
    let proxy = Proxy::start(server.tls_port());
    for bytes in [1, 50, 300] {
        proxy.cut_after(Direction::ToClient, bytes);
        let error = refused(PoolParams::new("127.0.0.1", proxy.port()).tls(trusting(&certificates)));
        assert_step(&error, ConnectStep::TlsHandshake, "closed the connection during the TLS handshake");
        assert!(error.is_retryable());
    }
}
