//! `kill`: sends a signal to the container's init process, or to all of its processes.

use std::os::fd::AsFd;

use anyhow::{Context, Result, bail};

use crate::cli::Kill;
use crate::root::Root;
use crate::state::{Container, Status};
use crate::{signal, sys};

/// Sends the signal.
///
/// # Errors
/// If there is no such signal, or the container is not running.
pub fn kill(args: &Kill, root: &Root) -> Result<()> {
    let container = Container::load(root, &args.container_id)?;
    let number = signal::parse(&args.signal)?;
    let cgroups = &container.record.cgroups;
    if args.all {
        return cgroups
            .signal_all(number)
            .context("cannot signal all processes");
    }
    let status = container.status();
    let Some(init) = container.init()?.filter(|_| status != Status::Stopped) else {
        bail!("container not running");
    };
    match sys::pidfd_send_signal(init.as_fd(), number) {
        Err(err) if err.raw_os_error() == Some(libc::ESRCH) => bail!("container not running"),
        other => other.context("cannot signal the init process")?,
    }
    // Without a pid namespace of its own, the other processes would go on (runc kills them, too).
    if number == libc::SIGKILL
        && !container.record.own_pid_namespace
        && cgroups.dirs.iter().all(|dir| !dir.existed)
    {
        cgroups.signal_all(number)?;
    }
    // With cgroup v1, a frozen process dies only once it is thawed.
    if number == libc::SIGKILL && status == Status::Paused {
        cgroups.freeze(false)?;
    }
    Ok(())
}
