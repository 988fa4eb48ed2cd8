//! Launch manifests: who vouches for a tree of files, and with which configuration it may be started.
//!
//! An in-toto statement (v1) in a DSSE envelope in a sigstore bundle (v0.3), which `cosign verify-blob-attestation` verifies
//! too. docs/manifests.md describes the fields.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use openssl::hash::MessageDigest;
use openssl::pkey::{HasPublic, Id, PKey, PKeyRef, Private, Public};
use openssl::sign::{Signer, Verifier};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// <https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md>
const STATEMENT: &str = "https://in-toto.io/Statement/v1";
/// <https://github.com/in-toto/attestation/blob/main/spec/v1/envelope.md>
const PAYLOAD: &str = "application/vnd.in-toto+json";
/// sigstore/protobuf-specs, `sigstore_bundle.proto`.
const BUNDLE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
/// What kind of statement a launch manifest is.
pub const PREDICATE: &str = "urn:trustme:launch-manifest:v1";
/// The name of the tree digest in a subject.
const TREE: &str = "composefs";
/// The longest manifest, in bytes.
pub const MAX_MANIFEST: usize = 1 << 20;
/// The smallest RSA key, in bits.
const MIN_RSA_BITS: u32 = 2048;

/// Why a manifest is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// It is not what it should be.
    #[error("{0}")]
    Form(String),
    /// No key of those that were given has signed it.
    #[error("signature: {0}")]
    Signature(String),
    /// A key cannot be used.
    #[error("key: {0}")]
    Key(String),
}

fn form(reason: impl ToString) -> ManifestError {
    ManifestError::Form(reason.to_string())
}

/// What a manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manifest {
    /// What the tree is called; policy names it.
    pub name: String,
    /// The tree digest.
    pub tree: [u8; 32],
    /// SHA-256 of the composefs image, by which cosign knows it.
    pub image_sha256: Option<[u8; 32]>,
    /// The rest.
    pub predicate: Predicate,
}

/// How the tree may be started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Predicate {
    /// A higher one replaces a lower one.
    pub version: u64,
    /// The only configuration, by its digest (launch-identity.md).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub configuration: Option<String>,
    /// Or what a configuration must keep to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounds: Option<Bounds>,
    /// Files that engines replace, as the image has them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub engine_files: BTreeMap<String, String>,
}

/// What a configuration must keep to.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Bounds {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// Environment; an engine adds `HOSTNAME` and the like.
    pub env: Vec<String>,
    /// Working directory.
    pub cwd: String,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Supplementary groups at most.
    #[serde(default)]
    pub additional_gids: Vec<u32>,
    /// Capabilities at most.
    pub capabilities: Vec<String>,
    /// Devices beyond those that every container has.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// Mounts beyond those that every container has.
    #[serde(default)]
    pub mounts: Vec<Mount>,
    /// Namespaces that may be the host's or another container's.
    #[serde(default)]
    pub host_namespaces: Vec<String>,
    /// Kernel parameters beyond those of the network that engines set.
    #[serde(default)]
    pub sysctl: BTreeMap<String, String>,
    /// Whether the root has to be read-only.
    #[serde(default)]
    pub readonly_root: bool,
    /// Whether there has to be a seccomp filter.
    #[serde(default)]
    pub seccomp: bool,
    /// Whether `noNewPrivileges` has to be set.
    #[serde(default)]
    pub no_new_privileges: bool,
}

/// A device that may be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Device {
    /// `c` or `b`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
}

/// A mount that may be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mount {
    /// Where.
    pub destination: String,
    /// Of what; anything but a part of the host's root, `/` itself excepted, where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Statement {
    #[serde(rename = "_type")]
    kind: String,
    subject: Vec<Subject>,
    #[serde(rename = "predicateType")]
    predicate_type: String,
    predicate: Predicate,
}

#[derive(Serialize, Deserialize)]
struct Subject {
    name: String,
    digest: BTreeMap<String, String>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Bundle {
    media_type: String,
    verification_material: serde_json::Value,
    dsse_envelope: Envelope,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Envelope {
    payload: String,
    payload_type: String,
    signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
struct Signature {
    sig: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    keyid: String,
}

/// A manifest that was read, and whose signature was not yet verified.
#[derive(Debug)]
pub struct Signed {
    manifest: Manifest,
    payload: Vec<u8>,
    signatures: Vec<Vec<u8>>,
}

impl Manifest {
    /// The manifest as a sigstore bundle, signed.
    ///
    /// # Errors
    /// The key is of a kind that cosign would not verify, or OpenSSL fails.
    pub fn sign(&self, key: &PKeyRef<Private>) -> Result<Vec<u8>, ManifestError> {
        let mut digest = BTreeMap::from([(TREE.to_owned(), hex::encode(self.tree))]);
        digest.extend(
            self.image_sha256
                .map(|image| ("sha256".to_owned(), hex::encode(image))),
        );
        let statement = Statement {
            kind: STATEMENT.to_owned(),
            subject: vec![Subject {
                name: self.name.clone(),
                digest,
            }],
            predicate_type: PREDICATE.to_owned(),
            predicate: self.predicate.clone(),
        };
        let payload = serde_json::to_vec(&statement).map_err(form)?;
        let failed = |error: openssl::error::ErrorStack| ManifestError::Key(error.to_string());
        let text = encoded(&payload);
        let signature = match hash(key).map_err(ManifestError::Key)? {
            Some(hash) => Signer::new(hash, key),
            None => Signer::new_without_digest(key),
        }
        .and_then(|mut signer| signer.sign_oneshot_to_vec(&text))
        .map_err(failed)?;
        let public = key.public_key_to_der().map_err(failed)?;
        let bundle = Bundle {
            media_type: BUNDLE.to_owned(),
            verification_material: serde_json::json!({
                "publicKey": {"hint": BASE64.encode(Sha256::digest(public))},
            }),
            dsse_envelope: Envelope {
                payload: BASE64.encode(&payload),
                payload_type: PAYLOAD.to_owned(),
                signatures: vec![Signature {
                    sig: BASE64.encode(signature),
                    keyid: String::new(),
                }],
            },
        };
        serde_json::to_vec_pretty(&bundle).map_err(form)
    }
}

impl Signed {
    /// Reads a sigstore bundle with a launch manifest.
    ///
    /// # Errors
    /// It is none, and why.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() > MAX_MANIFEST {
            return Err(form(format!(
                "{} bytes, at most {MAX_MANIFEST}",
                bytes.len()
            )));
        }
        let bundle: Bundle = serde_json::from_slice(bytes)
            .map_err(|error| form(format!("sigstore bundle: {error}")))?;
        let expect = |what: &str, found: &str, expected: &str| match found == expected {
            true => Ok(()),
            false => Err(form(format!("{what} {found:?}, expected {expected:?}"))),
        };
        expect("mediaType", &bundle.media_type, BUNDLE)?;
        let envelope = bundle.dsse_envelope;
        expect("payloadType", &envelope.payload_type, PAYLOAD)?;
        let decoded = |what: &str, text: &str| {
            BASE64
                .decode(text)
                .map_err(|error| form(format!("{what}: {error}")))
        };
        let payload = decoded("payload", &envelope.payload)?;
        let signatures = envelope
            .signatures
            .iter()
            .map(|signature| decoded("signature", &signature.sig))
            .collect::<Result<_, _>>()?;
        let statement: Statement = serde_json::from_slice(&payload)
            .map_err(|error| form(format!("statement: {error}")))?;
        expect("statement: _type", &statement.kind, STATEMENT)?;
        expect(
            "statement: predicateType",
            &statement.predicate_type,
            PREDICATE,
        )?;
        let [subject] = statement.subject.as_slice() else {
            return Err(form(format!(
                "statement: {} subjects, expected one",
                statement.subject.len()
            )));
        };
        let digest = |name: &str| -> Result<Option<[u8; 32]>, ManifestError> {
            let Some(text) = subject.digest.get(name) else {
                return Ok(None);
            };
            let mut digest = [0; 32];
            hex::decode_to_slice(text, &mut digest)
                .map_err(|error| form(format!("statement: subject: {name}: {error}")))?;
            Ok(Some(digest))
        };
        let tree = digest(TREE)?
            .ok_or_else(|| form(format!("statement: subject without digest {TREE:?}")))?;
        if statement.predicate.configuration.is_some() == statement.predicate.bounds.is_some() {
            return Err(form("predicate: either configuration or bounds expected"));
        }
        Ok(Self {
            manifest: Manifest {
                name: subject.name.clone(),
                tree,
                image_sha256: digest("sha256")?,
                predicate: statement.predicate,
            },
            payload,
            signatures,
        })
    }

    /// The tree that it claims to be about. Nobody vouches for that before [`Signed::verify`].
    #[must_use]
    pub fn claimed_tree(&self) -> [u8; 32] {
        self.manifest.tree
    }

    /// What it says, if `key` has signed it.
    ///
    /// # Errors
    /// It has not, or is of a kind that is not accepted.
    pub fn verify(&self, key: &PKeyRef<Public>) -> Result<&Manifest, ManifestError> {
        let hash = hash(key).map_err(ManifestError::Key)?;
        let text = encoded(&self.payload);
        let by_key = |signature: &Vec<u8>| {
            let verified = match hash {
                Some(hash) => Verifier::new(hash, key),
                None => Verifier::new_without_digest(key),
            }
            .and_then(|mut verifier| verifier.verify_oneshot(signature, &text));
            // OpenSSL reports a malformed signature as an error of its own.
            verified.unwrap_or(false)
        };
        match self.signatures.iter().any(by_key) {
            true => Ok(&self.manifest),
            false => Err(ManifestError::Signature(
                "not made by this key over this statement".to_owned(),
            )),
        }
    }
}

/// A public key, or the public half of a certificate's, in PEM form.
///
/// # Errors
/// It is none, or of a kind that is not accepted.
pub fn public_key(pem: &[u8]) -> Result<PKey<Public>, ManifestError> {
    let key = PKey::public_key_from_pem(pem)
        .or_else(|_| openssl::x509::X509::from_pem(pem).and_then(|cert| cert.public_key()))
        .map_err(|_| ManifestError::Key("no public key in PEM form".to_owned()))?;
    hash(&key).map_err(ManifestError::Key)?;
    Ok(key)
}

/// An unencrypted private key in PEM form.
///
/// # Errors
/// It is none, or of a kind that is not accepted.
pub fn private_key(pem: &[u8]) -> Result<PKey<Private>, ManifestError> {
    let encrypted = |_: &mut [u8]| Err(openssl::error::ErrorStack::get());
    let key = PKey::private_key_from_pem_callback(pem, encrypted)
        .map_err(|_| ManifestError::Key("no unencrypted private key in PEM form".to_owned()))?;
    hash(&key).map_err(ManifestError::Key)?;
    Ok(key)
}

/// SHA-256 of a public key's SubjectPublicKeyInfo.
///
/// # Errors
/// OpenSSL fails.
pub fn spki_sha256<T: HasPublic>(key: &PKeyRef<T>) -> Result<[u8; 32], ManifestError> {
    let der = key
        .public_key_to_der()
        .map_err(|error| ManifestError::Key(error.to_string()))?;
    Ok(Sha256::digest(der).into())
}

/// The hash that sigstore signs with for a key of this kind (sigstore/protobuf-specs, algorithm registry); `None` for Ed25519,
/// which has its own.
fn hash<T: HasPublic>(key: &PKeyRef<T>) -> Result<Option<MessageDigest>, String> {
    match key.id() {
        Id::ED25519 => Ok(None),
        Id::EC if key.bits() == 256 => Ok(Some(MessageDigest::sha256())),
        Id::EC if key.bits() == 384 => Ok(Some(MessageDigest::sha384())),
        Id::RSA if key.bits() >= MIN_RSA_BITS => Ok(Some(MessageDigest::sha256())),
        _ => Err(
            "expected ECDSA P-256 or P-384, Ed25519, or RSA (rsaEncryption) of at least 2048 bits"
                .to_owned(),
        ),
    }
}

/// What is signed: DSSE's pre-authentication encoding
/// (<https://github.com/secure-systems-lab/dsse/blob/master/protocol.md>).
fn encoded(payload: &[u8]) -> Vec<u8> {
    let mut text = format!("DSSEv1 {} {PAYLOAD} {} ", PAYLOAD.len(), payload.len()).into_bytes();
    text.extend_from_slice(payload);
    text
}

#[cfg(test)]
mod tests {
    use openssl::ec::{EcGroup, EcKey};
    use openssl::nid::Nid;

    use super::*;

    fn manifest() -> Manifest {
        Manifest {
            name: "web".to_owned(),
            tree: [7; 32],
            image_sha256: None,
            predicate: Predicate {
                version: 3,
                configuration: Some("ab".repeat(32)),
                bounds: None,
                engine_files: BTreeMap::new(),
            },
        }
    }

    fn keys() -> Vec<PKey<Private>> {
        let ec = |nid| {
            let group = EcGroup::from_curve_name(nid).unwrap();
            PKey::from_ec_key(EcKey::generate(&group).unwrap()).unwrap()
        };
        vec![
            ec(Nid::X9_62_PRIME256V1),
            ec(Nid::SECP384R1),
            PKey::generate_ed25519().unwrap(),
            PKey::from_rsa(openssl::rsa::Rsa::generate(2048).unwrap()).unwrap(),
        ]
    }

    #[test]
    fn what_is_signed_is_verified_by_its_key_only() {
        let keys = keys();
        let public: Vec<_> = keys
            .iter()
            .map(|key| public_key(&key.public_key_to_pem().unwrap()).unwrap())
            .collect();
        for (number, key) in keys.iter().enumerate() {
            let bytes = manifest().sign(key).unwrap();
            let signed = Signed::parse(&bytes).unwrap();
            for (other, public) in public.iter().enumerate() {
                assert_eq!(
                    signed.verify(public).is_ok(),
                    number == other,
                    "{number} {other}"
                );
            }
            assert_eq!(*signed.verify(&public[number]).unwrap(), manifest());
            let mut changed = Signed::parse(&bytes).unwrap();
            let last = changed.payload.len() - 1;
            changed.payload[last] ^= 1;
            assert!(changed.verify(&public[number]).is_err());
        }
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        let bytes = manifest().sign(&keys()[0]).unwrap();
        let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        for (pointer, new, reason) in [
            ("/mediaType", "x", "mediaType"),
            ("/dsseEnvelope/payloadType", "x", "payloadType"),
            ("/dsseEnvelope/payload", "!", "payload: "),
            ("/dsseEnvelope/payload", "e30=", "statement: missing field"),
            ("/dsseEnvelope/signatures/0/sig", "!", "signature: "),
        ] {
            let mut value = value.clone();
            *value.pointer_mut(pointer).unwrap() = new.into();
            let error = Signed::parse(value.to_string().as_bytes())
                .unwrap_err()
                .to_string();
            assert!(error.contains(reason), "{pointer}: {error}");
        }
        let weak = PKey::from_rsa(openssl::rsa::Rsa::generate(1024).unwrap()).unwrap();
        assert!(manifest().sign(&weak).is_err());
    }
}
