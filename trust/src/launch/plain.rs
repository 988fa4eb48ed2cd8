//! A container whose root file system is a plain directory, as engines make it: known by its tree digest.

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use serde_json::{Value, json};
use trustme_config::LaunchMode;
use trustme_guestos::tree_digest;

use super::{Launch, LaunchError, digest};
use crate::log::{Container, Subject, Verdict, Verification, now};
use crate::policy::{self, Request};
use crate::tpm::HexDigest;

impl Launch<'_> {
    /// Measures the tree and starts it where policy lets it.
    pub(super) fn plain(mut self) -> Result<(), LaunchError> {
        let Some(root) = self.spec.pointer("/root/path").and_then(Value::as_str) else {
            return Err(LaunchError::Config("root.path is not a string".to_owned()));
        };
        let root = self.state.bundle.join(root);
        let failed = LaunchError::io("open the root file system", &root);
        let shown = root.canonicalize().map_err(&failed)?;
        // A mount of our own: whatever happens to the path from now on, what is measured is what the container gets.
        let flags = OpenTreeFlags::OPEN_TREE_CLONE
            | OpenTreeFlags::OPEN_TREE_CLOEXEC
            | OpenTreeFlags::AT_RECURSIVE;
        let tree = open_tree(CWD, &shown, flags).map_err(|errno| failed(errno.into()))?;
        let found = tree_digest::read(tree.as_fd(), &shown)
            .map_err(|error| LaunchError::Tree(Box::new(error)))?;

        let uncovered = uncovered(&found.engine_files, &self.spec);
        if !uncovered.is_empty() {
            let mut spec = self.spec.clone();
            spec["<engine files>"] = json!(uncovered);
            self.configuration = digest(&spec, self.state)?;
        }
        let decision = policy::decide(
            self.config,
            &Request {
                tree: found.digest,
                engine_files: &uncovered,
                spec: &self.spec,
                configuration: self.configuration,
                id: &self.state.id,
                bundle: &self.state.bundle,
            },
        );
        let reason = (!decision.reasons.is_empty()).then(|| decision.reasons.join("; "));
        let (name, version) = decision.manifest.unzip();
        let subject = Subject {
            image: Some(HexDigest(found.digest)),
            name,
            version,
            path: shown.to_string_lossy().into_owned(),
            verified: Verification::Tree,
            signer: decision.signer,
            verdict: match reason {
                None => Verdict::Trusted,
                Some(_) => Verdict::Untrusted,
            },
            reason,
            container: Container(self.state.id.clone()),
            timestamp: now(),
        };
        let refused = subject.reason.is_some() && self.config.launch.mode == LaunchMode::Enforce;
        if !refused && !decision.trimmed.is_empty() {
            for (set, capability) in &decision.trimmed {
                tracing::warn!(
                    "process.capabilities.{set}: without {capability}, which the manifest does not grant"
                );
            }
            policy::remove_capabilities(&mut self.spec, &decision.trimmed);
            // What is measured is what runs.
            let mut spec = self.spec.clone();
            if !uncovered.is_empty() {
                spec["<engine files>"] = json!(uncovered);
            }
            self.configuration = digest(&spec, self.state)?;
        }
        self.decide(subject, Some(found.digest))?;

        self.dir.make_mount_points()?;
        let target = self.dir.root();
        move_mount(
            tree.as_fd(),
            c"",
            CWD,
            &target,
            MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
        )
        .map_err(|errno| LaunchError::io("mount the root file system at", &target)(errno.into()))?;
        self.set_root(&target.to_string_lossy())?;
        self.dir.write_bundle(&self.spec)
    }
}

/// The files beside the tree that the container sees: nothing is mounted at them or above them.
fn uncovered(files: &BTreeMap<String, String>, spec: &Value) -> BTreeMap<String, String> {
    let mounts = spec["mounts"].as_array().map_or(&[][..], Vec::as_slice);
    let is_covered = |file: &str| {
        mounts
            .iter()
            .filter_map(|mount| mount["destination"].as_str())
            .any(|destination| destination != "/" && Path::new(file).starts_with(destination))
    };
    let mut files = files.clone();
    files.retain(|file, _| !is_covered(file));
    files
}
