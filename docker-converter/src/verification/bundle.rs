//! Sigstore bundles (sigstore/protobuf-specs, sigstore_bundle.proto, version 0.3), as cosign 3 attaches them.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::{PublicKey, text};

/// The media types of bundles that are read.
pub(super) const MEDIA_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// in-toto statements.
const PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";
/// The only predicate that says "this image is signed"; others are attestations of something else.
const PREDICATE: &str = "https://sigstore.dev/cosign/sign/v1";

/// A bundle over an image.
#[derive(Debug)]
pub struct Bundle {
    /// What the signatures are over (DSSE, "PAE").
    signed: Vec<u8>,
    signatures: Vec<Vec<u8>>,
    /// `sha256:HEX` of the manifests that it is about.
    digests: Vec<String>,
}

impl Bundle {
    /// Understands a bundle.
    ///
    /// # Errors
    /// It is none, or not about images.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let wrong = |what: &str| format!("a bundle with {what}");
        let value: Value = serde_json::from_slice(bytes).map_err(|_| wrong("no JSON"))?;
        let media_type = text(&value, "/mediaType").unwrap_or_default();
        if media_type != MEDIA_TYPE {
            return Err(wrong(&format!(
                "the media type {media_type:?}, expected {MEDIA_TYPE:?}"
            )));
        }
        let envelope = value
            .get("dsseEnvelope")
            .ok_or_else(|| wrong("no dsseEnvelope: it signs no image"))?;
        let kind = text(envelope, "/payloadType").unwrap_or_default();
        if kind != PAYLOAD_TYPE {
            return Err(wrong(&format!("a payload of the type {kind:?}")));
        }
        let decode = |text: Option<&str>| STANDARD.decode(text?).ok();
        let payload = decode(text(envelope, "/payload")).ok_or_else(|| wrong("no payload"))?;
        let list = envelope.get("signatures").and_then(Value::as_array);
        let signatures: Vec<Vec<u8>> = list
            .into_iter()
            .flatten()
            .filter_map(|signature| decode(text(signature, "/sig")))
            .collect();
        let statement: Value =
            serde_json::from_slice(&payload).map_err(|_| wrong("a payload that is no JSON"))?;
        if text(&statement, "/_type") != Some("https://in-toto.io/Statement/v1") {
            return Err(wrong("no in-toto statement"));
        }
        let predicate = text(&statement, "/predicateType").unwrap_or_default();
        if predicate != PREDICATE {
            return Err(wrong(&format!(
                "the predicate {predicate:?}, expected {PREDICATE:?}"
            )));
        }
        let subjects = statement.get("subject").and_then(Value::as_array);
        let digests = subjects
            .into_iter()
            .flatten()
            .filter_map(|subject| Some(format!("sha256:{}", text(subject, "/digest/sha256")?)));
        Ok(Self {
            signed: pae(kind, &payload),
            digests: digests.collect(),
            signatures,
        })
    }

    /// Whether it is a signature of a manifest with a key.
    ///
    /// # Errors
    /// It is another's, or another key's.
    pub fn verify(&self, key: &PublicKey, digest: &str) -> Result<(), String> {
        let verifies = |signature: &Vec<u8>| key.verifies(&self.signed, signature);
        if !self.signatures.iter().any(verifies) {
            return Err("a bundle of another key".to_owned());
        }
        match self.digests.iter().any(|found| found == digest) {
            true => Ok(()),
            false => Err(format!("a bundle over {}", self.digests.join(", "))),
        }
    }
}

/// DSSE's pre-authentication encoding (secure-systems-lab/dsse, protocol.md).
fn pae(kind: &str, payload: &[u8]) -> Vec<u8> {
    let head = format!("DSSEv1 {} {kind} {} ", kind.len(), payload.len());
    [head.as_bytes(), payload].concat()
}
