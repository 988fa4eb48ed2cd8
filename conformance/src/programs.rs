//! The built programs.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// Names another directory of the programs.
const VARIABLE: &str = "TRUSTME_PROGRAMS";

/// The directory of the built programs.
#[derive(Debug, Clone)]
pub struct Programs(PathBuf);

impl Programs {
    /// The programs in `dir`.
    ///
    /// # Errors
    /// They are not there.
    pub fn in_dir(dir: &Path) -> Result<Self> {
        let dir = dir
            .canonicalize()
            .with_context(|| format!("{}", dir.display()))?;
        for program in ["trustme", "trustme-hook", "trustme-convert", "trustmectl"] {
            let path = dir.join(program);
            ensure!(
                path.is_file(),
                "{} is missing: cargo build --release first, or cargo xtask test",
                path.display()
            );
        }
        Ok(Self(dir))
    }

    /// Those in the directory that `TRUSTME_PROGRAMS` names, else in release/ of the target directory that the running
    /// test is in.
    ///
    /// # Errors
    /// They are not there.
    pub fn built() -> Result<Self> {
        if let Some(dir) = std::env::var_os(VARIABLE) {
            return Self::in_dir(Path::new(&dir));
        }
        // <target>/debug/deps/<test>
        let test = std::env::current_exe()?;
        let target = test
            .ancestors()
            .nth(3)
            .context("the test is in no target directory")?;
        Self::in_dir(&target.join("release"))
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.0
    }

    /// A program's path.
    pub fn path(&self, program: &str) -> PathBuf {
        self.0.join(program)
    }

    /// A program with arguments, separated by single spaces.
    pub fn command(&self, program: &str, line: &str) -> Command {
        let mut command = Command::new(self.path(program));
        command.args(line.split(' ').filter(|part| !part.is_empty()));
        command
    }

    /// Where fixtures that take long to make are kept: beside the programs' directory.
    pub fn cache(&self) -> PathBuf {
        self.0.parent().unwrap_or(&self.0).join("trustme-fixtures")
    }
}
