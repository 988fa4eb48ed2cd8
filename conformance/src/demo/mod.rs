//! The demo.

use std::path::Path;

/// Runs it.
///
/// # Errors
/// A step fails.
pub fn run(_programs: &Path) -> anyhow::Result<()> {
    anyhow::bail!("the demo is not written yet")
}
