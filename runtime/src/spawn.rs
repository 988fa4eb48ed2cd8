//! The processes that a container's process comes from.
//!
//! The runtime forks a stage, which joins the cgroups and enters the user, time and pid namespaces; the stage forks the
//! init process, as a child of the runtime, and ends. Where only a new pid namespace is wanted, or none, init is forked at
//! once and joins the cgroups itself. What init does is in init.rs. This replaces libcontainer's
//! main and intermediate process for the cgroups' sake: those write the pid to `cgroup.procs`, for which the kernel
//! waits until every processor has passed a quiescent state (11 of the 19 ms of a create here), where a thread that
//! moves itself through `tasks` does not wait; and they know no named hierarchies. docs/libcontainer.md has the figures.

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use libcgroups::common::{CgroupManager, ControllerOpt};
use libcontainer::container::State;
use libcontainer::namespaces::Namespaces;
use libcontainer::network::cidr::CidrAddress;
use libcontainer::network::network_device::dev_change_net_namespace;
use libcontainer::process::channel::{
    self, InitReceiver, InitSender, IntermediateReceiver, IntermediateSender, MainReceiver,
    MainSender,
};
use libcontainer::process::cpu_affinity::set_cpuset_affinity_from_string;
use libcontainer::syscall::Syscall;
use libcontainer::user_ns::UserNamespaceConfig;
use nix_of_libcontainer::unistd::{Gid, Pid, Uid};
use oci_spec::runtime::{
    ContainerProcessStateBuilder, ContainerState, ExecCPUAffinity, Linux, LinuxNamespaceType,
    LinuxResources, LinuxSeccomp, LinuxSeccompAction, Process, SECCOMP_FD_NAME, Spec, StateBuilder,
};
use rustix::process::DumpableBehavior;

use crate::cgroup::{self, Cgroups};
use crate::executor::Program;
use crate::idmap::IdMapped;
use crate::mounts::Step;
use crate::{devices, init, limits, root, sys, terminal};

/// Name of the process that joins cgroups and namespaces.
pub const STAGE_NAME: &str = "trustme:[stage]";
/// Name of the process that becomes the container's, until it executes the container's program.
pub const INIT_NAME: &str = "trustme:[init]";

/// What kind of process is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The first one of a container.
    Container,
    /// One that joins a container.
    Join,
}

/// All that the processes need to know.
#[derive(Debug)]
pub struct Blueprint<'a> {
    /// What kind of process is made.
    pub kind: Kind,
    /// Its specification.
    pub spec: &'a Spec,
    /// Absolute path of the root file system.
    pub rootfs: &'a Path,
    /// What libcontainer leaves undone with the mounts.
    pub step: Step,
    /// Sources of id-mapped mounts.
    pub id_mapped: IdMapped,
    /// State that hooks and seccomp listeners get.
    pub state: State,
    /// Cgroups to put the process into.
    pub cgroups: &'a Cgroups,
    /// Container id.
    pub id: &'a str,
    /// The mappings of a new user namespace.
    pub user_namespace: Option<UserNamespaceConfig>,
    /// Where the process waits for its start.
    pub start: UnixListener,
    /// The way on which the terminal comes out.
    pub console: Option<BorrowedFd<'a>>,
    /// Number of descriptors after standard error that the process keeps.
    pub preserve_fds: i32,
    /// Change the root by a move of the mount.
    pub no_pivot: bool,
    /// Executes the program.
    pub program: Program,
}

impl Blueprint<'_> {
    /// The process ends with the runtime until its program is executed: whoever makes it waits for that.
    pub fn die_with_runtime(&self) -> bool {
        self.kind == Kind::Join
    }

    fn linux(&self) -> Result<&Linux> {
        self.spec
            .linux()
            .as_ref()
            .context("linux property must not be empty")
    }
}

/// The ends of the channels that each process keeps.
struct Channels {
    stage_to_main: MainSender,
    init_to_main: MainSender,
    to_stage: (IntermediateSender, IntermediateReceiver),
    to_init: (InitSender, InitReceiver),
}

/// Makes the container's process, up to where it waits for its start; returns its pid.
///
/// # Errors
/// The reason why it could not be made, also where it came from inside of the container.
pub fn spawn(args: &Blueprint<'_>) -> Result<Pid> {
    let (stage_to_main, mut from_stage) = channel::main_channel()?;
    let (init_to_main, mut from_init) = channel::main_channel()?;
    let mut channels = Channels {
        stage_to_main,
        init_to_main,
        to_stage: channel::intermediate_channel()?,
        to_init: channel::init_channel()?,
    };
    let linux = args.linux()?;
    let mut stage = None;
    let mut init = None;
    match way(args, linux)? {
        Way::Stage => {
            let pid = sys::fork(|| run_stage(args, &mut channels)).context("cannot fork")?;
            stage = Some(Pid::from_raw(pid));
        }
        Way::Direct { pid_namespace } => {
            let run = || run_init(args, &mut channels, true);
            let pid = match pid_namespace {
                true => sys::fork_into_pid_namespace(run),
                false => sys::fork(run),
            };
            init = Some(Pid::from_raw(pid.context("cannot fork the init process")?));
        }
    }
    // Closed here so that the end of the others is seen.
    channels.stage_to_main.close()?;
    channels.init_to_main.close()?;
    let (mut to_stage, _) = channels.to_stage;
    let (mut to_init, _) = channels.to_init;

    if let (Some(stage), Some(config)) = (stage, &args.user_namespace) {
        from_stage.wait_for_mapping_request()?;
        write_mappings(config, stage)?;
        to_stage.mapping_written()?;
    }
    if let (Some(stage), Some(offsets)) = (stage, time_offsets(linux)) {
        from_stage.wait_for_time_offset_request()?;
        std::fs::write(format!("/proc/{stage}/timens_offsets"), offsets)
            .context("cannot write the time offsets")?;
        to_stage.time_offsets_written()?;
    }
    to_stage.close()?;
    let init = match init {
        Some(init) => init,
        None => from_stage.wait_for_intermediate_ready()?,
    };

    if args.kind == Kind::Container && args.spec.hooks().is_some() {
        from_init.wait_for_hook_request()?;
        run_hooks(args, init)?;
        to_init.hook_done()?;
    }
    move_network_devices(linux, init, &mut from_init, &mut to_init)?;
    if let Some(seccomp) = linux.seccomp() {
        pass_seccomp_listener(args, seccomp, init, &mut from_init, &mut to_init)?;
    }
    to_init.close()?;
    from_init.wait_for_init_ready()?;
    let Some(stage) = stage else {
        return Ok(init);
    };
    match nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(stage.as_raw()), None) {
        // Whether it has done its work was told by messages.
        Ok(_) | Err(nix::errno::Errno::ECHILD) => Ok(init),
        Err(err) => Err(err).context("cannot wait for the stage"),
    }
}

/// How the init process comes to be.
enum Way {
    /// A child of the runtime joins the cgroups, enters namespaces, and forks it.
    Stage,
    /// It is the runtime's child, and joins the cgroups itself.
    Direct {
        /// As the first process of a new pid namespace.
        pid_namespace: bool,
    },
}

/// The stage is for namespaces that count only for children of who enters them, or whose files the runtime writes. Without
/// them, one process less saves half a millisecond.
fn way(args: &Blueprint<'_>, linux: &Linux) -> Result<Way> {
    let namespaces = Namespaces::try_from(linux.namespaces().as_ref())?;
    let pid = namespaces.get(LinuxNamespaceType::Pid)?;
    let staged = args.kind == Kind::Join
        || args.cgroups.is_scope()
        || namespaces.get(LinuxNamespaceType::User)?.is_some()
        || namespaces.get(LinuxNamespaceType::Time)?.is_some()
        || pid.is_some_and(|pid| pid.path().is_some());
    Ok(match staged {
        true => Way::Stage,
        false => Way::Direct {
            pid_namespace: pid.is_some(),
        },
    })
}

fn write_mappings(config: &UserNamespaceConfig, pid: Pid) -> Result<()> {
    if !config.privileged {
        // Without privileges, groups may be mapped only once they cannot be dropped any more (user_namespaces(7)).
        std::fs::write(format!("/proc/{pid}/setgroups"), "deny")
            .context("cannot deny setgroups")?;
    }
    config
        .write_uid_mapping(pid)
        .context("cannot map user ids")?;
    config
        .write_gid_mapping(pid)
        .context("cannot map group ids")
}

/// The text for timens_offsets (time_namespaces(7)); none if there are none to write, or the namespace is joined.
fn time_offsets(linux: &Linux) -> Option<String> {
    let offsets = linux
        .time_offsets()
        .as_ref()
        .filter(|offsets| !offsets.is_empty())?;
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    namespaces
        .iter()
        .find(|ns| ns.typ() == LinuxNamespaceType::Time && ns.path().is_none())?;
    let line = |(clock, offset): (&String, &oci_spec::runtime::LinuxTimeOffset)| {
        format!(
            "{clock} {} {}\n",
            offset.secs().unwrap_or(0),
            offset.nanosecs().unwrap_or(0)
        )
    };
    Some(offsets.iter().map(line).collect())
}

/// The hooks that run in the runtime's namespaces, between the container's mounts and the change of its root.
fn run_hooks(args: &Blueprint<'_>, init: Pid) -> Result<()> {
    let Some(hooks) = args.spec.hooks() else {
        return Ok(());
    };
    for (name, list) in [
        ("prestart", hooks.prestart()),
        ("createRuntime", hooks.create_runtime()),
    ] {
        libcontainer::hooks::run_hooks(list.as_ref(), Some(&args.state), None, Some(init), None)
            .with_context(|| format!("{name} hook"))?;
    }
    Ok(())
}

fn move_network_devices(
    linux: &Linux,
    init: Pid,
    from_init: &mut MainReceiver,
    to_init: &mut InitSender,
) -> Result<()> {
    let Some(devices) = linux
        .net_devices()
        .as_ref()
        .filter(|devices| !devices.is_empty())
    else {
        return Ok(());
    };
    let namespaces = linux.namespaces().as_deref().unwrap_or_default();
    let Some(network) = namespaces
        .iter()
        .find(|ns| ns.typ() == LinuxNamespaceType::Network)
    else {
        return Ok(());
    };
    from_init.wait_for_network_setup_ready()?;
    let path = network
        .path()
        .clone()
        .unwrap_or_else(|| format!("/proc/{init}/ns/net").into());
    let namespace = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut addresses: HashMap<String, Vec<CidrAddress>> = HashMap::new();
    for (name, device) in devices {
        let moved = dev_change_net_namespace(name, namespace.as_raw_fd(), device)
            .with_context(|| format!("cannot move network device {name}"))?;
        addresses.insert(name.clone(), moved);
    }
    Ok(to_init.move_network_device(addresses)?)
}

/// Hands the descriptor of a filter that notifies to whoever listens (runtime-spec, "Seccomp listener").
fn pass_seccomp_listener(
    args: &Blueprint<'_>,
    seccomp: &LinuxSeccomp,
    init: Pid,
    from_init: &mut MainReceiver,
    to_init: &mut InitSender,
) -> Result<()> {
    let notifies = seccomp
        .syscalls()
        .iter()
        .flatten()
        .any(|rule| rule.action() == LinuxSeccompAction::ScmpActNotify);
    if !notifies {
        return Ok(());
    }
    let status = match args.kind {
        Kind::Container => ContainerState::Creating,
        Kind::Join => ContainerState::Running,
    };
    let state = StateBuilder::default()
        .version(args.state.oci_version.clone())
        .id(args.state.id.clone())
        .status(status)
        .pid(init.as_raw())
        .bundle(args.state.bundle.clone())
        .annotations(args.state.annotations.clone().unwrap_or_default())
        .build()?;
    let message = ContainerProcessStateBuilder::default()
        .version(args.state.oci_version.clone())
        .fds(vec![SECCOMP_FD_NAME.to_owned()])
        .pid(init.as_raw())
        .metadata(seccomp.listener_metadata().clone().unwrap_or_default())
        .state(state)
        .build()?;
    let received = from_init.wait_for_seccomp_request()?;
    let descriptor = sys::own(received);
    let listener = seccomp
        .listener_path()
        .as_deref()
        .context("a filter that notifies needs a listenerPath")?;
    terminal::send_descriptor(listener, &serde_json::to_vec(&message)?, &descriptor)?;
    Ok(to_init.seccomp_notify_done()?)
}

/// What the stage does; its exit code.
fn run_stage(args: &Blueprint<'_>, channels: &mut Channels) -> i32 {
    // A name is a convenience.
    let _ = sys::set_name(STAGE_NAME);
    match stage(args, channels) {
        Ok(()) => 0,
        Err(err) => {
            // If the runtime is gone, nobody wants to know.
            let _ = channels.stage_to_main.send_error(format!("{err:#}"));
            1
        }
    }
}

fn stage(args: &Blueprint<'_>, channels: &mut Channels) -> Result<()> {
    let spec = &args.spec;
    let linux = args.linux()?;
    let process = spec
        .process()
        .as_ref()
        .context("process property must not be empty")?;
    let syscall = libcontainer::syscall::syscall::create_syscall();
    let namespaces = Namespaces::try_from(linux.namespaces().as_ref())?;
    let is_init = args.kind == Kind::Container;

    let affinity = process.exec_cpu_affinity().as_ref().filter(|_| !is_init);
    set_affinity(affinity.and_then(|wanted: &ExecCPUAffinity| wanted.initial().as_deref()))?;
    join_cgroups(args, linux, is_init)?;
    set_affinity(affinity.and_then(|wanted| wanted.cpu_affinity_final().as_deref()))?;

    if let Some(user) = namespaces.get(LinuxNamespaceType::User)? {
        namespaces
            .unshare_or_setns(user)
            .context("cannot enter the user namespace")?;
        if user.path().is_none() {
            ask(
                || channels.stage_to_main.identifier_mapping_request(),
                || channels.to_stage.1.wait_for_mapping_ack(),
            )?;
        }
        // Root of the namespace does the rest.
        syscall
            .set_id(Uid::from_raw(0), Gid::from_raw(0))
            .context("cannot become root of the user namespace")?;
    }
    set_rlimits(process, &*syscall)?;
    if let Some(time) = namespaces.get(LinuxNamespaceType::Time)? {
        namespaces
            .unshare_or_setns(time)
            .context("cannot enter the time namespace")?;
        if time_offsets(linux).is_some() {
            ask(
                || channels.stage_to_main.time_offset_request(),
                || channels.to_stage.1.wait_for_time_offsets_ack(),
            )?;
        }
    }
    if let Some(pid) = namespaces.get(LinuxNamespaceType::Pid)? {
        namespaces
            .unshare_or_setns(pid)
            .context("cannot enter the pid namespace")?;
    }
    let init = sys::fork_sibling(|| run_init(args, channels, false))
        .context("cannot fork the init process")?;
    channels
        .stage_to_main
        .intermediate_ready(Pid::from_raw(init))?;
    Ok(())
}

fn set_rlimits(process: &Process, syscall: &dyn Syscall) -> Result<()> {
    for limit in process.rlimits().iter().flatten() {
        let name = limit.typ();
        syscall
            .set_rlimit(limit)
            .with_context(|| format!("error setting rlimit {name:?} to {}", limit.hard()))?;
    }
    Ok(())
}

/// What the stage does of its work where there is none.
fn confine(args: &Blueprint<'_>) -> Result<()> {
    join_cgroups(args, args.linux()?, true)?;
    match args.spec.process() {
        Some(process) => set_rlimits(process, &*libcontainer::syscall::syscall::create_syscall()),
        None => Ok(()),
    }
}

/// Asks the runtime to write a file of this process, which has to be dumpable for that.
fn ask<E: std::error::Error + Send + Sync + 'static>(
    request: impl FnOnce() -> Result<(), E>,
    answer: impl FnOnce() -> Result<(), E>,
) -> Result<()> {
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    request()?;
    answer()?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

fn set_affinity(cpus: Option<&str>) -> Result<()> {
    match cpus {
        Some(cpus) => set_cpuset_affinity_from_string(Pid::this(), cpus)
            .map_err(|err| anyhow!("cannot set the CPU affinity to {cpus:?}: {err}")),
        None => Ok(()),
    }
}

fn join_cgroups(args: &Blueprint<'_>, linux: &Linux, is_init: bool) -> Result<()> {
    let cgroups = args.cgroups;
    if !is_init {
        return cgroups.join();
    }
    let rootless = root::is_ordinary();
    if cgroups.is_scope() {
        let manager = cgroup_manager(args)?.with_rootless(rootless);
        manager
            .add_task(Pid::this())
            .context("cannot join the cgroup")?;
    } else {
        cgroups.join()?;
    }
    let Some(resources) = linux.resources() else {
        return Ok(());
    };
    let resources = &cgroups.completed(resources);
    if rootless && !cgroups.exist() {
        // Of an ordinary user to whom no cgroup was delegated. As runc: devices are nothing to keep such a user from.
        return match cgroup::names_a_limit(resources) {
            true => bail!("cannot set limits: container could not join or create cgroup"),
            false => Ok(()),
        };
    }
    if !cgroups.is_unified() {
        return limits::apply(cgroups, resources, !rootless);
    }
    limit(&cgroup_manager(args)?.with_rootless(rootless), resources)?;
    limits::rdma(cgroups, resources)?;
    match (resources.devices(), cgroups.dirs.first()) {
        // An ordinary user may load no such program, and has no devices to keep anybody from.
        (Some(rules), Some(dir)) if !rootless => devices::restrict(&dir.path, rules),
        _ => Ok(()),
    }
}

fn cgroup_manager(args: &Blueprint<'_>) -> Result<libcgroups::common::AnyCgroupManager> {
    Ok(libcgroups::common::create_cgroup_manager(
        args.cgroups.config(args.id),
    )?)
}

fn limit(manager: &libcgroups::common::AnyCgroupManager, resources: &LinuxResources) -> Result<()> {
    let limits = ControllerOpt {
        resources,
        freezer_state: None,
        oom_score_adj: None,
        // Nothing that v2 has.
        disable_oom_killer: false,
    };
    manager
        .apply(&limits)
        .context("cannot set the limits of the cgroup")
}

/// What becomes the container's process; returns only if that fails. `direct`: there is no stage.
fn run_init(args: &Blueprint<'_>, channels: &mut Channels, direct: bool) -> i32 {
    let _ = sys::set_name(INIT_NAME);
    let closed = [
        channels.to_init.0.close(),
        channels.to_stage.0.close(),
        channels.stage_to_main.close(),
    ];
    let closed = closed.into_iter().collect::<Result<(), _>>();
    let result = closed
        .map_err(Into::into)
        .and_then(|()| match direct {
            true => confine(args),
            false => Ok(()),
        })
        .and_then(|()| init::run(args, &mut channels.init_to_main, &mut channels.to_init.1));
    let Err(reason) = result else {
        return 0;
    };
    // If the runtime is gone, nobody wants to know.
    let _ = channels.init_to_main.exec_failed(format!("{reason:#}"));
    255
}
