//! The launch directory that trustme and trustme-hook share (docs/architecture.md), and removing whatever is in it.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use sha2::{Digest as _, Sha256};

use super::{LaunchError, verity};
use crate::{mount, volume};

/// The configuration that the runtime keeps is at most this large; it checks the same.
const MAX_CONFIG: u64 = 16 << 20;

/// A launch directory, by a path without symlinks.
#[derive(Debug, Clone)]
pub(super) struct LaunchDir(PathBuf);

impl LaunchDir {
    /// The directory at `path`, which has to exist.
    pub(super) fn open(path: &Path) -> Result<Self, LaunchError> {
        let failed = LaunchError::io("open the launch directory", path);
        let path = path.canonicalize().map_err(&failed)?;
        match path.is_dir() {
            true => Ok(Self(path)),
            false => Err(failed(io::ErrorKind::NotADirectory.into())),
        }
    }

    /// Where everything is mounted.
    fn mounts(&self) -> PathBuf {
        self.0.join("mnt")
    }

    /// Where the root image is mounted.
    pub(super) fn lower(&self) -> PathBuf {
        self.mounts().join("lower")
    }

    /// Where the tmpfs for changes to the root is mounted.
    pub(super) fn upper(&self) -> PathBuf {
        self.mounts().join("upper")
    }

    /// Where the root with its changes is mounted.
    pub(super) fn root(&self) -> PathBuf {
        self.mounts().join("root")
    }

    /// Where all volumes are mounted.
    fn volumes(&self) -> PathBuf {
        self.mounts().join("volumes")
    }

    /// Where a volume is mounted.
    pub(super) fn volume(&self, name: &str) -> PathBuf {
        self.volumes().join(name)
    }

    /// What the names of this launch's device-mapper devices begin with.
    pub(super) fn device_prefix(&self) -> String {
        let digest = hex::encode(Sha256::digest(self.0.as_os_str().as_bytes()));
        format!("trustme-{}-", &digest[..16])
    }

    /// Makes the directories that things are mounted on.
    pub(super) fn make_mount_points(&self) -> Result<(), LaunchError> {
        for dir in [
            self.mounts(),
            self.lower(),
            self.upper(),
            self.root(),
            self.volumes(),
        ] {
            match DirBuilder::new().mode(0o700).create(&dir) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(LaunchError::io("make", &dir)(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The configuration that the runtime has kept.
    pub(super) fn config(&self) -> Result<serde_json::Value, LaunchError> {
        let path = self.0.join("config.json");
        let failed = LaunchError::io("read", &path);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            rustix::fs::open(&path, flags, Mode::empty()).map_err(|errno| failed(errno.into()))?;
        let mut bytes = Vec::new();
        File::from(file)
            .take(MAX_CONFIG + 1)
            .read_to_end(&mut bytes)
            .map_err(&failed)?;
        if bytes.len() as u64 > MAX_CONFIG {
            return Err(failed(io::Error::other(format!(
                "larger than {MAX_CONFIG} bytes"
            ))));
        }
        serde_json::from_slice(&bytes).map_err(|error| failed(error.into()))
    }

    /// Writes the configuration that the container is built from.
    pub(super) fn write_bundle(&self, config: &serde_json::Value) -> Result<(), LaunchError> {
        let bundle = self.0.join("bundle");
        let path = bundle.join("config.json");
        let write = || {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&bundle)?;
            let mut file = File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&path)?;
            file.write_all(serde_json::to_vec(config)?.as_slice())
        };
        write().map_err(LaunchError::io("write", &path))
    }

    /// Takes down every mount, device and key of this launch, and removes the directory. Nothing is deleted through a mount:
    /// directories are removed only when they are empty.
    pub(super) fn release(&self) -> Result<(), LaunchError> {
        for mounted in mount::below(&self.mounts())
            .map_err(LaunchError::io("read", Path::new("/proc/self/mountinfo")))?
        {
            let closed = match mounted.path.starts_with(self.volumes()) {
                true => volume::close(&mounted.path),
                false => mount::unmount(&mounted.path),
            };
            closed.map_err(LaunchError::io("unmount", &mounted.path))?;
        }
        verity::remove(&self.device_prefix())?;
        remove_empty(&self.mounts())?;
        for file in ["config.json", "bundle/config.json", "lock"] {
            let path = self.0.join(file);
            gone(std::fs::remove_file(&path), &path)?;
        }
        for dir in [self.0.join("bundle"), self.0.clone()] {
            gone(std::fs::remove_dir(&dir), &dir)?;
        }
        Ok(())
    }
}

/// Removes a directory with nothing but empty directories in it.
fn remove_empty(dir: &Path) -> Result<(), LaunchError> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(LaunchError::io("read", dir)(error)),
    };
    for entry in entries {
        let entry = entry.map_err(LaunchError::io("read", dir))?;
        if entry
            .file_type()
            .map_err(LaunchError::io("read", dir))?
            .is_dir()
        {
            remove_empty(&entry.path())?;
        }
    }
    gone(std::fs::remove_dir(dir), dir)
}

/// That something is gone, by this removal or before.
fn gone(removed: io::Result<()>, path: &Path) -> Result<(), LaunchError> {
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(LaunchError::io("remove", path)(error))
        }
        _ => Ok(()),
    }
}
