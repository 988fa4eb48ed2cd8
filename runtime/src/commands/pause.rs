//! `pause`: freezes all processes of a container.

use anyhow::{Result, bail};
use liboci_cli::Pause;

use crate::root::Root;
use crate::state::{Container, Status};

/// Freezes the container.
///
/// # Errors
/// If it is neither created nor running, or cannot be frozen.
pub fn pause(args: &Pause, root: &Root) -> Result<()> {
    let container = Container::load(root, &args.container_id)?;
    match container.status() {
        Status::Running | Status::Created => container.record.cgroups.freeze(true),
        _ => bail!("container not running or created"),
    }
}
