//! What a failed handshake means, in one sentence that says what to do.

use std::error::Error as StdError;
use std::fmt;
use std::io::{self, ErrorKind};

use rustls::pki_types::UnixTime;
use rustls::{AlertDescription, CertificateError, Error};

use crate::params::{Pem, PemSource, TlsParams};

/// How many of the names in a server's certificate an error lists.
const MOST_NAMES: usize = 8;

/// The time ran out before the server said anything that belongs to a handshake.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub(crate) struct Unanswered(pub(crate) io::Error);

/// Explains an error of the handshake. A refused certificate has the kind `InvalidData`: trying again does not help. A
/// peer that hangs up or does not answer keeps its kind.
pub(crate) fn explain_handshake(error: io::Error, params: &TlsParams) -> io::Error {
    let sentence = match error.kind() {
        ErrorKind::UnexpectedEof
        | ErrorKind::ConnectionReset
        | ErrorKind::ConnectionAborted
        | ErrorKind::BrokenPipe => {
            "the server closed the connection during the TLS handshake: it does not speak TLS on this port, is about to \
             stop, or wants a client certificate (`client_cert` and `client_key`)"
        }
        ErrorKind::TimedOut if error.get_ref().is_some_and(|inner| inner.is::<Unanswered>()) => {
            "the server did not answer to the start of the TLS handshake: it does not speak TLS on this port, or is \
             overloaded"
        }
        ErrorKind::TimedOut => {
            "the server began the TLS handshake and did not complete it in time: it or the network is overloaded"
        }
        _ => {
            return match tls_error(&error).and_then(|error| explain(error, params)) {
                Some((kind, sentence)) => explained_as(kind, sentence, error),
                None => error,
            };
        }
    };
    explained_as(error.kind(), sentence.to_owned(), error)
}

/// Explains the server's verdict on our certificate, and leaves other errors as they are. With TLS 1.3 it arrives after
/// the handshake, as an error of the first read.
pub(crate) fn explain_read(error: io::Error) -> io::Error {
    match tls_error(&error) {
        Some(Error::AlertReceived(received)) if is_about_client(*received) => {
            let sentence = alert(*received).to_owned();
            explained_as(ErrorKind::InvalidData, sentence, error)
        }
        _ => error,
    }
}

/// Whether this is the server's verdict on our certificate, explained.
pub(crate) fn is_verdict(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<Explained>())
}

fn tls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref().and_then(|inner| inner.downcast_ref())
}

fn explained_as(kind: ErrorKind, sentence: String, error: io::Error) -> io::Error {
    let source = if error.get_ref().is_some() { error.into_inner() } else { Some(error.into()) };
    io::Error::new(kind, Explained { sentence, source })
}

/// Whether a certificate is X.509 version 1. The library below has this cause in a type that `rustls` hides.
pub(super) fn is_old_version(error: &Error) -> bool {
    matches!(error, Error::InvalidCertificate(CertificateError::Other(cause)) if cause.to_string() == "UnsupportedCertVersion")
}

#[derive(Debug)]
struct Explained {
    sentence: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl fmt::Display for Explained {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

impl StdError for Explained {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        let source = self.source.as_deref()?;
        Some(source)
    }
}

fn explain(error: &Error, params: &TlsParams) -> Option<(ErrorKind, String)> {
    let sentence = match error {
        Error::InvalidCertificate(_) if is_old_version(error) => {
            "the server's certificate is X.509 version 1, which is not accepted: have it issued as version 3".to_owned()
        }
        Error::InvalidCertificate(cause) => certificate(cause, params),
        Error::NoCertificatesPresented => "the server showed no certificate".to_owned(),
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } | Error::PeerSentOversizedRecord => {
            "the peer does not speak TLS on this port: use the server's TLS port, or connect without TLS".to_owned()
        }
        Error::PeerIncompatible(_) => {
            "the server offers nothing that TLS 1.2 or 1.3 could be spoken with: check its protocols and ciphers"
                .to_owned()
        }
        Error::AlertReceived(AlertDescription::InternalError | AlertDescription::UserCanceled) => {
            return Some((ErrorKind::ConnectionAborted, "the server gave up the TLS handshake".to_owned()));
        }
        Error::AlertReceived(received) => alert(*received).to_owned(),
        _ => return None,
    };
    Some((ErrorKind::InvalidData, sentence))
}

fn is_about_client(received: AlertDescription) -> bool {
    matches!(
        received,
        AlertDescription::CertificateRequired
            | AlertDescription::NoCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateExpired
            | AlertDescription::CertificateRevoked
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::UnsupportedCertificate
            | AlertDescription::AccessDenied
            // OpenSSL's word for a certificate of another authority with the name of the right one.
            | AlertDescription::DecryptError
    )
}

fn alert(received: AlertDescription) -> &'static str {
    match received {
        AlertDescription::CertificateRequired | AlertDescription::NoCertificate => {
            "the server wants a client certificate: give `client_cert` and `client_key`"
        }
        AlertDescription::UnknownCA => {
            "the server does not trust the authority that issued our `client_cert`; give one it trusts, with its \
             intermediate certificates"
        }
        AlertDescription::CertificateExpired => "the server says that our `client_cert` has expired: renew it",
        AlertDescription::CertificateRevoked => "the server says that our `client_cert` is revoked: get another",
        AlertDescription::BadCertificate
        | AlertDescription::CertificateUnknown
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::AccessDenied
        | AlertDescription::DecryptError => {
            "the server refuses our `client_cert`: check that it may be used for clients, and by which authority the \
             server wants it issued"
        }
        AlertDescription::HandshakeFailure => {
            "the server refused the TLS handshake: it wants a client certificate (`client_cert` and `client_key`), or no \
             cipher is common to both sides"
        }
        AlertDescription::ProtocolVersion => {
            "the server speaks neither TLS 1.2 nor TLS 1.3: turn one of them on there (`tls-protocols`)"
        }
        AlertDescription::UnrecognisedName => {
            "the server does not know the name it was asked for: set `server_name` to one that it has"
        }
        _ => "the server refused the TLS handshake",
    }
}

fn certificate(cause: &CertificateError, params: &TlsParams) -> String {
    match cause {
        CertificateError::UnknownIssuer => {
            format!("the server's certificate is issued by none of the authorities {}", trusted(params))
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            format!(
                "the server's certificate is not valid for `{}` but for {}: connect under such a name, or set \
                 `server_name`",
                expected.to_str(),
                names(presented)
            )
        }
        CertificateError::NotValidForName => {
            "the server's certificate is valid for another name: connect under that one, or set `server_name`".to_owned()
        }
        CertificateError::ExpiredContext { time, not_after } => format!(
            "the server's certificate expired {} ago: renew it there, or correct the clock here",
            time_between(*not_after, *time)
        ),
        CertificateError::Expired => {
            "the server's certificate has expired: renew it there, or correct the clock here".to_owned()
        }
        CertificateError::NotValidYetContext { time, not_before } => format!(
            "the server's certificate becomes valid only in {}: correct the clock here, or there",
            time_between(*time, *not_before)
        ),
        CertificateError::NotValidYet => {
            "the server's certificate is not valid yet: correct the clock here, or there".to_owned()
        }
        CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
            "the server's certificate may not be used for servers: have it issued with the extended key usage `serverAuth`"
                .to_owned()
        }
        CertificateError::Revoked => "the server's certificate is revoked: it needs another one".to_owned(),
        CertificateError::BadSignature => {
            "the server's certificate is not signed by the authority of that name in `ca_certs`: it may be an older or a \
             newer one"
                .to_owned()
        }
        CertificateError::Other(other) if other.to_string() == "CaUsedAsEndEntity" => {
            "the server's certificate is that of an authority: have one issued that is not (`basicConstraints=CA:FALSE`)"
                .to_owned()
        }
        _ => "the server's certificate cannot be accepted".to_owned(),
    }
}

/// Which authorities are trusted, and how to trust another.
fn trusted(params: &TlsParams) -> String {
    match params.ca_certs.as_ref().map(Pem::source) {
        _ if params.client_config.is_some() => "that `client_config` trusts".to_owned(),
        Some(PemSource::File(path)) => {
            format!("in ca_certs {}: give the certificate of the one that did", path.display())
        }
        Some(PemSource::Bytes(_)) => "in ca_certs (bytes): give the certificate of the one that did".to_owned(),
        None => "that this system trusts: give the certificate of the one that did as `ca_certs`".to_owned(),
    }
}

/// The names as `rustls` presents them, `DnsName("host")`, without what is not for people. They come from the peer.
fn names(presented: &[String]) -> String {
    let plain = |name: &String| {
        let value = name.split_once('(').map_or(name.as_str(), |(_, value)| value.trim_end_matches(')'));
        format!("`{}`", value.trim_matches('"').escape_debug())
    };
    match presented {
        [] => "nothing (it has no subjectAltName)".to_owned(),
        _ => {
            let mut shown: Vec<String> = presented.iter().take(MOST_NAMES).map(plain).collect();
            if presented.len() > MOST_NAMES {
                shown.push(format!("{} more", presented.len() - MOST_NAMES));
            }
            shown.join(", ")
        }
    }
}

fn time_between(from: UnixTime, to: UnixTime) -> String {
    let seconds = to.as_secs().saturating_sub(from.as_secs());
    match seconds {
        0..7_200 => format!("{} minutes", seconds / 60),
        7_200..172_800 => format!("{} hours", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}
