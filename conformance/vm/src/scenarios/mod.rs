//! The scenarios, as the guest runs them. Each is a function that fails with the reason; [`all`] lists them by name.

mod kernel;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

/// What a scenario is given: the shared directory, a directory of its own, and a place to write down what it saw.
#[derive(Debug)]
pub struct Guest {
    /// The directory shared with the host.
    pub host: PathBuf,
    /// A fresh directory on tmpfs that is this scenario's own.
    pub work: PathBuf,
    log: Vec<String>,
}

/// A named scenario.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// The name, as the plan and the report print it.
    pub name: &'static str,
    /// What it checks, in one line.
    pub about: &'static str,
    /// The check itself.
    pub run: fn(&mut Guest) -> Result<()>,
}

/// Every scenario there is.
pub fn all() -> Vec<Scenario> {
    kernel::SCENARIOS.to_vec()
}

impl Guest {
    /// Makes a guest for one scenario, with its own directory below `base`.
    ///
    /// # Errors
    /// Fails when the directory cannot be made.
    pub fn new(host: &Path, base: &Path, scenario: &str) -> Result<Self> {
        let work = base.join(scenario);
        std::fs::create_dir_all(&work).with_context(|| format!("{}", work.display()))?;
        Ok(Self {
            host: host.to_owned(),
            work,
            log: Vec::new(),
        })
    }

    /// Writes a line into the scenario's log.
    pub fn note(&mut self, line: impl Into<String>) {
        self.log.push(line.into());
    }

    /// The lines written so far.
    pub fn into_log(self) -> Vec<String> {
        self.log
    }

    /// Runs a program and returns its standard output.
    ///
    /// # Errors
    /// Fails with the program's standard error when it does not end with 0.
    pub fn run(&mut self, command: &mut Command) -> Result<String> {
        let (ok, out, err) = self.outcome(command)?;
        if !ok {
            bail!("{command:?} failed: {err}{out}");
        }
        Ok(out)
    }

    /// Runs a program that must fail, and returns its standard error.
    ///
    /// # Errors
    /// Fails when the program ends with 0.
    pub fn refused(&mut self, command: &mut Command) -> Result<String> {
        let (ok, out, err) = self.outcome(command)?;
        if ok {
            bail!("{command:?} succeeded where it should have been refused: {out}");
        }
        Ok(err)
    }

    fn outcome(&mut self, command: &mut Command) -> Result<(bool, String, String)> {
        let output = command
            .output()
            .with_context(|| format!("{:?}", command.get_program()))?;
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let err = String::from_utf8_lossy(&output.stderr).into_owned();
        self.note(format!("{command:?}: {}", output.status));
        for line in err.lines() {
            self.note(format!("  stderr: {line}"));
        }
        Ok((output.status.success(), out, err))
    }
}
