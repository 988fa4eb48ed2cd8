//! The suite's own view of the machine: a mount and a cgroup namespace.

use std::path::Path;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

/// Where hosts with cgroup v1 mount v2 in addition.
const UNIFIED: &str = "/sys/fs/cgroup/unified";

/// Moves this process, which must have a single thread, into namespaces of its own: without the unified hierarchy
/// beside cgroup v1, with which crun does not start, and with a /run of its own, so that every container that the
/// runtimes know there is one of the suite's.
///
/// # Errors
/// Without root's privileges.
pub fn enter() -> Result<()> {
    let new = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWCGROUP;
    unshare(new).context("cannot make a mount and a cgroup namespace")?;
    let none: Option<&str> = None;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(none, "/", none, private, none).context("cannot make the mounts private")?;
    mount(
        Some("tmpfs"),
        "/run",
        Some("tmpfs"),
        MsFlags::empty(),
        Some("mode=755"),
    )
    .context("cannot mount a /run")?;
    if Path::new(UNIFIED).is_dir() {
        umount2(UNIFIED, MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {UNIFIED}"))?;
    }
    Ok(())
}

/// A directory for bundles: a file system of its own, so that whatever tests leave mounted in there (a root file system
/// with shared propagation leaves all its mounts) goes with it.
#[derive(Debug)]
pub struct Scratch(tempfile::TempDir);

impl Scratch {
    /// Makes one; [`enter`] has to come before.
    ///
    /// # Errors
    /// It cannot be mounted.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("oci-suite").tempdir()?;
        let none: Option<&str> = None;
        mount(
            Some("tmpfs"),
            dir.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            none,
        )
        .context("cannot mount a directory for bundles")?;
        Ok(Self(dir))
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays mounted goes with the namespace.
        let _ = umount2(self.0.path(), MntFlags::MNT_DETACH);
    }
}

/// True where /sys/fs/cgroup is cgroup v2.
pub fn is_unified() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}
