//! A mount namespace with a user of our own: names and subordinate ids are in copies of this machine's files.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

/// The ordinary user that runs rootless containers; its id, and the first of its subordinate ids.
pub const USER: &str = "trustme-rootless";
/// Its id.
pub const UID: u32 = 48_765;
/// The first of its 65536 subordinate ids.
const SUBORDINATE: u32 = 4_876_500;

/// Moves this process, which must have a single thread, into a mount namespace of its own, in which [`USER`] exists.
///
/// # Errors
/// Without root's privileges.
pub fn enter(dir: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let home = dir.join("user");
    fs::create_dir(&home)?;
    std::os::unix::fs::chown(&home, Some(UID), Some(UID))?;
    for (file, line) in [
        (
            "passwd",
            format!("{USER}:x:{UID}:{UID}::{}:/bin/sh\n", home.display()),
        ),
        ("group", format!("{USER}:x:{UID}:\n")),
        ("subuid", format!("{USER}:{SUBORDINATE}:65536\n")),
        ("subgid", format!("{USER}:{SUBORDINATE}:65536\n")),
    ] {
        let target = Path::new("/etc").join(file);
        let text = fs::read_to_string(&target).with_context(|| target.display().to_string())?;
        let copy = dir.join(file);
        fs::write(&copy, text + &line)?;
        mount(Some(&copy), &target, none, MsFlags::MS_BIND, none)
            .with_context(|| format!("cannot cover {}", target.display()))?;
    }
    Ok(())
}
