//! Certificates for TLS tests, made in milliseconds, so that each test has its own.
//!
//! ```ignore
//! let certificates = Certificates::generate();          // good for localhost, 127.0.0.1 and ::1
//! let certificates = Certificates::expired();           // the server's has expired
//! let certificates = Certificates::for_host("elsewhere.example");
//! let server = Server::builder().tls(&certificates).start();
//! ```
//!
//! Everything lies as PEM files in a directory that goes with the last clone. The keys are ECDSA P-256; others, and
//! encrypted ones, are made when asked for.

use super::scratch_directory;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use tempfile::TempDir;

/// A CA, a server certificate, and a client certificate, with variants of them on request.
#[derive(Clone)]
pub struct Certificates {
    directory: Arc<TempDir>,
    issuer: Arc<Issuer<'static, KeyPair>>,
}

/// A certificate and its key, as paths of PEM files.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// How a private key is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// `PRIVATE KEY`, ECDSA P-256.
    Pkcs8,
    /// `EC PRIVATE KEY`, ECDSA P-256.
    Sec1,
    /// `RSA PRIVATE KEY`, 2048 bits.
    Pkcs1,
    /// `PRIVATE KEY`, Ed25519.
    Ed25519,
}

impl Certificates {
    /// A server certificate for localhost, 127.0.0.1 and ::1, and a client certificate.
    pub fn generate() -> Certificates {
        Certificates::with_server(|_| {}, &["localhost", "127.0.0.1", "::1"])
    }

    /// The server certificate has expired; everything else is good.
    pub fn expired() -> Certificates {
        let expire = |server: &mut CertificateParams| {
            server.not_before = date_time_ymd(2001, 1, 1);
            server.not_after = date_time_ymd(2002, 1, 1);
        };
        Certificates::with_server(expire, &["localhost", "127.0.0.1", "::1"])
    }

    /// The server certificate names only this host; everything else is good.
    pub fn for_host(name: &str) -> Certificates {
        Certificates::with_server(|_| {}, &[name])
    }

    /// The CA certificate, `ca.pem`.
    pub fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// The server's certificate, `server.pem`.
    pub fn server(&self) -> PathBuf {
        self.path("server.pem")
    }

    /// The server's key, `server.key`.
    pub fn server_key(&self) -> PathBuf {
        self.path("server.key")
    }

    /// The client's certificate, `client.pem`.
    pub fn client(&self) -> PathBuf {
        self.path("client.pem")
    }

    /// The client's key, `client.key`, as PKCS#8 without encryption.
    pub fn client_key(&self) -> PathBuf {
        self.path("client.key")
    }

    /// The directory of all the files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// A CA certificate that has signed nothing here.
    pub fn other_ca(&self) -> PathBuf {
        let (_, pem) = authority("another CA");
        self.write("other-ca.pem", pem)
    }

    /// A good key that does not belong to the client's certificate.
    pub fn other_client_key(&self) -> PathBuf {
        self.write("other-client.key", KeyPair::generate().expect("a key").serialize_pem())
    }

    /// A client certificate of this CA that has expired, with its key.
    pub fn expired_client(&self) -> Identity {
        let mut client = client_parameters();
        client.not_before = date_time_ymd(2001, 1, 1);
        client.not_after = date_time_ymd(2002, 1, 1);
        self.issue("expired-client", client, &KeyPair::generate().expect("a key"))
    }

    /// Another client certificate of this CA whose key is written in this way. The key is made by `openssl`, as users do.
    pub fn client_with_key(&self, kind: KeyKind) -> Identity {
        let name = format!("{kind:?}").to_lowercase();
        let path = |ending: &str| text(&self.path(&format!("{name}{ending}")));
        let (pkcs8, traditional) = (path(".key"), path("-traditional.key"));
        let algorithm: &[&str] = match kind {
            KeyKind::Pkcs8 | KeyKind::Sec1 => &["EC", "-pkeyopt", "ec_paramgen_curve:P-256"],
            KeyKind::Pkcs1 => &["RSA", "-pkeyopt", "rsa_keygen_bits:2048"],
            KeyKind::Ed25519 => &["ED25519"],
        };
        openssl(&[&["genpkey", "-out", &pkcs8, "-algorithm"], algorithm].concat());
        let pem = fs::read_to_string(&pkcs8).expect("openssl has written the key");
        let pair = KeyPair::from_pem(&pem).expect("openssl writes PKCS#8");
        let mut identity = self.issue(&name, client_parameters(), &pair);
        if matches!(kind, KeyKind::Sec1 | KeyKind::Pkcs1) {
            openssl(&["pkey", "-in", &pkcs8, "-traditional", "-out", &traditional]);
            identity.key = traditional.into();
        }
        identity
    }

    /// The client's key as PKCS#8 encrypted with PBES2 (AES-256). Needs `openssl`.
    pub fn encrypted_client_key(&self, password: &str) -> PathBuf {
        let (from, to) = (text(&self.client_key()), self.path("client-encrypted.key"));
        let password = format!("pass:{password}");
        openssl(&["pkcs8", "-topk8", "-v2", "aes-256-cbc", "-passout", &password, "-in", &from, "-out", &text(&to)]);
        to
    }

    /// The client's key in the old encrypted form (`Proc-Type: 4,ENCRYPTED`). Needs `openssl`.
    pub fn legacy_encrypted_client_key(&self, password: &str) -> PathBuf {
        let (from, to) = (text(&self.client_key()), self.path("client-legacy.key"));
        let password = format!("pass:{password}");
        openssl(&["ec", "-aes128", "-passout", &password, "-in", &from, "-out", &text(&to)]);
        to
    }

    /// A file of the test's own beside the others: an empty one, two PEM files in one, text around a key.
    pub fn write(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, contents).unwrap_or_else(|error| panic!("cannot write {}: {error}", path.display()));
        path
    }

    fn with_server(change: impl FnOnce(&mut CertificateParams), hosts: &[&str]) -> Certificates {
        let (issuer, ca) = authority("the tests' CA");
        let certificates = Certificates { directory: Arc::new(scratch_directory("tls-")), issuer: Arc::new(issuer) };
        certificates.write("ca.pem", ca);
        let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
        let mut server = CertificateParams::new(hosts).expect("hosts are names or addresses");
        server.distinguished_name.push(DnType::CommonName, "the tests' server");
        server.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        change(&mut server);
        certificates.issue("server", server, &KeyPair::generate().expect("a key"));
        certificates.issue("client", client_parameters(), &KeyPair::generate().expect("a key"));
        certificates
    }

    fn issue(&self, name: &str, parameters: CertificateParams, key: &KeyPair) -> Identity {
        let certificate = parameters.signed_by(key, &self.issuer).expect("the CA signs");
        Identity {
            certificate: self.write(&format!("{name}.pem"), certificate.pem()),
            key: self.write(&format!("{name}.key"), key.serialize_pem()),
        }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

impl fmt::Debug for Certificates {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Certificates").field(&self.directory.path()).finish()
    }
}

/// A new CA and its certificate.
fn authority(name: &str) -> (Issuer<'static, KeyPair>, String) {
    let key = KeyPair::generate().expect("a key");
    let mut parameters = CertificateParams::default();
    parameters.distinguished_name.push(DnType::CommonName, name);
    parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    parameters.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    let pem = parameters.self_signed(&key).expect("a CA signs itself").pem();
    (Issuer::new(parameters, key), pem)
}

fn client_parameters() -> CertificateParams {
    let mut client = CertificateParams::default();
    client.distinguished_name.push(DnType::CommonName, "the tests' client");
    client.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
    client
}

fn text(path: &Path) -> String {
    path.to_str().expect("the tests' paths are UTF-8").to_owned()
}

fn openssl(arguments: &[&str]) {
    let output = Command::new("openssl").args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| {
        panic!("openssl cannot be started ({error}): install it (apt-get install openssl)");
    });
    assert!(output.status.success(), "openssl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}
