#![doc = include_str!("../README.md")]

mod error;

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

pub use error::ConfigError;

/// Where the configuration is read from when `TRUSTME_CONFIG` is not set.
pub const DEFAULT_PATH: &str = "/etc/trustme/config.toml";

/// The environment variable that names another configuration file.
pub const PATH_VARIABLE: &str = "TRUSTME_CONFIG";

/// The PCR that holds a container's identity while its volume is unsealed: the one PCR that a running system may reset
/// for an application (TCG PC Client Platform TPM Profile, section 4.6), so no other use of it is possible.
pub const IDENTITY_PCR: u8 = 23;

/// Larger files are no configuration.
const MAX_SIZE: u64 = 1 << 20;

/// The highest PCR of a PC Client TPM.
const LAST_PCR: u8 = 23;

/// What `/etc/trustme/config.toml` says; every key has a default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Which containers may start, and who decides.
    pub launch: Launch,
    /// The TPM and the PCRs that trustme extends.
    pub tpm: Tpm,
    /// The measurement log.
    pub log: Log,
    /// Containers' encrypted volumes.
    pub volumes: Volumes,
    /// The file this was read from; `None` where there was none.
    #[serde(skip)]
    pub source: Option<PathBuf>,
}

/// What happens at a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LaunchMode {
    /// Nothing is verified or measured.
    #[default]
    Off,
    /// Everything is verified and measured; the verdict goes into the log and the container starts.
    Measure,
    /// What does not verify does not start.
    Enforce,
}

impl std::fmt::Display for LaunchMode {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Measure => "measure",
            Self::Enforce => "enforce",
        })
    }
}

/// The table `[launch]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Launch {
    /// off, measure or enforce.
    pub mode: LaunchMode,
    /// The certificates that a signer must descend from: a PEM file, or a directory of them.
    pub anchors: PathBuf,
    /// One file per GuestOS name, holding the lowest version that may start.
    pub floors: PathBuf,
    /// Launch manifests of plain images, `*.json`.
    pub manifests: PathBuf,
    /// The rules for them, `*.toml`.
    pub policies: PathBuf,
}

impl Default for Launch {
    fn default() -> Self {
        Self {
            mode: LaunchMode::Off,
            anchors: "/etc/trustme/anchors".into(),
            floors: "/var/lib/trustme/floors".into(),
            manifests: "/etc/trustme/manifests".into(),
            policies: "/etc/trustme/policy.d".into(),
        }
    }
}

/// The table `[tpm]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tpm {
    /// A TCTI string of the TSS (`device:/dev/tpmrm0`, `swtpm:path=…`, `tabrmd:…`, …), or `none`.
    pub tcti: String,
    /// The PCR that images are extended into.
    pub image_pcr: u8,
    /// The PCR that configurations are extended into.
    pub config_pcr: u8,
}

impl Tpm {
    /// Whether a TPM is configured: the TCTI is not `none`.
    #[must_use]
    pub fn is_present(&self) -> bool {
        self.tcti != "none"
    }
}

impl Default for Tpm {
    fn default() -> Self {
        Self {
            tcti: "device:/dev/tpmrm0".into(),
            image_pcr: 11,
            config_pcr: 13,
        }
    }
}

/// The table `[log]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// The measurement log's file.
    pub path: PathBuf,
}

impl Default for Log {
    fn default() -> Self {
        Self {
            path: "/run/log/trustme/measure.log".into(),
        }
    }
}

/// What encrypts a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VolumeBackend {
    /// The best that this kernel and this trustme have.
    #[default]
    Auto,
    /// LUKS2 on dm-crypt.
    Luks2,
    /// fscrypt v2 on ext4.
    Fscrypt,
}

/// The table `[volumes]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Volumes {
    /// Where volumes are kept.
    pub dir: PathBuf,
    /// auto, luks2 or fscrypt.
    pub backend: VolumeBackend,
    /// The boot PCRs that a new volume's key is sealed to.
    pub pcrs: Vec<u8>,
}

impl Default for Volumes {
    fn default() -> Self {
        Self {
            dir: "/var/lib/trustme/volumes".into(),
            backend: VolumeBackend::Auto,
            pcrs: vec![7],
        }
    }
}

impl Config {
    /// The configuration of this machine: of the file that `TRUSTME_CONFIG` names, else of [`DEFAULT_PATH`]. Where the
    /// latter does not exist the launch mode is off and everything else has its default.
    ///
    /// # Errors
    /// The file cannot be read (a file that `TRUSTME_CONFIG` names has to exist), or as [`Config::parse`].
    pub fn load() -> Result<Self, ConfigError> {
        match std::env::var_os(PATH_VARIABLE).filter(|path| !path.is_empty()) {
            Some(path) => Self::read(Path::new(&path)),
            None => match Self::read(Path::new(DEFAULT_PATH)) {
                Err(ConfigError::Read { source, .. })
                    if source.kind() == std::io::ErrorKind::NotFound =>
                {
                    Ok(Self::default())
                }
                outcome => outcome,
            },
        }
    }

    /// The configuration in the file `path`.
    ///
    /// # Errors
    /// The file cannot be read, is larger than 1 MiB or not UTF-8, or as [`Config::parse`].
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        let file = std::fs::File::open(path).map_err(unreadable)?;
        let mut bytes = Vec::new();
        file.take(MAX_SIZE + 1)
            .read_to_end(&mut bytes)
            .map_err(unreadable)?;
        if bytes.len() as u64 > MAX_SIZE {
            return Err(unreadable(std::io::Error::other("larger than 1 MiB")));
        }
        let text = std::str::from_utf8(&bytes)
            .map_err(|error| unreadable(std::io::Error::other(error)))?;
        Self::parse(text, path)
    }

    /// The configuration that `text` holds; `path` is for messages and [`Config::source`].
    ///
    /// # Errors
    /// Not TOML, an unknown key, or a value of the wrong type or range: names file, line and key.
    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        let mut config: Self =
            toml::from_str(text).map_err(|error| ConfigError::at_span(path, text, &error))?;
        config
            .check()
            .map_err(|(key, reason)| ConfigError::at_key(path, text, key, reason))?;
        config.source = Some(path.to_owned());
        Ok(config)
    }

    /// What the types cannot say; the key and what is wrong with its value.
    fn check(&self) -> Result<(), (&'static str, String)> {
        for (key, path) in [
            ("launch.anchors", &self.launch.anchors),
            ("launch.floors", &self.launch.floors),
            ("launch.manifests", &self.launch.manifests),
            ("launch.policies", &self.launch.policies),
            ("log.path", &self.log.path),
            ("volumes.dir", &self.volumes.dir),
        ] {
            if !path.is_absolute() {
                return Err((key, format!("{path:?} is not an absolute path")));
            }
        }
        if self.tpm.tcti.is_empty() {
            return Err((
                "tpm.tcti",
                "empty; a TCTI string or \"none\" expected".into(),
            ));
        }
        let own = [
            ("tpm.image_pcr", self.tpm.image_pcr),
            ("tpm.config_pcr", self.tpm.config_pcr),
        ];
        for (key, pcr) in own {
            if pcr >= IDENTITY_PCR {
                return Err((
                    key,
                    format!("{pcr} is not a PCR from 0 to {}", LAST_PCR - 1),
                ));
            }
        }
        if self.tpm.image_pcr == self.tpm.config_pcr {
            return Err(("tpm.config_pcr", "the same PCR as tpm.image_pcr".into()));
        }
        for &pcr in &self.volumes.pcrs {
            if pcr >= IDENTITY_PCR {
                return Err((
                    "volumes.pcrs",
                    format!("{pcr} is not a PCR from 0 to {}", LAST_PCR - 1),
                ));
            }
            if let Some((key, _)) = own.iter().find(|(_, own)| *own == pcr) {
                return Err((
                    "volumes.pcrs",
                    format!("{pcr} is {key}, which changes with every launch"),
                ));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
