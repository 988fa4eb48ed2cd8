//! Public keys of cosign.

use std::fs;
use std::path::Path;

use openssl::hash::MessageDigest;
use openssl::nid::Nid;
use openssl::pkey::{Id, PKey, Public};
use openssl::sign::Verifier;
use sha2::{Digest as _, Sha256};

use crate::error::Error;

/// The largest file of a key, in bytes.
const MAX_FILE: u64 = 64 << 10;

/// A public key: ECDSA, RSA (PKCS#1 v1.5) or Ed25519.
#[derive(Debug)]
pub struct PublicKey(PKey<Public>);

impl PublicKey {
    /// Reads a PEM file.
    ///
    /// # Errors
    /// It cannot be read, or is no public key.
    pub fn load(path: &Path) -> Result<Self, Error> {
        if fs::metadata(path).map_err(Error::io(path))?.len() > MAX_FILE {
            return Err(Error::image(path, format!("more than {MAX_FILE} bytes")));
        }
        let pem = fs::read(path).map_err(Error::io(path))?;
        Self::from_pem(&pem).map_err(|reason| Error::image(path, reason))
    }

    /// Reads PEM.
    ///
    /// # Errors
    /// It is no public key, or of a kind that cosign has not.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        let key = PKey::public_key_from_pem(pem).map_err(|_| "expected a public key in PEM")?;
        match key.id() {
            Id::EC | Id::RSA | Id::ED25519 => Ok(Self(key)),
            _ => Err("expected a key for ECDSA, RSA or Ed25519".to_owned()),
        }
    }

    /// SHA-256 of the SubjectPublicKeyInfo, hex.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        let der = self.0.public_key_to_der().unwrap_or_default();
        hex::encode(Sha256::digest(der))
    }

    /// Whether `signature` is the key's over `message`.
    #[must_use]
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        // Older cosigns take SHA-256 for every curve, newer ones what fits to it.
        let wide = self
            .0
            .ec_key()
            .ok()
            .and_then(|key| match key.group().curve_name() {
                Some(Nid::SECP384R1) => Some(MessageDigest::sha384()),
                Some(Nid::SECP521R1) => Some(MessageDigest::sha512()),
                _ => None,
            });
        let digests = [Some(MessageDigest::sha256()), wide];
        digests.into_iter().flatten().any(|digest| {
            let verifier = match self.0.id() {
                Id::ED25519 => Verifier::new_without_digest(&self.0),
                _ => Verifier::new(digest, &self.0),
            };
            let verified =
                verifier.and_then(|mut verifier| verifier.verify_oneshot(signature, message));
            verified.unwrap_or(false)
        })
    }
}
