//! Signatures that cosign attaches to an image: at the tag `sha256-HEX.sig`, and as referrers.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::{Bundle, Payload, PublicKey, bundle, text};
use crate::error::Error;
use crate::registry::{Repository, Wanted};

/// The media type of a payload (sigstore/cosign, specs/SIGNATURE_SPEC.md).
const SIMPLE_SIGNING: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const SIGNATURE: &str = "/annotations/dev.cosignproject.cosign~1signature";

/// The most signatures of an image that are looked at.
const MAX_SIGNATURES: usize = 100;

/// A signature.
#[derive(Debug)]
pub(super) enum Attached {
    /// Over a payload.
    Simple {
        payload: Vec<u8>,
        signature: Vec<u8>,
    },
    /// A sigstore bundle.
    Bundle(Bundle),
    /// Something that cannot be read, and why.
    Unreadable(String),
}

impl Attached {
    /// Whether it is over a manifest, and of a key.
    pub(super) fn signed_with(&self, key: &PublicKey, digest: &str) -> Result<(), String> {
        match self {
            Self::Simple { .. } => match self.payload(key)? {
                payload if payload.digest == digest => Ok(()),
                payload => Err(format!("a signature over {}", payload.digest)),
            },
            Self::Bundle(bundle) => bundle.verify(key, digest),
            Self::Unreadable(reason) => Err(reason.clone()),
        }
    }

    /// The payload that a key signed.
    pub(super) fn payload(&self, key: &PublicKey) -> Result<Payload, String> {
        match self {
            Self::Simple { payload, signature } if key.verifies(payload, signature) => {
                Payload::parse(payload)
            }
            Self::Simple { .. } => Err("a signature of another key".to_owned()),
            Self::Bundle(_) => Err("a bundle, which names no repository".to_owned()),
            Self::Unreadable(reason) => Err(reason.clone()),
        }
    }
}

/// All signatures of a manifest.
pub(super) fn find(repository: &Repository, digest: &str) -> Result<Vec<Attached>, Error> {
    let mut found = Vec::new();
    let stem = digest.replace(':', "-");
    if let Some(manifest) = repository.find_manifest(&Wanted::Tag(format!("{stem}.sig")))? {
        for layer in list(&manifest.bytes, "/layers") {
            if text(&layer, "/mediaType") != Some(SIMPLE_SIGNING) {
                continue;
            }
            let signature = text(&layer, SIGNATURE).and_then(|text| STANDARD.decode(text).ok());
            found.push(match signature {
                Some(signature) => Attached::Simple {
                    payload: blob(repository, &layer)?,
                    signature,
                },
                None => Attached::Unreadable("a signature that is not there".to_owned()),
            });
        }
    }
    // Where the registry knows no referrers, clients keep the list at a tag (distribution specification, "Referrers Tag Schema").
    let referrers = match repository.referrers(digest)? {
        Some(referrers) => Some(referrers),
        None => repository
            .find_manifest(&Wanted::Tag(stem))?
            .map(|document| document.bytes),
    };
    for referrer in list(&referrers.unwrap_or_default(), "/manifests") {
        let Some(referrer) = text(&referrer, "/digest") else {
            continue;
        };
        if !crate::registry::is_digest(referrer) {
            continue;
        }
        let manifest = repository.manifest(&Wanted::Digest(referrer.to_owned()))?;
        for layer in list(&manifest.bytes, "/layers") {
            if text(&layer, "/mediaType") == Some(bundle::MEDIA_TYPE) {
                let parsed = Bundle::parse(&blob(repository, &layer)?);
                found.push(parsed.map_or_else(Attached::Unreadable, Attached::Bundle));
            }
        }
    }
    Ok(found)
}

fn list(bytes: &[u8], pointer: &str) -> Vec<Value> {
    let value: Value = serde_json::from_slice(bytes).unwrap_or_default();
    let items = value.pointer(pointer).and_then(Value::as_array);
    items
        .into_iter()
        .flatten()
        .take(MAX_SIGNATURES)
        .cloned()
        .collect()
}

fn blob(repository: &Repository, descriptor: &Value) -> Result<Vec<u8>, Error> {
    let digest = text(descriptor, "/digest").unwrap_or_default();
    let size = descriptor.get("size").and_then(Value::as_u64);
    match size {
        Some(size) if crate::registry::is_digest(digest) => repository.small_blob(digest, size),
        _ => Err(Error::Registry {
            what: repository.shown().to_owned(),
            reason: "a signature without digest and size".to_owned(),
        }),
    }
}
