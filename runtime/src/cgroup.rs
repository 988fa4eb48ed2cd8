//! The cgroup directories of a container, found once when it is created and kept in its state.
//!
//! libcgroups makes them and sets the limits. Freezing, listing and removing need no more than the paths, so the
//! commands that come later read neither mount table nor specification.

use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::LinuxResources;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::hierarchy::{
    CGROUP_ROOT, V1_CONTROLLERS, is_unified, own_cgroup, scope_path, v1_mounts,
};
use crate::{root, sys};

/// The limit of swap alone, with v2.
const SWAP_MAX: &str = "memory.swap.max";

/// How long processes may take to leave a cgroup after they were killed.
const REMOVAL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the freezer may take.
const FREEZE_TIMEOUT: Duration = Duration::from_secs(2);

/// The cgroups of one container.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Cgroups {
    /// What the specification calls `cgroupsPath`, or the default; libcgroups works from this.
    pub path: PathBuf,
    /// A systemd scope holds the cgroup.
    pub systemd: bool,
    /// One directory a controller with cgroup v1, one directory with v2.
    pub dirs: Vec<CgroupDir>,
}

/// One directory of a cgroup hierarchy.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CgroupDir {
    /// Name of the v1 controller, empty for v2.
    pub controller: String,
    /// Absolute path.
    pub path: PathBuf,
    /// The directory was there before the container: what is in it may be somebody else's.
    pub existed: bool,
}

impl Cgroups {
    /// Finds the directories that the container's cgroup has, or will have.
    ///
    /// # Errors
    /// If the mount table cannot be read or the path names a parent directory.
    pub fn locate(path: &Path, systemd: bool) -> Result<Self> {
        if path
            .components()
            .any(|part| part == std::path::Component::ParentDir)
        {
            bail!("cgroupsPath {} leads upwards", path.display());
        }
        let relative = path.strip_prefix("/").unwrap_or(path);
        let dirs = if is_unified()? {
            let dir = match systemd && path.is_relative() {
                true => scope_path(path)?,
                false => relative.to_path_buf(),
            };
            vec![CgroupDir::new("", Path::new(CGROUP_ROOT).join(dir))]
        } else {
            v1_mounts()?
                .into_iter()
                .map(|(controller, mount)| CgroupDir::new(&controller, mount.join(relative)))
                .collect()
        };
        Ok(Self {
            path: path.to_path_buf(),
            systemd,
            dirs,
        })
    }

    /// The form in which libcgroups takes it.
    pub fn config(&self, id: &str) -> libcgroups::common::CgroupConfig {
        libcgroups::common::CgroupConfig {
            cgroup_path: self.path.clone(),
            systemd_cgroup: self.systemd,
            container_name: id.to_owned(),
        }
    }

    /// The existing cgroup `path` below this one, in the hierarchy of `controller` (v1) or in all; without a path, this one.
    ///
    /// # Errors
    /// If there is no such controller.
    pub fn below(&self, controller: Option<&str>, path: &Path) -> Result<Self> {
        // Joining an empty path would append a slash.
        let join = |dir: &Path| match path.as_os_str().is_empty() {
            true => dir.to_path_buf(),
            false => dir.join(path),
        };
        if let Some(name) = controller
            && !self.dirs.iter().any(|dir| dir.controller == name)
        {
            bail!(
                "unknown controller {name} in sub-cgroup {name}:{}",
                path.display()
            );
        }
        let dirs = self.dirs.iter().map(|dir| CgroupDir {
            controller: dir.controller.clone(),
            path: match controller.is_none_or(|name| name == dir.controller) {
                true => join(&dir.path),
                false => dir.path.clone(),
            },
            existed: true,
        });
        Ok(Self {
            path: join(&self.path),
            systemd: self.systemd,
            dirs: dirs.collect(),
        })
    }

    /// Puts the calling thread, which must be the only one of its process, into the cgroup; directories that are missing
    /// are made.
    ///
    /// # Errors
    /// If a directory cannot be made or joined. An ordinary user who may not is left where it is, as runc does; the
    /// directory is missing then for all who come later.
    pub fn join(&self) -> Result<()> {
        for dir in &self.dirs {
            match dir.join() {
                Err(err) if is_denied(&err) && (dir.is_named() || root::is_ordinary()) => (),
                Err(err) if err.kind() == io::ErrorKind::NotFound && root::is_ordinary() => (),
                other => {
                    other.with_context(|| format!("cannot join cgroup {}", dir.path.display()))?
                }
            }
        }
        Ok(())
    }

    /// The directory of a v1 controller, or the only directory with v2.
    pub fn dir(&self, controller: &str) -> Option<&Path> {
        let found = |dir: &&CgroupDir| dir.controller == controller || dir.controller.is_empty();
        self.dirs.iter().find(found).map(|dir| dir.path.as_path())
    }

    /// True where systemd makes the cgroup (only with v2).
    pub fn is_scope(&self) -> bool {
        self.systemd && self.is_unified() && !self.path.is_absolute()
    }

    /// True with cgroup v2.
    pub fn is_unified(&self) -> bool {
        self.dirs.iter().all(|dir| dir.controller.is_empty())
    }

    /// True if there is a directory of it.
    pub fn exist(&self) -> bool {
        self.dirs
            .iter()
            .any(|dir| dir.path.is_dir() && !dir.existed)
            || self.dirs.iter().all(|dir| dir.path.is_dir())
    }

    /// The limits with what libcgroups would leave out: with v2 it takes "no swap beyond the memory" for no limit.
    pub fn completed(&self, resources: &LinuxResources) -> LinuxResources {
        let mut resources = resources.clone();
        let no_swap = resources.memory().as_ref().is_some_and(|memory| {
            memory.limit().is_some_and(|limit| limit > 0) && memory.limit() == memory.swap()
        });
        // Absent where the kernel does not account for swap.
        let present = |dir: &CgroupDir| dir.path.join(SWAP_MAX).exists();
        if no_swap && self.is_unified() && self.dirs.first().is_some_and(present) {
            let mut unified = resources.unified().clone().unwrap_or_default();
            unified.entry(SWAP_MAX.into()).or_insert("0".into());
            resources.set_unified(Some(unified));
        }
        resources
    }

    /// The processes in the cgroup and below it.
    ///
    /// # Errors
    /// If the cgroup exists but cannot be read.
    pub fn pids(&self) -> io::Result<Vec<i32>> {
        let mut pids = Vec::new();
        if let Some(dir) = self
            .dir("devices")
            .or_else(|| self.dirs.first().map(|dir| dir.path.as_path()))
        {
            collect_pids(dir, &mut pids)?;
        }
        Ok(pids)
    }

    /// True if the cgroup is frozen.
    pub fn is_frozen(&self) -> bool {
        let Some(dir) = self.dir("freezer") else {
            return false;
        };
        match self.is_unified() {
            true => std::fs::read_to_string(dir.join("cgroup.freeze"))
                .is_ok_and(|state| state.trim() == "1"),
            false => std::fs::read_to_string(dir.join("freezer.state"))
                .is_ok_and(|state| state.trim() != "THAWED"),
        }
    }

    /// Freezes or thaws the processes and waits until it is done.
    ///
    /// # Errors
    /// If there is no freezer, or it does not get done in time (then the cgroup is thawed again).
    pub fn freeze(&self, frozen: bool) -> Result<()> {
        let dir = self
            .dir("freezer")
            .context("the freezer cgroup is not available")?;
        if self.is_unified() {
            self.freeze_v2(dir, frozen)
        } else {
            self.freeze_v1(dir, frozen)
        }
    }

    fn freeze_v1(&self, dir: &Path, frozen: bool) -> Result<()> {
        let file = dir.join("freezer.state");
        let wanted = if frozen { "FROZEN" } else { "THAWED" };
        let end = Instant::now() + FREEZE_TIMEOUT;
        loop {
            // Written again in each round: a process that forks meanwhile keeps the state at FREEZING.
            std::fs::write(&file, wanted)
                .with_context(|| format!("cannot write {}", file.display()))?;
            if std::fs::read_to_string(&file)?.trim() == wanted {
                return Ok(());
            }
            if Instant::now() > end {
                std::fs::write(&file, "THAWED")?;
                bail!(
                    "unable to freeze: {} does not become {wanted}",
                    file.display()
                );
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn freeze_v2(&self, dir: &Path, frozen: bool) -> Result<()> {
        let file = dir.join("cgroup.freeze");
        std::fs::write(&file, if frozen { "1" } else { "0" })
            .with_context(|| format!("cannot write {}", file.display()))?;
        let wanted = if frozen { "frozen 1" } else { "frozen 0" };
        let events = dir.join("cgroup.events");
        let end = Instant::now() + FREEZE_TIMEOUT;
        while !std::fs::read_to_string(&events)?
            .lines()
            .any(|line| line == wanted)
        {
            if Instant::now() > end {
                bail!(
                    "unable to freeze: {} does not say {wanted:?}",
                    events.display()
                );
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    /// Sends a signal to every process of the cgroup.
    ///
    /// # Errors
    /// If the cgroup cannot be read, or a process may not be signalled.
    pub fn signal_all(&self, signal: i32) -> io::Result<()> {
        for pid in self.pids()? {
            match sys::kill(pid, signal) {
                Err(err) if err.raw_os_error() == Some(libc::ESRCH) => (),
                other => other?,
            }
        }
        Ok(())
    }

    /// Removes the cgroup with all below it; processes that still are in there are killed, unless the cgroup was there
    /// before the container.
    ///
    /// # Errors
    /// If a directory stays busy.
    pub fn remove(&self, id: &str) -> Result<()> {
        if self.is_scope() {
            use libcgroups::common::CgroupManager;
            let manager = libcgroups::common::create_cgroup_manager(self.config(id))?;
            return Ok(manager.remove()?);
        }
        let end = Instant::now() + REMOVAL_TIMEOUT;
        for dir in &self.dirs {
            let mut pause = Duration::from_micros(200);
            while let Err(err) = remove_tree(&dir.path, !dir.existed) {
                if dir.existed {
                    break;
                }
                if err != Errno::BUSY || Instant::now() > end {
                    bail!("cannot remove cgroup {}: {err}", dir.path.display());
                }
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
        }
        Ok(())
    }
}

impl CgroupDir {
    /// The hierarchy has no controller but a name, as systemd's own.
    fn is_named(&self) -> bool {
        !self.controller.is_empty() && !V1_CONTROLLERS.contains(&self.controller.as_str())
    }

    /// The directory that the container will be in: this one, or where the caller is, if that is an ordinary user who may
    /// not make this one (see [`Cgroups::join`]).
    pub fn joined(&self) -> PathBuf {
        let mut above = self.path.ancestors().filter(|dir| dir.is_dir());
        let writable = |dir: &Path| rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).is_ok();
        if !root::is_ordinary() || above.next().is_some_and(writable) {
            return self.path.clone();
        }
        let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        match own_cgroup(&own, &self.controller, &self.path) {
            Some(dir) if dir.is_dir() => dir,
            _ => self.path.clone(),
        }
    }

    fn join(&self) -> io::Result<()> {
        if self.controller.is_empty() {
            if !self.existed {
                make_unified(&self.path)?;
            }
            return std::fs::write(self.path.join("cgroup.procs"), "0");
        }
        if !self.existed {
            std::fs::create_dir_all(&self.path)?;
        }
        if self.controller == "cpuset" {
            inherit_cpuset(&self.path)?;
        }
        // Through `tasks`, a thread that moves itself waits for nobody (cgroup_procs_write_start in the kernel).
        std::fs::write(self.path.join("tasks"), "0")
    }

    fn new(controller: &str, path: PathBuf) -> Self {
        let existed = path.exists();
        Self {
            controller: controller.to_owned(),
            path,
            existed,
        }
    }
}

/// True if there is a limit in it, rules for devices aside.
pub fn names_a_limit(resources: &LinuxResources) -> bool {
    fn holds_something(value: &serde_json::Value) -> bool {
        match value {
            serde_json::Value::Null => false,
            serde_json::Value::Array(list) => list.iter().any(holds_something),
            serde_json::Value::Object(map) => map.values().any(holds_something),
            _ => true,
        }
    }
    let mut resources = resources.clone();
    resources.set_devices(None);
    serde_json::to_value(resources).is_ok_and(|json| holds_something(&json))
}

fn is_denied(err: &io::Error) -> bool {
    matches!(
        err.raw_os_error(),
        Some(libc::EACCES | libc::EPERM | libc::EROFS)
    )
}

/// Makes a cgroup (v2) with those above it, in which all controllers are handed down.
fn make_unified(dir: &Path) -> io::Result<()> {
    let below_root = dir
        .strip_prefix(CGROUP_ROOT)
        .map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut above = PathBuf::from(CGROUP_ROOT);
    for name in below_root {
        let controllers = std::fs::read_to_string(above.join("cgroup.controllers"))?;
        let control = above.join("cgroup.subtree_control");
        let all: Vec<_> = controllers
            .split_whitespace()
            .map(|name| format!("+{name}"))
            .collect();
        if std::fs::write(&control, all.join(" ")).is_err() {
            // One that cannot be handed down must not keep the others from it; a limit that lacks its controller fails
            // later, by name.
            for one in all {
                let _ = std::fs::write(&control, one);
            }
        }
        above.push(name);
        match std::fs::create_dir(&above) {
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => (),
            other => other?,
        }
    }
    Ok(())
}

/// A new cpuset is empty and takes no process before it has processors and memory: those of the one above it.
fn inherit_cpuset(dir: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if !std::fs::read_to_string(dir.join(file))?.trim().is_empty() {
            continue;
        }
        let above = dir.parent().ok_or(io::ErrorKind::NotFound)?;
        inherit_cpuset(above)?;
        std::fs::write(dir.join(file), std::fs::read_to_string(above.join(file))?)?;
    }
    Ok(())
}

fn collect_pids(dir: &Path, pids: &mut Vec<i32>) -> io::Result<()> {
    let text = match std::fs::read_to_string(dir.join("cgroup.procs")) {
        Err(err) if matches!(err.raw_os_error(), Some(libc::ENOENT | libc::ENODEV)) => {
            return Ok(());
        }
        other => other?,
    };
    pids.extend(
        text.lines()
            .filter_map(|line| line.parse::<i32>().ok())
            .filter(|pid| *pid > 0),
    );
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect_pids(&entry.path(), pids)?;
        }
    }
    Ok(())
}

/// Removes a cgroup and the cgroups in it; `EBUSY` while processes are in there.
fn remove_tree(dir: &Path, kill: bool) -> Result<(), Errno> {
    match rustix::fs::rmdir(dir) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::BUSY | Errno::NOTEMPTY) => (),
        Err(err) => return Err(err),
    }
    if kill {
        let mut pids = Vec::new();
        collect_pids(dir, &mut pids).map_err(|_| Errno::BUSY)?;
        for pid in pids
            .into_iter()
            .filter(|pid| *pid != std::process::id() as i32)
        {
            // Whoever is gone already is what we want; anybody else keeps the cgroup busy, which is told.
            let _ = sys::kill(pid, libc::SIGKILL);
        }
    }
    if let Ok(entries) = std::fs::read_dir(dir) {
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_tree(&entry.path(), kill)?;
            }
        }
    }
    match rustix::fs::rmdir(dir) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(err) => Err(err),
    }
}

/// Makes a directory that only its owner may enter, with the directories above it.
///
/// # Errors
/// As mkdir(2).
pub fn make_private_dir(path: &Path) -> io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_told_from_rules_for_devices() {
        for (resources, limited) in [
            (serde_json::json!({}), false),
            (
                serde_json::json!({"devices": [{"allow": false, "access": "rwm"}], "memory": {}}),
                false,
            ),
            (serde_json::json!({"pids": {"limit": 5}}), true),
            (serde_json::json!({"memory": {"limit": 5}}), true),
        ] {
            let parsed: LinuxResources = serde_json::from_value(resources.clone()).unwrap();
            assert_eq!(names_a_limit(&parsed), limited, "{resources}");
        }
    }

    #[test]
    fn paths_upwards_are_refused() {
        assert!(Cgroups::locate(Path::new("/a/../../b"), false).is_err());
    }
}
