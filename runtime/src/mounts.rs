//! What libcontainer 0.7 leaves undone with mounts, done around it (docs/libcontainer.md says what and why).
//!
//! Cgroup mounts (v1) are replaced by bind mounts of the container's own cgroups, which keep their options. The rest is
//! a step after the mounts and before the change of the root, which jail.rs calls.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use oci_spec::runtime::{Mount, MountBuilder, Spec};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountPropagationFlags, OpenTreeFlags};

use crate::cgroup::Cgroups;
use crate::tree;

/// linux/magic.h
const PROC_SUPER_MAGIC: u64 = 0x9fa0;

/// Where cgroup v1 hierarchies are mounted on the host.
const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// The step after the mounts.
#[derive(Debug, Default)]
pub struct Step {
    rootfs: PathBuf,
    /// tmpfs mounts that get what the image has in their place (runc's option `tmpcopyup`).
    copy_up: Vec<PathBuf>,
    /// Mounts with a propagation of their own, with the option that says which.
    propagation: Vec<(PathBuf, String)>,
    /// Mounts that become read-only once devices have been made in them.
    read_only: Vec<PathBuf>,
}

/// Rewrites the mounts of a specification; returns what is left to do after the mounts.
///
/// # Errors
/// If the root file system cannot be read.
pub fn adapt(spec: &mut Spec, cgroups: &Cgroups) -> Result<Step> {
    let rootfs = spec
        .root()
        .as_ref()
        .map(|root| root.path().clone())
        .unwrap_or_default();
    let mut step = Step {
        rootfs,
        ..Step::default()
    };
    let mut mounts = Vec::new();
    for mount in spec.mounts().iter().flatten() {
        check_proc(&step.rootfs, mount)?;
    }
    for mut mount in spec.mounts().clone().unwrap_or_default() {
        if mount.typ().as_deref() == Some("cgroup") && !cgroups.is_unified() {
            mounts.extend(cgroup_mounts(&mount, cgroups)?);
            continue;
        }
        step.take_over(&mut mount)?;
        mounts.push(mount);
    }
    spec.set_mounts(Some(mounts));
    step.prefer_private_root(spec);
    Ok(step)
}

impl Step {
    /// Takes the options from a mount that libcontainer does not handle.
    fn take_over(&mut self, mount: &mut Mount) -> Result<()> {
        let destination = mount.destination().clone();
        let is_tmpfs = mount.typ().as_deref() == Some("tmpfs");
        let mut options = mount.options().clone().unwrap_or_default();
        options.retain(|option| match option.as_str() {
            "tmpcopyup" if is_tmpfs => {
                self.copy_up.push(destination.clone());
                false
            }
            name if propagation_of(name).is_some() => {
                self.propagation
                    .push((destination.clone(), name.to_owned()));
                false
            }
            _ => true,
        });
        // A tmpfs has the mode of the directory below it, unless the options say otherwise (runc).
        if is_tmpfs
            && !options.iter().any(|option| option.starts_with("mode="))
            && let Some(mode) = mode_of(&self.rootfs, &destination)?
        {
            options.push(format!("mode={mode:o}"));
        }
        // libcontainer mounts /dev writable, for devices, and leaves it so.
        if destination == Path::new("/dev") && options.iter().any(|option| option == "ro") {
            self.read_only.push(destination);
        }
        mount.set_options(Some(options));
        Ok(())
    }

    /// Where nothing but private mounts is asked for, the whole tree can be private from the start, which saves the
    /// step: so it is with Docker's and containerd's ordinary containers.
    fn prefer_private_root(&mut self, spec: &mut Spec) {
        let is_private = |destination: &PathBuf| {
            let mut options = self.propagation.iter().filter(|(of, _)| of == destination);
            options
                .next()
                .is_some_and(|(_, name)| name.ends_with("private"))
                && options.next().is_none()
        };
        let mounts = spec.mounts().as_deref().unwrap_or_default();
        let all_private = mounts
            .iter()
            .filter(|mount| libcontainer::rootfs::utils::is_bind(mount) && !is_cgroup(mount))
            .all(|mount| is_private(mount.destination()))
            && self
                .propagation
                .iter()
                .all(|(_, name)| name.ends_with("private"));
        let Some(linux) = spec.linux_mut().as_mut().filter(|_| all_private) else {
            return;
        };
        match linux.rootfs_propagation().as_deref() {
            None | Some("private") => {
                linux.set_rootfs_propagation(Some("private".to_owned()));
                self.propagation.clear();
            }
            _ => (),
        }
    }

    /// Mounts that become read-only at the end, once devices and a terminal have been made in them.
    pub fn read_only(&self) -> &[PathBuf] {
        &self.read_only
    }

    /// Carries the step out, inside of the container's mount namespace.
    ///
    /// # Errors
    /// If any part of it fails.
    pub fn carry_out(&self, rootfs: &OwnedFd) -> Result<()> {
        for destination in &self.copy_up {
            copy_up(rootfs, destination).with_context(|| {
                format!("cannot copy up the content of {}", destination.display())
            })?;
        }
        for (destination, option) in &self.propagation {
            let (mount, flags) = (inside(rootfs, destination)?, propagation_of(option));
            rustix::mount::mount_change(
                handle_path(&mount),
                flags.unwrap_or(MountPropagationFlags::empty()),
            )
            .with_context(|| format!("cannot make {} {option}", destination.display()))?;
        }
        Ok(())
    }
}

fn is_cgroup(mount: &Mount) -> bool {
    mount
        .source()
        .as_deref()
        .is_some_and(|source| source.starts_with(CGROUP_ROOT))
}

/// Files of /proc that may be covered, as runc has it: LXCFS mounts there what a container is to see of the machine.
const COVERABLE: [&str; 11] = [
    "cpuinfo",
    "diskstats",
    "loadavg",
    "meminfo",
    "net/dev",
    "slabinfo",
    "stat",
    "swaps",
    "sys/crypto/fips_enabled",
    "sys/kernel/ns_last_pid",
    "uptime",
];

/// Refuses mounts that would put something else in the place of procfs, as runc does (CVE-2019-16884).
fn check_proc(rootfs: &Path, mount: &Mount) -> Result<()> {
    let place = resolved(rootfs, &Path::new("/").join(mount.destination()))?;
    let Ok(below) = place.strip_prefix("/proc") else {
        return Ok(());
    };
    let covers_proc = below.as_os_str().is_empty();
    let is_procfs = match (mount.typ().as_deref(), mount.source()) {
        (Some("proc"), _) => true,
        (_, Some(source)) if libcontainer::rootfs::utils::is_bind(mount) => {
            rustix::fs::statfs(source).is_ok_and(|stat| stat.f_type as u64 == PROC_SUPER_MAGIC)
        }
        _ => false,
    };
    let allowed = match covers_proc {
        true => is_procfs,
        false => COVERABLE.iter().any(|name| below == Path::new(name)),
    };
    ensure!(
        allowed,
        "{:?} cannot be mounted on {}: it is inside /proc",
        mount.source().as_deref().unwrap_or(Path::new("")),
        mount.destination().display()
    );
    Ok(())
}

/// Where a path of the container leads, by the links of its image. To choose names by, not to open: links may change.
///
/// # Errors
/// There are more links than the kernel would follow.
pub fn resolved(rootfs: &Path, path: &Path) -> Result<PathBuf> {
    use std::path::Component;
    /// The kernel's own limit (path_resolution(7)).
    const MAX_LINKS: usize = 40;
    let mut left: Vec<PathBuf> = vec![path.to_path_buf()];
    let mut found = PathBuf::from("/");
    let mut links = 0;
    while let Some(path) = left.pop() {
        let mut parts = path.components();
        let Some(part) = parts.next() else {
            continue;
        };
        left.push(parts.as_path().to_path_buf());
        match part {
            Component::RootDir => found = PathBuf::from("/"),
            Component::ParentDir => _ = found.pop(),
            Component::Normal(name) => {
                let below = found.strip_prefix("/").unwrap_or(&found).join(name);
                match std::fs::read_link(rootfs.join(below)) {
                    Ok(target) => {
                        links += 1;
                        ensure!(links <= MAX_LINKS, "{}: too many links", path.display());
                        left.push(target);
                    }
                    Err(_) => found.push(name),
                }
            }
            Component::CurDir | Component::Prefix(_) => (),
        }
    }
    Ok(found)
}

/// True for an option that is handled here or in idmap.rs, and never reaches libcontainer.
pub fn handles(option: &str) -> bool {
    propagation_of(option).is_some() || ["idmap", "ridmap", "tmpcopyup"].contains(&option)
}

/// The flags of a propagation option (mount(8)).
fn propagation_of(option: &str) -> Option<MountPropagationFlags> {
    let (recursive, name) = match option.strip_prefix('r') {
        Some(name) => (MountPropagationFlags::REC, name),
        None => (MountPropagationFlags::empty(), option),
    };
    let kind = match name {
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "private" => MountPropagationFlags::PRIVATE,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    Some(kind | recursive)
}

/// A tmpfs with a bind mount of each of the container's cgroups: what a cgroup mount amounts to. libcontainer makes the
/// same, but writable whatever the options say.
fn cgroup_mounts(mount: &Mount, cgroups: &Cgroups) -> Result<Vec<Mount>> {
    let mut options: Vec<String> = ["nosuid", "nodev", "noexec", "relatime"]
        .map(str::to_owned)
        .into();
    let base = MountBuilder::default()
        .destination(mount.destination())
        .typ("tmpfs")
        .source("tmpfs")
        .options([&options[..], &["mode=755".to_owned()]].concat())
        .build()?;
    if mount
        .options()
        .iter()
        .flatten()
        .any(|option| option == "ro")
    {
        options.push("ro".to_owned());
    }
    options.push("bind".to_owned());
    let mut mounts = vec![base];
    for dir in &cgroups.dirs {
        // The directory that the hierarchy is mounted on, as in cpu,cpuacct: also under its full name.
        let hierarchy = dir
            .path
            .strip_prefix(CGROUP_ROOT)
            .ok()
            .and_then(|path| path.iter().next());
        let Some(hierarchy) = hierarchy.and_then(|name| name.to_str()) else {
            continue;
        };
        for name in [hierarchy, dir.controller.as_str()] {
            let destination = mount.destination().join(name);
            if mounts
                .iter()
                .all(|known| known.destination() != &destination)
            {
                let bind = MountBuilder::default()
                    .destination(destination)
                    .typ("bind")
                    .source(dir.joined())
                    .options(options.clone());
                mounts.push(bind.build()?);
            }
        }
    }
    Ok(mounts)
}

/// The mode of a directory of the root file system; none if there is no such directory.
fn mode_of(rootfs: &Path, destination: &Path) -> Result<Option<u32>> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(rootfs, flags, Mode::empty())
        .with_context(|| format!("cannot open {}", rootfs.display()))?;
    match inside(&root, destination) {
        Ok(dir) => Ok(Some(rustix::fs::fstat(&dir)?.st_mode & 0o7777)),
        Err(_) => Ok(None),
    }
}

/// Opens a path of the container, without ever leaving its root.
fn inside(rootfs: &OwnedFd, path: &Path) -> rustix::io::Result<OwnedFd> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let relative = if relative.as_os_str().is_empty() {
        Path::new(".")
    } else {
        relative
    };
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(rootfs, relative, flags, Mode::empty(), resolve)
}

/// A path that leads to what a handle refers to, whatever happens to its name.
fn handle_path(handle: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", handle.as_raw_fd())
}

fn copy_up(rootfs: &OwnedFd, destination: &Path) -> Result<()> {
    // A clone of the root's mount alone: in it, the place of the tmpfs is not covered.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    let uncovered = rustix::mount::open_tree(rootfs, "", flags).context("open_tree")?;
    let source = match inside(&uncovered, destination) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    if FileType::from_raw_mode(rustix::fs::fstat(&source)?.st_mode) != FileType::Directory {
        return Ok(());
    }
    tree::copy(&reopen(&source)?, &reopen(&inside(rootfs, destination)?)?)
}

/// A readable handle on a directory that is held by its path only.
fn reopen(dir: &OwnedFd) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(dir, ".", flags, Mode::empty())?)
}

#[cfg(test)]
mod tests {
    use crate::cgroup::CgroupDir;

    use super::*;

    fn spec(rootfs: &Path, mounts: serde_json::Value) -> Spec {
        serde_json::from_value(serde_json::json!({
            "ociVersion": "1.0.2",
            "root": {"path": rootfs},
            "mounts": mounts,
            "linux": {},
        }))
        .unwrap()
    }

    fn v1() -> Cgroups {
        let dir = |controller: &str, path: &str| CgroupDir {
            controller: controller.to_owned(),
            path: path.into(),
            existed: false,
        };
        Cgroups {
            path: "/x".into(),
            systemd: false,
            dirs: vec![
                dir("cpu", "/sys/fs/cgroup/cpu,cpuacct/x"),
                dir("cpuacct", "/sys/fs/cgroup/cpu,cpuacct/x"),
                dir("memory", "/sys/fs/cgroup/memory/x"),
            ],
        }
    }

    #[test]
    fn cgroup_mounts_keep_their_options() {
        let dir = tempfile::tempdir().unwrap();
        let mounts = serde_json::json!([
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid"]},
        ]);
        let mut spec = spec(dir.path(), mounts);
        let step = adapt(&mut spec, &v1()).unwrap();
        let mounts = spec.mounts().clone().unwrap();
        let names: Vec<_> = mounts
            .iter()
            .map(|mount| mount.destination().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(
            names,
            [
                "/sys/fs/cgroup",
                "/sys/fs/cgroup/cpu,cpuacct",
                "/sys/fs/cgroup/cpu",
                "/sys/fs/cgroup/cpuacct",
                "/sys/fs/cgroup/memory",
            ]
        );
        for bind in &mounts[1..] {
            for option in ["ro", "nosuid", "nodev", "noexec", "bind"] {
                assert!(
                    bind.options()
                        .as_ref()
                        .unwrap()
                        .iter()
                        .any(|found| found == option),
                    "{option}"
                );
            }
        }
        assert!(step.propagation.is_empty() && step.read_only.is_empty());
    }

    #[test]
    fn private_mounts_need_no_step_and_others_do() {
        let dir = tempfile::tempdir().unwrap();
        let bind = |option: &str| serde_json::json!({"destination": "/a", "source": "/tmp", "options": ["rbind", option]});
        for (options, stepped, root) in [
            (vec!["rprivate"], false, Some("private")),
            (vec!["rprivate", "rslave"], true, None),
            (vec!["ro"], false, None),
            (vec!["rshared"], true, None),
        ] {
            let mounts: Vec<_> = options
                .iter()
                .enumerate()
                .map(|(at, option)| {
                    let mut mount = bind(option);
                    mount["destination"] = format!("/m{at}").into();
                    mount
                })
                .collect();
            let mut spec = spec(dir.path(), mounts.into());
            let step = adapt(&mut spec, &v1()).unwrap();
            assert_eq!(!step.propagation.is_empty(), stepped, "{options:?}");
            let propagation = spec.linux().as_ref().unwrap().rootfs_propagation().clone();
            assert_eq!(propagation.as_deref(), root, "{options:?}");
        }
    }

    #[test]
    fn a_tmpfs_takes_the_mode_of_its_place() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("t")).unwrap();
        std::fs::set_permissions(dir.path().join("t"), PermissionsExt::from_mode(0o1770)).unwrap();
        let mounts = serde_json::json!([{"destination": "/t", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}]);
        let mut spec = spec(dir.path(), mounts);
        let step = adapt(&mut spec, &v1()).unwrap();
        assert_eq!(
            spec.mounts().as_ref().unwrap()[0]
                .options()
                .clone()
                .unwrap(),
            ["mode=1770"]
        );
        assert_eq!(step.copy_up, [Path::new("/t")]);
    }

    #[test]
    fn nothing_but_procfs_is_mounted_on_proc() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("proc")).unwrap();
        std::os::unix::fs::symlink("/proc/self", dir.path().join("link")).unwrap();
        for (destination, kind, source, allowed) in [
            ("/proc", "proc", "proc", true),
            ("/proc/", "bind", "/proc", true),
            ("/proc", "bind", "/tmp", false),
            ("/proc", "tmpfs", "tmpfs", false),
            ("/proc/cpuinfo", "bind", "/tmp/x", true),
            ("/proc/self/attr", "bind", "/tmp", false),
            ("/sys/../proc//sys", "tmpfs", "tmpfs", false),
            ("/link/attr", "tmpfs", "tmpfs", false),
            ("/procession", "tmpfs", "tmpfs", true),
        ] {
            let options = if kind == "bind" { vec!["bind"] } else { vec![] };
            let mount = serde_json::json!({"destination": destination, "type": kind, "source": source, "options": options});
            let mount: Mount = serde_json::from_value(mount).unwrap();
            assert_eq!(
                check_proc(dir.path(), &mount).is_ok(),
                allowed,
                "{destination} {kind} {source}"
            );
        }
    }

    #[test]
    fn the_root_is_never_left() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/../../etc", dir.path().join("out")).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(dir.path(), flags, Mode::empty()).unwrap();
        assert!(inside(&root, Path::new("/out/passwd")).is_err());
        assert!(inside(&root, Path::new("/")).is_ok());
    }
}
