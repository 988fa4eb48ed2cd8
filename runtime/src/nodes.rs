//! Devices and links in the container's /dev.
//!
//! libcontainer makes them by path: with an image whose /dev is a link to another directory, they end up on the host
//! (tests/attacks.rs). Here everything is made below a handle on the directory, found without ever leaving the root; and
//! nothing at all where /dev is a bind mount of somebody else's.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, Mount, Spec};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

/// The devices that every container has (runtime-spec, "Default Devices"), with their numbers.
const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The links that every container has (runtime-spec, "Dev symbolic links").
const LINKS: [(&str, &str); 4] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
];

/// A device to be made.
struct Node {
    path: PathBuf,
    kind: FileType,
    number: u64,
    mode: u32,
    owner: (u32, u32),
}

/// Makes devices and links below `rootfs`, unless /dev is bind-mounted. `bind`: in a user namespace, where no devices
/// can be made, the host's are bind-mounted.
///
/// # Errors
/// The first that cannot be made; it is named.
pub fn make(rootfs: &OwnedFd, spec: &Spec, bind: bool) -> Result<()> {
    if spec.mounts().iter().flatten().any(is_foreign_dev) {
        return Ok(());
    }
    for node in nodes(spec.linux().as_ref())? {
        let make = || match bind {
            true => bind_from_host(rootfs, &node.path),
            false => match make_node(rootfs, &node) {
                // As in a user namespace, where a caller has put us into one.
                Err(Errno::PERM) => bind_from_host(rootfs, &node.path),
                other => Ok(other?),
            },
        };
        make().with_context(|| format!("cannot make device {}", node.path.display()))?;
    }
    for (path, target) in LINKS {
        link(rootfs, Path::new(path), target).with_context(|| format!("cannot make {path}"))?;
    }
    if Path::new("/proc/kcore").exists() {
        link(rootfs, Path::new("/dev/core"), "/proc/kcore").context("cannot make /dev/core")?;
    }
    terminal_multiplexer(rootfs).context("cannot make /dev/ptmx")
}

/// True for a bind mount on /dev: then it is not ours (as runc).
fn is_foreign_dev(mount: &Mount) -> bool {
    let destination: PathBuf = mount.destination().components().collect();
    destination == Path::new("/dev") && libcontainer::rootfs::utils::is_bind(mount)
}

/// The devices of the specification, and the default ones that it does not name itself.
fn nodes(linux: Option<&Linux>) -> Result<Vec<Node>> {
    let listed = linux
        .and_then(|linux| linux.devices().as_deref())
        .unwrap_or_default();
    let mut nodes = listed.iter().map(node_of).collect::<Result<Vec<_>>>()?;
    for (path, major, minor) in DEFAULT_DEVICES {
        if listed.iter().all(|device| device.path() != Path::new(path)) {
            nodes.push(Node {
                path: path.into(),
                kind: FileType::CharacterDevice,
                number: rustix::fs::makedev(major, minor),
                mode: 0o666,
                owner: (0, 0),
            });
        }
    }
    Ok(nodes)
}

fn node_of(device: &LinuxDevice) -> Result<Node> {
    let kind = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::C | LinuxDeviceType::U => FileType::CharacterDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::A => bail!("device {}: type a", device.path().display()),
    };
    let number = |value: i64, name: &str| {
        u32::try_from(value)
            .with_context(|| format!("device {}: {name} {value}", device.path().display()))
    };
    Ok(Node {
        path: device.path().clone(),
        kind,
        number: rustix::fs::makedev(
            number(device.major(), "major")?,
            number(device.minor(), "minor")?,
        ),
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        owner: (device.uid().unwrap_or(0), device.gid().unwrap_or(0)),
    })
}

fn make_node(rootfs: &OwnedFd, node: &Node) -> Result<(), Errno> {
    let (dir, name) = parent_of(rootfs, &node.path)?;
    match rustix::fs::mknodat(&dir, name, node.kind, Mode::RUSR | Mode::WUSR, node.number) {
        // As runc: one that the image has is left as it is.
        Err(Errno::EXIST) => return Ok(()),
        other => other?,
    }
    let (uid, gid) = (Uid::from_raw(node.owner.0), Gid::from_raw(node.owner.1));
    rustix::fs::chownat(&dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    // After the change of the owner, which takes set-user-id bits away. The directory is ours: nobody replaces it.
    rustix::fs::chmodat(&dir, name, Mode::from_raw_mode(node.mode), AtFlags::empty())
}

/// Bind-mounts the host's device of the same path.
fn bind_from_host(rootfs: &OwnedFd, path: &Path) -> Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let device = rustix::mount::open_tree(rustix::fs::CWD, path, flags)
        .with_context(|| format!("cannot open the host's {}", path.display()))?;
    let (dir, name) = parent_of(rootfs, path)?;
    let create = OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::WRONLY;
    match rustix::fs::openat(&dir, name, create | OFlags::EXCL, Mode::RUSR | Mode::WUSR) {
        Ok(_) | Err(Errno::EXIST) => (),
        Err(err) => return Err(err.into()),
    }
    let place = rustix::fs::openat(
        &dir,
        name,
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    attach(&device, &place)?;
    Ok(())
}

/// A handle on the place for a mount, made if it is missing: a directory or an empty file.
///
/// # Errors
/// It cannot be made.
pub fn place(rootfs: &OwnedFd, path: &Path, directory: bool) -> Result<OwnedFd, Errno> {
    let relative = Path::new(".").join(path.strip_prefix("/").unwrap_or(path));
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    match rustix::fs::openat2(rootfs, &relative, flags, Mode::empty(), resolve) {
        Err(Errno::NOENT) => (),
        other => return other,
    }
    let (dir, name) = parent_of(rootfs, path)?;
    if directory {
        rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755))?;
    } else {
        let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&dir, name, create, Mode::from_raw_mode(0o644))?;
    }
    rustix::fs::openat(&dir, name, flags | OFlags::NOFOLLOW, Mode::empty())
}

/// A handle on a directory for a mount, made if it is missing, that is not reached through a link in its last part.
///
/// # Errors
/// There is something else, or it cannot be made.
pub fn ordinary_directory(rootfs: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let (dir, name) = parent_of(rootfs, path)?;
    match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755)) {
        Ok(()) | Err(Errno::EXIST) => (),
        Err(err) => return Err(err),
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(&dir, name, flags, Mode::empty())
}

/// Moves a detached mount onto what a handle refers to.
///
/// # Errors
/// As move_mount(2).
pub fn attach(mount: &OwnedFd, place: &OwnedFd) -> rustix::io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(mount, "", place, "", flags)
}

fn link(rootfs: &OwnedFd, path: &Path, target: &str) -> Result<(), Errno> {
    let (dir, name) = parent_of(rootfs, path)?;
    match rustix::fs::symlinkat(target, &dir, name) {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// /dev/ptmx, which has to be the one of the container's devpts.
fn terminal_multiplexer(rootfs: &OwnedFd) -> Result<(), Errno> {
    let (dir, name) = parent_of(rootfs, Path::new("/dev/ptmx"))?;
    match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => (),
        Err(err) => return Err(err),
    }
    rustix::fs::symlinkat("pts/ptmx", &dir, name)
}

/// A handle on the directory that holds `path`, made with those above it where it is missing, and the last name.
fn parent_of<'a>(rootfs: &OwnedFd, path: &'a Path) -> Result<(OwnedFd, &'a OsStr), Errno> {
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &Path| {
        let relative = path.strip_prefix("/").unwrap_or(path);
        let relative = Path::new(".").join(relative);
        rustix::fs::openat2(rootfs, relative, flags, Mode::empty(), resolve)
    };
    match open(parent) {
        Err(Errno::NOENT) => {
            let (above, dir) = parent_of(rootfs, parent)?;
            match rustix::fs::mkdirat(&above, dir, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => (),
                Err(err) => return Err(err),
            }
            Ok((open(parent)?, name))
        }
        other => Ok((other?, name)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileTypeExt, MetadataExt, symlink};

    use super::*;

    fn spec(json: serde_json::Value) -> Spec {
        let mut base = serde_json::json!({"ociVersion": "1.0.2", "linux": {}, "mounts": []});
        for (key, value) in json.as_object().unwrap() {
            base[key] = value.clone();
        }
        serde_json::from_value(base).unwrap()
    }

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn devices_and_links_stay_below_the_root() {
        let (root, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        // The place that the link names exists on both sides.
        let inside = root.path().join(outside.path().strip_prefix("/").unwrap());
        std::fs::create_dir_all(&inside).unwrap();
        symlink(outside.path(), root.path().join("dev")).unwrap();
        let devices = serde_json::json!({"devices": [
            {"path": "/dev/deep/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 0o640, "uid": 7, "gid": 8},
        ]});
        make(
            &open(root.path()),
            &spec(serde_json::json!({"linux": devices})),
            false,
        )
        .unwrap();
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
        let fuse = std::fs::metadata(inside.join("deep/fuse")).unwrap();
        assert!(fuse.file_type().is_char_device());
        assert_eq!(
            (fuse.mode() & 0o7777, fuse.uid(), fuse.gid()),
            (0o640, 7, 8)
        );
        assert_eq!(fuse.rdev(), rustix::fs::makedev(10, 229));
        assert_eq!(
            std::fs::metadata(inside.join("null")).unwrap().mode() & 0o7777,
            0o666
        );
        assert_eq!(
            std::fs::read_link(inside.join("ptmx")).unwrap(),
            Path::new("pts/ptmx")
        );
    }

    #[test]
    fn the_dev_of_others_is_left_alone() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("dev")).unwrap();
        let mounts =
            serde_json::json!([{"destination": "/dev/", "source": "/dev", "options": ["rbind"]}]);
        make(
            &open(root.path()),
            &spec(serde_json::json!({"mounts": mounts})),
            false,
        )
        .unwrap();
        assert_eq!(
            std::fs::read_dir(root.path().join("dev")).unwrap().count(),
            0
        );
    }
}
