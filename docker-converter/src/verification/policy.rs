//! containers-policy.json(5).

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::gpg::{self, Keyring};
use super::{Payload, PublicKey, attached, refused};
use crate::error::Error;
use crate::registry::{Reference, Wanted};
use crate::source::{Remote, Source};

/// The largest policy, or file of keys, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// A policy.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    default: Vec<Requirement>,
    #[serde(default)]
    transports: BTreeMap<String, BTreeMap<String, Vec<Requirement>>>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
enum Requirement {
    InsecureAcceptAnything {},
    Reject {},
    #[serde(rename_all = "camelCase")]
    SignedBy {
        key_type: String,
        key_path: Option<PathBuf>,
        key_paths: Option<Vec<PathBuf>>,
        key_data: Option<String>,
        #[serde(default)]
        signed_identity: Identity,
    },
    #[serde(rename_all = "camelCase")]
    SigstoreSigned {
        key_path: Option<PathBuf>,
        key_paths: Option<Vec<PathBuf>>,
        key_data: Option<String>,
        key_datas: Option<Vec<String>>,
        #[serde(default)]
        signed_identity: Identity,
    },
}

/// Which name must be signed.
#[derive(Debug, Default, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
enum Identity {
    MatchExact {},
    #[default]
    MatchRepoDigestOrExact,
    MatchRepository {},
    #[serde(rename_all = "camelCase")]
    ExactReference {
        docker_reference: String,
    },
    #[serde(rename_all = "camelCase")]
    ExactRepository {
        docker_repository: String,
    },
    #[serde(rename = "remapIdentity", rename_all = "camelCase")]
    Remap {
        prefix: String,
        signed_prefix: String,
    },
}

impl Policy {
    /// Reads a file.
    ///
    /// # Errors
    /// It cannot be read, or says what is not known.
    pub fn load(path: &Path) -> Result<Self, Error> {
        Self::parse(&read(path)?).map_err(|reason| Error::image(path, reason))
    }

    /// Understands a policy.
    ///
    /// # Errors
    /// It says what is not known, or allows nothing.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let policy: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let scopes = policy.transports.values().flat_map(BTreeMap::values);
        let nothing = scopes.chain([&policy.default]).any(Vec::is_empty);
        match nothing {
            true => Err("a scope without requirements".to_owned()),
            false => Ok(policy),
        }
    }

    /// Whether a source may be used: all requirements of its scope have to hold. What was found out.
    ///
    /// # Errors
    /// One does not hold.
    pub fn check(
        &self,
        source: &Source,
        remote: Option<&Remote>,
        lookaside: &Path,
    ) -> Result<Vec<String>, Error> {
        let (scope, requirements) = self.requirements(source);
        let wrong =
            |reason: String| refused(source, format!("refused by the policy, {scope}: {reason}"));
        let mut verdict = Vec::new();
        for requirement in requirements {
            verdict.push(match requirement {
                Requirement::InsecureAcceptAnything {} => {
                    format!("policy, {scope}: insecureAcceptAnything")
                }
                Requirement::Reject {} => return Err(wrong("reject".to_owned())),
                Requirement::SignedBy {
                    key_type,
                    key_path,
                    key_paths,
                    key_data,
                    signed_identity,
                } => {
                    if key_type != "GPGKeys" {
                        return Err(wrong(format!("keyType {key_type:?}, expected \"GPGKeys\"")));
                    }
                    let keys = keys(key_path, key_paths, key_data.iter())?;
                    let (remote, reference) = in_registry(source, remote)?;
                    let ring = Keyring::of(&keys).map_err(&wrong)?;
                    let digest = first(
                        remote,
                        |digest| {
                            let signatures =
                                gpg::signatures(lookaside, &reference.repository, digest)?;
                            let payloads = signatures.iter().map(|path| {
                                ring.open(path).and_then(|bytes| Payload::parse(&bytes))
                            });
                            Ok(payloads.collect())
                        },
                        |payload| signed_identity.accepts(reference, payload),
                        &wrong,
                    )?;
                    format!("policy, {scope}: {digest} signedBy")
                }
                Requirement::SigstoreSigned {
                    key_path,
                    key_paths,
                    key_data,
                    key_datas,
                    signed_identity,
                } => {
                    let data = key_data.iter().chain(key_datas.iter().flatten());
                    let keys = keys(key_path, key_paths, data)?;
                    let keys: Result<Vec<PublicKey>, String> =
                        keys.iter().map(|pem| PublicKey::from_pem(pem)).collect();
                    let keys = keys.map_err(&wrong)?;
                    let (remote, reference) = in_registry(source, remote)?;
                    let digest = first(
                        remote,
                        |digest| {
                            let mut payloads = Vec::new();
                            for attached in attached::find(&remote.repository, digest)? {
                                payloads.extend(keys.iter().map(|key| attached.payload(key)));
                            }
                            Ok(payloads)
                        },
                        |payload| signed_identity.accepts(reference, payload),
                        &wrong,
                    )?;
                    format!("policy, {scope}: {digest} sigstoreSigned")
                }
            });
        }
        Ok(verdict)
    }

    /// The most specific scope that has requirements, for messages, and these.
    fn requirements(&self, source: &Source) -> (String, &[Requirement]) {
        let (transport, scopes) = scopes(source);
        if let Some(known) = self.transports.get(transport) {
            for scope in scopes {
                if let Some(requirements) = known.get(&scope) {
                    return (format!("{transport} {scope:?}"), requirements);
                }
            }
        }
        ("default".to_owned(), &self.default)
    }
}

/// The scopes of a source, the most specific first (containers-policy.json(5), "Supported transports and their scopes").
fn scopes(source: &Source) -> (&'static str, Vec<String>) {
    let mut scopes = Vec::new();
    let transport = match source {
        Source::Docker(reference) => {
            scopes.push(reference.to_string());
            let name = reference.name();
            let mut part = name.as_str();
            scopes.push(part.to_owned());
            while let Some((parent, _)) = part.rsplit_once('/') {
                scopes.push(parent.to_owned());
                part = parent;
            }
            let mut domain = reference.host.as_str();
            while let Some((_, rest)) = domain.split_once('.') {
                scopes.push(format!("*.{rest}"));
                domain = rest;
            }
            "docker"
        }
        Source::Oci { path, reference } | Source::OciArchive { path, reference } => {
            let path = path.canonicalize().unwrap_or_else(|_| path.clone());
            if let Some(reference) = reference {
                scopes.push(format!("{}:{reference}", path.display()));
            }
            let parents = path.ancestors().filter(|parent| *parent != Path::new("/"));
            scopes.extend(parents.map(|parent| parent.display().to_string()));
            match source {
                Source::Oci { .. } => "oci",
                _ => "oci-archive",
            }
        }
        Source::DockerArchive { .. } => "docker-archive",
        Source::DockerDaemon(_) => "docker-daemon",
        Source::ContainersStorage(_) => "containers-storage",
    };
    scopes.push(String::new());
    (transport, scopes)
}

fn in_registry<'a>(
    source: &'a Source,
    remote: Option<&'a Remote>,
) -> Result<(&'a Remote, &'a Reference), Error> {
    match (source, remote) {
        (Source::Docker(reference), Some(remote)) => Ok((remote, reference)),
        _ => Err(refused(
            source,
            "refused by the policy: signatures are in registries only",
        )),
    }
}

/// The first digest that has an accepted payload.
fn first(
    remote: &Remote,
    payloads: impl Fn(&str) -> Result<Vec<Result<Payload, String>>, Error>,
    accepts: impl Fn(&Payload) -> bool,
    wrong: &dyn Fn(String) -> Error,
) -> Result<String, Error> {
    let mut reasons = Vec::new();
    for document in remote.documents() {
        for payload in payloads(&document.digest)? {
            match payload {
                Err(reason) => reasons.push(reason),
                Ok(payload) if payload.digest != document.digest => {
                    reasons.push(format!("a signature over {}", payload.digest));
                }
                Ok(payload) if !accepts(&payload) => {
                    reasons.push(format!("a signature of the name {:?}", payload.reference));
                }
                Ok(_) => return Ok(document.digest),
            }
        }
    }
    Err(wrong(match reasons.is_empty() {
        true => "not signed".to_owned(),
        false => reasons.join("; "),
    }))
}

/// The keys that a requirement names, in one of the ways that there are.
fn keys<'a>(
    path: &Option<PathBuf>,
    paths: &Option<Vec<PathBuf>>,
    data: impl Iterator<Item = &'a String>,
) -> Result<Vec<Vec<u8>>, Error> {
    let mut keys = Vec::new();
    for path in path.iter().chain(paths.iter().flatten()) {
        keys.push(read(path)?);
    }
    for encoded in data {
        let decoded = STANDARD.decode(encoded);
        keys.push(
            decoded.map_err(|_| Error::image(Path::new("policy"), "keyData that is not base64"))?,
        );
    }
    match keys.is_empty() {
        true => Err(Error::image(
            Path::new("policy"),
            "a requirement without keys",
        )),
        false => Ok(keys),
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    if fs::metadata(path).map_err(Error::io(path))?.len() > MAX_FILE {
        return Err(Error::image(path, format!("more than {MAX_FILE} bytes")));
    }
    fs::read(path).map_err(Error::io(path))
}

impl Identity {
    /// Whether a signature of a name stands for an image.
    fn accepts(&self, reference: &Reference, payload: &Payload) -> bool {
        // A signature names a tag, a digest, or neither.
        let Some(signed) = Name::parse(&payload.reference) else {
            return false;
        };
        let tag = match &reference.wanted {
            Wanted::Tag(tag) => Some(tag.as_str()),
            Wanted::Digest(_) => None,
        };
        let exact = |wanted: &Name| *wanted == signed;
        let own = Name {
            repository: reference.name(),
            rest: match &reference.wanted {
                Wanted::Tag(tag) => format!(":{tag}"),
                Wanted::Digest(digest) => format!("@{digest}"),
            },
        };
        let by_digest_or_exact = |own: &Name| match tag {
            Some(_) => exact(own),
            None => own.repository == signed.repository,
        };
        match self {
            Self::MatchExact {} => exact(&own),
            Self::MatchRepoDigestOrExact => by_digest_or_exact(&own),
            Self::MatchRepository {} => own.repository == signed.repository,
            Self::ExactReference { docker_reference } => Name::parse(docker_reference)
                .is_some_and(|wanted| !wanted.rest.is_empty() && exact(&wanted)),
            Self::ExactRepository { docker_repository } => Name::parse(docker_repository)
                .is_some_and(|wanted| wanted.repository == signed.repository),
            Self::Remap {
                prefix,
                signed_prefix,
            } => {
                let rest = own.repository.strip_prefix(prefix.as_str());
                let rest = rest.filter(|rest| rest.is_empty() || rest.starts_with('/'));
                let repository = match rest {
                    Some(rest) => format!("{signed_prefix}{rest}"),
                    None => own.repository.clone(),
                };
                by_digest_or_exact(&Name {
                    repository,
                    rest: own.rest.clone(),
                })
            }
        }
    }
}

/// A name as it was signed.
#[derive(Debug, PartialEq, Eq)]
struct Name {
    repository: String,
    /// `:TAG`, `@DIGEST`, or nothing.
    rest: String,
}

impl Name {
    fn parse(text: &str) -> Option<Self> {
        let reference: Reference = text.parse().ok()?;
        let named = match &reference.wanted {
            Wanted::Digest(digest) => format!("@{digest}"),
            Wanted::Tag(tag) if text.ends_with(&format!(":{tag}")) => format!(":{tag}"),
            Wanted::Tag(_) => String::new(),
        };
        Some(Self {
            repository: reference.name(),
            rest: named,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scopes_and_identities() {
        let source: Source = "docker://a.b.io:5000/x/y:1".parse().unwrap();
        assert_eq!(
            scopes(&source).1,
            [
                "a.b.io:5000/x/y:1",
                "a.b.io:5000/x/y",
                "a.b.io:5000/x",
                "a.b.io:5000",
                "*.b.io:5000",
                "*.io:5000",
                ""
            ]
        );
        let digest = format!("sha256:{}", "0".repeat(64));
        let accepts = |identity: &str, wanted: &str, signed: &str| {
            let identity: Identity = serde_json::from_str(identity).unwrap();
            let payload = Payload {
                reference: signed.to_owned(),
                digest: digest.clone(),
            };
            identity.accepts(&wanted.parse().unwrap(), &payload)
        };
        let by_digest = format!("r.io/a@{digest}");
        for (identity, wanted, signed, accepted) in [
            (r#"{"type":"matchExact"}"#, "r.io/a:1", "r.io/a:1", true),
            (r#"{"type":"matchExact"}"#, "r.io/a:1", "r.io/a:2", false),
            (r#"{"type":"matchExact"}"#, "r.io/a:latest", "r.io/a", false),
            (
                r#"{"type":"matchRepoDigestOrExact"}"#,
                "r.io/a:1",
                "r.io/a",
                false,
            ),
            (
                r#"{"type":"matchRepoDigestOrExact"}"#,
                &by_digest,
                "r.io/a:7",
                true,
            ),
            (
                r#"{"type":"matchRepoDigestOrExact"}"#,
                &by_digest,
                "r.io/b:7",
                false,
            ),
            (r#"{"type":"matchRepository"}"#, "r.io/a:1", "r.io/a", true),
            (r#"{"type":"matchRepository"}"#, "r.io/a:1", "r.io/b", false),
            (
                r#"{"type":"exactReference","dockerReference":"q.io/z:1"}"#,
                "r.io/a:1",
                "q.io/z:1",
                true,
            ),
            (
                r#"{"type":"exactReference","dockerReference":"q.io/z:1"}"#,
                "r.io/a:1",
                "r.io/a:1",
                false,
            ),
            (
                r#"{"type":"exactRepository","dockerRepository":"q.io/z"}"#,
                "r.io/a:1",
                "q.io/z:9",
                true,
            ),
            (
                r#"{"type":"remapIdentity","prefix":"r.io","signedPrefix":"q.io/m"}"#,
                "r.io/a:1",
                "q.io/m/a:1",
                true,
            ),
            (
                r#"{"type":"remapIdentity","prefix":"r.i","signedPrefix":"q.i"}"#,
                "r.io/a:1",
                "q.io/a:1",
                false,
            ),
        ] {
            assert_eq!(
                accepts(identity, wanted, signed),
                accepted,
                "{identity} {wanted} {signed}"
            );
        }
        for text in [
            r#"{}"#,
            r#"{"default":[]}"#,
            r#"{"default":[{"type":"maybe"}]}"#,
            r#"{"default":[{"type":"reject"}],"x":1}"#,
            r#"{"default":[{"type":"reject","x":1}]}"#,
            r#"{"default":[{"type":"sigstoreSigned","fulcio":{}}]}"#,
        ] {
            assert!(Policy::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
