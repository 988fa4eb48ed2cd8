//! `run`: creates a container, starts it, and waits for it unless it is to be detached.

use anyhow::{Context, Result};
use liboci_cli::Run;
use nix::sys::signal::SigSet;

use crate::build::{Built, Plan};
use crate::foreground::Signals;
use crate::root::Root;

use super::delete::delete_stopped;
use super::start::start_created;

/// Runs the container; the exit code is its program's, 128 and the signal's number if a signal ended it, 0 if it was
/// detached.
///
/// # Errors
/// If the container cannot be built or started; then nothing of it is left.
pub fn run(args: &Run, root: &Root, systemd_cgroup: bool) -> Result<u8> {
    let signals = (!args.detach).then(Signals::hold).transpose()?;
    let mask = match &signals {
        Some(signals) => signals.before,
        None => SigSet::thread_get_mask()?,
    };
    if signals.is_some() && !args.no_subreaper {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
            .context("cannot become a subreaper")?;
    }
    let plan = Plan {
        id: &args.container_id,
        bundle: &args.bundle,
        console_socket: args.console_socket.as_deref(),
        pid_file: args.pid_file.as_deref(),
        no_pivot: args.no_pivot,
        no_new_keyring: args.no_new_keyring,
        preserve_fds: args.preserve_fds,
        detach: args.detach,
        systemd_cgroup,
        signals: mask,
    };
    let Built {
        mut container,
        master,
    } = plan.build(root).context("run failed")?;
    if let Err(err) = start_created(&mut container) {
        container.kill_and_wait()?;
        delete_stopped(&container, root)?;
        return Err(err.context("run failed"));
    }
    let Some(signals) = signals else {
        return Ok(0);
    };
    let code = signals.wait_for(container.record.pid, master)?;
    if !args.keep {
        container.kill_and_wait()?;
        delete_stopped(&container, root)?;
    }
    Ok(code)
}
