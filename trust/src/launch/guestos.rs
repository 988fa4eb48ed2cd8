//! What a GuestOS bundle on disk is worth: its signature, version, images, and the rights it grants.

use std::fs::File;
use std::path::{Path, PathBuf};

use serde_json::Value;
use trustme_config::Config;

use super::LaunchError;
use crate::log::{Signer, Verification};

/// A GuestOS whose root image is open and was compared with what is signed.
pub(super) struct GuestOs {
    pub(super) name: String,
    pub(super) version: u64,
    /// The root image.
    pub(super) image: File,
    pub(super) image_path: PathBuf,
    pub(super) image_sha256: [u8; 32],
    pub(super) fs_type: String,
    /// Whether the container may change its root, in memory.
    pub(super) writable: bool,
    pub(super) verified: Verification,
    /// The dm-verity device, where the kernel checks the image while it is read.
    pub(super) device: Option<PathBuf>,
    pub(super) signer: Option<Signer>,
    pub(super) volumes: Vec<EmptyMount>,
    /// Why it is not trusted, in the order in which it was found out.
    reasons: Vec<String>,
}

/// A volume that the GuestOS asks for.
pub(super) struct EmptyMount {
    pub(super) image_file: String,
    pub(super) mount_point: String,
    pub(super) fs_type: String,
    pub(super) size_mib: u32,
}

impl GuestOs {
    /// Why it is not trusted; `None` where everything that enforce demands is fulfilled.
    pub(super) fn reason(&self) -> Option<String> {
        (!self.reasons.is_empty()).then(|| self.reasons.join("; "))
    }
}

pub(super) fn open(_: &Config, conf: &Path, _: &Value, _: &str) -> Result<GuestOs, LaunchError> {
    Err(LaunchError::GuestOs(conf.display().to_string()))
}
