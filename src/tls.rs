//! From [`TlsParams`] to the configuration that `rustls` needs, with an error of its own for each thing that can be wrong.

pub(crate) mod explain;
mod pem;
#[cfg(test)]
mod samples;
#[cfg(test)]
mod tests;

use std::error::Error as StdError;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, DigitallySignedStruct, InconsistentKeys, RootCertStore, SignatureScheme};
use rustls_native_certs::CertificateResult;

use crate::error::{Cause, Error, Result};
use crate::log_later::log_later;
use crate::params::{Pem, TlsParams};
use pem::PemFile;

pub(crate) use explain::explain_handshake;

/// The configuration for all connections of a pool. It reads the files and the system's certificates, and it keeps the
/// sessions for resumption, so it is built once and shared.
///
/// The crypto provider is named here and nowhere else: the process-wide one is neither needed nor set.
pub(crate) fn client_config(params: &TlsParams) -> Result<Arc<ClientConfig>> {
    if let Some(config) = &params.client_config {
        return Ok(Arc::clone(config));
    }
    let provider = Arc::new(ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| fault("tls", "neither TLS 1.2 nor TLS 1.3 can be used", Some(cause(error))))?;

    // A bad CA file is reported even when nothing is verified: it would be bad on the day that verification is back.
    let given = params.ca_certs.as_ref().map(given_roots).transpose()?;
    let builder = if params.danger_accept_invalid_certs {
        let verifier = AcceptAnyCertificate(provider.signature_verification_algorithms);
        builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
    } else {
        builder
            .with_root_certificates(given.map_or_else(|| system_roots(rustls_native_certs::load_native_certs()), Ok)?)
    };

    let config = match (&params.client_cert, &params.client_key) {
        (Some(certificate), Some(key)) => {
            let password = params.client_key_password.as_deref();
            let identity = client_identity(certificate, key, password, &provider)?;
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(identity)))
        }
        _ => builder.with_no_client_auth(),
    };
    Ok(Arc::new(config))
}

/// The name that the server's certificate must be valid for: `server_name`, or else the host.
pub(crate) fn server_name(params: &TlsParams, host: &str) -> Result<ServerName<'static>> {
    let (item, name) = match &params.server_name {
        Some(name) => ("server_name", name.as_str()),
        None => ("host", host),
    };
    // The zone says which interface to use; it is no part of the address in a certificate.
    let address = name.split('%').next().filter(|address| address.contains(':')).unwrap_or(name);
    ServerName::try_from(address.to_owned()).map_err(|error| {
        let reason = format!("`{name}` is neither a host name nor an IP address that a certificate could be valid for");
        fault(item, reason, Some(cause(error)))
    })
}

/// Says aloud that this connection is open to anyone in between.
pub(crate) fn warn_if_dangerous(params: &TlsParams, address: &str) {
    if params.danger_accept_invalid_certs {
        log_later!(Warn, "the TLS certificate of {address} is not verified: `danger_accept_invalid_certs` is set");
    }
}

fn given_roots(pem: &Pem) -> Result<RootCertStore> {
    let file = PemFile::read("ca_certs", pem)?;
    let mut roots = RootCertStore::empty();
    let mut refused = None;
    for (number, certificate) in file.certificates()?.into_iter().enumerate() {
        if let Err(error) = roots.add(certificate) {
            // Bundles have odd ones among many that are good.
            log::warn!("{}: certificate {} is left out: {error}", file.item(), number + 1);
            refused = Some(cause(error));
        }
    }
    if roots.is_empty() {
        return Err(file.fault("none of the certificates in it can be used for an authority", refused));
    }
    Ok(roots)
}

fn system_roots(found: CertificateResult) -> Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    let (added, ignored) = roots.add_parsable_certificates(found.certs);
    log::debug!("the system trusts {added} certificates, {ignored} more cannot be used");
    for error in &found.errors {
        log::debug!("while reading the certificates that the system trusts: {error}");
    }
    if roots.is_empty() {
        let reason = "this system has no usable certificate of an authority; give the server's authority as `ca_certs`";
        return Err(fault("ca_certs (system)", reason, found.errors.into_iter().next().map(cause)));
    }
    Ok(roots)
}

/// Our certificate chain, with the certificate of the key in front, and the key.
fn client_identity(
    certificate: &Pem,
    key: &Pem,
    password: Option<&str>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey> {
    let certificate_file = PemFile::read("client_cert", certificate)?;
    let mut chain = certificate_file.certificates()?;
    let key_file = PemFile::read("client_key", key)?;
    let key = provider.key_provider.load_private_key(key_file.private_key(password)?).map_err(|error| {
        let reason = "is not a usable private key: RSA with 2048 to 4096 bits, ECDSA on P-256 or P-384, or Ed25519";
        key_file.fault(reason, Some(cause(error)))
    })?;

    let check = |certificate: &CertificateDer<'static>| {
        CertifiedKey::new(vec![certificate.clone()], Arc::clone(&key)).keys_match()
    };
    if let Some(position) = chain.iter().position(|certificate| check(certificate).is_ok()) {
        let own = chain.remove(position);
        chain.insert(0, own);
        return Ok(CertifiedKey::new(chain, key));
    }
    match chain.first().map_or(Err(rustls::Error::NoCertificatesPresented), check) {
        Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => Ok(CertifiedKey::new(chain, key)),
        Err(rustls::Error::InconsistentKeys(_)) => {
            let reason = format!("is not the key of the certificate in {}", certificate_file.item());
            Err(key_file.fault(reason, None))
        }
        Err(error) => {
            let reason = if explain::is_old_version(&error) {
                "is an X.509 certificate of version 1; have it issued as version 3, which any extension makes it"
            } else {
                "is no certificate that can be read"
            };
            Err(certificate_file.fault(reason, Some(cause(error))))
        }
    }
}

fn fault(item: impl Into<String>, reason: impl Into<String>, source: Option<Cause>) -> Error {
    Error::Tls { item: item.into().into_boxed_str(), reason: reason.into(), source }
}

fn cause(error: impl StdError + Send + Sync + 'static) -> Cause {
    Arc::new(error)
}

/// `danger_accept_invalid_certs`: whoever has the key of the certificate that is shown, whatever it says.
#[derive(Debug)]
struct AcceptAnyCertificate(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for AcceptAnyCertificate {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}
