//! `sealed.json`: what is kept of a volume's key, and for whom. docs/volumes.md describes every field.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use crate::identity::Owner;
use crate::tpm::SealedSecret;

/// The version of the format that is written and read.
const VERSION: u32 = 1;

/// A larger file is not one of ours.
const MAX_SIZE: u64 = 1 << 16;

/// The file's content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct SealedVolume {
    /// 1.
    version: u32,
    /// How the volume is encrypted: `fscrypt`.
    pub backend: String,
    /// The file system in the volume's image.
    pub filesystem: String,
    /// Microseconds since 1970.
    pub created: u64,
    /// Whose volume it is. PCR 23 is extended with the digest of this.
    pub owner: Owner,
    /// The key, sealed in the TPM.
    pub key: SealedSecret,
}

impl SealedVolume {
    /// A volume that is made now.
    pub(super) fn new(filesystem: &str, owner: Owner, key: SealedSecret) -> Self {
        Self {
            version: VERSION,
            backend: "fscrypt".to_owned(),
            filesystem: filesystem.to_owned(),
            created: crate::log::now(),
            owner,
            key,
        }
    }

    /// Reads the file; symlinks are not followed.
    ///
    /// # Errors
    /// The file cannot be read, is larger than 64 KiB, not JSON of this format, or of another version.
    pub fn read(path: &Path) -> io::Result<Self> {
        let file = File::from(rustix::fs::open(
            path,
            OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?);
        let mut bytes = Vec::new();
        file.take(MAX_SIZE + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > MAX_SIZE {
            return Err(io::Error::other(format!("larger than {MAX_SIZE} bytes")));
        }
        let sealed: Self = serde_json::from_slice(&bytes)?;
        if sealed.version != VERSION || sealed.backend != "fscrypt" {
            return Err(io::Error::other(format!(
                "version {} with backend {:?}, this trustme knows version {VERSION} with backend \"fscrypt\"",
                sealed.version, sealed.backend
            )));
        }
        Ok(sealed)
    }

    /// Writes a new file and waits until it is on disk.
    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        let mut file = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(path)?;
        serde_json::to_writer_pretty(&mut file, self)?;
        file.write_all(b"\n")?;
        file.sync_all()
    }
}
