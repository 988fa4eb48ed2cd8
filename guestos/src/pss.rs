//! RSASSA-PSS with a salt that is derived from key and message (RFC 8017, sections 8.1.1 and 9.1.1; SHA-512, MGF1 with SHA-512, 64
//! bytes of salt).
//!
//! OpenSSL always draws the salt at random, which would make two conversions of one image differ. The derivation is that of
//! deterministic ECDSA in spirit (RFC 6979): an HMAC of the message keyed with the private key. The RSA operation, with its
//! blinding, is OpenSSL's, and the result is checked by OpenSSL's own PSS before it is used.

use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::{PKey, PKeyRef, Private};
use openssl::rsa::Padding;
use openssl::sha::{Sha512, sha512};
use openssl::sign::Signer;
use zeroize::Zeroizing;

/// Bytes of a SHA-512 digest, and of the salt.
const LENGTH: usize = 64;

/// Signs a message.
pub(crate) fn sign(key: &PKeyRef<Private>, message: &[u8]) -> Result<Vec<u8>, ErrorStack> {
    let rsa = key.rsa()?;
    let digest = sha512(message);
    let encoded = encode(
        &digest,
        &salt(key, &digest)?,
        rsa.n().num_bits() as usize - 1,
    );
    let size = rsa.size() as usize;
    let mut block = vec![0; size - encoded.len()];
    block.extend(encoded);
    let mut signature = vec![0; size];
    rsa.private_encrypt(&block, &mut signature, Padding::NONE)?;
    Ok(signature)
}

fn salt(key: &PKeyRef<Private>, digest: &[u8; LENGTH]) -> Result<[u8; LENGTH], ErrorStack> {
    let der = Zeroizing::new(key.private_key_to_der()?);
    let mut hmac = Signer::new(MessageDigest::sha512(), &*PKey::hmac(&der)?)?;
    hmac.update(b"trustme RSASSA-PSS salt")?;
    hmac.update(digest)?;
    let mut salt = [0; LENGTH];
    hmac.sign(&mut salt)?;
    Ok(salt)
}

/// EMSA-PSS-ENCODE: `bits` is the length of the encoded message.
fn encode(digest: &[u8; LENGTH], salt: &[u8; LENGTH], bits: usize) -> Vec<u8> {
    let mut hash = Sha512::new();
    hash.update(&[0; 8]);
    hash.update(digest);
    hash.update(salt);
    let hash = hash.finish();
    // DB = PS || 0x01 || salt, masked by MGF1(H); then H and the trailer.
    let length = bits.div_ceil(8);
    let mut encoded = vec![0; length - LENGTH - 1];
    let start = encoded.len() - LENGTH;
    encoded[start - 1] = 1;
    encoded[start..].copy_from_slice(salt);
    mask(&mut encoded, &hash);
    encoded[0] &= 0xff >> (8 * length - bits);
    encoded.extend(hash);
    encoded.push(0xbc);
    encoded
}

/// Adds MGF1 of `seed` (RFC 8017, appendix B.2.1) to `bytes`.
fn mask(bytes: &mut [u8], seed: &[u8]) {
    for (counter, block) in (0_u32..).zip(bytes.chunks_mut(LENGTH)) {
        let mut hash = Sha512::new();
        hash.update(seed);
        hash.update(&counter.to_be_bytes());
        for (byte, mask) in block.iter_mut().zip(hash.finish()) {
            *byte ^= mask;
        }
    }
}
