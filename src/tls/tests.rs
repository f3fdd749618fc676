use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd,
};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{
    AlertDescription, ClientConnection, HandshakeKind, ServerConfig, ServerConnection, SupportedProtocolVersion,
    version,
};

use super::explain::explain_read;
use super::samples::*;
use super::*;

/// An authority for one test.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate and its key, both PEM.
struct Identity {
    certificate: String,
    key: String,
}

impl Authority {
    fn new() -> Authority {
        Authority::called("authority")
    }

    fn called(name: &str) -> Authority {
        let mut params = CertificateParams::new([]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    fn issue(&self, names: &[&str], change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).unwrap();
        change(&mut params);
        let key = KeyPair::generate().unwrap();
        Identity { certificate: params.signed_by(&key, &self.issuer).unwrap().pem(), key: key.serialize_pem() }
    }

    fn roots(&self) -> Arc<RootCertStore> {
        Arc::new(given_roots(&Pem::bytes(&self.pem)).unwrap())
    }
}

fn self_signed(key: &str) -> String {
    let key = KeyPair::from_pem(key).unwrap();
    CertificateParams::new(["client".to_owned()]).unwrap().self_signed(&key).unwrap().pem()
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn server(
    identity: &Identity,
    version: &'static SupportedProtocolVersion,
    clients: Option<&Authority>,
) -> ServerConfig {
    let builder = ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[version]).unwrap();
    let builder = match clients {
        None => builder.with_no_client_auth(),
        Some(authority) => builder.with_client_cert_verifier(
            WebPkiClientVerifier::builder_with_provider(authority.roots(), provider()).build().unwrap(),
        ),
    };
    let chain = PemFile::read("test", &Pem::bytes(&identity.certificate)).unwrap().certificates().unwrap();
    let key = PemFile::read("test", &Pem::bytes(&identity.key)).unwrap().private_key(None).unwrap();
    let key = provider().key_provider.load_private_key(key).unwrap();
    // Not `with_single_cert`, which has its own opinion of odd certificates.
    builder.with_cert_resolver(Arc::new(SingleCertAndKey::from(CertifiedKey::new(chain, key))))
}

/// The server's end of a connection, without sockets: what is written to it is answered at the next read.
struct Peer(ServerConnection);

impl Read for Peer {
    fn read(&mut self, mut buffer: &mut [u8]) -> io::Result<usize> {
        self.0.write_tls(&mut buffer)
    }
}

impl Write for Peer {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let mut rest = buffer;
        while !rest.is_empty() {
            self.0.read_tls(&mut rest)?;
            // What is wrong is told to the client by an alert.
            let _ = self.0.process_new_packets();
        }
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Shakes hands and reads what the server says next, if anything.
fn connect(params: &TlsParams, host: &str, peer: &mut (impl Read + Write)) -> io::Result<HandshakeKind> {
    connect_with(client_config(params).unwrap(), server_name(params, host).unwrap(), peer)
}

fn connect_with(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    peer: &mut (impl Read + Write),
) -> io::Result<HandshakeKind> {
    let mut session = ClientConnection::new(config, name).unwrap();
    while session.is_handshaking() {
        session.complete_io(peer)?;
    }
    while session.read_tls(peer)? > 0 {
        session.process_new_packets().map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
    }
    Ok(session.handshake_kind().unwrap())
}

fn connect_to(server: &Arc<ServerConfig>, params: &TlsParams, host: &str) -> io::Result<HandshakeKind> {
    connect(params, host, &mut Peer(ServerConnection::new(Arc::clone(server)).unwrap()))
}

/// The parameters are refused: what the error says, with everything that Debug shows behind it.
fn refusal(params: &TlsParams) -> (String, String) {
    let error = client_config(params).unwrap_err();
    let Error::Tls { item, reason, source } = &error else { panic!("{error:?}") };
    let everything = format!("{error} {error:?} {source:?}");
    for secret in ["hidden", "MHcCAQEE", "MIG", "MII"] {
        assert!(!everything.contains(secret), "{everything}");
    }
    (item.to_string(), reason.clone())
}

fn with_client(certificate: &str, key: &str) -> TlsParams {
    let authority = Authority::new();
    TlsParams::new()
        .ca_certs(Pem::bytes(&authority.pem))
        .client_cert(Pem::bytes(certificate))
        .client_key(Pem::bytes(key))
}

#[test]
fn every_key_format_is_read() {
    let (ec, rsa, ed) = (self_signed(EC_PKCS8), self_signed(RSA_PKCS8), self_signed(ED25519));
    let relabelled = EC_PKCS8.replace("PRIVATE KEY", "RSA PRIVATE KEY");
    let around =
        format!("\u{feff}Bag Attributes\r\n  friendlyName: ü\r\n{}\r\nthe end", EC_PKCS8.replace('\n', "\r\n"));
    let indented = EC_SEC1.replace('\n', "\n    ");
    let together = format!("{EC_SEC1}{ec}");
    let table = [
        ("PKCS#8 RSA", &rsa, RSA_PKCS8),
        ("PKCS#1", &rsa, RSA_PKCS1),
        ("PKCS#8 EC", &ec, EC_PKCS8),
        ("SEC1 with parameters", &ec, EC_SEC1),
        ("Ed25519", &ed, ED25519),
        ("wrong label", &ec, &relabelled),
        ("text around", &ec, &around),
        ("indented", &ec, &indented),
        ("one file for both", &together, &together),
    ];
    for (name, certificate, key) in table {
        // The password is at hand, and not needed.
        is_read(name, &with_client(certificate, key).client_key_password("hidden"));
    }
}

fn is_read(name: &str, params: &TlsParams) {
    let config = client_config(params).unwrap_or_else(|error| panic!("{name}: {error}"));
    assert!(config.client_auth_cert_resolver.has_certs(), "{name}");
}

#[cfg(feature = "encrypted-keys")]
#[test]
fn every_encryption_of_a_key_is_read() {
    let ec = self_signed(EC_PKCS8);
    for (name, key) in [("AES", AES256), ("3DES", DES3), ("scrypt", SCRYPT)] {
        is_read(name, &with_client(&ec, key).client_key_password("hidden"));
    }
}

#[test]
fn what_is_wrong_with_a_key_is_said() {
    let ec = self_signed(EC_PKCS8);
    let table = [
        (with_client(&ec, LEGACY).client_key_password("hidden"), "openssl pkcs8 -topk8 -v2 aes-256-cbc -in <file>"),
        (with_client(&ec, LEGACY), "old format"),
        (with_client(&ec, P521), "P-256 or P-384"),
        (with_client(&ec, &ec), "has no private key in it, but CERTIFICATE"),
        (with_client(&ec, ""), "no line that begins"),
        (with_client(&ec, "hidden"), "no line that begins"),
        (with_client(&ec, "\x30\u{0}hidden"), "binary"),
        (with_client(&ec, &EC_PKCS8[..100]), "is cut off"),
        (with_client(&ec, &EC_PKCS8.replace("MIG", "-hidden-")), "is not valid base64"),
        (with_client(&ec, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), "unknown format"),
        (with_client(&ec, ED25519), "is not the key of the certificate in client_cert (bytes)"),
        (with_client(&ec, RSA_PKCS1), "is not the key of the certificate"),
        (with_client(&self_signed(RSA_PKCS8), EC_SEC1), "is not the key of the certificate"),
        (with_client(&ec, &KeyPair::generate().unwrap().serialize_pem()), "is not the key of the certificate"),
    ];
    for (params, expected) in table {
        is_refused(&params, expected);
    }
}

fn is_refused(params: &TlsParams, expected: &str) {
    let (item, reason) = refusal(params);
    assert_eq!(item, "client_key (bytes)", "{reason}");
    assert!(reason.contains(expected), "{reason}");
}

#[cfg(feature = "encrypted-keys")]
#[test]
fn what_is_wrong_with_an_encrypted_key_is_said() {
    let ec = self_signed(EC_PKCS8);
    is_refused(&with_client(&ec, AES256), "is encrypted; give its password");
    let table = [
        (AES256, "hidden too", "is not its password"),
        (SCRYPT, "hidden too", "is not its password"),
        (PBES1, "hidden", "openssl pkcs8 -topk8 -v2 aes-256-cbc -in <file>"),
        (HMAC_SHA1, "hidden", "in a way that is not supported"),
    ];
    for (key, password, expected) in table {
        is_refused(&with_client(&ec, key).client_key_password(password), expected);
    }
}

#[cfg(not(feature = "encrypted-keys"))]
#[test]
fn an_encrypted_key_is_refused_with_the_name_of_the_feature() {
    let key = with_client(&self_signed(EC_PKCS8), AES256);
    is_refused(&key, "the feature `encrypted-keys`");
    is_refused(&key.client_key_password("hidden"), "the feature `encrypted-keys`");
}

/// A wrong password makes noise of the key, which one time in 256 looks well padded.
#[cfg(feature = "encrypted-keys")]
#[test]
fn no_wrong_password_passes_for_a_damaged_key() {
    let ec = self_signed(EC_PKCS8);
    for number in 0..600 {
        let (_, reason) = refusal(&with_client(&ec, AES256).client_key_password(format!("wrong {number}")));
        assert!(reason.contains("is not its password"), "{number}: {reason}");
    }
}

#[test]
fn what_is_wrong_with_a_certificate_is_said() {
    let authority = Authority::new();
    let ec = self_signed(EC_PKCS8);
    let no_certificate = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    let table = [
        (with_client(EC_PKCS8, EC_PKCS8), "client_cert", "has no certificate in it, but PRIVATE KEY"),
        (with_client(VERSION_1, EC_PKCS8), "client_cert", "version 1"),
        (with_client(no_certificate, EC_PKCS8), "client_cert", "no certificate that can be read"),
        (with_client(&ec[..200], EC_PKCS8), "client_cert", "is cut off"),
        (TlsParams::new().ca_certs(Pem::bytes(EC_PKCS8)), "ca_certs", "has no certificate in it, but PRIVATE KEY"),
        (TlsParams::new().ca_certs(Pem::bytes("")), "ca_certs", "has no certificate in it: there is no line"),
        (TlsParams::new().ca_certs(Pem::bytes(no_certificate)), "ca_certs", "none of the certificates"),
        (
            TlsParams::new().ca_certs(Pem::bytes("")).danger_accept_invalid_certs(true),
            "ca_certs",
            "has no certificate in it",
        ),
    ];
    for (params, parameter, expected) in table {
        let (item, reason) = refusal(&params);
        assert_eq!(item, format!("{parameter} (bytes)"), "{reason}");
        assert!(reason.contains(expected), "{reason}");
    }
    let mixed = format!("{no_certificate}{}", authority.pem);
    assert_eq!(given_roots(&Pem::bytes(mixed)).unwrap().len(), 1);
    assert_eq!(given_roots(&Pem::bytes(VERSION_1)).unwrap().len(), 1);
}

#[test]
fn a_system_without_authorities_is_an_error_and_one_bad_file_is_not() {
    let error = system_roots(CertificateResult::default()).unwrap_err();
    assert!(error.to_string().contains("give the server's authority as `ca_certs`"), "{error}");
    let mut found = rustls_native_certs::load_certs_from_paths(Some(Path::new("/missing/authorities.pem")), None);
    let error = system_roots(rustls_native_certs::load_certs_from_paths(Some(Path::new("/missing/ca.pem")), None));
    assert!(error.unwrap_err().source().unwrap().to_string().contains("/missing/ca.pem"));
    found.certs.push(CertificateDer::from(vec![0x30]));
    found.certs.extend(PemFile::read("test", &Pem::bytes(Authority::new().pem)).unwrap().certificates().unwrap());
    assert_eq!(system_roots(found).unwrap().len(), 1);
}

#[test]
fn files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, content: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    };
    let (ca, key) = (write("ca.pem", &Authority::new().pem), write("key.pem", LEGACY));
    let certificate = write("cert.pem", &self_signed(EC_PKCS8));
    let item = |parameter: &str, path: &Path| format!("{parameter} {}", path.display());

    let missing = folder.path().join("missing.pem");
    let error = client_config(&TlsParams::new().ca_certs(&missing)).unwrap_err();
    assert!(error.to_string().contains(&item("ca_certs", &missing)), "{error}");
    let cause = error.source().unwrap().to_string();
    assert!(cause.contains("No such file"), "{cause}");

    let params = TlsParams::new().ca_certs(&ca).client_cert(&certificate).client_key(&key);
    let (named, reason) = refusal(&params);
    assert_eq!(named, item("client_key", &key));
    assert!(reason.contains(&format!("-in {} -out <new file>", key.display())), "{reason}");
    let (named, _) = refusal(&params.clone().ca_certs(&key));
    assert_eq!(named, item("ca_certs", &key));
    client_config(&params.client_key(write("good.pem", EC_SEC1))).unwrap();
}

#[test]
fn both_versions_verify_resume_and_show_the_client() {
    let authority = Authority::new();
    let identity = authority.issue(&["localhost", "127.0.0.1", "::1"], |_| {});
    // The authority's certificate first: a chain in the wrong order.
    let own = authority.issue(&["client"], |_| {});
    let chain = format!("{}{}", authority.pem, own.certificate);
    let params = TlsParams::new()
        .ca_certs(Pem::bytes(&authority.pem))
        .client_cert(Pem::bytes(chain))
        .client_key(Pem::bytes(&own.key));
    for version in [&version::TLS12, &version::TLS13] {
        let server = Arc::new(server(&identity, version, Some(&authority)));
        for host in ["localhost", "127.0.0.1", "::1"] {
            connect_to(&server, &params, host).unwrap();
        }
        connect_to(&server, &params.clone().server_name("localhost"), "somewhere.else").unwrap();
        let config = client_config(&params).unwrap();
        let kinds: Vec<HandshakeKind> = (0..2)
            .map(|_| {
                let mut peer = Peer(ServerConnection::new(Arc::clone(&server)).unwrap());
                connect_with(Arc::clone(&config), server_name(&params, "localhost").unwrap(), &mut peer).unwrap()
            })
            .collect();
        assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed]);
    }
    assert!(CryptoProvider::get_default().is_none(), "the process-wide provider is not ours to set");
}

#[test]
fn danger_accepts_any_certificate_but_not_any_signature() {
    let authority = Authority::new();
    let identity = authority.issue(&["other"], |params| params.not_after = date_time_ymd(2001, 1, 1));
    let stranger = Identity { key: authority.issue(&[], |_| {}).key, certificate: identity.certificate.clone() };
    let params = TlsParams::new().danger_accept_invalid_certs(true);
    for version in [&version::TLS12, &version::TLS13] {
        connect_to(&Arc::new(server(&identity, version, None)), &params, "localhost").unwrap();
        let error = connect_to(&Arc::new(server(&stranger, version, None)), &params, "localhost").unwrap_err();
        assert!(error.to_string().contains("BadSignature"), "{error}");
    }
}

#[test]
fn a_ready_configuration_is_used_as_it_is() {
    let ready = client_config(&TlsParams::new().ca_certs(Pem::bytes(Authority::new().pem))).unwrap();
    let again = client_config(&TlsParams::new().client_config(Arc::clone(&ready))).unwrap();
    assert!(Arc::ptr_eq(&ready, &again));
}

#[test]
fn names_and_addresses() {
    let name = |host: &str| server_name(&TlsParams::new(), host).unwrap().to_str().into_owned();
    assert_eq!(name("redis.example.com"), "redis.example.com");
    assert_eq!(name("under_score"), "under_score");
    assert_eq!(name("10.0.0.1"), "10.0.0.1");
    assert_eq!(name("fe80::1%eth0"), "fe80::1");
    assert_eq!(server_name(&TlsParams::new().server_name("other"), "host").unwrap().to_str(), "other");
    for (params, item) in [(TlsParams::new(), "host"), (TlsParams::new().server_name("a b"), "server_name")] {
        let Err(Error::Tls { item: named, .. }) = server_name(&params, "a b") else { panic!("{item}") };
        assert_eq!(&*named, item);
    }
}

/// The sentence for a failed handshake, which must not be worth another try.
fn final_sentence(error: io::Error, params: &TlsParams) -> String {
    let cause = error.to_string();
    let explained = explain_handshake(error, params);
    assert_eq!(explained.kind(), ErrorKind::InvalidData, "{explained}");
    let source = explained.get_ref().and_then(|inner| inner.source()).expect("the cause is kept");
    assert!(source.is::<rustls::Error>(), "{source:?}");
    assert_eq!(source.to_string(), cause);
    explained.to_string()
}

#[test]
fn a_refused_server_is_explained() {
    let authority = Authority::new();
    let trusting = TlsParams::new().ca_certs(Pem::bytes(&authority.pem));
    let good = authority.issue(&["localhost"], |_| {});
    let expired = authority.issue(&["localhost"], |params| params.not_after = date_time_ymd(2001, 1, 1));
    let early = authority.issue(&["localhost"], |params| params.not_before = date_time_ymd(2999, 1, 1));
    let for_clients = authority.issue(&["localhost"], |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    let many: Vec<String> = (0..20).map(|number| format!("name-{number}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let many = authority.issue(&many, |_| {});
    let as_authority =
        authority.issue(&["localhost"], |params| params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
    let old = Identity { certificate: VERSION_1.to_owned(), key: EC_PKCS8.to_owned() };
    let stranger = TlsParams::new().ca_certs(Pem::bytes(Authority::called("stranger").pem));
    let renewed = TlsParams::new().ca_certs(Pem::bytes(Authority::new().pem));
    let table = [
        (&good, &stranger, "localhost", "none of the authorities in ca_certs (bytes)"),
        (&good, &renewed, "localhost", "it may be an older or a newer one"),
        (&good, &trusting, "127.0.0.1", "is not valid for `127.0.0.1` but for `localhost`:"),
        (&many, &trusting, "localhost", "`name-7`, 12 more:"),
        (&expired, &trusting, "localhost", "days ago: renew it there, or correct the clock here"),
        (&early, &trusting, "localhost", "becomes valid only in"),
        (&for_clients, &trusting, "localhost", "serverAuth"),
        (&as_authority, &trusting, "localhost", "CA:FALSE"),
        (&old, &trusting, "localhost", "version 1"),
    ];
    for (identity, params, host, expected) in table {
        let server = Arc::new(server(identity, &version::TLS13, None));
        let sentence = final_sentence(connect_to(&server, params, host).unwrap_err(), params);
        assert!(sentence.contains(expected), "{sentence}");
    }
}

#[test]
fn a_refused_client_is_explained() {
    let (authority, other) = (Authority::new(), Authority::called("other"));
    let identity = authority.issue(&["localhost"], |_| {});
    let stranger = other.issue(&["client"], |_| {});
    let without = TlsParams::new().ca_certs(Pem::bytes(&authority.pem));
    let with = without.clone().client_cert(Pem::bytes(&stranger.certificate)).client_key(Pem::bytes(&stranger.key));
    for version in [&version::TLS12, &version::TLS13] {
        let server = Arc::new(server(&identity, version, Some(&authority)));
        let sentence = final_sentence(connect_to(&server, &without, "localhost").unwrap_err(), &without);
        assert!(sentence.contains("give `client_cert` and `client_key`"), "{sentence}");
        let sentence = final_sentence(connect_to(&server, &with, "localhost").unwrap_err(), &with);
        assert!(sentence.contains("does not trust the authority"), "{sentence}");
    }
}

/// A server without TLS: it answers to the greeting with these bytes.
struct Plain<'a>(&'a [u8]);

impl Read for Plain<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer)
    }
}

impl Write for Plain<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        Ok(buffer.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_peer_without_tls_is_explained() {
    let params = TlsParams::new().danger_accept_invalid_certs(true);
    for answer in ["-ERR Protocol error: unbalanced quotes in request\r\n", "HTTP/1.1 400 Bad Request\r\n"] {
        let sentence = final_sentence(connect(&params, "host", &mut Plain(answer.as_bytes())).unwrap_err(), &params);
        assert!(sentence.contains("does not speak TLS on this port"), "{sentence}");
    }
    let closed = explain_handshake(connect(&params, "host", &mut Plain(b"")).unwrap_err(), &params);
    assert_eq!(closed.kind(), ErrorKind::UnexpectedEof);
    assert!(closed.to_string().contains("closed the connection during the TLS handshake"), "{closed}");
}

#[test]
fn time_limits_stay_what_they_are() {
    let params = TlsParams::new();
    let unanswered = io::Error::new(ErrorKind::TimedOut, explain::Unanswered(ErrorKind::TimedOut.into()));
    for (late, expected) in [(ErrorKind::TimedOut.into(), "in time"), (unanswered, "did not answer")] {
        let late = explain_handshake(late, &params);
        assert_eq!(late.kind(), ErrorKind::TimedOut);
        assert!(late.to_string().contains(expected), "{late}");
    }
    let other = explain_handshake(io::Error::new(ErrorKind::PermissionDenied, "as it was"), &params);
    assert_eq!((other.kind(), other.to_string().as_str()), (ErrorKind::PermissionDenied, "as it was"));
}

#[test]
fn after_the_handshake_only_the_verdict_on_our_certificate_is_explained() {
    let error = |cause| io::Error::new(ErrorKind::InvalidData, cause);
    let verdict = explain_read(error(rustls::Error::AlertReceived(AlertDescription::CertificateRequired)));
    assert_eq!(verdict.kind(), ErrorKind::InvalidData);
    assert!(verdict.to_string().contains("give `client_cert` and `client_key`"), "{verdict}");
    for cause in [rustls::Error::AlertReceived(AlertDescription::BadRecordMac), rustls::Error::DecryptError] {
        assert_eq!(explain_read(error(cause.clone())).to_string(), cause.to_string());
    }
    assert!(explain_read(ErrorKind::UnexpectedEof.into()).get_ref().is_none());
}

/// Sessions are kept by the client; the server of this test forgets its own, and a full handshake follows.
#[test]
fn a_server_that_forgets_sessions_is_no_problem() {
    let authority = Authority::new();
    let identity = authority.issue(&["localhost"], |_| {});
    let params = TlsParams::new().ca_certs(Pem::bytes(&authority.pem));
    let config = client_config(&params).unwrap();
    let mut forgetful = server(&identity, &version::TLS12, None);
    forgetful.session_storage = Arc::new(NoServerSessionStorage {});
    let forgetful = Arc::new(forgetful);
    for _ in 0..2 {
        let mut peer = Peer(ServerConnection::new(Arc::clone(&forgetful)).unwrap());
        let name = server_name(&params, "localhost").unwrap();
        assert_eq!(connect_with(Arc::clone(&config), name, &mut peer).unwrap(), HandshakeKind::Full);
    }
}
