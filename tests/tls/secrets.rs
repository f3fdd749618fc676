//! No password, user name, key or payload shows anywhere: not in a log line at any level, not in `Debug` or `Display` of
//! anything, not in a cause of an error, not in a panic. One test drives what works and what fails, with secrets that
//! nothing else contains, and searches all of it.

use std::fmt::{Debug, Write as _};
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject;
use step_redis::redis::RedisError;
use step_redis::{
    Backoff, Error, Message, Pem, PoolParams, Protocol, StepPool, StepStream, StreamInput, StreamOutput, TlsParams,
};

use crate::common::{Behaviour, Certificates, Peer, Server, Step};
use crate::support::{capture_logs, identified, logged, mutual_server, server, trusting, with_causes};

const USER: &str = "zaphod-user";
const PASSWORD: &str = "Zq7-url+word";
const WRONG_PASSWORD: &str = "Zq8-wrong+word";
const KEY_PASSWORD: &str = "Zq9-key&word";
const PAYLOAD: &str = "Zq0-payload";

/// Everything that a user could see.
#[derive(Default)]
struct Seen(String);

impl Seen {
    fn debug(&mut self, thing: &impl Debug) {
        let _ = writeln!(self.0, "{thing:?}\n{thing:#?}");
    }

    /// An error in every form that it takes on its way to a user, with all its causes.
    fn error(&mut self, error: &Error) {
        self.debug(error);
        self.0 += &with_causes(error);
        let mut source = std::error::Error::source(error);
        while let Some(cause) = source {
            self.debug(&cause);
            source = cause.source();
        }
        let foreign = RedisError::from(error.clone());
        let _ = writeln!(self.0, "{foreign} {foreign:?}");
        let failed: Result<(), Error> = Some(error.clone()).map_or(Ok(()), Err);
        let panicked = panic::catch_unwind(AssertUnwindSafe(|| failed.unwrap())).unwrap_err();
        self.0 += panicked.downcast_ref::<String>().expect("`unwrap` panics with a text");
    }

    #[track_caller]
    fn failure<T>(&mut self, result: Result<T, Error>) {
        let Err(error) = result else { panic!("this should have failed") };
        self.error(&error);
    }

    fn refusal(&mut self, params: PoolParams) {
        self.debug(&params);
        self.failure(StepPool::connect(params));
    }
}

/// The forms that a secret could show in.
fn forms(secret: &[u8]) -> Vec<String> {
    let list: Vec<String> = secret.iter().map(u8::to_string).collect();
    let hexadecimal: String = secret.iter().map(|byte| format!("{byte:02x}")).collect();
    let escaped = format!("{}", secret.escape_ascii());
    vec![list.join(", "), list.join(",\n    "), hexadecimal.to_uppercase(), hexadecimal, escaped]
}

fn forms_of_text(secret: &str) -> Vec<String> {
    let encoded: String = secret.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let sparsely = secret.replace('+', "%2B").replace('&', "%26");
    [forms(secret.as_bytes()), vec![secret.to_owned(), encoded, sparsely]].concat()
}

/// The lines of a key's file, and the private number in it.
fn forms_of_key(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap();
    let mut found: Vec<String> = text.lines().filter(|line| !line.contains("-----")).map(str::to_owned).collect();
    found.retain(|line| line.len() >= 16 && !line.contains(':'));
    assert!(!found.is_empty());
    let pieces: Vec<String> = found.iter().flat_map(|line| forms(&line.as_bytes()[..16])).collect();
    found.extend(pieces);
    if let Ok(key) = PrivatePkcs8KeyDer::from_pem_file(path) {
        // In PKCS#8 of a P-256 key, the number follows 36 bytes that are the same in all of them.
        let number = &key.secret_pkcs8_der()[36..68];
        found.extend(number.chunks(8).flat_map(forms));
    }
    found
}

fn url(server: &Server, password: &str, rest: &str) -> String {
    let password = password.replace('+', "%2B");
    format!("rediss://{USER}:{password}@127.0.0.1:{}/2?socket_timeout=5{rest}", server.tls_port())
}

#[test]
fn nothing_that_can_be_seen_contains_a_secret() {
    capture_logs();
    let certificates = Certificates::generate();
    let keys = [
        certificates.client_key(),
        certificates.other_client_key(),
        certificates.encrypted_client_key(KEY_PASSWORD),
        certificates.legacy_encrypted_client_key(KEY_PASSWORD),
    ];
    let (user, rules) = (USER, format!("on >{PASSWORD} ~* &* +@all -flushall"));
    let server = Server::builder().tls(&certificates).require_client_certificate(true).user(user, &rules).start();
    let mut seen = Seen::default();

    what_works(&mut seen, &server, &certificates, &keys[2].display().to_string());
    what_the_server_refuses(&mut seen, &server, &certificates);
    what_is_lost(&mut seen, &server, &certificates);
    what_cannot_be_set_up(&mut seen, &certificates);
    what_is_no_url(&mut seen);

    let logs: String = logged(|_| true).into_iter().map(|line| line.text + "\n").collect();
    // The net has no hole: what is harmless is in it.
    for expected in ["connected to 127.0.0.1:", "Sending ClientHello", "lost the server"] {
        assert!(logs.contains(expected), "{expected:?} was not logged");
    }
    for expected in ["password: Some(", "not its password", "the rest is withheld", "wrong, or the user is disabled"] {
        assert!(seen.0.contains(expected), "{expected:?} was not seen");
    }
    let mut needles: Vec<String> = [USER, PASSWORD, WRONG_PASSWORD, KEY_PASSWORD, PAYLOAD].map(forms_of_text).concat();
    needles.extend(keys.iter().flat_map(|key| forms_of_key(key)));
    for needle in needles {
        for (place, text) in [("a log line", &logs), ("a text", &seen.0)] {
            let around = text.find(&needle).map(|at| text[..at].chars().rev().take(300).collect::<String>());
            let around: Option<String> = around.map(|reversed| reversed.chars().rev().collect());
            assert_eq!(around, None, "{place} contains {needle:?}; this is what stands before it");
        }
    }
}

fn what_works(seen: &mut Seen, server: &Server, certificates: &Certificates, key: &str) {
    let (ca, certificate) = (certificates.ca(), certificates.client());
    let rest = format!(
        "&ssl_ca_certs={}&ssl_certfile={}&ssl_keyfile={key}&ssl_keyfile_password={}",
        ca.display(),
        certificate.display(),
        KEY_PASSWORD.replace('&', "%26"),
    );
    let params = PoolParams::from_url(&url(server, PASSWORD, &rest)).unwrap();
    let in_memory = TlsParams::new()
        .ca_certs(Pem::bytes(fs::read(&ca).unwrap()))
        .client_cert(Pem::bytes(fs::read(&certificate).unwrap()))
        // Text where a path was meant.
        .client_key(fs::read_to_string(certificates.client_key()).unwrap());
    for params in [params.clone(), params.clone().protocol(Protocol::Resp2), params.tls(in_memory)] {
        seen.debug(&params);
        let pool = StepPool::connect(params).unwrap();
        let stream = StepStream::new(pool.clone());
        let output = StreamOutput::new("orders");
        let input = StreamInput::new("orders", "kitchen").dead_letter(StreamOutput::new("orders:dead"));
        stream.create_input_stream(&input).unwrap();
        stream.publish_batch(&output, [PAYLOAD; 5]).unwrap();
        let message = Message::new().field("message", PAYLOAD);
        seen.debug(&message);
        stream.publish(&output, message).unwrap();

        let delivery = stream.receive(&input).unwrap().unwrap();
        seen.debug(&delivery);
        seen.debug(delivery.entry());
        delivery.dead_letter("it is only a test").unwrap();
        for dead_letter in stream.dead_letters(&StreamOutput::new("orders:dead"), 10).unwrap() {
            seen.debug(&dead_letter);
        }
        let connection = pool.get().unwrap();
        seen.debug(&connection);
        seen.debug(&connection.interrupter());
        drop(connection);

        let consumer = stream.consumer(input.clone());
        seen.debug(&consumer);
        let consumer = consumer.spawn().unwrap();
        for delivery in consumer.iter().take(5) {
            let delivery = delivery.unwrap();
            seen.debug(&delivery);
            delivery.ack().unwrap();
        }
        seen.debug(&(&consumer, consumer.stop_handle(), consumer.stats(), consumer.iter(), consumer.try_iter()));
        seen.debug(&(&stream, &pool, pool.params(), stream.info("orders").unwrap(), stream.pending(&input).unwrap()));
        consumer.close().unwrap();
    }
}

fn what_the_server_refuses(seen: &mut Seen, server: &Server, certificates: &Certificates) {
    for protocol in [Protocol::Resp2, Protocol::Resp3] {
        let params = |password: &str| {
            let params = PoolParams::new("127.0.0.1", server.tls_port()).tls(identified(certificates));
            params.username(USER).password(password).protocol(protocol)
        };
        seen.refusal(params(WRONG_PASSWORD));
        seen.refusal(params(PASSWORD).db(5_000));
        seen.refusal(params(PASSWORD).username(WRONG_PASSWORD));
        let pool = StepPool::connect(params(PASSWORD)).unwrap();
        let error = step_redis::redis::cmd("FLUSHALL").exec(&mut *pool.get().unwrap()).unwrap_err();
        seen.debug(&error);
        seen.0 += &error.to_string();

        // An old server repeats what it does not understand, a new one says who may not do something.
        let repeating =
            format!("-ERR unknown command 'HELLO', with args beginning with: 'AUTH' '{USER}' '{PASSWORD}' \r\n");
        let old = Peer::tcp(Behaviour::Garbage(repeating.into_bytes()));
        seen.refusal(PoolParams::new("127.0.0.1", old.port()).username(USER).password(PASSWORD).protocol(protocol));
        let forbidden = format!("-NOPERM User {USER} has no permissions to run the 'xadd' command\r\n").into_bytes();
        let new = Peer::tcp(Behaviour::Script(vec![Step::Handshake, Step::AnswerEach(forbidden)]));
        let params = PoolParams::new("127.0.0.1", new.port()).username(USER).password(PASSWORD).protocol(protocol);
        let stream = StepStream::new(StepPool::connect(params).unwrap());
        seen.failure(stream.publish(&StreamOutput::new("orders"), PAYLOAD));
        seen.failure(stream.create_input_stream(&StreamInput::new("orders", "kitchen")));
        seen.failure(stream.info("orders"));
    }
}

fn what_is_lost(seen: &mut Seen, server: &Server, certificates: &Certificates) {
    let params = PoolParams::new("127.0.0.1", server.tls_port())
        .tls(identified(certificates))
        .username(USER)
        .password(PASSWORD)
        .socket_timeout(Duration::from_millis(300))
        .connection_available_timeout(Duration::from_millis(300))
        .max_connections(1);
    let pool = StepPool::connect(params.clone()).unwrap();
    let stream = StepStream::new(pool.clone());
    let consumer = stream
        .consumer(StreamInput::new("orders", "kitchen"))
        .backoff(Backoff::new(Duration::from_millis(10), Duration::from_millis(20)))
        .spawn()
        .unwrap();
    let held = pool.get().unwrap();
    seen.failure(pool.get());
    drop(held);
    server.pause();
    seen.failure(stream.publish(&StreamOutput::new("orders"), PAYLOAD.repeat(1 << 20)));
    seen.failure(stream.publish(&StreamOutput::new("orders"), PAYLOAD));
    server.resume();
    server.kill();
    seen.failure(pool.ping());
    seen.refusal(params);
    server.wait_until(|_| consumer.stats().last_error.is_some());
    seen.debug(&consumer.stats());
    server.restart();
    server.wait_until(|_| consumer.stats().reconnects > 0);
    // From now on the password is another one. That ends a consumer.
    server.command(&["ACL", "SETUSER", USER, "resetpass", &format!(">{WRONG_PASSWORD}")]);
    server.command(&["CLIENT", "KILL", "USER", USER]);
    let Some(Err(error)) = consumer.iter().find(Result::is_err) else { panic!("the password is wrong now") };
    seen.error(&error);
    seen.debug(&consumer);
    drop(consumer);

    seen.refusal(PoolParams::new("127.0.0.1", server.tls_port()).username(USER).password(PASSWORD));
    let plain = Server::start();
    let params =
        PoolParams::new("127.0.0.1", plain.port()).username(USER).password(PASSWORD).tls(trusting(certificates));
    seen.refusal(params.socket_connect_timeout(Duration::from_millis(200)));
    for peer in [Behaviour::Garbage(b"-?\x00garbage\r\n".to_vec()), Behaviour::Script(vec![Step::Request, Step::Reset])]
    {
        let peer = Peer::tcp(peer);
        seen.refusal(PoolParams::new("127.0.0.1", peer.port()).username(USER).password(PASSWORD));
    }
}

fn what_cannot_be_set_up(seen: &mut Seen, certificates: &Certificates) {
    let (open, mutual) = (server(certificates), mutual_server(certificates));
    let params = |tls| PoolParams::new("127.0.0.1", open.tls_port()).tls(tls).username(USER).password(PASSWORD);
    seen.refusal(params(TlsParams::new().ca_certs(certificates.other_ca())));
    seen.refusal(params(TlsParams::new().ca_certs(certificates.client_key())));
    seen.refusal(params(trusting(certificates).server_name("elsewhere.example")));
    let mut refused = trusting(certificates);
    refused.client_key_password = Some(KEY_PASSWORD.to_owned());
    seen.refusal(params(refused));
    seen.refusal(PoolParams::new("127.0.0.1", mutual.tls_port()).tls(trusting(certificates)).password(PASSWORD));

    let (encrypted, legacy) =
        (certificates.encrypted_client_key(KEY_PASSWORD), certificates.legacy_encrypted_client_key(KEY_PASSWORD));
    let key = fs::read_to_string(certificates.client_key()).unwrap();
    let damaged =
        [key.replace("-----END", "----END"), key.replacen("MIG", "M-G", 1), key.replace('\n', ""), key[..90].into()];
    let damaged =
        damaged.iter().enumerate().map(|(number, key)| certificates.write(&format!("damaged-{number}.key"), key));
    for file in damaged.chain([encrypted, legacy, certificates.other_client_key(), certificates.client()]) {
        let with_file = trusting(certificates).client_cert(certificates.client()).client_key(&file);
        seen.refusal(params(with_file.clone()));
        seen.refusal(params(with_file.clone().client_key_password(WRONG_PASSWORD)));
        let with_bytes = with_file.client_key(Pem::bytes(fs::read(&file).unwrap()));
        seen.refusal(params(with_bytes.client_key_password(WRONG_PASSWORD)));
    }
    // What was meant to be a path, and what was meant to be the content.
    seen.refusal(params(
        trusting(certificates).client_cert(certificates.client()).client_key(key.as_str()).ca_certs(key.as_str()),
    ));
    let config = rustls::ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
    let config =
        config.with_safe_default_protocol_versions().unwrap().with_root_certificates(rustls::RootCertStore::empty());
    let key = PrivatePkcs8KeyDer::from_pem_file(certificates.client_key()).unwrap();
    let certificate = rustls::pki_types::CertificateDer::from_pem_file(certificates.client()).unwrap();
    let config = config.with_client_auth_cert(vec![certificate], key.into()).unwrap();
    seen.refusal(params(TlsParams::new().client_config(Arc::new(config))));
}

fn what_is_no_url(seen: &mut Seen) {
    let sparsely = PASSWORD.replace('+', "%2B");
    for url in [
        format!("rediss://{USER}:{PASSWORD}@host:port"),
        format!("rediss://{USER}:{PASSWORD}@"),
        format!("rediss://{USER}:{PASSWORD}/@host"),
        format!("rediss://{USER}:{PASSWORD}?@host"),
        format!("rediss://{USER}:{PASSWORD}#@host"),
        format!("rediss://{USER}:{sparsely}@host/{WRONG_PASSWORD}"),
        format!("rediss://{USER}:{sparsely}@host?password={WRONG_PASSWORD}"),
        format!("rediss://host?password={PASSWORD}&{WRONG_PASSWORD}=1"),
        format!("rediss://host?ssl_keyfile_password={KEY_PASSWORD}"),
        format!("rediss://host?username={USER}&{PASSWORD}"),
        format!("redis://host?ssl_keyfile_password={sparsely}"),
        format!("htpp://{USER}:{PASSWORD}@host"),
        format!("unix://{USER}:{PASSWORD}@/run/redis.sock"),
        format!("{USER}:{PASSWORD}@host"),
    ] {
        match PoolParams::from_url(&url) {
            Err(error) => seen.error(&error),
            Ok(params) => seen.debug(&params),
        }
    }
}
