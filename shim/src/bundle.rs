//! What the shim itself needs of a bundle's configuration.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rustix::fs::OFlags;
use serde::Deserialize;
use std::fs::OpenOptions;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

/// The runtime's limit as well.
const MAX_CONFIG: u64 = 16 << 20;

/// Annotations that name the group whose containers share a shim; the first that is set counts.
const GROUPS: &[&str] = &[
    "io.containerd.runc.v2.group",
    "io.kubernetes.cri.sandbox-id",
];

/// The file that the runtime writes the first process's pid to.
pub const PID_FILE: &str = "init.pid";

/// Parts of config.json.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Config {
    annotations: HashMap<String, String>,
    linux: Linux,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Linux {
    namespaces: Vec<Namespace>,
}

#[derive(Debug, Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

impl Config {
    /// Reads a bundle's configuration.
    ///
    /// # Errors
    /// It is missing, too large, or no JSON of a configuration.
    pub fn read(bundle: &Path) -> Result<Self> {
        let file = bundle.join("config.json");
        let place = || file.display().to_string();
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(&file)
            .with_context(place)?;
        let mut bytes = Vec::new();
        let length = opened
            .take(MAX_CONFIG + 1)
            .read_to_end(&mut bytes)
            .with_context(place)?;
        ensure!(length as u64 <= MAX_CONFIG, "{}: too large", place());
        serde_json::from_slice(&bytes).with_context(place)
    }

    /// The name of the group whose containers share a shim; without one, the container is alone.
    pub fn group(&self) -> Option<&str> {
        GROUPS
            .iter()
            .find_map(|name| self.annotations.get(*name).map(String::as_str))
    }

    /// Whether the container has a pid namespace of its own, all of whose processes end with the first.
    pub fn has_own_pids(&self) -> bool {
        let mut namespaces = self.linux.namespaces.iter();
        namespaces.any(|namespace| namespace.kind == "pid" && namespace.path.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config> {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        Config::read(dir.path())
    }

    #[test]
    fn groups_and_namespaces_are_found() {
        let config = read(
            r#"{"process": {"args": ["x"]}, "annotations": {"io.kubernetes.cri.sandbox-id": "pod", "a": "b"},
                "linux": {"namespaces": [{"type": "mount"}, {"type": "pid"}]}}"#,
        )
        .unwrap();
        assert_eq!(config.group(), Some("pod"));
        assert!(config.has_own_pids());
        let config = read(
            r#"{"annotations": {"io.kubernetes.cri.sandbox-id": "pod", "io.containerd.runc.v2.group": "g"},
                "linux": {"namespaces": [{"type": "pid", "path": "/proc/1/ns/pid"}]}}"#,
        )
        .unwrap();
        assert_eq!(config.group(), Some("g"));
        assert!(!config.has_own_pids());
        let config = read("{}").unwrap();
        assert_eq!((config.group(), config.has_own_pids()), (None, false));
    }

    #[test]
    fn what_is_no_configuration_is_refused() {
        assert!(read("{").is_err());
        assert!(read(r#"{"annotations": 1}"#).is_err());
        let dir = tempfile::tempdir().unwrap();
        assert!(Config::read(dir.path()).is_err());
        std::os::unix::fs::symlink("/etc/hostname", dir.path().join("config.json")).unwrap();
        assert!(Config::read(dir.path()).is_err());
    }
}
