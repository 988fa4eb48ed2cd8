//! `create`: builds a container that waits for `start`.

use anyhow::{Context, Result};
use liboci_cli::Create;
use nix::sys::signal::SigSet;

use crate::build::Plan;
use crate::root::Root;

/// Builds the container.
///
/// # Errors
/// If it cannot be built; then nothing of it is left.
pub fn create(args: &Create, root: &Root, systemd_cgroup: bool) -> Result<()> {
    let plan = Plan {
        id: &args.container_id,
        bundle: &args.bundle,
        console_socket: args.console_socket.as_deref(),
        pid_file: args.pid_file.as_deref(),
        no_pivot: args.no_pivot,
        no_new_keyring: args.no_new_keyring,
        preserve_fds: args.preserve_fds,
        detach: true,
        systemd_cgroup,
        signals: SigSet::thread_get_mask()?,
    };
    plan.build(root).context("create failed")?;
    Ok(())
}
