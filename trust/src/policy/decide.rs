//! Whether a plain container may start: which launch manifest is about its tree, who signed it, and what policy says of both.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::Value;
use trustme_config::Config;
use trustme_guestos::manifest::{self, MAX_MANIFEST, Manifest, Signed};

use super::bounds;
use super::rules::{self, OnExcess, Rule};
use crate::log::Signer;
use crate::tpm::HexDigest;

/// Larger files are no public key.
const MAX_KEY: u64 = 64 << 10;

/// What is to be started.
#[derive(Debug, Clone, Copy)]
pub struct Request<'r> {
    /// The tree digest.
    pub tree: [u8; 32],
    /// Files beside the tree that nothing is mounted over, and what is in them.
    pub engine_files: &'r BTreeMap<String, String>,
    /// config.json.
    pub spec: &'r Value,
    /// SHA-256 of its canonical form.
    pub configuration: [u8; 32],
    /// The container's id.
    pub id: &'r str,
    /// Its bundle.
    pub bundle: &'r Path,
}

/// What policy says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Decision {
    /// Why it may not start; empty where it may.
    pub reasons: Vec<String>,
    /// The rule that lets it start.
    pub rule: Option<String>,
    /// The manifest's name and version, where its signature verified.
    pub manifest: Option<(String, u64)>,
    /// Who signed it.
    pub signer: Option<Signer>,
    /// Capabilities that it has to start without: set, and name.
    pub trimmed: Vec<(String, String)>,
    /// Every step, for people.
    pub steps: Vec<String>,
}

/// Looks for a manifest and a rule that let the container start: the first pair that does decides. Where none does, the reasons
/// are those of the pair that came furthest.
#[must_use]
pub fn decide(config: &Config, request: &Request<'_>) -> Decision {
    let mut best = Decision::default();
    let rules = match rules::load(&config.launch.policies) {
        Ok(rules) => rules,
        Err(error) => {
            best.reasons.push(error.to_string());
            return best;
        }
    };
    let dir = &config.launch.manifests;
    let files = match rules::files(dir, "json") {
        Ok(files) => files,
        Err(error) => {
            best.reasons.push(format!("{}: {error}", dir.display()));
            return best;
        }
    };
    let mut steps = Vec::new();
    for path in files {
        let shown = path.display();
        let read = rules::read(&path, MAX_MANIFEST as u64).map_err(|error| error.to_string());
        let signed =
            read.and_then(|bytes| Signed::parse(&bytes).map_err(|error| error.to_string()));
        let signed = match signed {
            Ok(signed) if signed.claimed_tree() == request.tree => signed,
            Ok(_) => continue,
            Err(reason) => {
                steps.push(format!("{shown}: {reason}"));
                continue;
            }
        };
        steps.push(format!("{shown}: is about this tree"));
        let mut known = false;
        for rule in &rules {
            let Some(mut decision) = by_rule(rule, &signed, request) else {
                steps.push(format!(
                    "rule {:?}: none of its keys signed {shown}",
                    rule.name
                ));
                continue;
            };
            known = true;
            for reason in &mut decision.reasons {
                steps.push(format!("rule {:?}: {reason}", rule.name));
                *reason = format!("rule {:?}: {reason}", rule.name);
            }
            if decision.reasons.is_empty() {
                steps.push(format!("rule {:?}: may start", rule.name));
                decision.steps = steps;
                return decision;
            }
            if best.signer.is_none() {
                best = decision;
            }
        }
        if !known && best.signer.is_none() {
            best.reasons = vec![format!(
                "{shown}: signed by no key of any rule in {}",
                config.launch.policies.display()
            )];
        }
    }
    if best.reasons.is_empty() {
        let tree = hex::encode(request.tree);
        best.reasons.push(format!(
            "no launch manifest in {} is about the tree {tree}",
            dir.display()
        ));
    }
    best.steps = steps;
    best
}

/// What a rule says of a manifest; `None` where none of its keys signed it.
fn by_rule(rule: &Rule, signed: &Signed, request: &Request<'_>) -> Option<Decision> {
    let mut unusable = Vec::new();
    let (manifest, signer) = rule
        .keys
        .iter()
        .find_map(|path| match by_key(path, signed) {
            Ok(found) => found,
            Err(reason) => {
                unusable.push(format!("key {}: {reason}", path.display()));
                None
            }
        })
        .or_else(|| {
            for reason in &unusable {
                tracing::warn!("rule {:?}: {reason}", rule.name);
            }
            None
        })?;
    let predicate = &manifest.predicate;
    let mut decision = Decision {
        manifest: Some((manifest.name.clone(), predicate.version)),
        signer: Some(signer),
        ..Decision::default()
    };
    let reasons = &mut decision.reasons;
    if !rule.is_about(&manifest.name) {
        reasons.push(format!(
            "the name {:?} is not among the rule's",
            manifest.name
        ));
    }
    reasons.extend(rule.beyond(predicate.version, predicate.bounds.as_ref()));
    for (path, found) in request.engine_files {
        if predicate.engine_files.get(path) != Some(found) {
            reasons.push(format!(
                "{path}: {found}, the manifest says {}",
                predicate
                    .engine_files
                    .get(path)
                    .map_or("nothing", String::as_str)
            ));
        }
    }
    let configuration = hex::encode(request.configuration);
    if let Some(exact) = predicate
        .configuration
        .as_ref()
        .filter(|exact| **exact != configuration)
    {
        reasons.push(format!(
            "config.json: its digest is {configuration}, the manifest says {exact}"
        ));
    }
    if let Some(bounds) = &predicate.bounds {
        let mut spec = request.spec.clone();
        if rule.on_excess == OnExcess::Trim {
            decision.trimmed = trim(&mut spec, &bounds.capabilities);
        }
        let beyond = bounds::beyond(bounds, &spec, request.id, request.bundle);
        reasons.extend(
            beyond
                .into_iter()
                .map(|field| format!("config.json: {field}")),
        );
    }
    if reasons.is_empty() {
        decision.rule = Some(rule.name.clone());
    }
    Some(decision)
}

/// The manifest, if the key in the file `path` signed it.
fn by_key<'s>(path: &Path, signed: &'s Signed) -> Result<Option<(&'s Manifest, Signer)>, String> {
    let pem = rules::read(path, MAX_KEY).map_err(|error| error.to_string())?;
    let key = manifest::public_key(&pem).map_err(|error| error.to_string())?;
    let Ok(manifest) = signed.verify(&key) else {
        return Ok(None);
    };
    let signer = Signer {
        subject: path.display().to_string(),
        spki_sha256: HexDigest(manifest::spki_sha256(&key).map_err(|error| error.to_string())?),
    };
    Ok(Some((manifest, signer)))
}

/// Takes all capabilities out of a configuration but these; what was taken.
fn trim(spec: &mut Value, kept: &[String]) -> Vec<(String, String)> {
    let mut trimmed = Vec::new();
    let sets = spec
        .pointer_mut("/process/capabilities")
        .and_then(Value::as_object_mut);
    for (set, names) in sets.into_iter().flatten() {
        let Some(names) = names.as_array_mut() else {
            continue;
        };
        names.retain(|name| {
            let keep = name
                .as_str()
                .is_none_or(|name| kept.iter().any(|own| own == name));
            if !keep {
                trimmed.push((set.clone(), name.as_str().unwrap_or_default().to_owned()));
            }
            keep
        });
    }
    trimmed
}

/// Takes these capabilities out of the sets of a configuration.
pub(crate) fn remove(spec: &mut Value, trimmed: &[(String, String)]) {
    for (set, name) in trimmed {
        let set = spec
            .pointer_mut("/process/capabilities")
            .and_then(|sets| sets.get_mut(set));
        if let Some(names) = set.and_then(Value::as_array_mut) {
            names.retain(|own| own != name);
        }
    }
}
