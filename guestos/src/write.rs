//! Writing a bundle so that it appears whole or not at all.
//!
//! Everything is made in a staging directory `.NAME-VERSION.XXXXXX` beside the target, under an flock that ends with the program.
//! When all of it is on the disk, the staging directory is renamed to end in `.complete`, and what is in it is moved to
//! its place, the configuration text last. The next writer removes what a killed one left, or completes it.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::bundle::{BundleError, SIGSTORE};

/// The end of the name of a staging directory whose content only needs to be moved.
const COMPLETE: &str = ".complete";

/// Where the images are within a staging directory.
const IMAGES: &str = "images";

/// A bundle that is being made; dropped, it leaves nothing.
#[derive(Debug)]
pub struct BundleWriter {
    out: PathBuf,
    /// NAME-VERSION.
    name: String,
    staging: PathBuf,
    images: PathBuf,
    /// Keeps the lock.
    _lock: File,
    force: bool,
    finished: bool,
}

impl BundleWriter {
    /// Begins a bundle in the directory `out`, which is made where it is missing. Removes or completes what killed
    /// writers left there, whatever their bundle.
    ///
    /// # Errors
    /// The bundle is there already and `force` is not set; a directory cannot be made.
    pub fn create(out: &Path, name: &str, version: u64, force: bool) -> Result<Self, BundleError> {
        fs::create_dir_all(out).map_err(BundleError::io(out))?;
        let _out = lock(out, FlockOperation::LockExclusive)?;
        recover(out)?;
        let name = format!("{name}-{version}");
        if !force {
            refuse_existing(out, &name)?;
        }
        let (staging, lock) = make_staging(out, &name)?;
        let writer = Self {
            images: staging.join(IMAGES),
            out: out.to_owned(),
            name,
            staging,
            _lock: lock,
            force,
            finished: false,
        };
        DirBuilder::new()
            .mode(0o755)
            .create(&writer.images)
            .map_err(BundleError::io(&writer.images))?;
        Ok(writer)
    }

    /// The directory for the images (`<image_file>.img`, `<image_file>.hash.img`).
    #[must_use]
    pub fn images(&self) -> &Path {
        &self.images
    }

    /// Writes configuration text, signature, certificates and sigstore bundle, waits until everything is on the disk, and moves it
    /// to its place. The path of the configuration text.
    ///
    /// # Errors
    /// Something cannot be written; another writer made the same bundle meanwhile.
    pub fn finish(
        mut self,
        conf: &[u8],
        sig: &[u8],
        cert: &[u8],
        sigstore: Option<&[u8]>,
    ) -> Result<PathBuf, BundleError> {
        let sigstore = sigstore.map(|bytes| (SIGSTORE, bytes));
        for (extension, bytes) in [("conf", conf), ("sig", sig), ("cert", cert)]
            .into_iter()
            .chain(sigstore)
        {
            let path = self.staging.join(format!("{}.{extension}", self.name));
            write_new(&path, bytes)?;
        }
        sync_all(&self.images)?;
        sync_all(&self.staging)?;
        let _out = lock(&self.out, FlockOperation::LockExclusive)?;
        if !self.force {
            refuse_existing(&self.out, &self.name)?;
        }
        let complete = self.staging.with_file_name(format!(
            "{}{COMPLETE}",
            self.staging
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
        ));
        fs::rename(&self.staging, &complete).map_err(BundleError::io(&self.staging))?;
        self.finished = true;
        publish(&self.out, &complete, &self.name)?;
        Ok(self.out.join(format!("{}.conf", self.name)))
    }
}

impl Drop for BundleWriter {
    fn drop(&mut self) {
        if !self.finished {
            // Nothing can be done about it here; the next writer removes it.
            let _ = fs::remove_dir_all(&self.staging);
        }
    }
}

/// Replaces a file by another content at once, or makes it; on the disk when this returns.
///
/// # Errors
/// It cannot be written.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Result<(), BundleError> {
    let path = &std::path::absolute(path).map_err(BundleError::io(path))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let staged = path.with_file_name(format!(".{name}.{:06x}", random()));
    let replaced = write_new(&staged, bytes).and_then(|()| {
        File::open(&staged)
            .and_then(|file| file.sync_all())
            .map_err(BundleError::io(&staged))?;
        fs::rename(&staged, path).map_err(BundleError::io(path))
    });
    if replaced.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&staged);
    }
    replaced
}

fn write_new(path: &Path, bytes: &[u8]) -> Result<(), BundleError> {
    File::create_new(path)
        .and_then(|mut file| file.write_all(bytes))
        .map_err(BundleError::io(path))
}

fn refuse_existing(out: &Path, name: &str) -> Result<(), BundleError> {
    for path in [out.join(name), out.join(format!("{name}.conf"))] {
        if fs::symlink_metadata(&path).is_ok() {
            return Err(BundleError::wrong(&path, "exists already"));
        }
    }
    Ok(())
}

/// Makes and locks a staging directory.
fn make_staging(out: &Path, name: &str) -> Result<(PathBuf, File), BundleError> {
    loop {
        let path = out.join(format!(".{name}.{:06x}", random()));
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
            made => made.map_err(BundleError::io(&path))?,
        }
        let lock = lock(&path, FlockOperation::LockExclusive)?;
        return Ok((path, lock));
    }
}

/// 24 bits that differ between writers.
fn random() -> u32 {
    use std::hash::{BuildHasher, Hasher, RandomState};
    (RandomState::new().build_hasher().finish() & 0xff_ffff) as u32
}

/// Locks a directory until the file is closed. What is made, moved and recovered in the directory of bundles happens under
/// its lock; a staging directory's lock says that its writer lives.
fn lock(path: &Path, operation: FlockOperation) -> Result<File, BundleError> {
    let dir = File::open(path).map_err(BundleError::io(path))?;
    flock(&dir, operation).map_err(|error| BundleError::io(path)(error.into()))?;
    Ok(dir)
}

/// Completes or removes the staging directories that no writer holds any more.
fn recover(out: &Path) -> Result<(), BundleError> {
    for entry in fs::read_dir(out).map_err(BundleError::io(out))? {
        let entry = entry.map_err(BundleError::io(out))?;
        let file_name = entry.file_name();
        let Some((name, complete)) = file_name.to_str().and_then(staged_name) else {
            continue;
        };
        let path = entry.path();
        let is_dir = entry.file_type().map_err(BundleError::io(&path))?.is_dir();
        if !is_dir {
            continue;
        }
        let _lock = match lock(&path, FlockOperation::NonBlockingLockExclusive) {
            Err(BundleError::Io { source, .. }) if source.kind() == ErrorKind::WouldBlock => {
                continue;
            }
            locked => locked?,
        };
        if complete {
            publish(out, &path, name)?;
        } else {
            remove(&path)?;
        }
    }
    Ok(())
}

/// The bundle that a staging directory is for, and whether it is complete.
fn staged_name(name: &str) -> Option<(&str, bool)> {
    let name = name.strip_prefix('.')?;
    let (name, complete) = match name.strip_suffix(COMPLETE) {
        Some(name) => (name, true),
        None => (name, false),
    };
    let (name, unique) = name.rsplit_once('.')?;
    let (_, version) = name.rsplit_once('-')?;
    let hex = unique.len() == 6 && unique.bytes().all(|byte| byte.is_ascii_hexdigit());
    (hex && !version.is_empty() && version.bytes().all(|byte| byte.is_ascii_digit()))
        .then_some((name, complete))
}

/// Moves what is in a complete staging directory to its place. Can be repeated after it was interrupted.
fn publish(out: &Path, staging: &Path, name: &str) -> Result<(), BundleError> {
    let images = staging.join(IMAGES);
    let place = out.join(name);
    if fs::symlink_metadata(&images).is_ok() {
        let sigstore = format!("{name}.{SIGSTORE}");
        if !staging.join(&sigstore).exists() {
            // An older bundle's is not this one's.
            remove_file(&out.join(&sigstore))?;
        }
        // An older bundle is replaced: its images go with the staging directory.
        if fs::symlink_metadata(&place).is_ok() {
            fs::rename(&place, staging.join("replaced")).map_err(BundleError::io(&place))?;
        }
        fs::rename(&images, &place).map_err(BundleError::io(&place))?;
    }
    for extension in [SIGSTORE, "sig", "cert", "conf"] {
        let file = format!("{name}.{extension}");
        match fs::rename(staging.join(&file), out.join(&file)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(BundleError::io(&out.join(&file))(error));
            }
            _ => {}
        }
    }
    File::open(out)
        .and_then(|dir| dir.sync_all())
        .map_err(BundleError::io(out))?;
    remove(staging)
}

fn remove_file(path: &Path) -> Result<(), BundleError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(BundleError::io(path)(error)),
        _ => Ok(()),
    }
}

fn remove(staging: &Path) -> Result<(), BundleError> {
    match fs::remove_dir_all(staging) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(BundleError::io(staging)(error)),
        _ => Ok(()),
    }
}

/// Waits until a directory and the files in it are on the disk.
fn sync_all(dir: &Path) -> Result<(), BundleError> {
    let sync = |path: &Path| -> io::Result<()> { File::open(path)?.sync_all() };
    for entry in fs::read_dir(dir).map_err(BundleError::io(dir))? {
        let path = entry.map_err(BundleError::io(dir))?.path();
        sync(&path).map_err(BundleError::io(&path))?;
    }
    sync(dir).map_err(BundleError::io(dir))
}
