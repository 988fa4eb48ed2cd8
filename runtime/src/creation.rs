//! A container id is claimed before anything of the container exists, and what a killed `create` left is cleaned.
//!
//! The claim is the state directory with the file `creating` in it, which the creating process locks (a POSIX record
//! lock: it belongs to that process alone and vanishes with it) and in which it notes what it is about to make. So a
//! directory whose `creating` is unlocked was left by a killed process. Its child processes, which may wait for ever,
//! have the file open and are found by that. `state.json` ends the creation.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid,
};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroups;
use crate::root::Root;
use crate::spawn::{INIT_NAME, STAGE_NAME};
use crate::state::STATE_FILE;
use crate::{launch, log};

/// Name of the claim's file in the state directory.
const CREATING_FILE: &str = "creating";

/// Names that the processes of a creation have before they execute the container's program.
const CREATION_NAMES: [&str; 3] = ["trustme", STAGE_NAME, INIT_NAME];

/// What is about to be made, outside of the state directory.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Journal {
    /// Cgroups.
    pub cgroups: Cgroups,
    /// The file that the caller wants the pid in.
    pub pid_file: Option<PathBuf>,
    /// The launch directory.
    pub launch: Option<PathBuf>,
}

/// A container that is being created. Dropped before [`Creation::finish`], everything made so far is removed.
#[derive(Debug)]
pub struct Creation {
    root: Root,
    id: String,
    dir: PathBuf,
    file: File,
    journal: Journal,
    finished: bool,
}

/// What a state directory without a state is.
#[derive(Debug)]
enum Found {
    /// A container that exists or is being created.
    InUse,
    /// Remains of a killed `create` or `delete`, with the file of the claim if there is one.
    Remains(Option<File>),
}

impl Creation {
    /// Claims the id.
    ///
    /// # Errors
    /// If a container of that id exists or is being created, or the state directory cannot be made.
    pub fn begin(root: &Root, id: &str) -> Result<Self> {
        let dir = root.container(id)?;
        root.ensure()?;
        let _root_lock = lock_root(root)?;
        if let Err(err) = rustix::fs::mkdir(&dir, Mode::RWXU) {
            if err != Errno::EXIST {
                return Err(err).with_context(|| format!("cannot create {}", dir.display()));
            }
            match inspect(&dir)? {
                Found::InUse => bail!("container with given ID already exists"),
                Found::Remains(claim) => clean(id, &dir, claim)?,
            }
            rustix::fs::mkdir(&dir, Mode::RWXU)
                .with_context(|| format!("cannot create {}", dir.display()))?;
        }
        let path = dir.join(CREATING_FILE);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
        let file = rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
            .with_context(|| format!("cannot create {}", path.display()))?;
        rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive)
            .with_context(|| format!("cannot lock {}", path.display()))?;
        Ok(Self {
            root: root.clone(),
            id: id.to_owned(),
            dir,
            file: File::from(file),
            journal: Journal::default(),
            finished: false,
        })
    }

    /// The state directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Notes what is about to be made, so that it is found should this process be killed.
    ///
    /// # Errors
    /// If the note cannot be written.
    pub fn note(&mut self, journal: Journal) -> Result<()> {
        self.journal = journal;
        let bytes = serde_json::to_vec(&self.journal)?;
        self.file.set_len(0)?;
        rustix::fs::seek(&self.file, rustix::fs::SeekFrom::Start(0))?;
        self.file
            .write_all(&bytes)
            .context("cannot note what is being created")
    }

    /// Ends the creation: the state has been written.
    ///
    /// # Errors
    /// If the claim's file cannot be removed.
    pub fn finish(mut self) -> Result<()> {
        self.finished = true;
        std::fs::remove_file(self.dir.join(CREATING_FILE)).context("cannot end the creation")
    }
}

impl Drop for Creation {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        // Not by a clone of the file: closing any descriptor of it gives the lock up (fcntl_locking(2)).
        let cleaned = remove_all(&self.id, Some(&self.file), &self.journal)
            .and_then(|()| remove_state_dir(&self.root, &self.dir));
        if let Err(err) = cleaned {
            log::warning(&format!(
                "cannot clean up after the failed creation of {}: {err:#}",
                self.id
            ));
        }
    }
}

/// True if `dir` holds remains of a killed `create` or `delete`.
///
/// # Errors
/// If that cannot be found out.
pub fn is_left_over(root: &Root, dir: &Path) -> Result<bool> {
    let _root_lock = lock_root(root)?;
    Ok(dir.exists() && matches!(inspect(dir)?, Found::Remains(_)))
}

/// Cleans what a killed `create` or `delete` of this id left; false if there is nothing of that kind.
///
/// # Errors
/// If a container of that id is being created, or something cannot be removed.
pub fn clean_left_over(root: &Root, id: &str) -> Result<bool> {
    let dir = root.container(id)?;
    if !root.path().is_dir() {
        return Ok(false);
    }
    let _root_lock = lock_root(root)?;
    if dir.is_dir() {
        match inspect(&dir)? {
            Found::InUse => bail!("container {id} is being created"),
            Found::Remains(claim) => clean(id, &dir, claim)?,
        }
        return Ok(true);
    }
    let launch = root.launch(id);
    let left = launch.is_dir();
    if left {
        launch::release(&launch)?;
    }
    Ok(left)
}

/// Held while a state directory is made or judged, so that a directory without a claim is never a living process'.
fn lock_root(root: &Root) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let dir = rustix::fs::open(root.path(), flags, Mode::empty())
        .with_context(|| format!("cannot open the root directory {}", root.path().display()))?;
    rustix::fs::flock(&dir, FlockOperation::LockExclusive)?;
    Ok(dir)
}

fn inspect(dir: &Path) -> Result<Found> {
    // Looked for last: a creation that ends meanwhile, which takes no lock of the root, writes it before the claim goes.
    let has_state = || dir.join(STATE_FILE).exists();
    let path = dir.join(CREATING_FILE);
    let file = match rustix::fs::open(&path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::NOENT) if has_state() => return Ok(Found::InUse),
        Err(Errno::NOENT) => return Ok(Found::Remains(None)),
        other => other.with_context(|| format!("cannot open {}", path.display()))?,
    };
    match rustix::fs::fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) if has_state() => Ok(Found::InUse),
        Ok(()) => Ok(Found::Remains(Some(File::from(file)))),
        Err(Errno::AGAIN | Errno::ACCESS) => Ok(Found::InUse),
        Err(err) => Err(err).with_context(|| format!("cannot lock {}", path.display())),
    }
}

fn clean(id: &str, dir: &Path, claim: Option<File>) -> Result<()> {
    let mut journal = Journal::default();
    if let Some(mut claim) = claim.as_ref() {
        let mut bytes = Vec::new();
        claim.read_to_end(&mut bytes)?;
        // A note that was being written when the process was killed: nothing had been made by then.
        journal = serde_json::from_slice(&bytes).unwrap_or_default();
    }
    remove_all(id, claim.as_ref(), &journal)
        .and_then(|()| remove_files(dir))
        .with_context(|| format!("cannot clean what was left of container {id}"))
}

/// Removes what was made for a container that does not get created, outside of its state directory.
fn remove_all(id: &str, claim: Option<&File>, journal: &Journal) -> Result<()> {
    if let Some(claim) = claim {
        kill_processes_of(claim)?;
    }
    journal.cgroups.remove(id)?;
    if let Some(launch) = &journal.launch {
        launch::release(launch)?;
    }
    if let Some(pid_file) = &journal.pid_file {
        match std::fs::remove_file(pid_file) {
            Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
                return Err(err).with_context(|| format!("cannot remove {}", pid_file.display()));
            }
            _ => (),
        }
    }
    Ok(())
}

/// Removes a state directory, so that nobody takes what is about to go for remains.
///
/// # Errors
/// If something in it cannot be removed.
pub fn remove_state_dir(root: &Root, dir: &Path) -> Result<()> {
    let _root_lock = lock_root(root)?;
    remove_files(dir)
}

/// Removes a state directory, the state last: what a kill leaves in between is known for what it is. The root directory
/// has to be locked.
fn remove_files(dir: &Path) -> Result<()> {
    let remove = || -> std::io::Result<()> {
        for entry in std::fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            } else if entry.file_name() != STATE_FILE && entry.file_name() != CREATING_FILE {
                std::fs::remove_file(entry.path())?;
            }
        }
        for last in [STATE_FILE, CREATING_FILE] {
            match std::fs::remove_file(dir.join(last)) {
                Err(err) if err.kind() != std::io::ErrorKind::NotFound => return Err(err),
                _ => (),
            }
        }
        std::fs::remove_dir(dir)
    };
    match remove() {
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other.with_context(|| format!("cannot remove {}", dir.display())),
    }
}

/// Kills the processes of an unfinished creation: those that have the claim's file open.
fn kill_processes_of(claim: &File) -> Result<()> {
    let wanted = claim.metadata()?;
    let own = std::process::id() as i32;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        if pid == own || !is_creating(&entry.path(), &wanted) {
            continue;
        }
        let Some(handle) =
            Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
        else {
            continue;
        };
        // The pid may have been reused before the handle was opened.
        if !is_creating(&entry.path(), &wanted) {
            continue;
        }
        match pidfd_send_signal(&handle, Signal::KILL) {
            Err(Errno::SRCH) => continue,
            other => other.with_context(|| format!("cannot kill process {pid}"))?,
        }
        let timeout = rustix::time::Timespec::try_from(Duration::from_secs(5))?;
        if poll(&mut [PollFd::new(&handle, PollFlags::IN)], Some(&timeout))? == 0 {
            bail!("process {pid} does not end");
        }
        // One that this process has made: nobody else would collect it before this process ends.
        match Pid::from_raw(pid).map(|pid| waitpid(Some(pid), WaitOptions::empty())) {
            None | Some(Ok(_) | Err(Errno::CHILD)) => (),
            Some(Err(err)) => return Err(err).context("cannot wait for a process"),
        }
    }
    Ok(())
}

/// True if the process has the claim's file open and bears a name that processes of a creation have.
fn is_creating(process: &Path, claim: &std::fs::Metadata) -> bool {
    let named = std::fs::read_to_string(process.join("comm"))
        .is_ok_and(|name| CREATION_NAMES.contains(&name.trim_end()));
    named
        && std::fs::read_dir(process.join("fd")).is_ok_and(|fds| {
            fds.flatten().any(|fd| {
                std::fs::metadata(fd.path())
                    .is_ok_and(|file| (file.dev(), file.ino()) == (claim.dev(), claim.ino()))
            })
        })
}
