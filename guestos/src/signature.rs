//! Signatures over configuration texts: SHA-512, with the padding that the kind of the signer's key demands.

mod signing;

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use openssl::hash::MessageDigest;
use openssl::pkey::{HasPublic, Id, PKeyRef};
use openssl::rsa::Padding;
use openssl::sign::{RsaPssSaltlen, Verifier};

pub use crate::chain::{Anchors, Signer};
use crate::chain::{Chain, kind};
pub use signing::{Hash, Scheme, SigningKey, Token, cosign_key_of};

/// The smallest elliptic curve that is accepted, in bits (BSI TR-02102-1, section 5.3).
const MIN_EC_BITS: u32 = 250;

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
/// MGF1 over SHA-512 and a salt of 64 bytes; an rsaEncryption key signs with PKCS#1 v1.5 and with nothing else. ECDSA, which GyroidOS
/// refuses, is accepted, `sig` is then DER.
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

/// Whether a key is one that is accepted.
fn check_key<T: HasPublic>(key: &PKeyRef<T>) -> Result<(), String> {
    let least = match key.id() {
        Id::RSA | Id::RSA_PSS => MIN_RSA_BITS,
        Id::EC => MIN_EC_BITS,
        other => {
            return Err(format!(
                "a key {}, expected rsaEncryption, id-RSASSA-PSS or EC",
                kind(other)
            ));
        }
    };
    match key.bits() {
        bits if bits < least => Err(format!("a key of {bits} bits, at least {least}")),
        _ => Ok(()),
    }
}

fn check<T: HasPublic>(conf: &[u8], sig: &[u8], key: &PKeyRef<T>) -> Result<(), SignatureError> {
    let made = || {
        let mut verifier = Verifier::new(MessageDigest::sha512(), key)?;
        if key.id() == Id::RSA_PSS {
            verifier.set_rsa_padding(Padding::PKCS1_PSS)?;
            verifier.set_rsa_pss_saltlen(RsaPssSaltlen::DIGEST_LENGTH)?;
        } else if key.id() == Id::RSA {
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
