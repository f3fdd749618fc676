//! TLS parameters: which certificates to trust, and which to show.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Redacted;

/// Whom to trust, and who we are, when the connection is encrypted.
///
/// The default trusts the certificates that the system trusts, checks that the server's certificate is valid and made
/// out to [`PoolParams::host`](super::PoolParams::host), and shows no certificate of its own.
///
/// ```
/// use step_redis::{PoolParams, TlsParams};
///
/// let tls = TlsParams::new().ca_certs("ca.pem").client_cert("client.pem").client_key("client-key.pem");
/// let params = PoolParams::new("redis.example.com", 6379).tls(tls);
/// # assert!(params.tls.is_some());
/// ```
///
/// The files are read once, when a pool is made; what is wrong with one of them is an
/// [`Error::Tls`](crate::Error::Tls) which names the parameter and the file. A pool keeps its TLS sessions, so that a
/// reconnect needs a shorter handshake.
///
/// `Debug` shows paths and sizes, never a password or the content of a key.
#[derive(Clone, Default)]
#[non_exhaustive]
#[must_use]
pub struct TlsParams {
    /// The certificates of the authorities to trust, instead of those that the system trusts. A file without a
    /// certificate is an error. Default: none, which is the system's.
    pub ca_certs: Option<Pem>,

    /// The certificate to show to a server that asks for one, followed by its intermediate certificates; it may be the
    /// same file as `client_key`. Needs `client_key`. Default: none.
    pub client_cert: Option<Pem>,

    /// The private key of `client_cert`: PKCS#8 (also encrypted), PKCS#1 or SEC1; RSA from 2048 to 4096 bits, ECDSA on
    /// P-256 or P-384, or Ed25519. Default: none.
    pub client_key: Option<Pem>,

    /// The password of `client_key`, when that is encrypted PKCS#8 (`BEGIN ENCRYPTED PRIVATE KEY`) with PBES2, as
    /// OpenSSL writes it. A key that is not encrypted is read without it. It is never printed, logged or put in an
    /// error. Needs the feature `encrypted-keys`. Default: none.
    pub client_key_password: Option<String>,

    /// Accept every certificate, whoever made it out to whomever, and log a warning. Default: false.
    ///
    /// # Warning
    ///
    /// Anyone between us and the server can then read and change everything, the password included. A server with a
    /// certificate of its own making needs [`ca_certs`](TlsParams::ca_certs), one that is reached under another name
    /// needs [`server_name`](TlsParams::server_name); this is for neither.
    pub danger_accept_invalid_certs: bool,

    /// The name that the server's certificate must be valid for, and that is sent to the server (SNI), instead of
    /// [`PoolParams::host`](super::PoolParams::host). A host name or an IP address. Default: none.
    pub server_name: Option<String>,

    /// A complete configuration for what the other fields cannot say. Of these, only `server_name` may be set with it.
    /// Default: none.
    #[cfg(feature = "tls")]
    pub client_config: Option<Arc<rustls::ClientConfig>>,
}

impl TlsParams {
    /// TLS with the defaults.
    pub fn new() -> TlsParams {
        TlsParams::default()
    }

    /// Sets [`TlsParams::ca_certs`].
    pub fn ca_certs(mut self, certificates: impl Into<Pem>) -> TlsParams {
        self.ca_certs = Some(certificates.into());
        self
    }

    /// Sets [`TlsParams::client_cert`].
    pub fn client_cert(mut self, certificate: impl Into<Pem>) -> TlsParams {
        self.client_cert = Some(certificate.into());
        self
    }

    /// Sets [`TlsParams::client_key`].
    pub fn client_key(mut self, key: impl Into<Pem>) -> TlsParams {
        self.client_key = Some(key.into());
        self
    }

    /// Sets [`TlsParams::client_key_password`].
    pub fn client_key_password(mut self, password: impl Into<String>) -> TlsParams {
        self.client_key_password = Some(password.into());
        self
    }

    /// Sets [`TlsParams::danger_accept_invalid_certs`]; read its warning.
    pub fn danger_accept_invalid_certs(mut self, accept: bool) -> TlsParams {
        self.danger_accept_invalid_certs = accept;
        self
    }

    /// Sets [`TlsParams::server_name`].
    pub fn server_name(mut self, name: impl Into<String>) -> TlsParams {
        self.server_name = Some(name.into());
        self
    }

    /// Sets [`TlsParams::client_config`].
    #[cfg(feature = "tls")]
    pub fn client_config(mut self, config: Arc<rustls::ClientConfig>) -> TlsParams {
        self.client_config = Some(config);
        self
    }

    fn has_client_config(&self) -> bool {
        #[cfg(feature = "tls")]
        return self.client_config.is_some();
        #[cfg(not(feature = "tls"))]
        return false;
    }

    /// The first field that does not fit to the others, and why.
    pub(super) fn fault(&self) -> Option<(&'static str, &'static str)> {
        if self.has_client_config() {
            let both = "cannot be combined with `client_config`, which already says it";
            let others = [
                ("tls.ca_certs", self.ca_certs.is_some()),
                ("tls.client_cert", self.client_cert.is_some()),
                ("tls.client_key", self.client_key.is_some()),
                ("tls.client_key_password", self.client_key_password.is_some()),
                ("tls.danger_accept_invalid_certs", self.danger_accept_invalid_certs),
            ];
            if let Some((field, _)) = others.into_iter().find(|(_, set)| *set) {
                return Some((field, both));
            }
        }
        if self.client_cert.is_some() && self.client_key.is_none() {
            return Some(("tls.client_key", "is missing: `client_cert` is of no use without its key"));
        }
        if self.client_key_password.is_some() && self.client_key.is_none() {
            return Some(("tls.client_key_password", "is set, but there is no `client_key`"));
        }
        if self.client_key.is_some() && self.client_cert.is_none() {
            return Some(("tls.client_cert", "is missing: `client_key` is of no use without its certificate"));
        }
        if self.server_name.as_ref().is_some_and(String::is_empty) {
            return Some(("tls.server_name", "is empty"));
        }
        None
    }
}

/// A ready configuration is equal to itself only.
impl PartialEq for TlsParams {
    fn eq(&self, other: &TlsParams) -> bool {
        #[cfg(feature = "tls")]
        let same_config = match (&self.client_config, &other.client_config) {
            (Some(one), Some(another)) => Arc::ptr_eq(one, another),
            (None, None) => true,
            _ => false,
        };
        #[cfg(not(feature = "tls"))]
        let same_config = true;
        same_config
            && self.ca_certs == other.ca_certs
            && self.client_cert == other.client_cert
            && self.client_key == other.client_key
            && self.client_key_password == other.client_key_password
            && self.danger_accept_invalid_certs == other.danger_accept_invalid_certs
            && self.server_name == other.server_name
    }
}

impl fmt::Debug for TlsParams {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("TlsParams");
        shown
            .field("ca_certs", &self.ca_certs)
            .field("client_cert", &self.client_cert)
            .field("client_key", &self.client_key)
            .field("client_key_password", &Redacted::of(&self.client_key_password))
            .field("danger_accept_invalid_certs", &self.danger_accept_invalid_certs)
            .field("server_name", &self.server_name);
        #[cfg(feature = "tls")]
        shown.field("client_config", &self.client_config.as_ref().map(|_| format_args!("..")));
        shown.finish()
    }
}

/// Certificates or a key in PEM form: a file, or the bytes themselves.
///
/// Strings and paths are paths, bytes are the content. Text that contains `-----BEGIN` cannot be a path and is taken for
/// the content, too.
///
/// ```
/// use step_redis::{Pem, TlsParams};
///
/// let from_file = TlsParams::new().ca_certs("/path/to/ca.pem");
/// # let embedded: &[u8] = b"-----BEGIN CERTIFICATE-----";
/// // let embedded = include_bytes!("ca.pem");
/// let built_in = TlsParams::new().ca_certs(Pem::bytes(embedded));
/// # assert_ne!(from_file, built_in);
/// ```
///
/// `Debug` shows the path or the number of bytes, never the content.
#[derive(Clone, PartialEq, Eq)]
pub struct Pem(PemSource);

#[derive(Clone, PartialEq, Eq)]
pub(crate) enum PemSource {
    File(PathBuf),
    Bytes(Arc<[u8]>),
}

impl Pem {
    /// A file, read when the pool is made.
    pub fn file(path: impl Into<PathBuf>) -> Pem {
        let path = path.into();
        // Key material given by mistake as a path would be printed as one.
        let text = path.to_string_lossy();
        if text.contains("-----BEGIN") {
            return Pem::bytes(text.as_bytes());
        }
        Pem(PemSource::File(path))
    }

    /// The content itself.
    pub fn bytes(content: impl AsRef<[u8]>) -> Pem {
        Pem(PemSource::Bytes(content.as_ref().into()))
    }

    #[cfg(feature = "tls")]
    pub(crate) fn source(&self) -> &PemSource {
        &self.0
    }
}

impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            PemSource::File(path) => path.fmt(f),
            PemSource::Bytes(bytes) => write!(f, "<{} bytes>", bytes.len()),
        }
    }
}

impl From<&str> for Pem {
    fn from(path: &str) -> Pem {
        Pem::file(path)
    }
}

impl From<String> for Pem {
    fn from(path: String) -> Pem {
        Pem::file(path)
    }
}

impl From<&Path> for Pem {
    fn from(path: &Path) -> Pem {
        Pem::file(path)
    }
}

impl From<PathBuf> for Pem {
    fn from(path: PathBuf) -> Pem {
        Pem::file(path)
    }
}

impl From<&PathBuf> for Pem {
    fn from(path: &PathBuf) -> Pem {
        Pem::file(path)
    }
}

impl From<&[u8]> for Pem {
    fn from(content: &[u8]) -> Pem {
        Pem::bytes(content)
    }
}

impl<const N: usize> From<&[u8; N]> for Pem {
    fn from(content: &[u8; N]) -> Pem {
        Pem::bytes(content)
    }
}

impl From<Vec<u8>> for Pem {
    fn from(content: Vec<u8>) -> Pem {
        Pem(PemSource::Bytes(content.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_a_path_unless_it_is_pem() {
        assert_eq!(format!("{:?}", Pem::from("/key.pem")), "\"/key.pem\"");
        assert_eq!(format!("{:?}", Pem::from(Path::new("/key.pem"))), "\"/key.pem\"");
        assert_eq!(format!("{:?}", Pem::from(b"1234")), "<4 bytes>");
        let content = "-----BEGIN PRIVATE KEY-----\nhidden";
        for pem in [content.into(), content.to_owned().into(), Path::new(content).into(), Pem::file(content)] {
            assert_eq!(pem, Pem::bytes(content));
        }
    }

    #[test]
    fn fields_that_do_not_fit_together() {
        let new = TlsParams::new;
        let table = [
            (new(), None),
            (new().ca_certs("a").client_cert("b").client_key("c").client_key_password("d"), None),
            (new().client_cert("b"), Some("tls.client_key")),
            (new().client_key("c"), Some("tls.client_cert")),
            (new().client_key_password("d"), Some("tls.client_key_password")),
            (new().client_cert("b").client_key_password("d"), Some("tls.client_key")),
            (new().server_name(""), Some("tls.server_name")),
        ];
        for (params, field) in table {
            assert_eq!(params.fault().map(|(field, _)| field), field, "{params:?}");
        }
    }

    #[cfg(feature = "tls")]
    #[test]
    fn a_ready_configuration_stands_alone() {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let ready = TlsParams::new().client_config(Arc::new(config));
        assert_eq!(ready, ready.clone());
        assert_ne!(ready, TlsParams::new());
        assert!(format!("{ready:?}").contains("client_config: Some(..)"));
        let table = [
            (ready.clone(), None),
            (ready.clone().server_name("other"), None),
            (ready.clone().ca_certs("a"), Some("tls.ca_certs")),
            (ready.clone().client_cert("a").client_key("b"), Some("tls.client_cert")),
            (ready.clone().client_key("b"), Some("tls.client_key")),
            (ready.clone().client_key_password("c"), Some("tls.client_key_password")),
            (ready.danger_accept_invalid_certs(true), Some("tls.danger_accept_invalid_certs")),
        ];
        for (params, field) in table {
            assert_eq!(params.fault().map(|(field, _)| field), field, "{params:?}");
        }
    }
}
