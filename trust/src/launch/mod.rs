//! The steps of a launch (docs/architecture.md): verify, decide, measure, build the root, open volumes. And undoing them.

mod dir;
mod guestos;
mod plain;
mod root;
mod verity;

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use trustme_config::{Config, LaunchMode};

use crate::identity::{GUESTOS_ANNOTATION, Owner, canonical_configuration};
use crate::log::{Container, Event, MeasureError, Subject, Verdict, measure, now};
use crate::mount;
use crate::volume::{self, Request, VolumeError};
use dir::LaunchDir;
use guestos::{EmptyMount, GuestOs};
use root::Source;

/// Why a container does not start, or something of it is left.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The launch mode is off.
    #[error("launch.mode is off: nothing is verified or measured, and no hook is needed")]
    Off,
    /// What the runtime says on standard input is not an OCI state.
    #[error("OCI state on standard input: {0}")]
    State(String),
    /// A file or the kernel.
    #[error("cannot {step} {}", path.display())]
    Io {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The configuration cannot be run.
    #[error("config.json: {0}")]
    Config(String),
    /// There is nothing to run: the GuestOS cannot be read.
    #[error("{0}")]
    GuestOs(String),
    /// Launch mode enforce, and something does not verify.
    #[error("refused: {0}")]
    Refused(String),
    /// The root file system has no digest.
    #[error("root file system: {0}")]
    Tree(Box<trustme_guestos::tree_digest::ReadError>),
    /// Measuring.
    #[error(transparent)]
    Measure(#[from] MeasureError),
    /// A volume.
    #[error(transparent)]
    Volume(#[from] VolumeError),
    /// A dm-verity device.
    #[error("device-mapper device {name}: {reason}")]
    Verity {
        /// The device.
        name: String,
        /// What the kernel said.
        reason: String,
    },
}

impl LaunchError {
    /// For `map_err`: an error of `step` on `path`.
    fn io(step: &'static str, path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io {
            step,
            path: path.to_owned(),
            source,
        }
    }
}

/// The parts of the OCI state that a launch needs (runtime-spec, runtime.md).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct State {
    /// The container's id.
    pub id: String,
    /// The caller's bundle.
    pub bundle: PathBuf,
}

impl State {
    /// The state in the JSON text `bytes`.
    ///
    /// # Errors
    /// Not JSON, without id, or with a bundle that is no absolute path.
    pub fn parse(bytes: &[u8]) -> Result<Self, LaunchError> {
        let state: Self =
            serde_json::from_slice(bytes).map_err(|error| LaunchError::State(error.to_string()))?;
        if state.id.is_empty() {
            return Err(LaunchError::State("an empty id".to_owned()));
        }
        if !state.bundle.is_absolute() {
            return Err(LaunchError::State(format!(
                "bundle {:?} is not absolute",
                state.bundle
            )));
        }
        Ok(state)
    }
}

/// Verifies, measures and prepares a container whose configuration the runtime has put into the launch directory. When this
/// returns, `bundle/config.json` there is what the container is to be built from.
///
/// # Errors
/// The container must not start, or cannot. What was made so far stays for [`release`].
pub fn launch(config: &Config, dir: &Path, state: &State) -> Result<(), LaunchError> {
    if config.launch.mode == LaunchMode::Off {
        return Err(LaunchError::Off);
    }
    let dir = LaunchDir::open(dir)?;
    let spec = dir.config()?;
    if !spec.is_object() {
        return Err(LaunchError::Config("not an object".to_owned()));
    }
    let launch = Launch {
        config,
        dir,
        state,
        configuration: digest(&spec, state)?,
        spec,
    };
    let annotation = launch.spec["annotations"].get(GUESTOS_ANNOTATION).cloned();
    match annotation {
        Some(Value::String(conf)) => launch.guestos(Path::new(&conf)),
        Some(other) => Err(LaunchError::Config(format!(
            "annotation {GUESTOS_ANNOTATION}: {other} is not a string"
        ))),
        None => launch.plain(),
    }
}

/// Removes everything that [`launch`] has made, or the part of it that a killed launch did, and the launch directory.
/// Success where there is nothing to do.
///
/// # Errors
/// Something cannot be removed; the rest is.
pub fn release(dir: &Path) -> Result<(), LaunchError> {
    match std::fs::symlink_metadata(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        _ => LaunchDir::open(dir)?.release(),
    }
}

/// Removes volumes that killed launches have left half-made.
///
/// # Errors
/// The volumes' directory cannot be read, or one of them not removed.
pub fn remove_half_made_volumes(config: &Config) -> Result<(), LaunchError> {
    Ok(volume::remove_all_half_made(config)?)
}

/// SHA-256 of the canonical configuration.
fn digest(spec: &Value, state: &State) -> Result<[u8; 32], LaunchError> {
    let canonical = canonical_configuration(spec, &state.id, &state.bundle)
        .map_err(|error| LaunchError::Config(format!("has no canonical form: {error}")))?;
    Ok(Sha256::digest(canonical).into())
}

/// A launch that has begun.
struct Launch<'l> {
    config: &'l Config,
    dir: LaunchDir,
    state: &'l State,
    spec: Value,
    /// SHA-256 of the canonical configuration.
    configuration: [u8; 32],
}

impl Launch<'_> {
    /// A container that is a GuestOS.
    fn guestos(mut self, conf: &Path) -> Result<(), LaunchError> {
        let guest = guestos::open(self.config, conf, &self.spec, &self.dir.device_prefix())?;
        let subject = self.subject(&guest);
        self.decide(subject, Some(guest.image_sha256))?;
        self.dir.make_mount_points()?;
        let root = self.build_root(&guest)?;
        let mut mounts = Vec::new();
        for empty in &guest.volumes {
            let owner = match owner(&guest) {
                Ok(owner) => owner,
                Err(reason) => {
                    mounts.push(self.closed_volume(empty, &reason)?);
                    continue;
                }
            };
            let name = format!("{}.{}", self.state.id, empty.image_file);
            let request = Request {
                name: &name,
                size_mib: empty.size_mib,
                filesystem: &empty.fs_type,
                owner: &owner,
                content: (&self.dir.lower(), &empty.mount_point),
            };
            let data = volume::open(self.config, &request, &self.dir.volume(&name))?;
            mounts.push(json!({
                "destination": empty.mount_point,
                "type": "bind",
                "source": data,
                "options": ["bind", "rw", "nosuid", "nodev"],
            }));
        }
        self.set_root(&root.to_string_lossy())?;
        self.add_mounts(mounts)?;
        self.dir.write_bundle(&self.spec)
    }

    /// What an untrusted GuestOS, which only launch mode measure starts, gets in place of a volume: what the image has there,
    /// read-only, so that nothing is written that would be lost when the container ends.
    fn closed_volume(&self, empty: &EmptyMount, reason: &str) -> Result<Value, LaunchError> {
        let (name, at) = (&empty.image_file, &empty.mount_point);
        tracing::warn!(
            "volume {name} stays closed, {at} is read-only: it is opened only for a trusted GuestOS: {reason}"
        );
        let lower = self.dir.lower();
        let failed = LaunchError::io("look into", &lower);
        let content = File::open(&lower)
            .and_then(|root| volume::directory_in(root, at))
            .and_then(|found| found.map(|dir| mount::path_of(&dir)).transpose())
            .map_err(failed)?;
        let read_only = |fs_type: &str, source: PathBuf, option: &str| {
            json!({
                "destination": at,
                "type": fs_type,
                "source": source,
                "options": [option, "ro", "nosuid", "nodev"],
            })
        };
        Ok(match content {
            Some(path) => read_only("bind", path, "bind"),
            None => read_only("tmpfs", "tmpfs".into(), "size=4k"),
        })
    }

    /// Names the root file system that the container is built on.
    fn set_root(&mut self, path: &str) -> Result<(), LaunchError> {
        match &mut self.spec["root"] {
            Value::Object(root) => drop(root.insert("path".to_owned(), path.into())),
            root @ Value::Null => *root = json!({ "path": path }),
            _ => return Err(LaunchError::Config("root is not an object".to_owned())),
        }
        Ok(())
    }

    /// Adds mounts behind those of the configuration.
    fn add_mounts(&mut self, mounts: Vec<Value>) -> Result<(), LaunchError> {
        match &mut self.spec["mounts"] {
            Value::Array(all) => all.extend(mounts),
            all @ Value::Null => *all = mounts.into(),
            _ => return Err(LaunchError::Config("mounts is not a list".to_owned())),
        }
        Ok(())
    }

    /// What the log says of a GuestOS.
    fn subject(&self, guest: &GuestOs) -> Subject {
        let reason = guest.reason();
        Subject {
            image: Some(crate::tpm::HexDigest(guest.image_sha256)),
            name: Some(guest.name.clone()),
            version: Some(guest.version),
            path: guest.image_path.to_string_lossy().into_owned(),
            verified: guest.verified,
            signer: guest.signer.clone(),
            verdict: match reason {
                None => Verdict::Trusted,
                Some(_) => Verdict::Untrusted,
            },
            reason,
            container: Container(self.state.id.clone()),
            timestamp: now(),
        }
    }

    /// Applies the launch mode and measures what is going to run; a refusal is recorded.
    fn decide(&self, subject: Subject, image: Option<[u8; 32]>) -> Result<(), LaunchError> {
        if let (LaunchMode::Enforce, Some(reason)) =
            (self.config.launch.mode, subject.reason.clone())
        {
            if let Err(error) = measure(self.config, &[Event::Refusal(subject)]) {
                tracing::warn!("the refusal is not recorded: {error}");
            }
            return Err(LaunchError::Refused(reason));
        }
        let image = image.map(|digest| Event::Image(digest, subject.clone()));
        let events: Vec<Event> = image
            .into_iter()
            .chain([Event::Configuration(self.configuration, subject)])
            .collect();
        measure(self.config, &events)?;
        Ok(())
    }

    /// Mounts the root image, by dm-verity where it was verified so.
    fn build_root(&self, guest: &GuestOs) -> Result<PathBuf, LaunchError> {
        let source = match &guest.device {
            Some(device) => Source::Device(device),
            None => Source::File(&guest.image),
        };
        root::build(
            &self.dir,
            source,
            &guest.image_path,
            &guest.fs_type,
            guest.writable,
        )
    }
}

/// Whose volumes a GuestOS may open: only one that fulfils everything that enforce demands has an owner.
///
/// # Errors
/// What is not fulfilled.
fn owner(guest: &GuestOs) -> Result<Owner, String> {
    match (&guest.signer, guest.reason()) {
        (Some(signer), None) => Ok(Owner {
            name: guest.name.clone(),
            signer: signer.spki_sha256,
        }),
        (_, reason) => Err(reason.unwrap_or_else(|| "no signer".to_owned())),
    }
}
