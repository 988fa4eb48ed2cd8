//! `exec`: starts a further process inside of a container.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use libcontainer::container::ContainerStatus;
use liboci_cli::Exec;
use nix::sys::signal::SigSet;
use oci_spec::runtime::{
    Capabilities, Capability, Linux, LinuxCapabilities, LinuxNamespace, LinuxNamespaceBuilder,
    LinuxNamespaceType, Process, Spec,
};

use crate::bundle;
use crate::cgroup::Cgroups;
use crate::executor::Program;
use crate::foreground::Signals;
use crate::mounts::Step;
use crate::process::{self, Request};
use crate::root::Root;
use crate::state::{CONFIG_FILE, Container, Status, write_whole};
use crate::terminal::{self, Channel};

/// Starts the process; the exit code is its own, 128 and the signal's number if a signal ended it, 0 if it was
/// detached.
///
/// # Errors
/// If the container is not running or the process cannot be started.
pub fn exec(args: &Exec, root: &Root) -> Result<u8> {
    execute(args, root).context("exec failed")
}

fn execute(args: &Exec, root: &Root) -> Result<u8> {
    let pid_file = args
        .pid_file
        .as_deref()
        .map(std::path::absolute)
        .transpose()?;
    let console_socket = args
        .console_socket
        .as_deref()
        .map(std::path::absolute)
        .transpose()?;
    let container = Container::load(root, &args.container_id)?;
    match container.status() {
        Status::Stopped => bail!("cannot exec in a stopped container"),
        Status::Paused if !args.ignore_paused => {
            bail!("cannot exec in a paused container (use --ignore-paused to override)")
        }
        _ => (),
    }
    let mut spec = stored_spec(&container)?;
    let mut process = match &args.process {
        Some(file) => read_process(file)?,
        None => adapted_process(args, &spec)?,
    };
    bundle::check_process(&process)?;
    bundle::adapt_process(&mut process);
    terminal::check(&process, args.detach, console_socket.as_deref())?;

    let namespaces = Namespaces::open(&container, &spec)?;
    join_instead_of_create(&mut spec, &namespaces)?;
    spec.set_process(Some(process.clone()));

    let signals = (!args.detach).then(Signals::hold).transpose()?;
    let mask = match &signals {
        Some(signals) => signals.before,
        None => SigSet::thread_get_mask()?,
    };
    let channel = (process.terminal() == Some(true))
        .then(Channel::new)
        .transpose()?;
    let start_socket = StartSocket::new(&container);
    let owner = process::host_uid(&spec);
    let cgroups = sub_cgroup(&container.record.cgroups, args.cgroup.as_deref())?;
    let request = Request {
        id: &container.record.id,
        state: container.oci_state(ContainerStatus::Running),
        cgroups: &cgroups,
        start_socket: &start_socket.0,
        terminal: channel.as_ref(),
        preserve_fds: args.preserve_fds,
        no_pivot: false,
        new_keyring: true,
        step: Step::default(),
        program: Program::new(mask),
    };
    let pid = request.join(&spec)?;
    let master = channel
        .map(|channel| channel.receive(&process, owner))
        .transpose()?;
    let master = match (master, &console_socket) {
        (Some(master), Some(socket)) => {
            terminal::send_to(socket, &master)?;
            None
        }
        (master, _) => master,
    };
    if let Some(pid_file) = &pid_file {
        write_whole(pid_file, pid.to_string().as_bytes())?;
    }
    match signals {
        Some(signals) => signals.wait_for(pid, master),
        None => Ok(0),
    }
}

/// The configuration that the container was built from.
fn stored_spec(container: &Container) -> Result<Spec> {
    let file = container.dir.join(CONFIG_FILE);
    let bytes = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
    let mut spec = bundle::parse(&bytes, &container.dir)?;
    if let Some(root) = spec.root_mut() {
        root.set_path(container.record.rootfs.clone());
    }
    Ok(spec)
}

fn read_process(file: &Path) -> Result<Process> {
    let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    bundle::parse_process(&bytes, file)
}

/// The container's process with what the command line changes, as runc does it.
fn adapted_process(args: &Exec, spec: &Spec) -> Result<Process> {
    if args.command.is_empty() {
        bail!("process args cannot be empty");
    }
    let mut process = spec.process().clone().unwrap_or_default();
    process.set_args(Some(args.command.clone()));
    process.set_terminal(Some(args.tty));
    if let Some(cwd) = &args.cwd {
        process.set_cwd(cwd.clone());
    }
    if let Some(profile) = &args.apparmor {
        process.set_apparmor_profile(Some(profile.clone()));
    }
    if let Some(label) = &args.process_label {
        process.set_selinux_label(Some(label.clone()));
    }
    if args.no_new_privs {
        process.set_no_new_privileges(Some(true));
    }
    process.env_mut().get_or_insert_default().extend(
        args.env
            .iter()
            .map(|(name, value)| format!("{name}={value}")),
    );
    let mut user = process.user().clone();
    if let Some((uid, gid)) = args.user {
        user.set_uid(uid);
        user.set_gid(gid.unwrap_or(user.gid()));
    }
    let mut gids = user.additional_gids().clone().unwrap_or_default();
    gids.extend(&args.additional_gids);
    user.set_additional_gids(Some(gids));
    process.set_user(user);
    add_capabilities(&mut process, &args.cap)?;
    Ok(process)
}

/// Adds capabilities to the bounding, effective, permitted, and, where there are inheritable ones, ambient set.
fn add_capabilities(process: &mut Process, names: &[String]) -> Result<()> {
    if names.is_empty() {
        return Ok(());
    }
    let mut added = Capabilities::new();
    for name in names {
        let capability: Capability = serde_json::from_value(name.as_str().into())
            .with_context(|| format!("unknown capability {name:?}"))?;
        added.insert(capability);
    }
    let mut sets = process.capabilities().clone().unwrap_or_else(|| {
        let mut none = LinuxCapabilities::default();
        none.set_bounding(None)
            .set_effective(None)
            .set_permitted(None)
            .set_inheritable(None)
            .set_ambient(None);
        none
    });
    let joined =
        |set: &Option<Capabilities>| Some(set.iter().flatten().chain(&added).copied().collect());
    let (bounding, effective) = (joined(sets.bounding()), joined(sets.effective()));
    let (permitted, ambient) = (joined(sets.permitted()), joined(sets.ambient()));
    sets.set_bounding(bounding)
        .set_effective(effective)
        .set_permitted(permitted);
    if sets
        .inheritable()
        .as_ref()
        .is_some_and(|set| !set.is_empty())
    {
        sets.set_ambient(ambient);
    }
    process.set_capabilities(Some(sets));
    Ok(())
}

/// The namespaces of the container's init process, held open: the process may end meanwhile, and its pid be reused.
struct Namespaces(Vec<(LinuxNamespaceType, File)>);

impl Namespaces {
    /// Opens those that the container does not share with its caller.
    fn open(container: &Container, spec: &Spec) -> Result<Self> {
        let pid = container.record.pid;
        let listed = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.namespaces().as_deref())
            .unwrap_or_default();
        let mut opened = Vec::new();
        for namespace in listed {
            let kind = namespace.typ();
            let name = match kind {
                LinuxNamespaceType::Mount => "mnt",
                LinuxNamespaceType::Cgroup => "cgroup",
                LinuxNamespaceType::Uts => "uts",
                LinuxNamespaceType::Ipc => "ipc",
                LinuxNamespaceType::User => "user",
                LinuxNamespaceType::Pid => "pid",
                LinuxNamespaceType::Network => "net",
                LinuxNamespaceType::Time => "time",
            };
            let path = format!("/proc/{pid}/ns/{name}");
            let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
            opened.push((kind, file));
        }
        // Had the process ended before, these might be another's.
        if container.init()?.is_none() {
            bail!("cannot exec in a stopped container");
        }
        Ok(Self(opened))
    }

    fn list(&self) -> Result<Vec<LinuxNamespace>> {
        let path = |file: &File| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        self.0
            .iter()
            .map(|(kind, file)| {
                Ok(LinuxNamespaceBuilder::default()
                    .typ(*kind)
                    .path(path(file))
                    .build()?)
            })
            .collect()
    }
}

/// Leaves of the configuration what concerns a process that joins: how the container is made does not.
fn join_instead_of_create(spec: &mut Spec, namespaces: &Namespaces) -> Result<()> {
    let made = spec.linux().clone().unwrap_or_default();
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces.list()?))
        .set_uid_mappings(made.uid_mappings().clone())
        .set_gid_mappings(made.gid_mappings().clone())
        .set_seccomp(made.seccomp().clone())
        .set_personality(made.personality().clone())
        .set_memory_policy(made.memory_policy().clone())
        .set_resources(None)
        .set_devices(None)
        .set_masked_paths(None)
        .set_readonly_paths(None);
    spec.set_linux(Some(linux));
    Ok(())
}

/// The cgroup for the process: the container's, or an existing one below it, with `CONTROLLER:` in front of it only in
/// that controller's hierarchy.
fn sub_cgroup(container: &Cgroups, below: Option<&str>) -> Result<Cgroups> {
    let below = below.unwrap_or_default();
    let (controller, path) = match below.split_once(':') {
        Some((controller, path)) => (Some(controller), path),
        None => (None, below),
    };
    let relative = Path::new(path.trim_start_matches('/'));
    if relative
        .components()
        .any(|part| part == std::path::Component::ParentDir)
    {
        bail!("bad sub cgroup path: {below}");
    }
    container.below(controller, relative)
}

/// The socket on which the process waits before it executes its program; removed in any case.
struct StartSocket(PathBuf);

impl StartSocket {
    fn new(container: &Container) -> Self {
        Self(
            container
                .dir
                .join(format!("exec-{}.sock", std::process::id())),
        )
    }
}

impl Drop for StartSocket {
    fn drop(&mut self) {
        // After a start it is gone already.
        let _ = std::fs::remove_file(&self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sub_cgroups_stay_inside() {
        let dir = |controller: &str| crate::cgroup::CgroupDir {
            controller: controller.to_owned(),
            path: format!("/{controller}/a/b").into(),
            existed: false,
        };
        let base = Cgroups {
            path: "/a/b".into(),
            systemd: false,
            dirs: vec![dir("cpu"), dir("pids")],
        };
        let path = |below| sub_cgroup(&base, below).map(|found| found.path);
        assert_eq!(path(None).unwrap(), Path::new("/a/b"));
        assert_eq!(path(Some("c/d")).unwrap(), Path::new("/a/b/c/d"));
        assert_eq!(path(Some("/c")).unwrap(), Path::new("/a/b/c"));
        assert!(path(Some("../c")).is_err());
        let one = sub_cgroup(&base, Some("cpu:c")).unwrap();
        let paths: Vec<_> = one.dirs.iter().map(|dir| dir.path.as_path()).collect();
        assert_eq!(paths, [Path::new("/cpu/a/b/c"), Path::new("/pids/a/b")]);
        assert!(path(Some("nosuch:c")).is_err());
    }

    #[test]
    fn capabilities_are_added() {
        let mut process: Process = serde_json::from_value(serde_json::json!({
            "cwd": "/", "user": {"uid": 0, "gid": 0},
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"]},
        }))
        .unwrap();
        add_capabilities(&mut process, &["CAP_SYS_ADMIN".into()]).unwrap();
        let sets = process.capabilities().clone().unwrap();
        assert_eq!(sets.bounding().as_ref().unwrap().len(), 2);
        assert!(
            sets.effective()
                .as_ref()
                .unwrap()
                .contains(&Capability::SysAdmin)
        );
        assert!(sets.ambient().as_ref().is_none_or(|set| set.is_empty()));
        assert!(add_capabilities(&mut process, &["CAP_NOSUCH".into()]).is_err());
    }
}
