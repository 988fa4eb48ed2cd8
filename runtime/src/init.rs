//! What the init process does, from its first instruction to the container's program; and a process that joins.
//!
//! In place of libcontainer's `container_init_process`, whose parts are called here: that has no place between the change
//! of the root and the loss of the capabilities for what it leaves undone, and calls getcwd(2) after the seccomp filter is
//! loaded. docs/libcontainer.md says what came with the change.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use anyhow::{Context, Result, anyhow, ensure};
use libcontainer::container::ContainerStatus;
use libcontainer::namespaces::Namespaces;
use libcontainer::network::address::AddressClient;
use libcontainer::network::link::LinkClient;
use libcontainer::network::network_device::{
    resolve_device_name, setup_addresses_in_network_namespace,
};
use libcontainer::network::wrapper::create_network_client;
use libcontainer::process::channel::{InitReceiver, MainSender};
use libcontainer::syscall::{Syscall, SyscallError};
use libcontainer::{capabilities, hooks, seccomp, tty};
use nix_of_libcontainer::sched::CloneFlags;
use nix_of_libcontainer::unistd::Pid;
use oci_spec::runtime::{Hook, Linux, LinuxNamespaceType, Process, Spec};
use rustix::fs::Mode;
use rustix::io::Errno;

use crate::spawn::{Blueprint, Kind};
use crate::{jail, root, sys, task};

/// CLONE_NEWTIME, which nix does not know (linux/sched.h).
const NEW_TIME: CloneFlags = CloneFlags::from_bits_retain(0x80);

/// Becomes the container's program. Returns only with the reason why that could not be: after the start, which the
/// caller has answered, on the connection it came on.
///
/// # Errors
/// The step that failed.
pub fn run(
    blueprint: &Blueprint<'_>,
    to_main: &mut MainSender,
    from_main: &mut InitReceiver,
) -> Result<()> {
    let spec = blueprint.spec;
    let process = spec
        .process()
        .as_ref()
        .context("process property must not be empty")?;
    let linux = spec
        .linux()
        .as_ref()
        .context("linux property must not be empty")?;
    let syscall = libcontainer::syscall::syscall::create_syscall();
    let syscall = syscall.as_ref();
    let is_container = matches!(blueprint.kind, Kind::Container);

    rustix::process::setsid().context("setsid")?;
    task::schedule(process, linux, syscall)?;
    let namespaces = Namespaces::try_from(linux.namespaces().as_ref())?;
    enter_namespaces(spec, &namespaces, syscall)?;
    if is_container {
        build_root(blueprint, &namespaces, to_main, from_main)?;
    }
    if let Some(console) = blueprint.console {
        tty::setup_console(syscall, console.as_raw_fd(), is_container)
            .context("cannot set up the terminal")?;
    }
    if is_container {
        jail::protect(spec, &blueprint.step)?;
    }
    task::personality(linux, syscall)?;
    if let Some(devices) = linux
        .net_devices()
        .as_ref()
        .filter(|devices| !devices.is_empty())
    {
        to_main.network_setup_ready()?;
        let addresses = from_main.wait_for_move_network_device()?;
        for (name, device) in devices {
            let addresses = addresses.get(name).map(Vec::as_slice).unwrap_or_default();
            configure_network_device(resolve_device_name(device, name), addresses)
                .with_context(|| format!("cannot set up network device {name}"))?;
        }
    }
    task::label(process)?;

    // As root, who may enter what the user may not; a directory that root of a user namespace may not enter is tried
    // again by the user.
    let entered = change_directory(process);
    task::become_user(process, syscall)?;
    if let Err(err) = entered {
        change_directory(process).map_err(|_| err)?;
    }
    verify_directory()?;
    if let Some(umask) = process.user().umask() {
        rustix::process::umask(Mode::from_raw_mode(umask & 0o777));
    }
    // All other descriptors close when the program is executed (CVE-2024-21626).
    syscall
        .close_range(blueprint.preserve_fds)
        .context("cannot close inherited descriptors")?;
    if process.no_new_privileges() == Some(true) {
        restrict(process, syscall)?;
        blueprint
            .program
            .find(process, blueprint.die_with_runtime())?;
        rustix::thread::set_no_new_privs(true)?;
        filter(linux, to_main, from_main)?;
    } else {
        // Without that, only the privileged may load a filter.
        filter(linux, to_main, from_main)?;
        restrict(process, syscall)?;
        blueprint
            .program
            .find(process, blueprint.die_with_runtime())?;
    }

    to_main.init_ready()?;
    to_main.close()?;
    let mut connection = wait_for_start(blueprint)?;
    let executed = execute(blueprint, process);
    if let Err(err) = &executed {
        // Whoever has started it may be gone.
        let _ = connection.write_all(format!("{err:#}").as_bytes());
    }
    executed
}

/// Enters all namespaces but those that the stage has entered, and names the host.
fn enter_namespaces(spec: &Spec, namespaces: &Namespaces, syscall: &dyn Syscall) -> Result<()> {
    let entered = CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWPID | NEW_TIME;
    namespaces
        .apply_namespaces(|kind| !entered.contains(kind))
        .context("cannot enter the namespaces")?;
    let own = namespaces
        .get(LinuxNamespaceType::Uts)?
        .is_some_and(|uts| uts.path().is_none());
    if own {
        if let Some(name) = spec.hostname() {
            syscall.set_hostname(name).context("sethostname")?;
        }
        if let Some(name) = spec.domainname() {
            syscall.set_domainname(name).context("setdomainname")?;
        }
    }
    Ok(())
}

fn build_root(
    blueprint: &Blueprint<'_>,
    namespaces: &Namespaces,
    to_main: &mut MainSender,
    from_main: &mut InitReceiver,
) -> Result<()> {
    let spec = blueprint.spec;
    let has = |kind| namespaces.get(kind).map(|found| found.is_some());
    // No devices can be made in a user namespace, this one's or the caller's.
    let bind_devices = has(LinuxNamespaceType::User)? || root::is_ordinary();
    jail::build(blueprint, bind_devices)?;
    if let Some(hooks) = spec.hooks() {
        to_main.hook_request()?;
        from_main.wait_for_hook_request_done()?;
        run_hooks(
            blueprint,
            ContainerStatus::Creating,
            hooks.create_container(),
            None,
        )
        .context("createContainer hook")?;
    }
    jail::enter(
        spec,
        blueprint.rootfs,
        has(LinuxNamespaceType::Mount)?,
        blueprint.no_pivot,
    )?;
    jail::reopen_dev_null()?;
    match spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.sysctl().as_ref())
    {
        Some(parameters) => task::sysctl(parameters),
        None => Ok(()),
    }
}

/// Hooks that run in the container's namespaces: there, this process has its own number.
fn run_hooks(
    blueprint: &Blueprint<'_>,
    status: ContainerStatus,
    list: &Option<Vec<Hook>>,
    env: Option<&HashMap<String, String>>,
) -> Result<()> {
    let pid = Pid::from_raw(std::process::id() as i32);
    let mut state = blueprint.state.clone();
    state.status = status;
    Ok(hooks::run_hooks(
        list.as_ref(),
        Some(&state),
        None,
        Some(pid),
        env,
    )?)
}

fn configure_network_device(
    name: &str,
    addresses: &[libcontainer::network::cidr::CidrAddress],
) -> Result<()> {
    let mut links = LinkClient::new(create_network_client())?;
    let mut client = AddressClient::new(create_network_client())?;
    let link = links.get_by_name(name)?;
    setup_addresses_in_network_namespace(addresses, link.header.index, name, &mut client)?;
    Ok(links.set_up(link.header.index)?)
}

fn change_directory(process: &Process) -> Result<()> {
    let cwd = process.cwd();
    rustix::process::chdir(cwd)
        .with_context(|| format!("chdir to cwd ({cwd:?}) set in config.json failed"))
}

/// The working directory must lie inside of the container: a name such as /proc/self/fd/7 may lead out (CVE-2024-21626).
fn verify_directory() -> Result<()> {
    let cwd = match rustix::process::getcwd(Vec::new()) {
        Err(Errno::NOENT) => None,
        other => Some(other.context("getcwd")?),
    };
    ensure!(
        cwd.is_some_and(|cwd| cwd.as_bytes().starts_with(b"/")),
        "current working directory is outside of container mount namespace root -- possible container breakout detected"
    );
    Ok(())
}

/// Gives up all capabilities that the process is not to have.
fn restrict(process: &Process, syscall: &dyn Syscall) -> Result<()> {
    let restrict = || -> Result<(), SyscallError> {
        capabilities::reset_effective(syscall)?;
        match process.capabilities() {
            Some(sets) => capabilities::drop_privileges(sets, syscall),
            None => Ok(()),
        }
    };
    // The error repeats itself at each level: what the kernel said is at the end of the innermost.
    restrict().map_err(|err| {
        let err = anyhow::Error::from(err);
        let text = err.root_cause().to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        let reason = text.rsplit(": ").next().unwrap_or_default();
        anyhow!("unable to apply caps: {}", reason.to_lowercase())
    })
}

/// Loads the seccomp filter; the descriptor of one that notifies goes to the runtime, which hands it on.
fn filter(linux: &Linux, to_main: &mut MainSender, from_main: &mut InitReceiver) -> Result<()> {
    let Some(profile) = linux.seccomp() else {
        return Ok(());
    };
    let listener = seccomp::initialize_seccomp(profile).context("unable to init seccomp")?;
    if let Some(listener) = listener {
        to_main.seccomp_notify_request(listener)?;
        from_main.wait_for_seccomp_request_done()?;
        drop::<OwnedFd>(sys::own(listener));
    }
    Ok(())
}

/// Waits until somebody connects to the start socket and says so; one that is killed in between has not. The connection
/// stays open until the program is executed: that is how the other side sees it.
fn wait_for_start(blueprint: &Blueprint<'_>) -> Result<UnixStream> {
    loop {
        let accepted = blueprint.start.accept();
        let (mut connection, _) = accepted.context("cannot wait for the start")?;
        if connection.read_exact(&mut [0]).is_ok() {
            return Ok(connection);
        }
    }
}

fn execute(blueprint: &Blueprint<'_>, process: &Process) -> Result<()> {
    let listed = blueprint
        .spec
        .hooks()
        .as_ref()
        .map(|hooks| hooks.start_container());
    if let Some(list) = listed.filter(|_| matches!(blueprint.kind, Kind::Container)) {
        let env = blueprint.program.environment(process);
        let env = env.iter().filter_map(|entry| entry.split_once('='));
        let env = env
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        run_hooks(blueprint, ContainerStatus::Created, list, Some(&env))
            .context("startContainer hook")?;
    }
    blueprint
        .program
        .execute(process, blueprint.die_with_runtime())
}
