//! What host and guest tell each other through the shared directory: which scenarios to run, and what came of each.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

/// The file that tells the guest what to run, below the shared directory.
pub const PLAN: &str = "plan.json";

/// The scenarios of one boot, in order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    /// Names as [`crate::scenarios::all`] lists them.
    pub scenarios: Vec<String>,
    /// Seconds that a scenario may take.
    pub limit: u64,
}

/// What came of one scenario.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Verdict {
    /// The scenario's name.
    pub scenario: String,
    /// `None`: it held. Otherwise the error chain.
    pub failure: Option<String>,
    /// Wall-clock time in the guest, in milliseconds.
    pub milliseconds: u64,
}

impl Verdict {
    /// Where the verdict of `scenario` is kept below the shared directory.
    pub fn path(share: &Path, scenario: &str) -> PathBuf {
        share.join("verdicts").join(format!("{scenario}.json"))
    }

    /// Where `scenario` writes down what it does, while it does it.
    pub fn log_path(share: &Path, scenario: &str) -> PathBuf {
        share.join("verdicts").join(format!("{scenario}.log"))
    }

    /// Reads the verdict of `scenario`.
    ///
    /// # Errors
    /// The guest left none, which means that the machine died before or in this scenario.
    pub fn read(share: &Path, scenario: &str) -> Result<Self> {
        let path = Self::path(share, scenario);
        let bytes = std::fs::read(&path)
            .with_context(|| format!("{scenario}: no verdict at {}", path.display()))?;
        serde_json::from_slice(&bytes).with_context(|| format!("{}", path.display()))
    }

    /// Writes it below the shared directory.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, share: &Path) -> Result<()> {
        let path = Self::path(share, &self.scenario);
        std::fs::write(&path, serde_json::to_vec_pretty(self)?)
            .with_context(|| format!("{}", path.display()))
    }
}
