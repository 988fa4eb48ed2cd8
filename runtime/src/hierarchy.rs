//! Where cgroups lie: the hierarchies that are mounted, systemd's scopes, and the cgroup of a process.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Where cgroups are mounted.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";
/// linux/magic.h
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// The cgroup v1 controllers that are joined, by the name of the directory they are mounted on.
pub const V1_CONTROLLERS: [&str; 14] = [
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "hugetlb",
    "memory",
    "pids",
    "perf_event",
    "blkio",
    "net_prio",
    "net_cls",
    "freezer",
    "rdma",
    "misc",
];

/// True where cgroup v2 is mounted on /sys/fs/cgroup.
///
/// # Errors
/// If there is no cgroup file system at all.
pub fn is_unified() -> Result<bool> {
    let stat =
        rustix::fs::statfs(CGROUP_ROOT).with_context(|| format!("no cgroups at {CGROUP_ROOT}"))?;
    Ok(stat.f_type as u64 == CGROUP2_SUPER_MAGIC)
}

/// The hierarchies that are mounted, as controller (or name) and mount point.
pub fn v1_mounts() -> Result<Vec<(String, PathBuf)>> {
    let table = std::fs::read_to_string("/proc/self/mountinfo")
        .context("cannot read /proc/self/mountinfo")?;
    Ok(v1_mounts_of(&table))
}

/// Parses mountinfo (proc_pid_mountinfo(5)): the fifth field is the mount point, the type follows the ` - `.
fn v1_mounts_of(table: &str) -> Vec<(String, PathBuf)> {
    let mut mounts: Vec<(String, PathBuf)> = Vec::new();
    for line in table.lines() {
        let Some((left, right)) = line.split_once(" - ") else {
            continue;
        };
        let Some(mount) = left.split(' ').nth(4).map(Path::new) else {
            continue;
        };
        let names = mount
            .file_name()
            .and_then(|name| name.to_str())
            .unwrap_or_default();
        if right.split(' ').next() != Some("cgroup") || !mount.starts_with(CGROUP_ROOT) {
            continue;
        }
        let named = right
            .split([' ', ','])
            .any(|option| option.starts_with("name="));
        for name in names.split(',') {
            let known = mounts.iter().any(|(found, _)| found == name);
            if !known && (named || V1_CONTROLLERS.contains(&name)) {
                mounts.push((name.to_owned(), mount.to_path_buf()));
            }
        }
    }
    mounts
}

/// The path of the scope that systemd makes for `slice:prefix:name` (runc's form of cgroupsPath), below the root.
pub fn scope_path(path: &Path) -> Result<PathBuf> {
    let text = path.to_str().context("cgroupsPath is no UTF-8")?;
    let [slice, prefix, name] = text.split(':').collect::<Vec<_>>()[..] else {
        bail!(
            "expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, got {text:?} instead"
        );
    };
    let slice = if slice.is_empty() {
        "system.slice"
    } else {
        slice
    };
    let mut dir = PathBuf::new();
    if slice != "-.slice" {
        let stem = slice
            .strip_suffix(".slice")
            .context("the slice in cgroupsPath lacks .slice")?;
        // a-b.slice lies in a.slice (systemd.slice(5)).
        let ends = stem
            .match_indices('-')
            .map(|(at, _)| at)
            .chain([stem.len()]);
        dir.extend(ends.map(|end| format!("{}.slice", &stem[..end])));
    }
    dir.push(match (name.ends_with(".slice"), prefix) {
        (true, _) => name.to_owned(),
        (false, "") => format!("{name}.scope"),
        (false, prefix) => format!("{prefix}-{name}.scope"),
    });
    Ok(dir)
}

/// The cgroup in /proc/self/cgroup (cgroups(7)) of a controller whose hierarchy `path` lies in.
pub fn own_cgroup(table: &str, controller: &str, path: &Path) -> Option<PathBuf> {
    let hierarchy = path.strip_prefix(CGROUP_ROOT).ok()?.iter().next()?;
    table.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, below) = (fields.next()?, fields.next()?);
        let mut names = controllers.split(',');
        let found = names.any(|name| name.trim_start_matches("name=") == controller);
        let below = below.trim_start_matches('/');
        found.then(|| Path::new(CGROUP_ROOT).join(hierarchy).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_are_found() {
        let table = "25 1 0:22 / /proc rw - proc proc rw\n\
                     30 29 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
                     31 29 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
                     32 29 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                     33 29 0:28 / /mnt/memory rw - cgroup cgroup rw,memory\n\
                     34 29 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let mount = |name: &str, path: &str| (name.to_owned(), PathBuf::from(path));
        assert_eq!(
            v1_mounts_of(table),
            [
                mount("cpu", "/sys/fs/cgroup/cpu,cpuacct"),
                mount("cpuacct", "/sys/fs/cgroup/cpu,cpuacct"),
                mount("systemd", "/sys/fs/cgroup/systemd"),
                mount("memory", "/sys/fs/cgroup/memory"),
            ]
        );
    }

    #[test]
    fn scopes_lie_where_systemd_puts_them() {
        for (path, scope) in [
            ("system.slice:docker:abc", "system.slice/docker-abc.scope"),
            (":runc:abc", "system.slice/runc-abc.scope"),
            ("a-b-c.slice:x:y", "a.slice/a-b.slice/a-b-c.slice/x-y.scope"),
            ("-.slice:x:y", "x-y.scope"),
            ("user.slice::y", "user.slice/y.scope"),
        ] {
            assert_eq!(scope_path(Path::new(path)).unwrap(), Path::new(scope));
        }
        assert!(scope_path(Path::new("abc")).is_err());
    }

    #[test]
    fn the_callers_cgroups_are_found() {
        let table = "12:cpu,cpuacct:/user/a\n1:name=systemd:/user.slice\n0::/x\n";
        let own = |controller: &str, path: &str| own_cgroup(table, controller, Path::new(path));
        let cpu = own("cpuacct", "/sys/fs/cgroup/cpu,cpuacct/new");
        assert_eq!(
            cpu.as_deref(),
            Some(Path::new("/sys/fs/cgroup/cpu,cpuacct/user/a"))
        );
        let named = own("systemd", "/sys/fs/cgroup/systemd/new");
        assert_eq!(
            named.as_deref(),
            Some(Path::new("/sys/fs/cgroup/systemd/user.slice"))
        );
        assert_eq!(own("pids", "/sys/fs/cgroup/pids/new"), None);
    }
}
