//! Private keys: in memory, or in a token that signs for us.

use openssl::hash::MessageDigest;
use openssl::pkey::{Id, PKey, Private, Public};
use openssl::rsa::{Padding, Rsa};
use openssl::sha::{sha256, sha512};
use openssl::sign::{Signer, Verifier};
use zeroize::Zeroizing;

use super::{SignatureError, check, check_key};
use crate::chain::{Chain, kind};
use crate::pss;

/// What stands before a digest in a PKCS#1 v1.5 signature.
const SHA256_PREFIX: [u8; 19] = [
    0x30, 0x31, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x01, 0x05,
    0x00, 0x04, 0x20,
];
const SHA512_PREFIX: [u8; 19] = [
    0x30, 0x51, 0x30, 0x0d, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02, 0x03, 0x05,
    0x00, 0x04, 0x40,
];

/// How a digest becomes a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// RSASSA-PSS, MGF1 with the digest's hash, a salt as long as the digest.
    Pss,
    /// RSASSA-PKCS1-v1_5.
    Pkcs1,
    /// ECDSA; DER.
    Ecdsa,
}

/// What a digest was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hash {
    /// SHA-256.
    Sha256,
    /// SHA-512.
    Sha512,
}

impl Hash {
    /// `DigestInfo` of a digest: what PKCS#1 v1.5 pads (RFC 8017, section 9.2, note 1).
    #[must_use]
    pub fn digest_info(self, digest: &[u8]) -> Vec<u8> {
        let prefix = match self {
            Self::Sha256 => &SHA256_PREFIX,
            Self::Sha512 => &SHA512_PREFIX,
        };
        [prefix, digest].concat()
    }
}

/// Something that holds a private key and signs with it.
pub trait Token {
    /// The signature over a digest: RSA's as long as the modulus, ECDSA's in DER.
    ///
    /// # Errors
    /// What the token says.
    fn sign(&self, scheme: Scheme, hash: Hash, digest: &[u8]) -> Result<Vec<u8>, String>;
}

/// A private key that signs configuration texts.
pub struct SigningKey {
    public: PKey<Public>,
    private: PrivateKey,
}

enum PrivateKey {
    Here(PKey<Private>),
    InToken(Box<dyn Token>),
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let place = match self.private {
            PrivateKey::Here(_) => "",
            PrivateKey::InToken(_) => ", in a token",
        };
        let (kind, bits) = (kind(self.public.id()), self.public.bits());
        write!(formatter, "SigningKey({kind}, {bits} bits{place})")
    }
}

impl SigningKey {
    /// Reads an unencrypted private key in PEM form (PKCS#8, or PKCS#1 for rsaEncryption).
    ///
    /// # Errors
    /// It is no such key, is encrypted, or is of a kind or length that is refused.
    pub fn from_pem(pem: &[u8]) -> Result<Self, SignatureError> {
        Self::from_encrypted_pem(pem, || Err("it is encrypted".to_owned()))
    }

    /// Reads a private key in PEM form; `passphrase` is asked for where it is encrypted.
    ///
    /// # Errors
    /// It is no such key, the passphrase is another one, or the key is of a kind or length that is refused.
    pub fn from_encrypted_pem(
        pem: &[u8],
        passphrase: impl FnOnce() -> Result<Zeroizing<Vec<u8>>, String>,
    ) -> Result<Self, SignatureError> {
        let mut refused = None;
        let mut asked = false;
        let key = PKey::private_key_from_pem_callback(pem, |buffer| {
            asked = true;
            match passphrase() {
                Ok(text) if text.len() <= buffer.len() => {
                    buffer[..text.len()].copy_from_slice(&text);
                    Ok(text.len())
                }
                Ok(text) => {
                    let most = buffer.len();
                    refused = Some(format!(
                        "a passphrase of {} bytes, at most {most}",
                        text.len()
                    ));
                    Ok(0)
                }
                Err(reason) => {
                    refused = Some(reason);
                    Ok(0)
                }
            }
        });
        let key = key.map_err(|_| {
            SignatureError::key(match (refused, asked) {
                (Some(reason), _) => reason,
                (None, true) => {
                    "the passphrase is not the one that it is encrypted with".to_owned()
                }
                (None, false) => "no private key in PEM form".to_owned(),
            })
        })?;
        check_key(&key).map_err(SignatureError::Key)?;
        let public =
            PKey::public_key_from_der(&key.public_key_to_der().map_err(SignatureError::key)?)
                .map_err(SignatureError::key)?;
        Ok(Self {
            public,
            private: PrivateKey::Here(key),
        })
    }

    /// A key in a token. It has no kind of its own there: the first certificate of `cert` (PEM) says whether it signs with PSS.
    ///
    /// # Errors
    /// There is no certificate, or its key is of a kind or length that is refused.
    pub fn in_token(cert: &[u8], token: Box<dyn Token>) -> Result<Self, SignatureError> {
        let public = Chain::parse(cert)
            .and_then(|chain| chain.key())
            .map_err(SignatureError::Chain)?;
        check_key(&public).map_err(SignatureError::Chain)?;
        Ok(Self {
            public,
            private: PrivateKey::InToken(token),
        })
    }

    /// Checks that GyroidOS accepts signatures of this kind of key.
    ///
    /// # Errors
    /// It refuses them.
    pub fn check_gyroidos(&self) -> Result<(), SignatureError> {
        match self.public.id() {
            Id::RSA | Id::RSA_PSS => Ok(()),
            other => Err(SignatureError::key(format!(
                "a key {}, which GyroidOS refuses: expected rsaEncryption or id-RSASSA-PSS",
                kind(other)
            ))),
        }
    }

    /// Signs a configuration text. The same text and RSA key in memory give the same signature, also with PSS, whose salt is
    /// derived from both, so that a conversion can be repeated byte for byte; tokens and ECDSA draw at random.
    ///
    /// # Errors
    /// OpenSSL or the token fails.
    pub fn sign(&self, conf: &[u8]) -> Result<Vec<u8>, SignatureError> {
        let signature = match &self.private {
            PrivateKey::Here(key) if key.id() == Id::RSA_PSS => {
                pss::sign(key, conf).map_err(SignatureError::key)?
            }
            PrivateKey::Here(key) => Signer::new(MessageDigest::sha512(), key)
                .and_then(|mut signer| signer.sign_oneshot_to_vec(conf))
                .map_err(SignatureError::key)?,
            PrivateKey::InToken(token) => {
                let scheme = match self.public.id() {
                    Id::RSA_PSS => Scheme::Pss,
                    Id::RSA => Scheme::Pkcs1,
                    _ => Scheme::Ecdsa,
                };
                token
                    .sign(scheme, Hash::Sha512, &sha512(conf))
                    .map_err(SignatureError::Key)?
            }
        };
        // A fault while signing would give the key away (Boneh, DeMillo, Lipton 1997), and no one else will check. A token may
        // hold another key than the certificate's.
        check(conf, &signature, &self.public)?;
        Ok(signature)
    }

    /// Signs as cosign checks it with a public key: SHA-256, RSA with PKCS#1 v1.5 whatever the key's kind (cosign knows no PSS),
    /// or ECDSA.
    ///
    /// # Errors
    /// OpenSSL or the token fails.
    pub fn sign_for_cosign(&self, message: &[u8]) -> Result<Vec<u8>, SignatureError> {
        let digest = sha256(message);
        let rsa = self.public.id() != Id::EC;
        let signature = match &self.private {
            PrivateKey::Here(key) if rsa => {
                self.pkcs1(key, &digest).map_err(SignatureError::key)?
            }
            PrivateKey::Here(key) => Signer::new(MessageDigest::sha256(), key)
                .and_then(|mut signer| signer.sign_oneshot_to_vec(message))
                .map_err(SignatureError::key)?,
            PrivateKey::InToken(token) => {
                let scheme = if rsa { Scheme::Pkcs1 } else { Scheme::Ecdsa };
                token
                    .sign(scheme, Hash::Sha256, &digest)
                    .map_err(SignatureError::Key)?
            }
        };
        let key = cosign_key(&self.public).map_err(SignatureError::key)?;
        let made = Verifier::new(MessageDigest::sha256(), &key)
            .and_then(|mut verifier| verifier.verify_oneshot(&signature, message))
            .map_err(SignatureError::key)?;
        match made {
            true => Ok(signature),
            false => Err(SignatureError::Signature(
                "does not belong to this text and this certificate".to_owned(),
            )),
        }
    }

    /// The public key as cosign reads it: PEM, RSA as rsaEncryption.
    ///
    /// # Errors
    /// OpenSSL fails.
    pub fn cosign_key(&self) -> Result<Vec<u8>, SignatureError> {
        cosign_key(&self.public)
            .and_then(|key| key.public_key_to_pem())
            .map_err(SignatureError::key)
    }

    /// With a key that OpenSSL restricts to PSS too.
    fn pkcs1(
        &self,
        key: &PKey<Private>,
        digest: &[u8],
    ) -> Result<Vec<u8>, openssl::error::ErrorStack> {
        let rsa = key.rsa()?;
        let mut signature = vec![0; rsa.size() as usize];
        let encoded = Hash::Sha256.digest_info(digest);
        let length = rsa.private_encrypt(&encoded, &mut signature, Padding::PKCS1)?;
        signature.truncate(length);
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
        let equal = key.id() == self.public.id() && key.public_eq(&self.public);
        equal.then_some(()).ok_or_else(|| {
            let of = |id| kind(id).to_owned();
            SignatureError::Chain(match (of(key.id()), of(self.public.id())) {
                (certificate, key) if certificate != key => {
                    format!("the first certificate's key is {certificate}, the private key {key}")
                }
                _ => "the first certificate is another key's".to_owned(),
            })
        })
    }
}

/// The key of a chain's first certificate, as cosign reads it (PEM).
///
/// # Errors
/// There is no certificate, or OpenSSL fails.
pub fn cosign_key_of(cert: &[u8]) -> Result<Vec<u8>, SignatureError> {
    let key = Chain::parse(cert)
        .and_then(|chain| chain.key())
        .map_err(SignatureError::Chain)?;
    cosign_key(&key)
        .and_then(|key| key.public_key_to_pem())
        .map_err(SignatureError::key)
}

fn cosign_key(key: &PKey<Public>) -> Result<PKey<Public>, openssl::error::ErrorStack> {
    if key.id() == Id::EC {
        return Ok(key.clone());
    }
    let rsa = key.rsa()?;
    PKey::from_rsa(Rsa::from_public_components(
        rsa.n().to_owned()?,
        rsa.e().to_owned()?,
    )?)
}
