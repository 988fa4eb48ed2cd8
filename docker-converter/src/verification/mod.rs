//! Whether an image may be converted: signatures of cosign, and containers' policy.json, checked before a layer is fetched.

mod attached;
mod bundle;
mod gpg;
mod key;
mod payload;
mod policy;

use std::path::PathBuf;

use serde_json::Value;

pub use bundle::Bundle;
pub use key::PublicKey;
pub use payload::Payload;
pub use policy::Policy;

use crate::error::Error;
use crate::registry::Wanted;
use crate::source::{Remote, Source};

/// What is demanded of a source.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Demands {
    /// Convert only what is signed with this key (PEM), as `cosign sign --key` does.
    #[arg(long, value_name = "COSIGN.PUB")]
    pub verify_key: Option<PathBuf>,
    /// Convert only what is named by its digest.
    #[arg(long)]
    pub require_digest: bool,
    /// Convert only what this policy allows (containers-policy.json(5)).
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Where GPG signatures are, for signedBy.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/var/lib/containers/sigstore"
    )]
    pub lookaside: PathBuf,
}

/// What was found out about a source.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict(pub Vec<String>);

impl Demands {
    /// Checks a source. `remote` is the repository that it is in, its manifests read.
    ///
    /// # Errors
    /// A demand is not met.
    pub fn check(&self, source: &Source, remote: Option<&Remote>) -> Result<Verdict, Error> {
        let mut verdict = Verdict::default();
        if self.require_digest {
            match source {
                Source::Docker(reference) if matches!(reference.wanted, Wanted::Digest(_)) => {
                    verdict.0.push(format!("named by its digest: {reference}"));
                }
                _ => {
                    return Err(refused(
                        source,
                        "not named by its digest (--require-digest)",
                    ));
                }
            }
        }
        if let Some(path) = &self.verify_key {
            let Some(remote) = remote else {
                return Err(refused(
                    source,
                    "signatures of cosign are in registries only (--verify-key)",
                ));
            };
            let key = PublicKey::load(path)?;
            let digest = signed_with(remote, &key)?;
            verdict.0.push(format!(
                "{digest} signed with the key {}",
                key.fingerprint()
            ));
        }
        if let Some(path) = &self.policy {
            let policy = Policy::load(path)?;
            verdict
                .0
                .extend(policy.check(source, remote, &self.lookaside)?);
        }
        Ok(verdict)
    }
}

/// The digest, of the image or the index that it was found by, that is signed with a key.
fn signed_with(remote: &Remote, key: &PublicKey) -> Result<String, Error> {
    let mut reasons = Vec::new();
    for document in remote.documents() {
        for attached in attached::find(&remote.repository, &document.digest)? {
            match attached.signed_with(key, &document.digest) {
                Ok(()) => return Ok(document.digest),
                Err(reason) => reasons.push(reason),
            }
        }
    }
    let reason = match reasons.is_empty() {
        true => "not signed: no signature of cosign is attached".to_owned(),
        false => format!(
            "not signed with the key {}: {}",
            key.fingerprint(),
            reasons.join("; ")
        ),
    };
    Err(Error::Registry {
        what: remote.repository.shown().to_owned(),
        reason,
    })
}

fn refused(source: &Source, reason: impl Into<String>) -> Error {
    Error::Registry {
        what: source.to_string(),
        reason: reason.into(),
    }
}

/// A string in a JSON document.
fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer)?.as_str()
}
