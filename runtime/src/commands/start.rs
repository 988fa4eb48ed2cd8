//! `start`: lets a created container execute its program.

use anyhow::{Result, bail};
use liboci_cli::Start;

use crate::root::Root;
use crate::state::{Container, START_SOCKET, Status};
use crate::{hooks, process};

/// Starts the container.
///
/// # Errors
/// If it is not waiting for its start, or a poststart hook fails (the container is killed then, as runc does).
pub fn start(args: &Start, root: &Root) -> Result<()> {
    let mut container = Container::load(root, &args.container_id)?;
    match container.status() {
        Status::Created => start_created(&mut container),
        Status::Stopped => bail!("cannot start a container that has stopped"),
        Status::Running => bail!("cannot start an already running container"),
        Status::Paused => bail!("cannot start a container in the paused state"),
    }
}

/// Starts a container that is known to wait for it.
///
/// # Errors
/// As [`start`].
pub fn start_created(container: &mut Container) -> Result<()> {
    // A program that cannot be executed has said so on the container's standard error, and ended with it (as runc).
    let _executed = process::start(&container.dir.join(START_SOCKET))?;
    container.record.started = true;
    container.save()?;
    if let Err(err) = hooks::poststart(container) {
        container.kill_and_wait()?;
        return Err(err);
    }
    Ok(())
}
