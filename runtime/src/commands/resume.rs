//! `resume`: thaws all processes of a paused container.

use anyhow::{Result, bail};
use liboci_cli::Resume;

use crate::root::Root;
use crate::state::{Container, Status};

/// Thaws the container.
///
/// # Errors
/// If it is not paused.
pub fn resume(args: &Resume, root: &Root) -> Result<()> {
    let container = Container::load(root, &args.container_id)?;
    match container.status() {
        Status::Paused => container.record.cgroups.freeze(false),
        _ => bail!("container not paused"),
    }
}
