//! What is signed: the payload of simple signing (containers-signature(5)), by cosign and by GPG.

use serde_json::Value;

use super::text;

/// The types that cosign and containers/image write.
const TYPES: [&str; 3] = [
    "cosign container image signature",
    "https://sigstore.dev/cosign/sign/v1",
    "atomic container signature",
];

/// A payload.
#[derive(Debug, PartialEq, Eq)]
pub struct Payload {
    /// The name that was signed: `HOST/REPOSITORY[:TAG]`.
    pub reference: String,
    /// The digest of the manifest, `sha256:HEX`.
    pub digest: String,
}

impl Payload {
    /// Understands a payload.
    ///
    /// # Errors
    /// It is none, or has parts that must not be ignored.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let wrong = |what: &str| format!("its payload has {what}");
        let value: Value = serde_json::from_slice(bytes).map_err(|_| wrong("no JSON"))?;
        let critical = value.get("critical").and_then(Value::as_object);
        let critical = critical.ok_or_else(|| wrong("no \"critical\""))?;
        // All of it must be understood: that is what the name says.
        let known = ["type", "image", "identity"];
        if let Some(key) = critical.keys().find(|key| !known.contains(&key.as_str())) {
            return Err(wrong(&format!("an unknown critical.{key}")));
        }
        let kind = text(&value, "/critical/type").unwrap_or_default();
        if !TYPES.contains(&kind) {
            return Err(wrong(&format!("the type {kind:?}")));
        }
        let digest = text(&value, "/critical/image/docker-manifest-digest");
        Ok(Self {
            reference: text(&value, "/critical/identity/docker-reference")
                .unwrap_or_default()
                .to_owned(),
            digest: digest.ok_or_else(|| wrong("no digest"))?.to_owned(),
        })
    }
}
