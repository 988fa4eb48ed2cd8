//! A GuestOS bundle on disk: `NAME-VERSION.conf`, `.sig`, `.cert` and the images in `NAME-VERSION/`.
//!
//! Directories and files are opened once, relative to the directory of the configuration text, following no symbolic
//! link below it: what was checked is what is used.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{Mode, OFlags};
use sha1::Sha1;
use sha2::{Digest, Sha256};

use crate::config::{GuestOsConfig, MAX_TEXT, Mount, MountType, TextError};
use crate::image_config::{ImageConfig, ImageConfigError, MAX_IMAGE_CONFIG};
use crate::signature::{self, Anchors, SignatureError, Signer};

/// The largest signature, in bytes: RSA with 32768 bits.
const MAX_SIG: usize = 4096;

/// The longest sigstore bundle that is read, in bytes.
pub const MAX_SIGSTORE: usize = 64 << 10;

/// The end of the name of the sigstore bundle.
pub const SIGSTORE: &str = "sigstore.json";
/// The largest file of certificates, in bytes.
const MAX_CERT: usize = 256 << 10;

/// How much of an image is read at a time.
const CHUNK: usize = 1 << 20;

/// Why a bundle, or a part of it, is not accepted. Every message begins with the file; the source says more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BundleError {
    /// A file or directory cannot be opened, read or written.
    #[error("{}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The configuration text is not what it should be.
    #[error("{}", path.display())]
    Text {
        /// The configuration text.
        path: PathBuf,
        /// Where and why.
        source: TextError,
    },
    /// The signature, its certificates or the anchors.
    #[error("{}", path.display())]
    Signature {
        /// The file that is at fault.
        path: PathBuf,
        /// Why.
        source: SignatureError,
    },
    /// The image configuration is not what it should be.
    #[error("{}", path.display())]
    ImageConfig {
        /// The image.
        path: PathBuf,
        /// Why.
        source: ImageConfigError,
    },
    /// Something else is not as the configuration text or the format demand.
    #[error("{}: {reason}", path.display())]
    Wrong {
        /// The file or directory.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
}

impl BundleError {
    pub(crate) fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn wrong(path: &Path, reason: impl Into<String>) -> Self {
        Self::Wrong {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}

/// A bundle whose configuration text was read. Its signature and images are checked when asked for.
#[derive(Debug)]
pub struct Bundle {
    conf_path: PathBuf,
    dir: OwnedFd,
    conf_bytes: Vec<u8>,
    conf: GuestOsConfig,
}

/// An image that is what the configuration text says.
#[derive(Debug)]
pub struct VerifiedImage {
    /// The open image, its offset at the start. Use this, not the path.
    pub file: File,
    /// SHA-256 of its bytes.
    pub sha256: [u8; 32],
    /// How many bytes it has.
    pub size: u64,
}

impl Bundle {
    /// Reads the configuration text at `conf_path`, which must be called after the name and version in it.
    ///
    /// # Errors
    /// It cannot be read, is no regular file, too large, not in the dialect, or called otherwise.
    pub fn open(conf_path: &Path) -> Result<Self, BundleError> {
        let path = std::path::absolute(conf_path).map_err(BundleError::io(conf_path))?;
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(BundleError::wrong(&path, "not the path of a file"));
        };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let dir = rustix::fs::open(parent, flags, Mode::empty())
            .map_err(|error| BundleError::io(parent)(error.into()))?;
        let conf_bytes = read(open_in(&dir, Path::new(name), &path)?, MAX_TEXT, &path)?;
        let conf = GuestOsConfig::parse(&conf_bytes).map_err(|source| BundleError::Text {
            path: path.clone(),
            source,
        })?;
        let expected = format!("{}-{}.conf", conf.name, conf.version);
        if name != expected.as_str() {
            let reason =
                format!("it says that it is {expected:?}: file name, name and version must agree");
            return Err(BundleError::wrong(&path, reason));
        }
        Ok(Self {
            conf_path: path,
            dir,
            conf_bytes,
            conf,
        })
    }

    /// The configuration text, parsed.
    #[must_use]
    pub fn conf(&self) -> &GuestOsConfig {
        &self.conf
    }

    /// The configuration text as it was read.
    #[must_use]
    pub fn conf_bytes(&self) -> &[u8] {
        &self.conf_bytes
    }

    /// The absolute path of the configuration text.
    #[must_use]
    pub fn conf_path(&self) -> &Path {
        &self.conf_path
    }

    /// The mounts that the configuration text names.
    #[must_use]
    pub fn mounts(&self) -> &[Mount] {
        &self.conf.mounts
    }

    /// Where the images are.
    #[must_use]
    pub fn images_path(&self) -> PathBuf {
        self.conf_path
            .with_file_name(format!("{}-{}", self.conf.name, self.conf.version))
    }

    /// The path of a mount's image, for messages.
    #[must_use]
    pub fn image_path(&self, mount: &Mount) -> PathBuf {
        self.images_path().join(format!("{}.img", mount.image_file))
    }

    /// The path of a mount's dm-verity tree, for messages.
    #[must_use]
    pub fn hash_image_path(&self, mount: &Mount) -> PathBuf {
        self.images_path()
            .join(format!("{}.hash.img", mount.image_file))
    }

    /// Checks the signature over the configuration text, and the signer's certificates at the time `at`.
    ///
    /// # Errors
    /// A file is missing or too large, the signature is another text's, no anchor vouches for the signer.
    pub fn verify_signature(
        &self,
        anchors: &Anchors,
        at: SystemTime,
    ) -> Result<Signer, BundleError> {
        let sig = self.signature()?;
        let cert = self.certificates()?;
        let path = |extension| self.conf_path.with_extension(extension);
        signature::verify(&self.conf_bytes, &sig, &cert, anchors, at).map_err(|source| match source
        {
            // Whichever of the three was changed.
            SignatureError::Signature(_) => {
                let (conf, cert) = (self.conf_path.display(), path("cert"));
                let reason = format!(
                    "not the signature over {conf} by the key in {}",
                    cert.display()
                );
                BundleError::wrong(&path("sig"), reason)
            }
            source => BundleError::Signature {
                path: path("cert"),
                source,
            },
        })
    }

    /// The signature, not checked.
    ///
    /// # Errors
    /// It is missing or too large.
    pub fn signature(&self) -> Result<Vec<u8>, BundleError> {
        self.beside("sig", MAX_SIG)
    }

    /// The certificates, not checked.
    ///
    /// # Errors
    /// They are missing or too large.
    pub fn certificates(&self) -> Result<Vec<u8>, BundleError> {
        self.beside("cert", MAX_CERT)
    }

    /// The sigstore bundle, not checked, where there is one: nothing here reads it.
    ///
    /// # Errors
    /// It cannot be read, or is too large.
    pub fn sigstore(&self) -> Result<Option<Vec<u8>>, BundleError> {
        match self.beside(SIGSTORE, MAX_SIGSTORE) {
            Err(BundleError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Ok(None)
            }
            read => read.map(Some),
        }
    }

    /// Opens the image of a mount.
    ///
    /// # Errors
    /// It is missing, or no regular file.
    pub fn open_image(&self, mount: &Mount) -> Result<File, BundleError> {
        self.open_in_images(&self.image_path(mount))
    }

    /// Opens the dm-verity tree of a mount's image.
    ///
    /// # Errors
    /// It is missing, or no regular file.
    pub fn open_hash_image(&self, mount: &Mount) -> Result<File, BundleError> {
        self.open_in_images(&self.hash_image_path(mount))
    }

    /// Opens the image of a mount and compares its size, then its SHA-256, with what the configuration text says; its SHA-1
    /// only where there is no SHA-256 (GyroidOS's rule).
    ///
    /// # Errors
    /// It is missing, differs, or the text says nothing to compare with.
    pub fn verify_image(&self, mount: &Mount) -> Result<VerifiedImage, BundleError> {
        let path = self.image_path(mount);
        let mut file = self.open_image(mount)?;
        let size = file.metadata().map_err(BundleError::io(&path))?.len();
        match mount.image_size {
            Some(expected) if expected != size => {
                return Err(BundleError::wrong(
                    &path,
                    format!("{size} bytes, {expected} are signed"),
                ));
            }
            Some(_) => {}
            None => {
                return Err(BundleError::wrong(
                    &path,
                    "the configuration text says no image_size",
                ));
            }
        }
        let by_sha1 = mount.image_sha2_256.is_none();
        let mut sha256 = Sha256::new();
        let mut sha1 = Sha1::new();
        let mut chunk = vec![0; CHUNK];
        let mut total = 0;
        loop {
            let read = match file.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(BundleError::io(&path)(error)),
            };
            total += read as u64;
            sha256.update(&chunk[..read]);
            if by_sha1 {
                sha1.update(&chunk[..read]);
            }
        }
        if total != size {
            return Err(BundleError::wrong(
                &path,
                format!("it changed while it was read: {size} bytes, then {total}"),
            ));
        }
        let sha256: [u8; 32] = sha256.finalize().into();
        let (name, expected, found) = match (&mount.image_sha2_256, &mount.image_sha1) {
            (Some(expected), _) => ("SHA-256", expected, hex::encode(sha256)),
            (None, Some(expected)) => ("SHA-1", expected, hex::encode(sha1.finalize())),
            (None, None) => {
                return Err(BundleError::wrong(
                    &path,
                    "the configuration text says no digest of it",
                ));
            }
        };
        if !expected.eq_ignore_ascii_case(&found) {
            return Err(BundleError::wrong(
                &path,
                format!("its {name} is {found}, {expected} is signed"),
            ));
        }
        io::Seek::rewind(&mut file).map_err(BundleError::io(&path))?;
        Ok(VerifiedImage { file, sha256, size })
    }

    /// Whether there is a `config.img`: bundles of GyroidOS's own converter have none.
    #[must_use]
    pub fn has_image_config(&self) -> bool {
        self.stored_config().is_some()
    }

    fn stored_config(&self) -> Option<&Mount> {
        self.conf.mounts.iter().find(|mount| {
            mount.mount_type == MountType::StoreOnly && mount.image_file == ImageConfig::IMAGE_FILE
        })
    }

    /// Reads and checks `config.img`: what the image's configuration says beyond the configuration text.
    ///
    /// # Errors
    /// There is none, it differs from what is signed, or says something that it must not.
    pub fn image_config(&self) -> Result<ImageConfig, BundleError> {
        let Some(mount) = self.stored_config() else {
            return Err(BundleError::wrong(
                &self.conf_path,
                "no STORE_ONLY image \"config\" in it",
            ));
        };
        let path = self.image_path(mount);
        let bytes = read(self.verify_image(mount)?.file, MAX_IMAGE_CONFIG, &path)?;
        // Read again: the second reading must be the one that was verified.
        let found = hex::encode(Sha256::digest(&bytes));
        if mount
            .image_sha2_256
            .as_ref()
            .is_some_and(|expected| !expected.eq_ignore_ascii_case(&found))
        {
            return Err(BundleError::wrong(&path, "it changed while it was read"));
        }
        ImageConfig::parse(&bytes).map_err(|source| BundleError::ImageConfig { path, source })
    }

    fn beside(&self, extension: &str, max: usize) -> Result<Vec<u8>, BundleError> {
        let path = self.conf_path.with_extension(extension);
        let name = path.file_name().unwrap_or_default();
        read(open_in(&self.dir, Path::new(name), &path)?, max, &path)
    }

    fn open_in_images(&self, path: &Path) -> Result<File, BundleError> {
        let images = self.images_path();
        let name = images.file_name().unwrap_or_default();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(&self.dir, name, flags, Mode::empty())
            .map_err(|error| BundleError::io(&images)(error.into()))?;
        open_in(&dir, Path::new(path.file_name().unwrap_or_default()), path)
    }
}

/// Opens a regular file; `path` is for messages.
fn open_in(dir: impl AsFd, name: &Path, path: &Path) -> Result<File, BundleError> {
    // NONBLOCK: a FIFO would otherwise make the program wait.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file: File = rustix::fs::openat(dir, name, flags, Mode::empty())
        .map_err(|error| match error {
            rustix::io::Errno::LOOP => {
                BundleError::wrong(path, "a symbolic link, expected a regular file")
            }
            error => BundleError::io(path)(error.into()),
        })?
        .into();
    match file.metadata().map_err(BundleError::io(path))?.is_file() {
        true => Ok(file),
        false => Err(BundleError::wrong(path, "no regular file")),
    }
}

fn read(file: File, max: usize, path: &Path) -> Result<Vec<u8>, BundleError> {
    let mut bytes = Vec::new();
    file.take(max as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(BundleError::io(path))?;
    match bytes.len() > max {
        true => Err(BundleError::wrong(path, format!("more than {max} bytes"))),
        false => Ok(bytes),
    }
}
