//! What is kept of a container between two commands: `<root>/<id>/state.json`, written whole or not at all.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use chrono::{DateTime, Utc};
use oci_spec::runtime::Hook;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroups;
use crate::root::Root;
use crate::spawn::INIT_NAME;
use crate::sys;

/// Name of the state file in the state directory.
pub const STATE_FILE: &str = "state.json";
/// The configuration the container was built from, for `exec`: the bundle is not read again.
pub const CONFIG_FILE: &str = "config.json";
/// The socket on which a created container waits to be started.
pub const START_SOCKET: &str = "start.sock";

/// What is kept of a container.
#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Version of the OCI specification that the configuration names.
    pub oci_version: String,
    /// Container id.
    pub id: String,
    /// The init process, seen from the runtime's pid namespace.
    pub pid: i32,
    /// Start time of the init process (proc_pid_stat(5), field 22), so that a reused pid is not taken for it.
    pub pid_start: u64,
    /// `start` was called.
    pub started: bool,
    /// The bundle that the caller named, absolute.
    pub bundle: PathBuf,
    /// The root file system, absolute.
    pub rootfs: PathBuf,
    /// Time of creation.
    pub created: DateTime<Utc>,
    /// User who created the container.
    pub owner: u32,
    /// Annotations of the configuration.
    #[serde(default, skip_serializing_if = "HashMap::is_empty")]
    pub annotations: HashMap<String, String>,
    /// Its cgroups.
    pub cgroups: Cgroups,
    /// The container has a pid namespace of its own, so its processes end with the init process.
    pub own_pid_namespace: bool,
    /// A launch directory belongs to the container.
    pub launch: bool,
    /// Hooks to run after `start`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub poststart: Vec<Hook>,
    /// Hooks to run after `delete`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub poststop: Vec<Hook>,
    /// Directories of Intel's resource director to remove at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intel_rdt: Option<PathBuf>,
    /// Monitoring group of Intel's resource director to remove at the end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub intel_rdt_monitoring: Option<PathBuf>,
}

/// Status of a container, in runc's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// Built, its program not yet executed.
    Created,
    /// Its program runs.
    Running,
    /// Frozen.
    Paused,
    /// Its init process has ended.
    Stopped,
}

impl Status {
    /// The word that `state` prints.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// A container that has been created.
#[derive(Debug)]
pub struct Container {
    /// Its state directory.
    pub dir: PathBuf,
    /// What is kept of it.
    pub record: Record,
}

impl Container {
    /// Reads the state of container `id`.
    ///
    /// # Errors
    /// If there is no such container, or its state cannot be read.
    pub fn load(root: &Root, id: &str) -> Result<Self> {
        let dir = root.container(id)?;
        match Self::read(&dir)? {
            Some(container) => Ok(container),
            None => bail!("container does not exist"),
        }
    }

    /// Reads the state in a state directory; none if there is no state file.
    ///
    /// # Errors
    /// If the state cannot be read or understood.
    pub fn read(dir: &Path) -> Result<Option<Self>> {
        let file = dir.join(STATE_FILE);
        let bytes = match std::fs::read(&file) {
            Err(err) if err.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| format!("cannot read {}", file.display()))?,
        };
        let record = serde_json::from_slice(&bytes)
            .with_context(|| format!("cannot understand {}", file.display()))?;
        let dir = dir.to_path_buf();
        Ok(Some(Self { dir, record }))
    }

    /// Writes the state file in one step.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self) -> Result<()> {
        write_whole(
            &self.dir.join(STATE_FILE),
            &serde_json::to_vec(&self.record)?,
        )
    }

    /// The status now.
    pub fn status(&self) -> Status {
        let Some(init) = ProcessStat::of(self.record.pid) else {
            return Status::Stopped;
        };
        if init.start != self.record.pid_start || matches!(init.state, b'Z' | b'X') {
            return Status::Stopped;
        }
        // The name decides where `start` was killed between starting the process and noting it.
        if !self.record.started && init.name == INIT_NAME {
            return Status::Created;
        }
        if self.record.cgroups.is_frozen() {
            return Status::Paused;
        }
        Status::Running
    }

    /// A handle on the init process; none if it has ended.
    ///
    /// # Errors
    /// If the handle cannot be had for another reason than the end of the process.
    pub fn init(&self) -> Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.record.pid) else {
            return Ok(None);
        };
        let handle = match pidfd_open(pid, PidfdFlags::empty()) {
            Err(rustix::io::Errno::SRCH) => return Ok(None),
            other => other.context("cannot open the init process")?,
        };
        // Only now, with the handle held, does the start time tell which process it is.
        let same = ProcessStat::of(self.record.pid)
            .is_some_and(|stat| stat.start == self.record.pid_start);
        Ok(same.then_some(handle))
    }

    /// Kills every process of the container and waits for the init process.
    ///
    /// # Errors
    /// If the init process does not end.
    pub fn kill_and_wait(&self) -> Result<()> {
        let init = self.init()?;
        if let Some(init) = &init {
            match sys::pidfd_send_signal(init.as_fd(), libc::SIGKILL) {
                Err(err) if err.raw_os_error() == Some(libc::ESRCH) => (),
                other => other.context("cannot kill the init process")?,
            }
        }
        if !self.record.own_pid_namespace && self.record.cgroups.dirs.iter().all(|dir| !dir.existed)
        {
            self.record.cgroups.signal_all(libc::SIGKILL)?;
        }
        // A frozen process (cgroup v1) dies only once it is thawed.
        if self.record.cgroups.is_frozen() {
            self.record.cgroups.freeze(false)?;
        }
        match &init {
            Some(init) => wait_for_exit(init),
            None => Ok(()),
        }
    }

    /// The OCI state as hooks get it.
    pub fn oci_state(
        &self,
        status: libcontainer::container::ContainerStatus,
    ) -> libcontainer::container::State {
        let record = &self.record;
        let mut state = libcontainer::container::State::new(
            &record.id,
            status,
            Some(record.pid),
            record.bundle.clone(),
        );
        state.oci_version = record.oci_version.clone();
        state.annotations = Some(record.annotations.clone());
        state
    }
}

/// Waits until a process has ended, at most ten seconds, as runc.
fn wait_for_exit(process: &OwnedFd) -> Result<()> {
    let timeout = rustix::time::Timespec::try_from(Duration::from_secs(10))?;
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    if poll(&mut fds, Some(&timeout)).context("cannot wait for the init process")? == 0 {
        bail!("container init still running");
    }
    Ok(())
}

/// What /proc/<pid>/stat tells of a process.
#[derive(Debug, PartialEq, Eq)]
pub struct ProcessStat {
    /// Its name.
    pub name: String,
    /// Its state: `R`, `S`, `Z`, …
    pub state: u8,
    /// Its start time in clock ticks since boot.
    pub start: u64,
}

impl ProcessStat {
    /// Looks a process up; none if it is gone.
    pub fn of(pid: i32) -> Option<Self> {
        if pid <= 0 {
            return None;
        }
        Self::parse(&std::fs::read(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Parses a line of proc_pid_stat(5); the name is in parentheses and may hold any byte.
    fn parse(line: &[u8]) -> Option<Self> {
        let open = line.iter().position(|byte| *byte == b'(')?;
        let close = line.iter().rposition(|byte| *byte == b')')?;
        let name = String::from_utf8_lossy(line.get(open + 1..close)?).into_owned();
        let mut fields = std::str::from_utf8(line.get(close + 2..)?).ok()?.split(' ');
        let state = *fields.next()?.as_bytes().first()?;
        // Field 22 of the line; the state is field 3.
        let start = fields.nth(18)?.parse().ok()?;
        Some(Self { name, state, start })
    }
}

/// Writes a file so that it is there whole or not at all.
///
/// # Errors
/// If it cannot be written.
pub fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let write = || -> std::io::Result<()> {
        let flags =
            OFlags::CREATE | OFlags::WRONLY | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::open(&temporary, flags, Mode::from_raw_mode(0o644))?;
        let mut left = bytes;
        while !left.is_empty() {
            left = &left[rustix::io::write(&file, left)?..];
        }
        Ok(rustix::fs::renameat(CWD, &temporary, CWD, path)?)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_are_parsed() {
        let line =
            b"42 (a) b (c) S 1 42 42 0 -1 4194560 100 0 0 0 1 2 3 4 20 0 1 0 987654 1000 10\n";
        let stat = ProcessStat::parse(line).unwrap();
        assert_eq!(
            stat,
            ProcessStat {
                name: "a) b (c".into(),
                state: b'S',
                start: 987_654
            }
        );
        for bad in [&b""[..], b"42 (a", b"42 (a)", b"42 (a) S 1 2"] {
            assert_eq!(ProcessStat::parse(bad), None);
        }
    }

    #[test]
    fn own_process_is_found() {
        let own = ProcessStat::of(std::process::id() as i32).unwrap();
        assert!(own.start > 0);
        assert_eq!(ProcessStat::of(0), None);
    }

    #[test]
    fn files_are_replaced_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write_whole(&path, b"one").unwrap();
        write_whole(&path, b"two").unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
