//! Where images come from, in skopeo's notation: registries, archives, layouts, and what engines keep.

mod docker;
mod engine;
mod files;
mod oci;
mod platform;
mod registry;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use sha2::Digest as _;

pub use platform::Platform;
pub use registry::Remote;

use crate::blob::{Blob, Digest, Stamp};
use crate::error::Error;
use crate::layer::{Limits, PackedLayer};
use crate::progress::Progress;
use crate::registry::Reference;
use crate::verification::{Demands, Verdict};
use files::Files;

/// The longest manifest, index or image configuration, in bytes (containers/image's limit for manifests).
const MAX_JSON: u64 = 4 << 20;

/// The most layers of an image; overlayfs, which engines use, takes 500.
const MAX_LAYERS: usize = 1000;

/// An image somewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// What `docker save` or `skopeo copy … docker-archive:` wrote.
    DockerArchive {
        /// The tar archive.
        path: PathBuf,
        /// Which image in it.
        reference: Option<String>,
    },
    /// An OCI layout.
    Oci {
        /// Its directory.
        path: PathBuf,
        /// Which image in it.
        reference: Option<String>,
    },
    /// An OCI layout in a tar archive.
    OciArchive {
        /// The tar archive.
        path: PathBuf,
        /// Which image in it.
        reference: Option<String>,
    },
    /// In a registry.
    Docker(Reference),
    /// Of Docker's daemon: the name or ID of an image.
    DockerDaemon(String),
    /// Of Podman's storage: the name or ID of an image.
    ContainersStorage(String),
}

/// What every source is written as.
const NOTATION: &str = "expected docker://HOST/REPOSITORY[:TAG|@DIGEST], docker-archive:FILE[:REF], oci:DIR[:REF], \
    oci-archive:FILE[:REF], docker-daemon:REF or containers-storage:REF";

/// How sources are reached.
#[derive(Debug, Clone)]
pub struct Access {
    /// Registries.
    pub registry: crate::registry::Options,
    /// What is demanded of the image.
    pub demands: Demands,
    /// What the image may take; layers as large as all may be are not fetched.
    pub limits: Limits,
    /// What is shown meanwhile.
    pub progress: Progress,
}

impl Access {
    /// With the usual options, and no demands.
    #[must_use]
    pub fn new(limits: Limits, progress: Progress) -> Self {
        Self {
            registry: crate::registry::Options::default(),
            demands: Demands::default(),
            limits,
            progress,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transport, path, reference) = match self {
            Self::DockerArchive { path, reference } => ("docker-archive", path, reference),
            Self::Oci { path, reference } => ("oci", path, reference),
            Self::OciArchive { path, reference } => ("oci-archive", path, reference),
            Self::Docker(reference) => return write!(formatter, "docker://{reference}"),
            Self::DockerDaemon(reference) => return write!(formatter, "docker-daemon:{reference}"),
            Self::ContainersStorage(reference) => {
                return write!(formatter, "containers-storage:{reference}");
            }
        };
        write!(formatter, "{transport}:{}", path.display())?;
        reference
            .iter()
            .try_for_each(|reference| write!(formatter, ":{reference}"))
    }
}

impl FromStr for Source {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |reason: &str| Error::Reference {
            text: text.to_owned(),
            reason: reason.to_owned(),
        };
        let (transport, rest) = text.split_once(':').ok_or_else(|| wrong(NOTATION))?;
        match transport {
            "docker" => {
                let name = rest.strip_prefix("//").ok_or_else(|| wrong(NOTATION))?;
                return Ok(Self::Docker(name.parse()?));
            }
            "docker-daemon" if !rest.is_empty() => return Ok(Self::DockerDaemon(rest.to_owned())),
            "containers-storage" if !rest.is_empty() => {
                return Ok(Self::ContainersStorage(rest.to_owned()));
            }
            _ => {}
        }
        let (path, reference) = match rest.split_once(':') {
            Some((_, "")) => return Err(wrong("nothing after the last colon")),
            Some((path, reference)) => (path, Some(reference.to_owned())),
            None => (rest, None),
        };
        if path.is_empty() {
            return Err(wrong("no path"));
        }
        let path = PathBuf::from(path);
        match transport {
            "docker-archive" => Ok(Self::DockerArchive { path, reference }),
            "oci" => Ok(Self::Oci { path, reference }),
            "oci-archive" => Ok(Self::OciArchive { path, reference }),
            _ => Err(wrong(NOTATION)),
        }
    }
}

/// An image whose manifest and configuration were read and checked; its layers were not yet.
#[derive(Debug)]
pub struct Image {
    /// The archive or directory.
    pub path: PathBuf,
    /// The image configuration.
    pub configuration: Configuration,
    /// SHA-256 of the image configuration's bytes, Docker's image ID.
    pub id: Digest,
    /// The layers, the lowest first.
    pub layers: Vec<PackedLayer>,
    /// The repository that it came from, if it did.
    pub remote: Option<Remote>,
    /// What was found out about it.
    pub verdict: Verdict,
    /// What the layers' files were like before they were read.
    opened: Vec<Stamp>,
}

/// An image configuration (OCI image specification, config.md), as far as it is used here.
#[derive(Debug, Clone, Deserialize)]
pub struct Configuration {
    /// As Go names it.
    pub architecture: String,
    /// `linux`.
    pub os: String,
    /// Of the architecture.
    #[serde(default)]
    pub variant: Option<String>,
    /// When the image was made, in the form of RFC 3339.
    #[serde(default)]
    pub created: Option<String>,
    /// What a container is made with.
    #[serde(default)]
    pub config: Option<Map<String, Value>>,
    rootfs: RootFs,
}

#[derive(Debug, Clone, Deserialize)]
struct RootFs {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    diff_ids: Option<Vec<String>>,
}

/// Opens an image. `platform` chooses where there is a choice, and must be the image's where it is given.
///
/// # Errors
/// The image cannot be found or read, or is not as it should be.
pub fn open(source: &Source, platform: Option<&Platform>, access: &Access) -> Result<Image, Error> {
    let verdict = match source {
        // Checked when its manifest is known.
        Source::Docker(_) => Verdict::default(),
        _ => access.demands.check(source, None)?,
    };
    let mut image = match source {
        Source::DockerArchive { path, reference } => {
            let files = Files::archive(path)?;
            docker::open(files, reference.as_deref(), platform)
        }
        Source::Oci { path, reference } => {
            oci::open(Files::directory(path)?, reference.as_deref(), platform)
        }
        Source::OciArchive { path, reference } => {
            oci::open(Files::archive(path)?, reference.as_deref(), platform)
        }
        Source::Docker(reference) => {
            let remote = Remote::open(reference, access)?;
            return oci::open_remote(remote, source, platform, access);
        }
        Source::DockerDaemon(reference) => {
            let path = PathBuf::from(format!("docker-daemon:{reference}"));
            let files = Files::open_archive(engine::docker(reference)?, &path)?;
            docker::open(files, None, platform)
        }
        Source::ContainersStorage(reference) => {
            let path = PathBuf::from(format!("containers-storage:{reference}"));
            let files = Files::open_archive(engine::podman(reference)?, &path)?;
            oci::open(files, None, platform)
        }
    }?;
    image.verdict = verdict;
    Ok(image)
}

impl Image {
    fn new(
        path: PathBuf,
        configuration: Configuration,
        id: Digest,
        layers: Vec<PackedLayer>,
    ) -> Result<Self, Error> {
        let opened: io::Result<_> = layers.iter().map(|layer| layer.blob.stamp()).collect();
        Ok(Self {
            opened: opened.map_err(Error::io(&path))?,
            path,
            configuration,
            id,
            layers,
            remote: None,
            verdict: Verdict::default(),
        })
    }

    /// Checks that nothing was written to the layers since they were opened: plain ones stay where they are, and are read again
    /// after their digests were checked.
    ///
    /// # Errors
    /// Something was written, or a file cannot be looked at.
    pub fn check_unchanged(&self) -> Result<(), Error> {
        for (layer, opened) in self.layers.iter().zip(&self.opened) {
            if layer.blob.stamp().map_err(Error::io(&self.path))? != *opened {
                let reason = format!("layer {} was written to while it was read", layer.name);
                return Err(Error::image(&self.path, reason));
            }
        }
        Ok(())
    }
}

impl Configuration {
    fn parse(bytes: &[u8], path: &Path, platform: Option<&Platform>) -> Result<Self, Error> {
        let configuration: Self = parse(bytes, path, "image configuration")?;
        let wrong = |reason: String| Error::image(path, format!("image configuration: {reason}"));
        if configuration.os != "linux" {
            return Err(wrong(format!(
                "os {:?}, expected \"linux\"",
                configuration.os
            )));
        }
        if configuration.rootfs.kind != "layers" {
            return Err(wrong(format!(
                "rootfs.type {:?}, expected \"layers\"",
                configuration.rootfs.kind
            )));
        }
        if let Some(platform) = platform
            && !platform.matches(
                &configuration.os,
                &configuration.architecture,
                configuration.variant.as_deref(),
            )
        {
            return Err(wrong(format!(
                "it is for {}/{}, {platform} is asked for",
                configuration.os, configuration.architecture
            )));
        }
        Ok(configuration)
    }

    /// The digests of the uncompressed layers, of which there must be `layers`.
    fn diff_ids(&self, layers: usize, path: &Path) -> Result<Vec<Digest>, Error> {
        let diff_ids = self.rootfs.diff_ids.as_deref().unwrap_or_default();
        if diff_ids.len() != layers {
            return Err(Error::image(
                path,
                format!("{} diff_ids for {layers} layers", diff_ids.len()),
            ));
        }
        if layers > MAX_LAYERS {
            return Err(Error::image(
                path,
                format!("{layers} layers, at most {MAX_LAYERS}"),
            ));
        }
        diff_ids.iter().map(|text| sha256(text, path)).collect()
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8], path: &Path, what: &str) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| Error::image(path, format!("{what}: {error}")))
}

/// Reads a document and hashes it.
fn read(blob: &Blob, path: &Path, what: &str) -> Result<(Vec<u8>, Digest), Error> {
    let bytes = blob
        .read(MAX_JSON)
        .map_err(|error| Error::image(path, format!("{what}: {error}")))?;
    let digest = sha2::Sha256::digest(&bytes).into();
    Ok((bytes, digest))
}

/// A digest in the form `sha256:HEX`.
fn sha256(text: &str, path: &Path) -> Result<Digest, Error> {
    text.strip_prefix("sha256:")
        .and_then(hex_digest)
        .ok_or_else(|| Error::image(path, format!("digest {text:?}, expected sha256:HEX")))
}

/// 64 hex digits in lower case.
fn hex_digest(text: &str) -> Option<Digest> {
    let mut digest = Digest::default();
    let lower = !text.bytes().any(|byte| byte.is_ascii_uppercase());
    (lower && hex::decode_to_slice(text, &mut digest).is_ok()).then_some(digest)
}
