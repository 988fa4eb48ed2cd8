//! The root file system and the mounts of the specification, each attached to a place that was found without leaving the
//! root.
//!
//! A mount is made detached, with its attributes, and moved to a handle (fsopen or open_tree, then move_mount): whatever an
//! image or another container exchanges meanwhile, nothing lands elsewhere. libcontainer does the same through pathrs, which
//! looks at the host's procfs again for each step: 1200 of the 2800 system calls of a `run`.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use libcontainer::rootfs::utils::{MountOptionConfig, is_bind, parse_mount};
use oci_spec::runtime::Mount;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MountPropagationFlags, OpenTreeFlags,
};

use crate::hierarchy::CGROUP_ROOT;
use crate::{mounts, nodes, sys};

/// How often a mount is tried that the kernel calls busy, and the pause between: as runc.
const BUSY_ATTEMPTS: u32 = 3;
const BUSY_PAUSE: Duration = Duration::from_millis(100);

/// An option of mount(8) that libcontainer does not know.
pub const NO_LINKS: &str = "nosymfollow";

/// fsconfig(2) takes no longer values.
const MAX_VALUE: usize = 255;

/// File systems without a device: read-only is the mount, not what it shows.
const VIRTUAL: [&str; 6] = ["cgroup2", "devpts", "mqueue", "proc", "sysfs", "tmpfs"];

/// The root file system while the container is built.
#[derive(Debug)]
pub struct Root<'a> {
    /// Its path, to look at; nothing is made through it.
    path: &'a Path,
    /// It, or rather its bind mount on itself.
    pub handle: OwnedFd,
}

impl<'a> Root<'a> {
    /// Separates this mount namespace from the caller's as `propagation` says, and binds `path` onto itself: only a mount
    /// can become the root.
    ///
    /// # Errors
    /// As mount(2), or there is no such propagation.
    pub fn prepare(path: &'a Path, propagation: Option<&str>) -> Result<Self> {
        let kind = match propagation {
            Some("shared") => MountPropagationFlags::SHARED,
            Some("private") => MountPropagationFlags::PRIVATE,
            Some("slave" | "unbindable") | None => MountPropagationFlags::DOWNSTREAM,
            Some(other) => bail!("unknown rootfsPropagation {other:?}"),
        };
        rustix::mount::mount_change("/", kind | MountPropagationFlags::REC)
            .context("cannot change the propagation of all mounts")?;
        if kind == MountPropagationFlags::SHARED {
            make_parent_private(path)?;
        }
        rustix::mount::mount_bind_recursive(path, path)
            .with_context(|| format!("cannot bind {} onto itself", path.display()))?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle =
            rustix::fs::open(path, flags, Mode::empty()).context("cannot open the rootfs")?;
        Ok(Self { path, handle })
    }

    /// Mounts what an entry of the specification asks for; `label` is the SELinux label of all mounts.
    ///
    /// # Errors
    /// It cannot be mounted; source and destination are named.
    pub fn mount(&self, mount: &Mount, label: Option<&str>) -> Result<()> {
        let place = mount.destination();
        let wanted = Wanted::new(mount, label);
        let done = wanted.and_then(|wanted| match mount.typ().as_deref() {
            _ if is_bind(mount) => self.bind(&wanted, place, is_recursive(mount)),
            Some("cgroup" | "cgroup2") => self.cgroup(&wanted, place),
            Some(kind) => self.file_system(kind, &wanted, place),
            None => bail!("neither a type nor bind"),
        });
        done.with_context(|| {
            let source = mount.source().as_deref().unwrap_or(Path::new(""));
            format!("error mounting {source:?} to rootfs at {place:?}")
        })
    }

    fn bind(&self, wanted: &Wanted, place: &Path, recursive: bool) -> Result<()> {
        let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
        let clone = rustix::mount::open_tree(rustix::fs::CWD, &wanted.source, flags)
            .with_context(|| wanted.source.display().to_string())?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&clone)?.st_mode);
        let place = self.place(place, kind == FileType::Directory)?;
        wanted.set_attributes(&clone)?;
        Ok(nodes::attach(&clone, &place)?)
    }

    /// Cgroup v2: a new mount shows the cgroup namespace's part. Who may make none, as root of a user namespace without
    /// a cgroup namespace, gets a bind mount of what the host has.
    fn cgroup(&self, wanted: &Wanted, place: &Path) -> Result<()> {
        let refused = match self.file_system("cgroup2", wanted, place) {
            Err(err) => err,
            done => return done,
        };
        // "0::/path" (cgroups(7)).
        let table = std::fs::read_to_string("/proc/self/cgroup")?;
        let own = table.lines().find_map(|line| line.strip_prefix("0::/"));
        let bound = Wanted {
            source: Path::new(CGROUP_ROOT).join(own.unwrap_or_default()),
            options: wanted.options.clone(),
            no_links: wanted.no_links,
        };
        self.bind(&bound, place, false).map_err(|_| refused)
    }

    fn file_system(&self, kind: &str, wanted: &Wanted, place: &Path) -> Result<()> {
        let place = match kind {
            // Nobody is to be led to a procfs or sysfs that is not one (CVE-2019-19921).
            "proc" | "sysfs" => nodes::ordinary_directory(&self.handle, place).map_err(|err| {
                anyhow!("filesystem {kind:?} must be mounted on ordinary directory: {err}")
            })?,
            _ => self.place(place, true)?,
        };
        let mut attempt = 1;
        loop {
            match wanted.mount_new(kind, &place) {
                Err(err) if attempt < BUSY_ATTEMPTS && is_busy(&err) => {
                    std::thread::sleep(BUSY_PAUSE);
                    attempt += 1;
                }
                other => return other,
            }
        }
    }

    /// A handle on the place for a mount, made if it is missing; also where a link leads to nothing yet, as /etc/resolv.conf
    /// does in many images.
    fn place(&self, path: &Path, directory: bool) -> Result<OwnedFd> {
        match nodes::place(&self.handle, path, directory) {
            Err(Errno::EXIST | Errno::NOENT) => {
                let resolved = mounts::resolved(self.path, path)?;
                Ok(nodes::place(&self.handle, &resolved, directory)?)
            }
            other => Ok(other?),
        }
    }
}

/// What is to be mounted, and how.
struct Wanted {
    source: PathBuf,
    options: MountOptionConfig,
    /// Without symbolic links: [`NO_LINKS`].
    no_links: bool,
}

impl Wanted {
    fn new(mount: &Mount, label: Option<&str>) -> Result<Self> {
        use nix_of_libcontainer::mount::MsFlags;
        let mut options = parse_mount(mount)?;
        if mount.destination() == Path::new("/dev") {
            // Devices are to be made in it; jail.rs makes it read-only after that.
            options.flags.remove(MsFlags::MS_RDONLY);
        }
        let labelled = !matches!(mount.typ().as_deref(), Some("proc" | "sysfs"));
        if let Some(label) = label.filter(|_| labelled && Path::new("/sys/fs/selinux").exists()) {
            options.data.push(format!("context={label}"));
        }
        options.data.retain(|option| !option.is_empty());
        let before = options.data.len();
        options.data.retain(|option| option != NO_LINKS);
        let source = mount.source().clone();
        ensure!(source.is_some() || !is_bind(mount), "no source");
        Ok(Self {
            source: source.unwrap_or_default(),
            no_links: options.data.len() < before,
            options,
        })
    }

    fn has(&self, flag: MountFlags) -> bool {
        MountFlags::from_bits_retain(self.options.flags.bits() as u32).contains(flag)
    }

    /// The attributes of the mount, without those of access times.
    fn attributes(&self) -> MountAttrFlags {
        let mut set = MountAttrFlags::empty();
        for (flag, attribute) in [
            (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
            (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
            (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
            (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
            (
                MountFlags::NODIRATIME,
                MountAttrFlags::MOUNT_ATTR_NODIRATIME,
            ),
        ] {
            set.set(attribute, self.has(flag));
        }
        set.set(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW, self.no_links);
        set
    }

    /// When access times are written, if the options say it.
    fn access_times(&self) -> Option<MountAttrFlags> {
        [
            (
                MountFlags::STRICTATIME,
                MountAttrFlags::MOUNT_ATTR_STRICTATIME,
            ),
            (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
            (MountFlags::RELATIME, MountAttrFlags::MOUNT_ATTR_RELATIME),
        ]
        .into_iter()
        .find_map(|(flag, attribute)| self.has(flag).then_some(attribute))
    }

    /// Sets the attributes of a bind mount; others it has from its source.
    fn set_attributes(&self, clone: &OwnedFd) -> Result<()> {
        let (mut set, mut clear) = (self.attributes(), MountAttrFlags::empty());
        if let Some(times) = self.access_times() {
            // All modes have to be taken away before one is set (mount_setattr(2)).
            clear = MountAttrFlags::MOUNT_ATTR__ATIME;
            set |= times;
        }
        if !(set | clear).is_empty() {
            sys::change_mount_attributes(clone, set.bits().into(), clear.bits().into(), false)?;
        }
        self.set_recursive(clone)
    }

    /// Options such as `rro`, which count for all mounts below too.
    fn set_recursive(&self, mount: &OwnedFd) -> Result<()> {
        match &self.options.rec_attr {
            Some(all) => Ok(sys::change_mount_attributes(
                mount,
                all.attr_set,
                all.attr_clr,
                true,
            )?),
            None => Ok(()),
        }
    }

    fn mount_new(&self, kind: &str, place: &OwnedFd) -> Result<()> {
        if self
            .options
            .data
            .iter()
            .any(|option| option.len() > MAX_VALUE)
        {
            return self.mount_by_path(kind, place);
        }
        let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)
            .with_context(|| format!("file system {kind}"))?;
        self.configure(&context, kind).map_err(|err| {
            // What the file system says of it, after "e " for an error (fsconfig(2)).
            let mut text = [0; 256];
            match rustix::io::read(&context, &mut text) {
                Ok(length) if length > 2 => {
                    let reason = String::from_utf8_lossy(&text[2..length]).trim().to_owned();
                    anyhow::Error::from(err).context(reason)
                }
                _ => err.into(),
            }
        })?;
        let attributes = self.attributes() | self.access_times().unwrap_or(MountAttrFlags::empty());
        let mount = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?;
        self.set_recursive(&mount)?;
        Ok(nodes::attach(&mount, place)?)
    }

    fn configure(&self, context: &OwnedFd, kind: &str) -> Result<(), Errno> {
        if !self.source.as_os_str().is_empty() {
            rustix::mount::fsconfig_set_string(context, "source", &self.source)?;
        }
        for (flag, name) in [
            (MountFlags::RDONLY, "ro"),
            (MountFlags::SYNCHRONOUS, "sync"),
            (MountFlags::DIRSYNC, "dirsync"),
        ] {
            if self.has(flag) && !VIRTUAL.contains(&kind) {
                rustix::mount::fsconfig_set_flag(context, name)?;
            }
        }
        for option in &self.options.data {
            match option.split_once('=') {
                Some((key, value)) => rustix::mount::fsconfig_set_string(context, key, value)?,
                None => rustix::mount::fsconfig_set_flag(context, option)?,
            }
        }
        rustix::mount::fsconfig_create(context)
    }

    /// As mount(8) before Linux 5.2: takes values up to a page, such as the layers of an overlay.
    fn mount_by_path(&self, kind: &str, place: &OwnedFd) -> Result<()> {
        let flags = MountFlags::from_bits_retain(self.options.flags.bits() as u32);
        let place = format!("/proc/self/fd/{}", place.as_raw_fd());
        let data = CString::new(self.options.data.join(","))?;
        Ok(rustix::mount::mount(
            &self.source,
            place,
            kind,
            flags,
            &*data,
        )?)
    }
}

fn is_recursive(mount: &Mount) -> bool {
    let mut options = mount.options().iter().flatten();
    options.any(|option| option == "rbind")
}

fn is_busy(err: &anyhow::Error) -> bool {
    err.downcast_ref() == Some(&Errno::BUSY)
}

/// The mount that holds `path` must not be shared, or the root could not be pivoted (pivot_root(2)).
fn make_parent_private(path: &Path) -> Result<()> {
    let path = path.canonicalize()?;
    for above in path.ancestors() {
        match rustix::mount::mount_change(above, MountPropagationFlags::PRIVATE) {
            // No mount point.
            Err(Errno::INVAL) => (),
            other => return other.context("cannot make the rootfs' parent mount private"),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(options: &[&str]) -> Wanted {
        let json = serde_json::json!({"destination": "/x", "source": "/y", "options": options});
        Wanted::new(&serde_json::from_value(json).unwrap(), None).unwrap()
    }

    #[test]
    fn options_become_attributes() {
        use MountAttrFlags as Attr;
        for (options, attributes, times) in [
            (
                &["ro", "nosuid"][..],
                Attr::MOUNT_ATTR_RDONLY | Attr::MOUNT_ATTR_NOSUID,
                None,
            ),
            (&["ro", "rw", "noexec"], Attr::MOUNT_ATTR_NOEXEC, None),
            (
                &["nodev", "strictatime"],
                Attr::MOUNT_ATTR_NODEV,
                Some(Attr::MOUNT_ATTR_STRICTATIME),
            ),
            (
                &["noatime", "nodiratime"],
                Attr::MOUNT_ATTR_NODIRATIME,
                Some(Attr::MOUNT_ATTR_NOATIME),
            ),
            (
                &["relatime"],
                Attr::empty(),
                Some(Attr::MOUNT_ATTR_RELATIME),
            ),
            (&["nosymfollow"], Attr::MOUNT_ATTR_NOSYMFOLLOW, None),
        ] {
            let found = wanted(options);
            assert_eq!(
                (found.attributes(), found.access_times()),
                (attributes, times),
                "{options:?}"
            );
            assert!(found.options.data.is_empty(), "{options:?}");
        }
    }

    #[test]
    fn other_options_go_to_the_file_system() {
        let found = wanted(&["size=1k", "", "nr_inodes=2", "nosuid", "strange"]);
        assert_eq!(found.options.data, ["size=1k", "nr_inodes=2", "strange"]);
    }
}
