//! The launch policy of plain containers: /etc/trustme/policy.d/*.toml. docs/policy.md describes every key.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use trustme_guestos::manifest::Bounds;

/// Larger files are no policy.
const MAX_FILE: u64 = 1 << 20;

/// Capabilities that make a container the host's master, one way or another.
const PRIVILEGED: [&str; 12] = [
    "CAP_SYS_ADMIN",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_PTRACE",
    "CAP_SYS_BOOT",
    "CAP_SYS_TIME",
    "CAP_DAC_READ_SEARCH",
    "CAP_MAC_ADMIN",
    "CAP_MAC_OVERRIDE",
    "CAP_BPF",
    "CAP_PERFMON",
    "CAP_NET_ADMIN",
];

/// Why there is no policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("policy {}: {reason}", path.display())]
pub struct PolicyError {
    /// The file or directory.
    pub path: PathBuf,
    /// What is wrong with it.
    pub reason: String,
}

/// What happens with capabilities beyond the bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnExcess {
    /// The container does not start.
    #[default]
    Refuse,
    /// It starts without them.
    Trim,
}

/// Who may sign what.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Rule {
    /// For messages and the log.
    pub name: String,
    /// Files of public keys (PEM), any of which signs.
    pub keys: Vec<PathBuf>,
    /// Names of manifests; `*` at the end stands for anything.
    pub names: Vec<String>,
    /// The lowest version.
    #[serde(default)]
    pub min_version: u64,
    /// Capabilities that a manifest may grant at most; absent: those that do not need `privileged`.
    #[serde(default)]
    pub capabilities: Option<Vec<String>>,
    /// Whether a manifest may grant what makes a container the host's master.
    #[serde(default)]
    pub privileged: bool,
    /// What happens with capabilities beyond the bounds.
    #[serde(default)]
    pub on_excess: OnExcess,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    #[serde(default)]
    rule: Vec<Rule>,
}

impl Rule {
    /// Whether it is about manifests of this name.
    #[must_use]
    pub fn is_about(&self, name: &str) -> bool {
        self.names.iter().any(|own| match own.strip_suffix('*') {
            Some(start) => name.starts_with(start),
            None => own == name,
        })
    }

    /// Each way in which a manifest grants more than the rule allows.
    #[must_use]
    pub fn beyond(&self, version: u64, bounds: Option<&Bounds>) -> Vec<String> {
        let mut found = Vec::new();
        if version < self.min_version {
            found.push(format!("version {version} is below {}", self.min_version));
        }
        let Some(bounds) = bounds else {
            // An exact configuration was looked at as a whole by whoever signed it.
            if !self.privileged {
                found.push(
                    "an exact configuration, which may grant anything, needs privileged = true"
                        .to_owned(),
                );
            }
            return found;
        };
        for capability in &bounds.capabilities {
            let master = PRIVILEGED.contains(&capability.as_str());
            let listed = self
                .capabilities
                .as_ref()
                .is_none_or(|own| own.contains(capability));
            if !listed {
                found.push(format!("capability {capability} is not among the rule's"));
            }
            if master && !self.privileged {
                found.push(format!("capability {capability} needs privileged = true"));
            }
        }
        if !self.privileged {
            for namespace in &bounds.host_namespaces {
                found.push(format!(
                    "the host's {namespace} namespace needs privileged = true"
                ));
            }
            for device in bounds.devices.iter().filter(|device| device.kind == "b") {
                found.push(format!(
                    "block device {}:{} needs privileged = true",
                    device.major, device.minor
                ));
            }
            for mount in bounds
                .mounts
                .iter()
                .filter(|mount| mount.source.as_deref().is_none_or(|source| source == "/"))
            {
                found.push(format!(
                    "a mount of anything at {} needs privileged = true",
                    mount.destination
                ));
            }
        }
        found
    }
}

/// The rules in the text of a policy file.
///
/// # Errors
/// Not TOML, an unknown key, a value of the wrong type, or a rule that says nothing.
pub fn parse(text: &str) -> Result<Vec<Rule>, String> {
    let text: Text =
        toml::from_str(text).map_err(|error| error.to_string().trim_end().replace('\n', " "))?;
    for rule in &text.rule {
        let name = &rule.name;
        if name.is_empty() || rule.keys.is_empty() || rule.names.is_empty() {
            return Err(format!(
                "rule {name:?}: name, keys and names must not be empty"
            ));
        }
        if let Some(key) = rule.keys.iter().find(|key| !key.is_absolute()) {
            return Err(format!(
                "rule {name:?}: key {key:?} is not an absolute path"
            ));
        }
    }
    Ok(text.rule)
}

/// All rules of a directory, its files `*.toml` in the order of their names; none where there is no directory.
///
/// # Errors
/// A file cannot be read or is wrong, or two rules have one name.
pub fn load(dir: &Path) -> Result<Vec<Rule>, PolicyError> {
    let wrong = |path: &Path, reason: String| PolicyError {
        path: path.to_owned(),
        reason,
    };
    let mut rules: Vec<Rule> = Vec::new();
    for path in files(dir, "toml").map_err(|error| wrong(dir, error.to_string()))? {
        let bytes = read(&path, MAX_FILE).map_err(|error| wrong(&path, error.to_string()))?;
        let text = std::str::from_utf8(&bytes).map_err(|error| wrong(&path, error.to_string()))?;
        for rule in parse(text).map_err(|reason| wrong(&path, reason))? {
            if rules.iter().any(|other| other.name == rule.name) {
                return Err(wrong(&path, format!("a second rule {:?}", rule.name)));
            }
            rules.push(rule);
        }
    }
    Ok(rules)
}

/// The files of a directory whose names end so, sorted; none where there is no directory.
pub(super) fn files(dir: &Path, extension: &str) -> std::io::Result<Vec<PathBuf>> {
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|own| own == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A whole file of at most `max` bytes.
pub(super) fn read(path: &Path, max: u64) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(max + 1).read_to_end(&mut bytes)?;
    match bytes.len() as u64 > max {
        true => Err(std::io::Error::other(format!("larger than {max} bytes"))),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_says_who_may_sign_what() {
        let text = "[[rule]]\nname = \"r\"\nkeys = [\"/k\"]\nnames = [\"web\", \"db-*\"]\nmin-version = 3\n";
        let rule = parse(text).unwrap().remove(0);
        for (name, expected) in [
            ("web", true),
            ("web2", false),
            ("db-", true),
            ("db-x", true),
            ("db", false),
        ] {
            assert_eq!(rule.is_about(name), expected, "{name}");
        }
        let bounds = |capability: &str| Bounds {
            capabilities: vec![capability.to_owned()],
            ..Bounds::default()
        };
        assert_eq!(rule.beyond(3, Some(&bounds("CAP_CHOWN"))), [""; 0]);
        assert_eq!(rule.beyond(2, Some(&bounds("CAP_CHOWN"))).len(), 1);
        assert_eq!(rule.beyond(3, Some(&bounds("CAP_SYS_ADMIN"))).len(), 1);
        assert_eq!(rule.beyond(3, None).len(), 1);
        let narrow = Rule {
            capabilities: Some(vec![]),
            privileged: true,
            ..rule.clone()
        };
        assert_eq!(narrow.beyond(3, Some(&bounds("CAP_CHOWN"))).len(), 1);
        assert_eq!(narrow.beyond(3, None), [""; 0]);
        let host = Bounds {
            host_namespaces: vec!["pid".to_owned()],
            ..Bounds::default()
        };
        assert_eq!(rule.beyond(3, Some(&host)).len(), 1);
    }

    #[test]
    fn what_is_no_policy_is_refused() {
        for (text, reason) in [
            ("[[rule]]\nname = \"r\"\n", "missing field `keys`"),
            (
                "[[rule]]\nname = \"r\"\nkeys = [\"k\"]\nnames = [\"x\"]\n",
                "not an absolute path",
            ),
            (
                "[[rule]]\nname = \"r\"\nkeys = []\nnames = [\"x\"]\n",
                "must not be empty",
            ),
            (
                "[[rule]]\nname = \"r\"\nkeys = [\"/k\"]\nnames = [\"x\"]\nnew = 1\n",
                "unknown field `new`",
            ),
            ("x = 1", "unknown field `x`"),
            (
                "[[rule]]\nname = \"r\"\nkeys = [\"/k\"]\nnames = [\"x\"]\non-excess = \"ignore\"\n",
                "unknown variant `ignore`",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
        assert_eq!(parse("").unwrap(), []);
        assert_eq!(load(Path::new("/nonexistent")).unwrap(), []);
    }
}
