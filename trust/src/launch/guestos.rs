//! What a GuestOS bundle on disk is worth: its signature, version, images, and the rights it grants.

use std::error::Error;
use std::fs::File;
use std::io::{self, Seek};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use devicemapper::DM;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use trustme_config::Config;
use trustme_guestos::bundle::Bundle;
use trustme_guestos::config::{Mount, MountType};
use trustme_guestos::grant::granted_spec;
use trustme_guestos::signature::Anchors;
use trustme_guestos::verity;

use super::LaunchError;
use super::verity::{Tree, mapper};
use crate::log::{Signer, Verification};
use crate::policy;
use crate::policy::floor;
use crate::tpm::HexDigest;

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

/// What an error and its causes say.
fn said(error: impl Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

/// Opens the GuestOS whose configuration text is `conf`, and compares everything that belongs to it with what is signed, and
/// `spec` with the rights that it grants. Names of dm-verity devices begin with `device_prefix`.
///
/// # Errors
/// There is nothing to run: the configuration text or the root image cannot be read, or asks for what trustme does not have.
pub(super) fn open(
    config: &Config,
    conf: &Path,
    spec: &Value,
    device_prefix: &str,
) -> Result<GuestOs, LaunchError> {
    let bundle = Bundle::open(conf).map_err(|error| LaunchError::GuestOs(said(error)))?;
    let text = bundle.conf();
    let mut reasons = Vec::new();
    let signer = match signer(config, &bundle) {
        Ok(signer) => Some(signer),
        Err(reason) => {
            reasons.push(reason);
            None
        }
    };
    if text.hardware != HARDWARE {
        reasons.push(format!(
            "{}: hardware {:?}, this machine is {HARDWARE:?}",
            conf.display(),
            text.hardware
        ));
    }
    match floor::read(&config.launch.floors, &text.name) {
        Ok(Some(floor)) if text.version < floor => {
            reasons.push(format!(
                "{}: version {} is below the rollback floor {floor}",
                conf.display(),
                text.version
            ));
        }
        Ok(_) => {}
        Err(error) => reasons.push(said(error)),
    }
    let mounts = Mounts::of(conf, bundle.mounts()).map_err(after(&reasons))?;
    for mount in &mounts.stored {
        reasons.extend(bundle.verify_image(mount).err().map(said));
    }
    match granted(&bundle) {
        Ok(granted) => {
            let excess = policy::excess(&granted, spec);
            reasons.extend(
                excess
                    .into_iter()
                    .map(|field| format!("config.json: {field}")),
            );
        }
        Err(reason) if reasons.contains(&reason) => {}
        Err(reason) => reasons.push(reason),
    }
    let found = reasons.clone();
    let root =
        Root::open(&bundle, mounts.root, device_prefix, &mut reasons).map_err(after(&found))?;
    Ok(GuestOs {
        name: text.name.clone(),
        version: text.version,
        image: root.image,
        image_path: root.path,
        image_sha256: root.sha256,
        fs_type: mounts.root.fs_type.clone(),
        writable: mounts.root.mount_type == MountType::SharedRw,
        verified: root.verified,
        device: root.device,
        signer,
        volumes: mounts.volumes,
        reasons,
    })
}

/// For `map_err`: an error that what was found out before may be the cause of, as where the text was changed.
fn after(reasons: &[String]) -> impl Fn(LaunchError) -> LaunchError {
    move |error| match reasons {
        [] => error,
        reasons => LaunchError::GuestOs(format!("{}; {}", reasons.join("; "), said(error))),
    }
}

/// The hardware of this machine, as a GuestOS names it.
const HARDWARE: &str = if cfg!(target_arch = "x86_64") {
    "x86"
} else if cfg!(any(target_arch = "aarch64", target_arch = "arm")) {
    "arm"
} else if cfg!(target_arch = "riscv64") {
    "riscv"
} else {
    "unknown"
};

/// Who signed the configuration text.
fn signer(config: &Config, bundle: &Bundle) -> Result<Signer, String> {
    let anchors = Anchors::load(&config.launch.anchors).map_err(said)?;
    let signer = bundle
        .verify_signature(&anchors, SystemTime::now())
        .map_err(said)?;
    Ok(Signer {
        subject: signer.subject,
        spki_sha256: HexDigest(signer.spki_sha256),
    })
}

/// The OCI configuration that the GuestOS grants.
fn granted(bundle: &Bundle) -> Result<Value, String> {
    let image = bundle.image_config().map_err(said)?;
    let spec = granted_spec(bundle.conf(), &image).map_err(said)?;
    serde_json::to_value(spec).map_err(said)
}

/// The mounts of a GuestOS by what becomes of them.
struct Mounts<'b> {
    root: &'b Mount,
    stored: Vec<&'b Mount>,
    volumes: Vec<EmptyMount>,
}

impl<'b> Mounts<'b> {
    fn of(conf: &Path, mounts: &'b [Mount]) -> Result<Self, LaunchError> {
        let wrong = |mount: &Mount, reason: &str| {
            let (image, at) = (&mount.image_file, &mount.mount_point);
            LaunchError::GuestOs(format!(
                "{}: mount {image} at {at}: {reason}",
                conf.display()
            ))
        };
        let mut root = None;
        let mut stored = Vec::new();
        let mut volumes = Vec::new();
        for mount in mounts {
            match mount.mount_type {
                MountType::Shared | MountType::SharedRw if mount.mount_point == "/" => {
                    if root.replace(mount).is_some() {
                        return Err(wrong(mount, "a second root"));
                    }
                }
                MountType::Empty => volumes.push(EmptyMount {
                    image_file: mount.image_file.clone(),
                    mount_point: mount.mount_point.clone(),
                    fs_type: mount.fs_type.clone(),
                    size_mib: mount.def_size.unwrap_or(DEFAULT_SIZE),
                }),
                MountType::StoreOnly => stored.push(mount),
                other => {
                    return Err(wrong(
                        mount,
                        &format!("trustme does not mount the type {other:?} there"),
                    ));
                }
            }
        }
        match root {
            Some(root) => Ok(Self {
                root,
                stored,
                volumes,
            }),
            None => Err(LaunchError::GuestOs(format!(
                "{}: no mount for /",
                conf.display()
            ))),
        }
    }
}

/// The size in MiB of an EMPTY mount that names none (GuestOSMount's default).
const DEFAULT_SIZE: u32 = 1024;

/// The root image.
struct Root {
    path: PathBuf,
    image: File,
    sha256: [u8; 32],
    verified: Verification,
    device: Option<PathBuf>,
}

impl Root {
    /// Opens the image and compares it with what is signed: by dm-verity where the kernel has it, else the whole file
    /// and, where there is one, its whole hash tree. What differs is added to `reasons`.
    fn open(
        bundle: &Bundle,
        mount: &Mount,
        device_prefix: &str,
        reasons: &mut Vec<String>,
    ) -> Result<Self, LaunchError> {
        let path = bundle.image_path(mount);
        let hash_path = bundle.hash_image_path(mount);
        let signed = mount.image_verity_sha256.as_deref().and_then(digest);
        if let (Some(mapper), Some(root), Some(sha256)) = (
            mapper(),
            signed,
            mount.image_sha2_256.as_deref().and_then(digest),
        ) {
            match by_device(bundle, mount, &mapper, device_prefix, root) {
                Ok((image, device)) => {
                    return Ok(Self {
                        path,
                        image,
                        sha256,
                        verified: Verification::DmVerity,
                        device: Some(device),
                    });
                }
                Err(reason) => tracing::warn!(
                    "{}: read in full, not checked by dm-verity: {reason}",
                    path.display()
                ),
            }
        }
        let (image, sha256) = match bundle.verify_image(mount) {
            Ok(verified) => {
                if let Some(root) = signed
                    && let Err(reason) = by_tree(bundle, mount, &verified.file, root)
                {
                    reasons.push(format!("{}: {reason}", hash_path.display()));
                }
                (verified.file, verified.sha256)
            }
            Err(error) => {
                reasons.push(said(error));
                let mut image = bundle
                    .open_image(mount)
                    .map_err(|error| LaunchError::GuestOs(said(error)))?;
                let sha256 = sha256(&mut image).map_err(LaunchError::io("read", &path))?;
                (image, sha256)
            }
        };
        Ok(Self {
            path,
            image,
            sha256,
            verified: Verification::Sha256,
            device: None,
        })
    }
}

/// A SHA-256 digest in hex.
fn digest(text: &str) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    hex::decode_to_slice(text, &mut digest)
        .ok()
        .map(|()| digest)
}

fn sha256(file: &mut File) -> io::Result<[u8; 32]> {
    let mut digest = Sha256::new();
    file.rewind()?;
    io::copy(file, &mut digest)?;
    Ok(digest.finalize().into())
}

/// Checks the whole hash tree.
fn by_tree(bundle: &Bundle, mount: &Mount, image: &File, root: [u8; 32]) -> Result<(), String> {
    let hash = bundle.open_hash_image(mount).map_err(said)?;
    verity::check(image, &hash, &root).map_err(said)
}

/// Leaves it to the kernel to check each block when it is read. Superblock and topmost block of the hash tree are
/// compared with the signed root at once.
fn by_device(
    bundle: &Bundle,
    mount: &Mount,
    mapper: &DM,
    device_prefix: &str,
    root: [u8; 32],
) -> Result<(File, PathBuf), String> {
    let image = bundle.open_image(mount).map_err(said)?;
    let hash = bundle.open_hash_image(mount).map_err(said)?;
    let superblock = verity::check_root(&image, &hash, &root).map_err(said)?;
    let tree = Tree {
        data_blocks: superblock.data_blocks,
        salt: superblock.salt,
        root,
    };
    let device = super::verity::open(mapper, device_prefix, &image, &hash, &tree).map_err(said)?;
    Ok((image, device))
}
