//! Encrypted volumes that only one container's identity can open, on this machine and in this boot state.
//!
//! A volume is a directory `<volumes.dir>/<name>` with `sealed.json` (the key, sealed in the TPM) and `volume.img` (ext4 whose
//! directory `data` is encrypted by fscrypt). docs/volumes.md describes both.

mod copy;
mod fscrypt;
mod sealed;

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::Serialize;
use trustme_config::{Config, VolumeBackend};

use crate::identity::Owner;
use crate::tpm::TpmError;
use crate::{lock, mount};

pub(crate) use copy::directory_in;
pub use sealed::SealedVolume;

/// How long to wait for another launch that is making or opening the same volume.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);

/// What separates a volume's name from the random part of the directory in which it is being made.
const NEW: &str = ".new-";

/// The file that holds the sealed key.
const SEALED: &str = "sealed.json";

/// The file that holds the file system.
const IMAGE: &str = "volume.img";

/// A volume that a container asks for.
#[derive(Debug, Clone)]
pub struct Request<'r> {
    /// Its name, unique on the machine.
    pub name: &'r str,
    /// How large its image is made, in MiB.
    pub size_mib: u32,
    /// Its file system.
    pub filesystem: &'r str,
    /// Who may open it.
    pub owner: &'r Owner,
    /// The root file system and the absolute path in it whose content a new volume begins with.
    pub content: (&'r Path, &'r str),
}

/// Why a volume was not opened.
#[derive(Debug, thiserror::Error)]
#[error("volume {name}")]
pub struct VolumeError {
    /// The volume.
    pub name: String,
    /// What went wrong.
    #[source]
    pub reason: Reason,
}

/// What went wrong with a volume.
#[derive(Debug, thiserror::Error)]
pub enum Reason {
    /// The name cannot be a file name.
    #[error("a name may hold letters, digits, '.', '_', '-', '+' and must not begin with '.'")]
    Name,
    /// The configured back-end is not there yet.
    #[error(
        "volumes.backend is luks2, which this version of trustme does not have; use \"auto\" or \"fscrypt\""
    )]
    Luks2,
    /// Only ext4 can be encrypted.
    #[error("file system {0:?} cannot be encrypted by fscrypt; ext4 can")]
    Filesystem(String),
    /// tpm.tcti is "none".
    #[error("its key has to be sealed in a TPM, and tpm.tcti is \"none\"")]
    NoTpm,
    /// Another container has it.
    #[error("in use: its image is attached to {0}")]
    InUse(String),
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
    /// The TPM does not give the key.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// The sealed key is for somebody else.
    #[error("belongs to GuestOS {name} signed by the key {signer}")]
    OtherOwner {
        /// The owner's GuestOS name.
        name: String,
        /// SHA-256 (hex) of the owner's SubjectPublicKeyInfo.
        signer: String,
    },
    /// Its image is not the one that the key belongs to.
    #[error("the directory data in {} is not encrypted with the volume's key", .0.display())]
    OtherKey(PathBuf),
    /// mkfs.ext4.
    #[error("mkfs.ext4 {}: {reason}", path.display())]
    Mkfs {
        /// The image.
        path: PathBuf,
        /// What it said.
        reason: String,
    },
}

impl Reason {
    /// For `map_err`: an error of `step` on `path`.
    fn io<E: Into<io::Error>>(step: &'static str, path: &Path) -> impl Fn(E) -> Self {
        move |source| Self::Io {
            step,
            path: path.to_owned(),
            source: source.into(),
        }
    }
}

/// Opens a volume, made at its first use, with its file system mounted at `target`; the directory that belongs into the
/// container.
///
/// # Errors
/// In use, sealed for another owner, TPM or boot state, damaged; no space; or the kernel cannot do it. Then nothing is
/// left but what [`crate::launch::release`] finds.
pub fn open(config: &Config, request: &Request<'_>, target: &Path) -> Result<PathBuf, VolumeError> {
    open_volume(config, request, target).map_err(|reason| VolumeError {
        name: request.name.to_owned(),
        reason,
    })
}

fn open_volume(config: &Config, request: &Request<'_>, target: &Path) -> Result<PathBuf, Reason> {
    check_name(request.name)?;
    match config.volumes.backend {
        VolumeBackend::Auto | VolumeBackend::Fscrypt => {}
        VolumeBackend::Luks2 => return Err(Reason::Luks2),
    }
    if request.filesystem != "ext4" {
        return Err(Reason::Filesystem(request.filesystem.to_owned()));
    }
    if !config.tpm.is_present() {
        return Err(Reason::NoTpm);
    }
    let volumes = make_dir(&config.volumes.dir)?;
    let _lock = lock_name(&volumes, request.name, Instant::now() + LOCK_TIMEOUT)?;
    let dir = volumes.join(request.name);
    if dir.exists() {
        if let Some(device) = attached(&dir.join(IMAGE)).map_err(Reason::io("look for", &dir))? {
            return Err(Reason::InUse(device));
        }
    } else {
        remove_half_made(&volumes, request.name)?;
        fscrypt::create(config, request, &volumes, target)?;
    }
    fscrypt::open(config, request, &dir, target)
}

/// A volume's name is a file name, and tells itself from those of half-made volumes and locks.
fn check_name(name: &str) -> Result<(), Reason> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'+');
    match !name.is_empty() && !name.starts_with('.') && name.len() <= 200 && name.bytes().all(good)
    {
        true => Ok(()),
        false => Err(Reason::Name),
    }
}

/// The directory of all volumes, made if absent, without symlinks in its path.
fn make_dir(dir: &Path) -> Result<PathBuf, Reason> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.and_then(|()| dir.canonicalize())
        .map_err(Reason::io("make", dir))
}

/// The lock that whoever makes, opens or cleans up a volume holds.
fn lock_name(volumes: &Path, name: &str, deadline: Instant) -> Result<File, Reason> {
    let path = volumes.join(format!(".{name}.lock"));
    lock::exclusive(&path, deadline).map_err(Reason::io("lock", &path))
}

/// The loop device that an image is attached to.
fn attached(image: &Path) -> io::Result<Option<String>> {
    for entry in std::fs::read_dir("/sys/block")? {
        let entry = entry?;
        match std::fs::read_to_string(entry.path().join("loop/backing_file")) {
            Ok(backing) if Path::new(backing.trim_end_matches('\n')) == image => {
                return Ok(Some(format!(
                    "/dev/{}",
                    entry.file_name().to_string_lossy()
                )));
            }
            // No loop device, not attached, or detached just now.
            Ok(_) | Err(_) => {}
        }
    }
    Ok(None)
}

/// Removes what a killed launch left of a volume that it was making. The volume's lock is held.
fn remove_half_made(volumes: &Path, name: &str) -> Result<(), Reason> {
    let prefix = format!("{name}{NEW}");
    for entry in std::fs::read_dir(volumes).map_err(Reason::io("read", volumes))? {
        let entry = entry.map_err(Reason::io("read", volumes))?;
        let is_ours = entry.file_name().to_string_lossy().starts_with(&prefix);
        if is_ours {
            std::fs::remove_dir_all(entry.path()).map_err(Reason::io("remove", &entry.path()))?;
        }
    }
    Ok(())
}

/// Removes every half-made volume that no living launch is making.
///
/// # Errors
/// The directory cannot be read or a file not removed.
pub(crate) fn remove_all_half_made(config: &Config) -> Result<(), VolumeError> {
    let failed = |name: &str, reason| VolumeError {
        name: name.to_owned(),
        reason,
    };
    let dir = &config.volumes.dir;
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed("*", Reason::io("read", dir)(error))),
    };
    for entry in entries {
        let entry = entry.map_err(|error| failed("*", Reason::io("read", dir)(error)))?;
        let file_name = entry.file_name();
        let Some((name, _)) = file_name.to_str().and_then(|name| name.rsplit_once(NEW)) else {
            continue;
        };
        match lock_name(dir, name, Instant::now()) {
            Ok(_lock) => remove_half_made(dir, name).map_err(|reason| failed(name, reason))?,
            Err(Reason::Io { source, .. }) if source.kind() == io::ErrorKind::TimedOut => {}
            Err(reason) => return Err(failed(name, reason)),
        }
    }
    Ok(())
}

/// Takes down the mount of an open volume: its key first, so that it is gone even if something keeps the mount busy.
///
/// # Errors
/// The kernel refuses.
pub(crate) fn close(mount: &Path) -> io::Result<()> {
    fscrypt::forget_key(mount)?;
    mount::unmount(mount)
}

/// A volume on disk.
#[derive(Debug, Clone, Serialize)]
pub struct Listing {
    /// Its name.
    pub name: String,
    /// The size of its image in bytes.
    pub size: u64,
    /// The bytes that its image takes on disk.
    pub used: u64,
    /// The loop device and mount point where it is open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open: Option<String>,
    /// What `sealed.json` says; absent where the volume is damaged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sealed: Option<SealedVolume>,
    /// What is wrong with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub damage: Option<String>,
}

/// The volumes of this machine, by name.
///
/// # Errors
/// The directory cannot be read.
pub fn list(config: &Config) -> Result<Vec<Listing>, VolumeError> {
    let dir = &config.volumes.dir;
    let unreadable = |error| VolumeError {
        name: "*".to_owned(),
        reason: Reason::io("read", dir)(error),
    };
    let dir = match dir.canonicalize() {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(vec![]),
        Err(error) => return Err(unreadable(error)),
    };
    let mut listings = Vec::new();
    for entry in std::fs::read_dir(&dir).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if check_name(&name).is_err() || name.contains(NEW) {
            continue;
        }
        listings
            .push(listing(&entry.path(), &name).map_err(|reason| VolumeError { name, reason })?);
    }
    listings.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(listings)
}

fn listing(dir: &Path, name: &str) -> Result<Listing, Reason> {
    use std::os::unix::fs::MetadataExt;

    let image = dir.join(IMAGE);
    let (size, used, missing) = match std::fs::symlink_metadata(&image) {
        Ok(metadata) => (metadata.len(), metadata.blocks() * 512, None),
        Err(error) => (0, 0, Some(format!("{}: {error}", image.display()))),
    };
    let path = dir.join(SEALED);
    let (sealed, unreadable) = match SealedVolume::read(&path) {
        Ok(sealed) => (Some(sealed), None),
        Err(error) => (None, Some(format!("{}: {error}", path.display()))),
    };
    let open = match attached(&image).map_err(Reason::io("look for", &image))? {
        None => None,
        Some(device) => {
            let mounts = mount::all().map_err(Reason::io("look for", &image))?;
            let at = mounts
                .iter()
                .find(|mount| mount.source == Path::new(&device));
            Some(match at {
                Some(mount) => format!("{device} at {}", mount.path.display()),
                None => device,
            })
        }
    };
    Ok(Listing {
        name: name.to_owned(),
        size,
        used,
        open,
        sealed,
        damage: missing.or(unreadable),
    })
}

/// Opens a directory for reading, without following a symlink at its end.
fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags};

    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}
