//! Signatures over configuration texts: SHA-512, with the padding that the kind of the signer's key demands.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use openssl::hash::MessageDigest;
use openssl::pkey::{HasPublic, Id, PKey, PKeyRef, Private};
use openssl::rsa::Padding;
use openssl::sign::{RsaPssSaltlen, Verifier};

pub use crate::chain::{Anchors, Signer};
use crate::chain::{Chain, kind};
use crate::pss;

/// The smallest RSA key that is accepted, in bits (BSI TR-02102-1 allows no less for signatures since 2006).
const MIN_RSA_BITS: u32 = 2048;

/// Why a signature, a certificate or a key is not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SignatureError {
    /// A file cannot be read.
    #[error("{}: cannot read", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An anchor is not what it should be.
    #[error("{}: {reason}", path.display())]
    Certificate {
        /// The file or directory of anchors.
        path: PathBuf,
        /// What was expected or found.
        reason: String,
    },
    /// The signer's certificates cannot be read.
    #[error("certificates: {0}")]
    Chain(String),
    /// The signer's certificates lead to no anchor.
    #[error("certificates: not trusted by any anchor: {0}")]
    Untrusted(String),
    /// The signature was not made over this text by this signer.
    #[error("signature: {0}")]
    Signature(String),
    /// The private key cannot be used.
    #[error("private key: {0}")]
    Key(String),
}

impl SignatureError {
    pub(crate) fn read(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Read {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn certificate(path: &Path, reason: impl Into<String>) -> Self {
        Self::Certificate {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }

    fn key(reason: impl ToString) -> Self {
        Self::Key(reason.to_string())
    }
}

/// Checks that `sig` is the signature of the first certificate of `cert` over `conf`, and that this certificate was
/// issued, over the others in `cert`, by an anchor, and is valid at the time `at`.
///
/// `sig` is raw (big-endian, as long as the modulus); `cert` is PEM. GyroidOS's rules: an id-RSASSA-PSS key signs with PSS,
/// MGF1 over SHA-512 and a salt of 64 bytes; an rsaEncryption key signs with PKCS#1 v1.5 and with nothing else.
///
/// # Errors
/// [`SignatureError::Chain`], [`SignatureError::Untrusted`] or [`SignatureError::Signature`].
pub fn verify(
    conf: &[u8],
    sig: &[u8],
    cert: &[u8],
    anchors: &Anchors,
    at: SystemTime,
) -> Result<Signer, SignatureError> {
    let chain = Chain::parse(cert).map_err(SignatureError::Chain)?;
    let key = chain.key().map_err(SignatureError::Chain)?;
    check_key(&key).map_err(SignatureError::Chain)?;
    check(conf, sig, &key)?;
    chain.verify(anchors, at).map_err(SignatureError::Untrusted)
}

/// Whether a key is one that GyroidOS accepts.
fn check_key<T: HasPublic>(key: &PKeyRef<T>) -> Result<(), String> {
    match key.id() {
        Id::RSA | Id::RSA_PSS if key.bits() < MIN_RSA_BITS => Err(format!(
            "a key of {} bits, at least {MIN_RSA_BITS}",
            key.bits()
        )),
        Id::RSA | Id::RSA_PSS => Ok(()),
        other => Err(format!(
            "a key {}, expected rsaEncryption or id-RSASSA-PSS",
            kind(other)
        )),
    }
}

fn check<T: HasPublic>(conf: &[u8], sig: &[u8], key: &PKeyRef<T>) -> Result<(), SignatureError> {
    let made = || {
        let mut verifier = Verifier::new(MessageDigest::sha512(), key)?;
        if key.id() == Id::RSA_PSS {
            verifier.set_rsa_padding(Padding::PKCS1_PSS)?;
            verifier.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH)?;
        } else {
            verifier.set_rsa_padding(Padding::PKCS1)?;
        }
        verifier.verify_oneshot(sig, conf)
    };
    match made() {
        Ok(true) => Ok(()),
        // OpenSSL reports a signature of the wrong length or padding as an error of its own.
        Ok(false) | Err(_) => Err(SignatureError::Signature(
            "does not belong to this text and this certificate".to_owned(),
        )),
    }
}

/// A private key that signs configuration texts.
pub struct SigningKey(PKey<Private>);

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            formatter,
            "SigningKey({}, {} bits)",
            kind(self.0.id()),
            self.0.bits()
        )
    }
}

impl SigningKey {
    /// Reads an unencrypted private key in PEM form (PKCS#8, or PKCS#1 for rsaEncryption).
    ///
    /// # Errors
    /// It is no such key, is encrypted, or is of a kind or length that GyroidOS refuses.
    pub fn from_pem(pem: &[u8]) -> Result<Self, SignatureError> {
        let encrypted = |_: &mut [u8]| Err(openssl::error::ErrorStack::get());
        let key = PKey::private_key_from_pem_callback(pem, encrypted).map_err(|_| {
            let text = String::from_utf8_lossy(pem);
            SignatureError::key(if text.contains("ENCRYPTED") {
                "it is encrypted, which is not supported yet"
            } else {
                "no private key in PEM form"
            })
        })?;
        check_key(&key).map_err(SignatureError::Key)?;
        Ok(Self(key))
    }

    /// Signs a configuration text. The same text and key give the same signature, also with PSS, whose salt is derived
    /// from both, so that a conversion can be repeated byte for byte.
    ///
    /// # Errors
    /// OpenSSL fails.
    pub fn sign(&self, conf: &[u8]) -> Result<Vec<u8>, SignatureError> {
        let signature = match self.0.id() {
            Id::RSA_PSS => pss::sign(&self.0, conf),
            _ => openssl::sign::Signer::new(MessageDigest::sha512(), &self.0)
                .and_then(|mut signer| signer.sign_oneshot_to_vec(conf)),
        }
        .map_err(SignatureError::key)?;
        // A fault while signing would give the key away (Boneh, DeMillo, Lipton 1997), and no one else will check.
        check(conf, &signature, &self.0)?;
        Ok(signature)
    }

    /// Checks that the first certificate of a chain in PEM form is this key's.
    ///
    /// # Errors
    /// [`SignatureError::Chain`]: it is another key's, or there is none.
    pub fn belongs_to(&self, cert: &[u8]) -> Result<(), SignatureError> {
        let key = Chain::parse(cert)
            .and_then(|chain| chain.key())
            .map_err(SignatureError::Chain)?;
        let equal = key.id() == self.0.id() && key.public_eq(&self.0);
        equal.then_some(()).ok_or_else(|| {
            let of = |id| kind(id).to_owned();
            SignatureError::Chain(match (of(key.id()), of(self.0.id())) {
                (certificate, key) if certificate != key => {
                    format!("the first certificate's key is {certificate}, the private key {key}")
                }
                _ => "the first certificate is another key's".to_owned(),
            })
        })
    }
}
