//! PEM files as people have them: text around the blocks, any order, any key format, encrypted keys.
//!
//! `rustls-pemfile` decodes the blocks. Finding them is done here, because it passes over encrypted keys in silence and
//! stumbles over the headers of the old encrypted format. Its errors quote the file, so none of them is kept.

use std::path::PathBuf;

use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls_pemfile::Item;

use super::{cause, fault};
use crate::error::{Cause, Error, Result};
use crate::params::{Pem, PemSource};

const CERTIFICATE: &str = "CERTIFICATE";
const ENCRYPTED: &str = "ENCRYPTED PRIVATE KEY";
const KEYS: [&str; 4] = ["PRIVATE KEY", "RSA PRIVATE KEY", "EC PRIVATE KEY", ENCRYPTED];

/// What one parameter holds. It knows how to name itself in an error.
pub(super) struct PemFile {
    parameter: &'static str,
    path: Option<PathBuf>,
    blocks: Vec<Block>,
    is_binary: bool,
}

struct Block {
    label: String,
    body: String,
    is_complete: bool,
}

impl PemFile {
    pub(super) fn read(parameter: &'static str, pem: &Pem) -> Result<PemFile> {
        let (path, content) = match pem.source() {
            PemSource::Bytes(bytes) => (None, bytes.to_vec()),
            PemSource::File(path) => {
                let content = std::fs::read(path).map_err(|error| {
                    fault(format!("{parameter} {}", path.display()), "the file cannot be read", Some(cause(error)))
                })?;
                (Some(path.clone()), content)
            }
        };
        // DER and PKCS#12 begin with a SEQUENCE; PEM has text only.
        let is_binary = content.first() == Some(&0x30) || content.contains(&0);
        Ok(PemFile { parameter, path, blocks: blocks(&String::from_utf8_lossy(&content)), is_binary })
    }

    /// The parameter and its file, as errors name it.
    pub(super) fn item(&self) -> String {
        match &self.path {
            Some(path) => format!("{} {}", self.parameter, path.display()),
            None => format!("{} (bytes)", self.parameter),
        }
    }

    pub(super) fn fault(&self, reason: impl Into<String>, source: Option<Cause>) -> Error {
        fault(self.item(), reason, source)
    }

    /// All certificates, in the order of the file; at least one.
    pub(super) fn certificates(&self) -> Result<Vec<CertificateDer<'static>>> {
        let mut found = Vec::new();
        for block in self.blocks.iter().filter(|block| block.label == CERTIFICATE) {
            match self.decode(block, CERTIFICATE)? {
                Item::X509Certificate(der) => found.push(der),
                _ => return Err(self.damaged(block)),
            }
        }
        if found.is_empty() { Err(self.missing("certificate")) } else { Ok(found) }
    }

    /// The first private key, decrypted. The password is not looked at when the key is not encrypted.
    pub(super) fn private_key(&self, password: Option<&str>) -> Result<PrivateKeyDer<'static>> {
        let Some(block) = self.blocks.iter().find(|block| KEYS.contains(&block.label.as_str())) else {
            return Err(self.missing("private key"));
        };
        let mut headers = block.body.lines().filter(|line| line.contains(':'));
        if headers.any(|line| line.starts_with("Proc-Type:") && line.contains("ENCRYPTED")) {
            let reason = format!("is encrypted in an old format that is not supported; {}", self.conversion());
            return Err(self.fault(reason, None));
        }
        // The label may be wrong, and the encrypted one is unknown to the parser. The key itself tells its format.
        let Item::Pkcs8Key(key) = self.decode(block, "PRIVATE KEY")? else {
            return Err(self.damaged(block));
        };
        let der = if block.label == ENCRYPTED {
            self.decrypt(key.secret_pkcs8_der(), password)?
        } else {
            key.secret_pkcs8_der().to_vec()
        };
        PrivateKeyDer::try_from(der).map_err(|_| self.fault("has a private key of an unknown format", None))
    }

    #[cfg(not(feature = "encrypted-keys"))]
    fn decrypt(&self, _: &[u8], _: Option<&str>) -> Result<Vec<u8>> {
        Err(self.fault("is encrypted, which needs the feature `encrypted-keys`", None))
    }

    #[cfg(feature = "encrypted-keys")]
    fn decrypt(&self, der: &[u8], password: Option<&str>) -> Result<Vec<u8>> {
        use pkcs8::{EncryptedPrivateKeyInfoRef, PrivateKeyInfoRef, pkcs5};

        let Some(password) = password else {
            return Err(self.fault("is encrypted; give its password as `client_key_password`", None));
        };
        let unsupported = |error: pkcs8::Error| {
            let reason = format!("is encrypted in a way that is not supported, or damaged; {}", self.conversion());
            self.fault(reason, Some(cause(error)))
        };
        let wrong = || self.fault("cannot be decrypted: `client_key_password` is not its password", None);

        let encrypted = EncryptedPrivateKeyInfoRef::try_from(der).map_err(unsupported)?;
        let plain = encrypted.decrypt(password).map_err(|error| match error {
            pkcs8::Error::EncryptedPrivateKey(pkcs5::Error::DecryptFailed) | pkcs8::Error::Asn1(_) => wrong(),
            other => unsupported(other),
        })?;
        // One wrong password in 256 leaves a valid padding, and noise.
        PrivateKeyInfoRef::try_from(plain.as_bytes()).map_err(|_| wrong())?;
        Ok(plain.as_bytes().to_vec())
    }

    fn decode(&self, block: &Block, label: &str) -> Result<Item> {
        if !block.is_complete {
            let reason = format!("is cut off: the line `-----END {}-----` is missing", block.label);
            return Err(self.fault(reason, None));
        }
        let text = format!("-----BEGIN {label}-----\n{}-----END {label}-----\n", block.body);
        match rustls_pemfile::read_one_from_slice(text.as_bytes()) {
            Ok(Some((item, _))) => Ok(item),
            _ => Err(self.damaged(block)),
        }
    }

    fn damaged(&self, block: &Block) -> Error {
        self.fault(format!("the block `{}` is damaged: it is not valid base64", block.label), None)
    }

    fn missing(&self, what: &str) -> Error {
        let mut labels: Vec<&str> = self.blocks.iter().map(|block| block.label.as_str()).collect();
        labels.dedup();
        let reason = if !labels.is_empty() {
            format!("has no {what} in it, but {}; is it the right file?", labels.join(", "))
        } else if self.is_binary {
            format!("has no {what} in PEM form; it is binary (DER or PKCS#12), to be converted with openssl")
        } else {
            format!("has no {what} in it: there is no line that begins with `-----BEGIN`")
        };
        self.fault(reason, None)
    }

    fn conversion(&self) -> String {
        let path = self.path.as_ref().map_or("<file>".into(), |path| path.display().to_string());
        format!("convert it: openssl pkcs8 -topk8 -v2 aes-256-cbc -in {path} -out <new file>")
    }
}

/// The blocks between `BEGIN` and `END`, without what stands around them. Lines may be indented.
fn blocks(text: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut current: Option<Block> = None;
    for line in text.split(['\n', '\r']).map(|line| line.trim_matches(|c: char| c.is_whitespace() || c == '\u{feff}')) {
        if let Some(label) = marker(line, "-----BEGIN ") {
            blocks.extend(current.take());
            current = Some(Block { label: label.to_owned(), body: String::new(), is_complete: false });
        } else if let Some(mut block) = current.take() {
            if marker(line, "-----END ") == Some(block.label.as_str()) {
                block.is_complete = true;
                blocks.push(block);
            } else {
                block.body.push_str(line);
                block.body.push('\n');
                current = Some(block);
            }
        }
    }
    blocks.extend(current);
    blocks
}

/// Only what looks like a label is one: it is printed.
fn marker<'a>(line: &'a str, start: &str) -> Option<&'a str> {
    let label = line.strip_prefix(start)?.strip_suffix("-----")?;
    let is_label = label.bytes().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || byte == b' ');
    (is_label && label.len() <= 40).then_some(label)
}
