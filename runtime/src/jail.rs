//! The container's root file system: mounts, devices, the change of the root, and what is hidden or read-only in it.
//!
//! The mounts are in filesystem.rs, what engines ask for beyond mount(2) in mounts.rs.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use libcontainer::rootfs::RootFS;
use oci_spec::runtime::{Linux, Spec};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, OpenTreeFlags, UnmountFlags,
};

use crate::filesystem::Root;
use crate::mounts::Step;
use crate::spawn::Blueprint;
use crate::{idmap, nodes, sys};

/// Mounts what the specification lists, in the container's mount namespace, and makes the devices.
///
/// # Errors
/// The first mount or device that cannot be made.
pub fn build(blueprint: &Blueprint<'_>, bind_devices: bool) -> Result<()> {
    let spec = blueprint.spec;
    let linux = linux(spec)?;
    let root = Root::prepare(blueprint.rootfs, linux.rootfs_propagation().as_deref())?;
    for (at, mount) in spec.mounts().iter().flatten().enumerate() {
        match blueprint.id_mapped.source(at) {
            Some(clone) => idmap::attach(&root.handle, mount, clone)?,
            None => root.mount(mount, linux.mount_label().as_deref())?,
        }
    }
    nodes::make(&root.handle, spec, bind_devices)?;
    blueprint.step.carry_out(&root.handle)
}

/// Makes `rootfs` the root. In the caller's own mount namespace, all that can be done is chroot(2).
///
/// # Errors
/// As pivot_root(2), or chroot(2).
pub fn enter(spec: &Spec, rootfs: &Path, own_mount_namespace: bool, no_pivot: bool) -> Result<()> {
    let syscall = libcontainer::syscall::syscall::create_syscall();
    match (own_mount_namespace, no_pivot) {
        (true, false) => syscall.pivot_rootfs(rootfs).context("pivot_root")?,
        (true, true) => move_root(rootfs).context("cannot move the root")?,
        (false, _) => syscall.chroot(rootfs).context("chroot")?,
    }
    rustix::process::chdir("/")?;
    RootFS::new()
        .adjust_root_mount_propagation(linux(spec)?)
        .context("cannot change the propagation of the root")
}

/// Where the root cannot be pivoted, as in an initramfs: /proc and /sys of the host, which would stay reachable below
/// what is moved over them, are hidden first.
fn move_root(rootfs: &Path) -> Result<()> {
    rustix::process::chdir(rootfs)?;
    for path in ["/sys", "/proc"] {
        match rustix::mount::unmount(path, UnmountFlags::DETACH) {
            Err(Errno::INVAL) => {
                rustix::mount::mount("tmpfs", path, "tmpfs", MountFlags::RDONLY, c"size=0k")
                    .with_context(|| format!("cannot hide {path}"))?;
            }
            Err(Errno::NOENT) => (),
            other => other.with_context(|| format!("cannot unmount {path}"))?,
        }
    }
    rustix::mount::mount_move(rootfs, "/")?;
    rustix::process::chroot(".")?;
    Ok(())
}

/// Lets standard input, output and error that are the host's /dev/null be the container's.
///
/// # Errors
/// If the container's is no such device.
pub fn reopen_dev_null() -> Result<()> {
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .context("cannot open /dev/null")?;
    let device = verified_null(&null)?;
    let is_null = |fd: BorrowedFd<'_>| match rustix::fs::fstat(fd) {
        // Closed by the caller.
        Err(Errno::BADF) => Ok(false),
        other => other.map(|stat| stat.st_rdev == device),
    };
    if is_null(rustix::stdio::stdin())? {
        rustix::stdio::dup2_stdin(&null)?;
    }
    if is_null(rustix::stdio::stdout())? {
        rustix::stdio::dup2_stdout(&null)?;
    }
    if is_null(rustix::stdio::stderr())? {
        rustix::stdio::dup2_stderr(&null)?;
    }
    Ok(())
}

/// The number of /dev/null, if that is what the file is: an image may have put something else there (CVE-2025-31133).
fn verified_null(file: &impl AsFd) -> Result<u64> {
    let stat = rustix::fs::fstat(file)?;
    let null = rustix::fs::makedev(1, 3);
    ensure!(
        FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == null,
        "/dev/null is not the null device"
    );
    Ok(null)
}

/// Makes read-only and hides what the specification names, from inside of the new root.
///
/// # Errors
/// The first path that cannot be protected; it is named.
pub fn protect(spec: &Spec, step: &Step) -> Result<()> {
    let linux = linux(spec)?;
    for path in step.read_only() {
        let mount = find(path)?.with_context(|| format!("{} is gone", path.display()))?;
        sys::set_mount_attributes(&mount, MountAttrFlags::MOUNT_ATTR_RDONLY, None, false)
            .with_context(|| format!("cannot make {} read-only", path.display()))?;
    }
    if spec.root().as_ref().and_then(|root| root.readonly()) == Some(true) {
        let root = find(Path::new("/"))?.context("no root")?;
        sys::set_mount_attributes(&root, MountAttrFlags::MOUNT_ATTR_RDONLY, None, false)
            .context("cannot make the root read-only")?;
    }
    for path in linux.readonly_paths().iter().flatten() {
        read_only(Path::new(path)).with_context(|| format!("cannot make {path} read-only"))?;
    }
    let masked = linux.masked_paths().as_deref().unwrap_or_default();
    if masked.is_empty() {
        return Ok(());
    }
    let null = rustix::fs::open(
        "/dev/null",
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context("cannot open /dev/null")?;
    verified_null(&null)?;
    for path in masked {
        mask(Path::new(path), &null, linux.mount_label().as_deref())
            .with_context(|| format!("cannot mask {path}"))?;
    }
    Ok(())
}

/// A handle on a path of the container; none if there is nothing. Links of /proc that lead elsewhere are not followed.
fn find(path: &Path) -> Result<Option<OwnedFd>> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        other => Ok(Some(other?)),
    }
}

fn read_only(path: &Path) -> Result<()> {
    let Some(place) = find(path)? else {
        return Ok(());
    };
    let copy = clone_mount(&place, true)?;
    sys::set_mount_attributes(&copy, MountAttrFlags::MOUNT_ATTR_RDONLY, None, false)?;
    Ok(nodes::attach(&copy, &place)?)
}

fn mask(path: &Path, null: &OwnedFd, label: Option<&str>) -> Result<()> {
    let Some(place) = find(path)? else {
        return Ok(());
    };
    let kind = FileType::from_raw_mode(rustix::fs::fstat(&place)?.st_mode);
    let cover = match kind {
        FileType::Directory => empty_directory(label)?,
        _ => clone_mount(null, false)?,
    };
    Ok(nodes::attach(&cover, &place)?)
}

/// A detached, empty, read-only file system.
fn empty_directory(label: Option<&str>) -> Result<OwnedFd> {
    let context = rustix::mount::fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    if let Some(label) = label.filter(|_| Path::new("/sys/fs/selinux").exists()) {
        rustix::mount::fsconfig_set_string(&context, "context", label)?;
    }
    rustix::mount::fsconfig_set_flag(&context, "ro")?;
    rustix::mount::fsconfig_create(&context)?;
    Ok(rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY,
    )?)
}

fn clone_mount(place: &OwnedFd, recursive: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    Ok(rustix::mount::open_tree(place, "", flags)?)
}

fn linux(spec: &Spec) -> Result<&Linux> {
    spec.linux()
        .as_ref()
        .context("linux property must not be empty")
}
