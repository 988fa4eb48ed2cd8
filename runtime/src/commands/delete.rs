//! `delete`: removes what is held for a container.

use anyhow::{Context, Result, bail};
use liboci_cli::Delete;

use crate::root::Root;
use crate::state::{Container, Status};
use crate::{creation, hooks, launch};

/// Deletes the container. With `--force`, a running one is killed first, and one that does not exist is no error.
///
/// # Errors
/// If the container runs, or something of it cannot be removed; it can be deleted again then.
pub fn delete(args: &Delete, root: &Root) -> Result<()> {
    let id = &args.container_id;
    let dir = root.container(id)?;
    let Some(container) = Container::read(&dir)? else {
        return match creation::clean_left_over(root, id)? {
            false if !args.force => bail!("container does not exist"),
            _ => Ok(()),
        };
    };
    match container.status() {
        Status::Stopped => (),
        // As runc: what has not been started may be deleted.
        Status::Created => container.kill_and_wait()?,
        _ if args.force => container.kill_and_wait()?,
        other => bail!(
            "cannot delete container {id} that is not stopped: {}",
            other.as_str()
        ),
    }
    delete_stopped(&container, root)
}

/// Deletes a container whose init process has ended.
///
/// # Errors
/// If something of it cannot be removed.
pub fn delete_stopped(container: &Container, root: &Root) -> Result<()> {
    let record = &container.record;
    record.cgroups.remove(&record.id)?;
    libcontainer::process::intel_rdt::cleanup_intel_rdt(
        record.intel_rdt.as_deref(),
        record.intel_rdt_monitoring.as_deref(),
        None,
        &record.id,
    )
    .context("cannot clean up resctrl")?;
    if record.launch {
        launch::release(&root.launch(&record.id))?;
    }
    hooks::poststop(container);
    creation::remove_state_dir(root, &container.dir)
}
