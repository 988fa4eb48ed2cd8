//! Benchmarks.

use std::path::Path;

/// How much is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effort {
    /// A few runs.
    Quick,
    /// Enough for medians.
    Full,
}

/// Runs them.
///
/// # Errors
/// A program fails.
pub fn run(_programs: &Path, _effort: Effort) -> anyhow::Result<()> {
    anyhow::bail!("the benchmarks are not written yet")
}
