//! Hooks that run outside of a creation: poststart and poststop.

use anyhow::{Context, Result};
use libcontainer::container::ContainerStatus;
use oci_spec::runtime::Hook;

use crate::log;
use crate::state::Container;

/// Runs the poststart hooks, in order.
///
/// # Errors
/// Of the first hook that fails; the caller stops the container then (runc does).
pub fn poststart(container: &Container) -> Result<()> {
    let state = container.oci_state(ContainerStatus::Running);
    run(&container.record.poststart, &state).context("poststart hook")
}

/// Runs the poststop hooks, in order. One that fails is reported and does not keep the next from running (runtime-spec,
/// "poststop").
pub fn poststop(container: &Container) {
    let mut state = container.oci_state(ContainerStatus::Stopped);
    state.pid = None;
    for hook in &container.record.poststop {
        if let Err(err) = run(std::slice::from_ref(hook), &state) {
            log::warning(&format!("poststop hook {}: {err:#}", hook.path().display()));
        }
    }
}

fn run(hooks: &[Hook], state: &libcontainer::container::State) -> Result<()> {
    if hooks.is_empty() {
        return Ok(());
    }
    Ok(libcontainer::hooks::run_hooks(
        Some(&hooks.to_vec()),
        Some(state),
        None,
        None,
        None,
    )?)
}
