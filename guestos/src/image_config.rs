//! The image configuration that a bundle holds in `config.img`: what an OCI image says and a GuestOS configuration text
//! cannot. A signed mount of type STORE_ONLY, so GyroidOS keeps and verifies it without looking inside.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::config::{Mount, MountType, rules};

/// The longest image configuration, in bytes.
pub const MAX_IMAGE_CONFIG: usize = 1024 * 1024;

/// The most supplementary groups of a process (NGROUPS_MAX of linux/limits.h).
const MAX_GROUPS: usize = 65536;

/// The id that stands for "none" in system calls, (uid_t) -1.
const NO_ID: u32 = u32::MAX;

/// What an image says about the container that is made of it. [`ImageConfig::config`] holds all of it as it was; the other
/// fields are what of it is used, with names looked up in the image's own files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageConfig {
    /// The processor architecture, as Go names it: `amd64`.
    pub architecture: String,
    /// The operating system: `linux`.
    pub os: String,
    /// The user as the image names it: empty, or `USER[:GROUP]`, each a name or a number.
    pub user: String,
    /// The user's id.
    pub uid: u32,
    /// The user's primary group, or the one that the image names.
    pub gid: u32,
    /// The user's other groups.
    pub additional_gids: Vec<u32>,
    /// The directory that the program starts in, absolute.
    pub cwd: String,
    /// The signal that asks the program to end, if the image names one: `SIGQUIT`, `RTMIN+3`, `3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// The image's labels.
    pub labels: BTreeMap<String, String>,
    /// The ports that the program listens on: `80/tcp`.
    pub exposed_ports: BTreeSet<String>,
    /// The directories whose content is to outlive a container.
    pub volumes: BTreeSet<String>,
    /// The program, and arguments that are always passed.
    pub entrypoint: Vec<String>,
    /// Default arguments, or the program too where there is no entry point.
    pub cmd: Vec<String>,
    /// The environment, as `NAME=VALUE`.
    pub env: Vec<String>,
    /// Docker's health check, as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Value>,
    /// The object `config` of the OCI image configuration, as it was.
    pub config: Map<String, Value>,
    /// Where the image came from, if it was checked before it was converted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<CheckedSource>,
}

/// Where an image came from, and what was found out about it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckedSource {
    /// The image, in skopeo's notation.
    pub image: String,
    /// What held, a sentence each.
    pub verified: Vec<String>,
}

impl Default for ImageConfig {
    /// An image that says nothing: root, in `/`.
    fn default() -> Self {
        Self {
            architecture: String::new(),
            os: "linux".to_owned(),
            user: String::new(),
            uid: 0,
            gid: 0,
            additional_gids: Vec::new(),
            cwd: "/".to_owned(),
            stop_signal: None,
            labels: BTreeMap::new(),
            exposed_ports: BTreeSet::new(),
            volumes: BTreeSet::new(),
            entrypoint: Vec::new(),
            cmd: Vec::new(),
            env: Vec::new(),
            healthcheck: None,
            config: Map::new(),
            source: None,
        }
    }
}

/// Why an image configuration is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageConfigError {
    /// Too many bytes.
    #[error("image configuration: expected at most {MAX_IMAGE_CONFIG} bytes, found {0}")]
    Size(usize),
    /// Not the JSON it should be; the source names line and column.
    #[error("image configuration")]
    Json(#[from] serde_json::Error),
    /// A value breaks the rule for its field.
    #[error("image configuration: {field}: expected {expected}, found {found}")]
    Field {
        /// The field.
        field: &'static str,
        /// What it may hold.
        expected: String,
        /// What it holds.
        found: String,
    },
}

impl ImageConfig {
    /// The name of the image in the bundle that holds it.
    pub const IMAGE_FILE: &str = "config";

    /// The mount that names it in a GuestOS configuration, without size and digests.
    #[must_use]
    pub fn mount() -> Mount {
        Mount::new(Self::IMAGE_FILE, "/config", "json", MountType::StoreOnly)
    }

    /// Reads the content of `config.img`.
    ///
    /// # Errors
    /// Too long, not JSON, a field is missing, unknown, or has a value that breaks a rule.
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageConfigError> {
        if bytes.len() > MAX_IMAGE_CONFIG {
            return Err(ImageConfigError::Size(bytes.len()));
        }
        let config: Self = serde_json::from_slice(bytes)?;
        config.check()?;
        Ok(config)
    }

    /// The content of `config.img`: canonical JSON (RFC 8785), in which integers are exact up to 53 bits.
    ///
    /// # Errors
    /// A field has a value that breaks a rule, or there is too much of it.
    pub fn to_bytes(&self) -> Result<Vec<u8>, ImageConfigError> {
        self.check()?;
        let bytes = serde_json_canonicalizer::to_vec(self)?;
        if bytes.len() > MAX_IMAGE_CONFIG {
            return Err(ImageConfigError::Size(bytes.len()));
        }
        Ok(bytes)
    }

    fn check(&self) -> Result<(), ImageConfigError> {
        let demand = |field, kept, expected: &str, found: &dyn std::fmt::Debug| {
            if kept {
                return Ok(());
            }
            Err(ImageConfigError::Field {
                field,
                expected: expected.to_owned(),
                found: format!("{found:?}"),
            })
        };
        for (field, name) in [("architecture", &self.architecture), ("os", &self.os)] {
            let plain = !name.is_empty()
                && name
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            demand(field, plain, "letters and digits", name)?;
        }
        for (field, id) in [("uid", self.uid), ("gid", self.gid)] {
            demand(field, id != NO_ID, "at most 4294967294", &id)?;
        }
        let groups = &self.additional_gids;
        demand(
            "additional_gids",
            !groups.contains(&NO_ID),
            "at most 4294967294",
            &NO_ID,
        )?;
        demand(
            "additional_gids",
            groups.len() <= MAX_GROUPS,
            "at most 65536 groups",
            &groups.len(),
        )?;
        rules::path(&self.cwd).or_else(|expected| demand("cwd", false, &expected, &self.cwd))?;
        if let Some(signal) = &self.stop_signal {
            let plain = (1..=32).contains(&signal.len())
                && signal
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"+-".contains(&byte));
            demand(
                "stop_signal",
                plain,
                "the name or number of a signal",
                signal,
            )?;
        }
        for (field, strings) in [
            ("entrypoint", &self.entrypoint),
            ("cmd", &self.cmd),
            ("env", &self.env),
        ] {
            for string in strings {
                demand(field, !string.contains('\0'), "no NUL", string)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn web() -> ImageConfig {
        ImageConfig {
            architecture: "amd64".to_owned(),
            user: "www-data".to_owned(),
            uid: 33,
            gid: 33,
            additional_gids: vec![4, 33],
            cwd: "/srv/".to_owned(),
            stop_signal: Some("SIGRTMIN+3".to_owned()),
            labels: [("b", "2"), ("a", "ä\"\n")]
                .map(|(k, v)| (k.to_owned(), v.to_owned()))
                .into(),
            exposed_ports: ["80/tcp".to_owned()].into(),
            volumes: ["/var/www/html".to_owned()].into(),
            entrypoint: vec!["nginx".to_owned()],
            cmd: vec!["-g".to_owned(), "daemon off;".to_owned()],
            env: vec!["PATH=/bin".to_owned()],
            healthcheck: Some(json!({"Test": ["CMD", "true"], "Interval": 30_000_000_000_u64})),
            config: json!({"z": 1, "User": "www-data", "a": null})
                .as_object()
                .unwrap()
                .clone(),
            ..ImageConfig::default()
        }
    }

    /// Every field, sorted, without white space.
    const BYTES: &str = r#"{"additional_gids":[4,33],"architecture":"amd64","cmd":["-g","daemon off;"],"config":{"User":"www-data","a":null,"z":1},"cwd":"/srv/","entrypoint":["nginx"],"env":["PATH=/bin"],"exposed_ports":["80/tcp"],"gid":33,"healthcheck":{"Interval":30000000000,"Test":["CMD","true"]},"labels":{"a":"ä\"\n","b":"2"},"os":"linux","stop_signal":"SIGRTMIN+3","uid":33,"user":"www-data","volumes":["/var/www/html"]}"#;

    #[test]
    fn bytes_are_canonical_and_read_again() {
        assert_eq!(String::from_utf8(web().to_bytes().unwrap()).unwrap(), BYTES);
        assert_eq!(ImageConfig::parse(BYTES.as_bytes()).unwrap(), web());
    }

    /// What is said of [`BYTES`] after a change.
    fn said(from: &str, to: &str) -> String {
        assert!(BYTES.contains(from), "{from}");
        let error = ImageConfig::parse(BYTES.replacen(from, to, 1).as_bytes()).unwrap_err();
        match &error {
            ImageConfigError::Json(source) => format!("{error}: {source}"),
            other => other.to_string(),
        }
    }

    #[test]
    fn what_breaks_a_rule_is_refused() {
        for (from, to, error) in [
            (
                "\"amd64\"",
                "\"\"",
                "image configuration: architecture: expected letters and digits, found \"\"",
            ),
            (
                "\"linux\"",
                "\"a/b\"",
                "image configuration: os: expected letters and digits, found \"a/b\"",
            ),
            (
                "\"uid\":33",
                "\"uid\":4294967295",
                "image configuration: uid: expected at most 4294967294, found 4294967295",
            ),
            (
                "\"uid\":33",
                "\"uid\":4294967296",
                "image configuration: invalid value: integer `4294967296`, expected u32 at line 1 column",
            ),
            (
                "\"uid\":33",
                "\"uid\":-1",
                "image configuration: invalid value: integer `-1`, expected u32 at line 1 column",
            ),
            (
                "\"uid\":33",
                "\"uid\":33,\"uid\":0",
                "image configuration: duplicate field `uid` at line 1 column",
            ),
            (
                "\"uid\":33,",
                "",
                "image configuration: missing field `uid` at line 1 column",
            ),
            (
                "\"uid\":33",
                "\"UID\":33",
                "image configuration: unknown field `UID`, expected one of",
            ),
            (
                "[4,33]",
                "[4294967295]",
                "image configuration: additional_gids: expected at most 4294967294, found 4294967295",
            ),
            (
                "\"/srv/\"",
                "\"srv\"",
                "image configuration: cwd: expected an absolute path without `.`, `..`, `//` and control characters, found \"srv\"",
            ),
            (
                "\"/srv/\"",
                "\"/srv/..\"",
                "image configuration: cwd: expected an absolute path",
            ),
            (
                "SIGRTMIN+3",
                "kill -9",
                "image configuration: stop_signal: expected the name or number of a signal, found \"kill -9\"",
            ),
            (
                "PATH=",
                "\\u0000",
                "image configuration: env: expected no NUL, found \"\\0/bin\"",
            ),
            (
                "\"config\":{",
                "\"config\":[{",
                "image configuration: invalid type: sequence, expected a map at line 1 column",
            ),
        ] {
            let said = said(from, to);
            assert!(said.starts_with(error), "{to}: {said}");
        }
        let long = format!("{BYTES}{}", " ".repeat(MAX_IMAGE_CONFIG));
        let error = ImageConfig::parse(long.as_bytes()).unwrap_err().to_string();
        assert!(
            error.contains("at most 1048576 bytes, found 1048"),
            "{error}"
        );
        for end in 0..BYTES.len() {
            assert!(ImageConfig::parse(&BYTES.as_bytes()[..end]).is_err());
        }
    }

    #[test]
    fn what_breaks_a_rule_is_not_written() {
        let error = ImageConfig::default().to_bytes().unwrap_err().to_string();
        assert!(error.contains("architecture"), "{error}");
        let long = ImageConfig {
            cmd: vec!["x".repeat(MAX_IMAGE_CONFIG)],
            ..web()
        };
        assert!(matches!(long.to_bytes(), Err(ImageConfigError::Size(_))));
    }
}
