//! The sigstore bundle beside a signature: what `cosign verify-blob --key KEY --bundle FILE` reads.
//!
//! Bundle version 0.3 (sigstore/protobuf-specs, sigstore_bundle.proto) with a message signature by a key, and no transparency log.

use openssl::base64::encode_block;
use openssl::sha::sha256;
use serde_json::json;

use crate::signature::{SignatureError, SigningKey};

/// The bundle over a configuration text.
///
/// # Errors
/// The key cannot sign.
pub fn bundle(key: &SigningKey, conf: &[u8]) -> Result<Vec<u8>, SignatureError> {
    let signature = key.sign_for_cosign(conf)?;
    let public = key.cosign_key()?;
    let bundle = json!({
        "mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json",
        "verificationMaterial": {
            "publicKey": {"hint": encode_block(&sha256(&public))},
        },
        "messageSignature": {
            "messageDigest": {"algorithm": "SHA2_256", "digest": encode_block(&sha256(conf))},
            "signature": encode_block(&signature),
        },
    });
    Ok(format!("{bundle}\n").into_bytes())
}
