//! Drives libcontainer: the init process of a container, and processes that join one.
//!
//! libcontainer's builders read the bundle by themselves and keep their own state; its process layer below them takes
//! the specification as a value. So that is what is used here: what was checked is what runs.

use std::ffi::CString;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use libcontainer::container::State;
use libcontainer::process::channel::ChannelError;
use libcontainer::process::intel_rdt::setup_intel_rdt;
use libcontainer::user_ns::UserNamespaceConfig;
use nix_of_libcontainer::unistd::Pid;
use oci_spec::runtime::{LinuxIdMapping, Spec};
use rustix::fs::{FileType, Mode, Uid};
use rustix::io::Errno;
use rustix::process::DumpableBehavior;

use crate::cgroup::Cgroups;
use crate::executor::Program;
use crate::idmap::IdMapped;
use crate::mounts::Step;
use crate::spawn::{Blueprint, Kind};
use crate::terminal::{self, Channel};
use crate::{log, spawn, sys};

/// What libcontainer needs to know of a process besides its specification.
#[derive(Debug)]
pub struct Request<'a> {
    /// Container id.
    pub id: &'a str,
    /// State that hooks and seccomp listeners get.
    pub state: State,
    /// Cgroups to put the process into.
    pub cgroups: &'a Cgroups,
    /// Where the process waits for its start.
    pub start_socket: &'a Path,
    /// The way on which the terminal comes out, if there is to be one.
    pub terminal: Option<&'a Channel>,
    /// Number of file descriptors after standard error that the process keeps.
    pub preserve_fds: i32,
    /// Change the root by a move of the mount.
    pub no_pivot: bool,
    /// Make a session keyring of its own.
    pub new_keyring: bool,
    /// What libcontainer leaves undone with the mounts.
    pub step: Step,
    /// Executes the program.
    pub program: Program,
}

/// An init process that waits for its start.
#[derive(Debug)]
pub struct Created {
    /// Its pid.
    pub pid: i32,
    /// Directory of Intel's resource director that was made for it.
    pub intel_rdt: Option<PathBuf>,
    /// Monitoring group of Intel's resource director that was made for it.
    pub intel_rdt_monitoring: Option<PathBuf>,
}

impl Request<'_> {
    /// Builds the container's init process, which then waits for [`start`].
    ///
    /// # Errors
    /// If the container cannot be built as specified.
    pub fn create(self, mut spec: Spec) -> Result<Created> {
        let user_namespace = UserNamespaceConfig::new(&spec)?;
        let id_mapped = IdMapped::prepare(&mut spec)?;
        let intel_rdt = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.intel_rdt().clone());
        let id = self.id.to_owned();
        let pid = self.launch(&spec, Kind::Container, user_namespace, id_mapped)?;
        let (intel_rdt, intel_rdt_monitoring) = match intel_rdt {
            Some(wanted) => setup_intel_rdt(Some(&id), &pid, &wanted)?,
            None => (None, None),
        };
        Ok(Created {
            pid: pid.as_raw(),
            intel_rdt,
            intel_rdt_monitoring,
        })
    }

    /// Starts a process that joins the namespaces which `spec` names by their paths, and returns its pid once its
    /// program has been executed.
    ///
    /// # Errors
    /// If the process cannot join, or its program cannot be executed.
    pub fn join(self, spec: &Spec) -> Result<i32> {
        let start_socket = self.start_socket;
        let pid = self.launch(spec, Kind::Join, None, IdMapped::default())?;
        if let Err(reason) = start(start_socket)? {
            end_children();
            bail!("unable to start container process: {reason}");
        }
        Ok(pid.as_raw())
    }

    fn launch(
        self,
        spec: &Spec,
        kind: Kind,
        user_namespace: Option<UserNamespaceConfig>,
        id_mapped: IdMapped,
    ) -> Result<Pid> {
        self.prepare(spec)?;
        let listen_fds = i32::try_from(self.program.listen_fds())?;
        let blueprint = Blueprint {
            kind,
            spec,
            rootfs: spec
                .root()
                .as_ref()
                .map_or(Path::new(""), |root| root.path().as_path()),
            step: self.step,
            id_mapped,
            state: self.state,
            cgroups: self.cgroups,
            id: self.id,
            user_namespace,
            start: terminal::listen(self.start_socket)?,
            console: self.terminal.map(|terminal| terminal.theirs.as_fd()),
            preserve_fds: self.preserve_fds + listen_fds,
            no_pivot: self.no_pivot,
            program: self.program,
        };
        let trace = log::begin_trace()?;
        match spawn::spawn(&blueprint) {
            Ok(pid) => Ok(pid),
            Err(err) => {
                end_children();
                Err(explain(&err, trace.first()))
            }
        }
    }

    /// What libcontainer's builder does before it forks, and what it leaves out of what runc does.
    fn prepare(&self, spec: &Spec) -> Result<()> {
        let process = spec
            .process()
            .as_ref()
            .context("process property must not be empty")?;
        if let Some(score) = process.oom_score_adj() {
            std::fs::write("/proc/self/oom_score_adj", score.to_string())
                .with_context(|| format!("cannot set oom_score_adj to {score}"))?;
        }
        rustix::process::umask(Mode::from_raw_mode(0o022));
        if self.terminal.is_none() {
            own_stdio(host_uid(spec))?;
        }
        if self.new_keyring {
            let name = CString::new(format!("_ses.{}", self.id))?;
            match sys::join_session_keyring(&name) {
                // No keyrings in this kernel, or none for us: then none are inherited either.
                Err(err) if matches!(err.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => (),
                other => other.context("cannot create a session keyring")?,
            }
        }
        // Processes of a namespace that is joined must not get at this one.
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
        Ok(())
    }
}

/// Lets a process that waits at `start_socket` execute its program, and waits until it does. The socket is removed: it is
/// of no more use. Returns the reason if the program could not be executed.
///
/// # Errors
/// If nobody waits there.
pub fn start(start_socket: &Path) -> Result<Result<(), String>> {
    let mut connection = terminal::connect_to(start_socket)?;
    connection
        .write_all(&[0])
        .context("cannot tell the container to start")?;
    std::fs::remove_file(start_socket)
        .with_context(|| format!("cannot remove {}", start_socket.display()))?;
    // Ends when the program is executed, which closes the other end, or with the reason why it could not be.
    let mut reason = String::new();
    match connection.read_to_string(&mut reason) {
        Ok(_) if reason.is_empty() => Ok(Ok(())),
        Ok(_) => Ok(Err(reason)),
        // Killed meanwhile.
        Err(err) if err.kind() == std::io::ErrorKind::ConnectionReset => Ok(Ok(())),
        Err(err) => Err(err).context("cannot wait for the start"),
    }
}

/// The user of the process, as seen from the host.
pub fn host_uid(spec: &Spec) -> u32 {
    let uid = spec
        .process()
        .as_ref()
        .map_or(0, |process| process.user().uid());
    let mappings = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.uid_mappings().as_deref())
        .unwrap_or_default();
    map_id(uid, mappings)
}

/// Maps an id of the container to the host's; without a fitting mapping it is the same.
fn map_id(id: u32, mappings: &[LinuxIdMapping]) -> u32 {
    mappings
        .iter()
        .find_map(|mapping| {
            let offset = id.checked_sub(mapping.container_id())?;
            (offset < mapping.size()).then(|| mapping.host_id().checked_add(offset))?
        })
        .unwrap_or(id)
}

/// Gives standard input, output and error to the user of the process, so that it may open /dev/stdout (runc does).
fn own_stdio(uid: u32) -> Result<()> {
    for fd in [
        rustix::stdio::stdin().as_fd(),
        rustix::stdio::stdout().as_fd(),
        rustix::stdio::stderr().as_fd(),
    ] {
        let stat = match rustix::fs::fstat(fd) {
            Err(Errno::BADF) => continue,
            other => other?,
        };
        // Devices such as /dev/null belong to all.
        let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice;
        if stat.st_uid == uid || is_device {
            continue;
        }
        match rustix::fs::fchown(fd, Some(Uid::from_raw(uid)), None) {
            // As runc: a file that cannot change its owner is left as it is.
            Err(Errno::INVAL | Errno::PERM | Errno::ROFS) => (),
            other => other.context("cannot change the owner of standard input or output")?,
        }
    }
    Ok(())
}

/// Kills and collects the processes that were to become the container's, so that none waits for ever for a runtime that
/// has given up, and none is left to whoever becomes its parent.
fn end_children() {
    let Ok(children) = std::fs::read_to_string("/proc/thread-self/children") else {
        return;
    };
    for pid in children
        .split_whitespace()
        .filter_map(|pid| pid.parse().ok())
    {
        // A process that cannot be killed has ended.
        let _ = sys::kill(pid, libc::SIGKILL);
        let _ = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
    }
}

/// Turns libcontainer's error into one that a person understands; `first` is the first error that was reported on the
/// way, from inside of the container.
fn explain(err: &anyhow::Error, first: Option<String>) -> anyhow::Error {
    let text = match err.downcast_ref::<ChannelError>() {
        Some(ChannelError::ExecError(text) | ChannelError::OtherError(text)) => text.clone(),
        // Where it waits for another message, the failure is what it gets.
        Some(ChannelError::UnexpectedMessage { received, .. }) => {
            let received = format!("{received:?}");
            ["ExecFailed(", "OtherError("]
                .iter()
                .find_map(|variant| received.strip_prefix(variant)?.strip_suffix(')'))
                .and_then(|quoted| serde_json::from_str(quoted).ok())
                .unwrap_or(received)
        }
        _ => format!("{err:#}"),
    };
    let text = text
        .strip_prefix("error in executing process : ")
        .unwrap_or(&text);
    let text = text.trim();
    // The executor's own words say it all, as do those of the stage.
    let complete = text.starts_with("exec: ")
        || matches!(err.downcast_ref(), Some(ChannelError::OtherError(_)));
    match first.filter(|_| !complete) {
        Some(first) => anyhow!(
            "unable to start container process: {text}: {}",
            first.trim()
        ),
        None => anyhow!("unable to start container process: {text}"),
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxIdMappingBuilder;

    use super::*;

    #[test]
    fn ids_are_mapped() {
        let mapping = |container: u32, host: u32, size: u32| {
            LinuxIdMappingBuilder::default()
                .container_id(container)
                .host_id(host)
                .size(size)
                .build()
                .unwrap()
        };
        let mappings = [mapping(0, 1000, 1), mapping(1, 100_000, 10)];
        assert_eq!(map_id(0, &mappings), 1000);
        assert_eq!(map_id(3, &mappings), 100_002);
        assert_eq!(map_id(11, &mappings), 11);
        assert_eq!(map_id(5, &[]), 5);
    }
}
