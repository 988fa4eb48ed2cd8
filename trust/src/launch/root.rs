//! The root file system of a GuestOS: its image, mounted read-only from the very file that was verified, and a tmpfs for
//! changes where the GuestOS allows them.

use std::fs::{DirBuilder, File};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::mount::MountFlags;

use super::LaunchError;
use super::dir::LaunchDir;
use crate::{kernel, mount};

/// Mounts the image in the open file `image`, or the device `device` that stands for it. `path` is the image's, for
/// messages. The directory of the root file system.
pub(super) fn build(
    dir: &LaunchDir,
    image: Source<'_>,
    path: &Path,
    fs_type: &str,
    writable: bool,
) -> Result<PathBuf, LaunchError> {
    let lower = dir.lower();
    let flags = MountFlags::RDONLY | MountFlags::NODEV;
    let mounted = match image {
        Source::File(file) => {
            let device =
                kernel::attach_loop(file, true).map_err(LaunchError::io("attach", path))?;
            mount::device(&device.path, fs_type, &lower, flags)
        }
        Source::Device(device) => mount::device(device, fs_type, &lower, flags),
    };
    mounted.map_err(LaunchError::io("mount", path))?;
    if !writable {
        return Ok(lower);
    }
    let root = dir.root();
    overlay(&lower, &dir.upper(), &root)
        .map_err(LaunchError::io("make a writable root over", path))?;
    Ok(root)
}

/// What a root image is mounted from.
#[derive(Debug, Clone, Copy)]
pub(super) enum Source<'s> {
    /// The open file, by a loop device.
    File(&'s File),
    /// A dm-verity device.
    Device(&'s Path),
}

/// Mounts an overlay whose root directory is like the image's.
fn overlay(lower: &Path, tmpfs: &Path, root: &Path) -> std::io::Result<()> {
    mount::tmpfs(tmpfs)?;
    let (upper, work) = (tmpfs.join("upper"), tmpfs.join("work"));
    let like = std::fs::metadata(lower)?;
    for dir in [&upper, &work] {
        DirBuilder::new().mode(0o700).create(dir)?;
    }
    std::os::unix::fs::chown(&upper, Some(like.uid()), Some(like.gid()))?;
    std::fs::set_permissions(
        &upper,
        std::fs::Permissions::from_mode(like.mode() & 0o7777),
    )?;
    mount::overlay(lower, &upper, &work, root)
}
