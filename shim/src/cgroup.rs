//! Where a container's cgroups are, on either version.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The mount point of the unified hierarchy, and of all others below it.
const ROOT: &str = "/sys/fs/cgroup";

/// The cgroups of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cgroups {
    /// Version 1: a directory for each controller.
    Legacy(HashMap<String, PathBuf>),
    /// Version 2.
    Unified(PathBuf),
}

impl Cgroups {
    /// Those of a process that has not ended.
    ///
    /// # Errors
    /// The process is not there, or in no cgroup that is mounted.
    pub fn of(pid: i32) -> Result<Self> {
        let membership = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))
            .with_context(|| format!("cannot find the cgroup of process {pid}"))?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        Self::find(&membership, &mounts).context("the container's cgroup is not mounted")
    }

    fn find(membership: &str, mounts: &str) -> Option<Self> {
        let mut controllers = HashMap::new();
        let mut unified = None;
        // Number, controllers, path.
        for line in membership.lines() {
            let mut fields = line.splitn(3, ':').skip(1);
            let (names, path) = (fields.next()?, fields.next()?);
            if names.is_empty() {
                unified = Some(path);
            }
            for name in names.split(',').filter(|name| !name.is_empty()) {
                controllers.insert(name, path);
            }
        }
        let mut found = HashMap::new();
        for line in mounts.lines() {
            // See proc(5): ID, parent, device, root, mount point, …, -, type, source, options.
            let (front, back) = line.split_once(" - ")?;
            let mut front = front.split(' ').skip(3);
            let (root, point) = (front.next()?, front.next()?);
            let mut back = back.split(' ');
            let (kind, options) = (back.next()?, back.nth(1)?);
            let below = |path: &str| {
                let inner = Path::new(path).strip_prefix(root).ok()?;
                Some(Path::new(point).join(inner))
            };
            match kind {
                "cgroup" => {
                    for name in options.split(',') {
                        let path = controllers.get(name).and_then(|path| below(path));
                        if let Some(path) = path {
                            found.entry(name.to_owned()).or_insert(path);
                        }
                    }
                }
                "cgroup2" if point == ROOT => return unified.and_then(below).map(Self::Unified),
                _ => (),
            }
        }
        (!found.is_empty()).then_some(Self::Legacy(found))
    }

    /// The directory of a controller.
    pub fn dir(&self, controller: &str) -> Option<&Path> {
        match self {
            Self::Legacy(found) => found.get(controller).map(PathBuf::as_path),
            Self::Unified(path) => Some(path),
        }
    }
}

/// Moves a process into an existing cgroup, in every hierarchy.
///
/// # Errors
/// The cgroup is in no hierarchy, or does not take the process.
pub fn join(pid: i32, path: &str) -> Result<()> {
    let place = || format!("cannot move the shim into the cgroup {path}");
    let inner = path.trim_start_matches('/');
    let mut moved = false;
    let below = std::fs::read_dir(ROOT).with_context(place)?;
    let hierarchies = below.flatten().map(|entry| entry.path());
    for hierarchy in hierarchies.chain([PathBuf::from(ROOT)]) {
        let file = hierarchy.join(inner).join("cgroup.procs");
        if file.exists() {
            std::fs::write(file, pid.to_string()).with_context(place)?;
            moved = true;
        }
    }
    anyhow::ensure!(moved, "{}: there is no such cgroup", place());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cgroups_of_both_versions_are_found() {
        let legacy = "3:cpu,cpuacct:/box\n2:memory:/docker/x/box\n1:name=systemd:/s\n0::/u\n";
        let mounts = "1 2 0:3 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                      1 2 0:3 / /sys/fs/cgroup/cpu,cpuacct rw shared:1 - cgroup cgroup rw,cpu,cpuacct\n\
                      1 2 0:3 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n";
        let found = Cgroups::find(legacy, mounts).unwrap();
        let dir = |name| found.dir(name).unwrap().to_str().unwrap().to_owned();
        assert_eq!(dir("cpu"), "/sys/fs/cgroup/cpu,cpuacct/box");
        assert_eq!(dir("memory"), "/sys/fs/cgroup/memory/box");
        assert_eq!(found.dir("pids"), None);
        let mounts = "1 2 0:3 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(
            Cgroups::find("0::/a/b\n", mounts),
            Some(Cgroups::Unified("/sys/fs/cgroup/a/b".into()))
        );
        assert_eq!(Cgroups::find("0::/a\n", ""), None);
    }
}
