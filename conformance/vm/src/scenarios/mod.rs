//! The scenarios, as the guest runs them. Each is a function that fails with the reason; [`all`] lists them by name.

mod container;
mod devices;
mod guestos;
mod ima;
mod kernel;
mod lifecycle;
pub mod oci;
mod sealed;
mod secureboot;

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use trustme_conformance::command;

use crate::bundles::ANCHOR;
use crate::verdict::Verdict;

/// The boots, in their order. Those of the machine `secureboot` have one TPM and one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Boot {
    /// The machine `direct`.
    Direct,
    /// The machine `secureboot`.
    SecureBoot,
    /// The same with Secure Boot switched off.
    SecureBootOff,
    /// The same with Secure Boot on again.
    SecureBootAgain,
    /// As `direct`, without what it measures, and with the official OCI suite.
    Oci,
}

impl Boot {
    /// As reports and file names have it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::SecureBoot => "secureboot",
            Self::SecureBootOff => "secureboot-off",
            Self::SecureBootAgain => "secureboot-again",
            Self::Oci => "oci",
        }
    }
}

/// A named scenario.
#[derive(Debug, Clone, Copy)]
pub struct Scenario {
    /// The name, as the plan and the report print it.
    pub name: &'static str,
    /// What it checks, in one line.
    pub about: &'static str,
    /// The boot that it runs in.
    pub boot: Boot,
    /// The check itself.
    pub run: fn(&mut Guest) -> Result<()>,
}

/// The scenario with this name, of those that [`all`] lists or of its own command.
pub fn find(name: &str) -> Option<Scenario> {
    let mut all = all();
    all.push(oci::SCENARIO);
    all.into_iter().find(|scenario| scenario.name == name)
}

/// Every scenario of `cargo xtask test --vm`, in the order in which they run.
pub fn all() -> Vec<Scenario> {
    [
        kernel::SCENARIOS,
        lifecycle::SCENARIOS,
        devices::SCENARIOS,
        guestos::SCENARIOS,
        ima::SCENARIOS,
        secureboot::SCENARIOS,
        sealed::SCENARIOS,
    ]
    .concat()
}

/// What a scenario is given: the shared directory, a directory of its own, and a place to write down what it saw.
#[derive(Debug)]
pub struct Guest {
    /// The directory shared with the host.
    pub host: PathBuf,
    /// A fresh directory on tmpfs that is this scenario's own.
    pub work: PathBuf,
    /// Where its containers' volumes are kept.
    pub volumes: PathBuf,
    /// The scenario's name.
    pub scenario: String,
    log: File,
}

impl Guest {
    /// Makes a guest for one scenario, with its own directory below `base`.
    ///
    /// # Errors
    /// The directory or the log cannot be made.
    pub fn new(host: &Path, base: &Path, scenario: &str) -> Result<Self> {
        let work = base.join(scenario);
        fs::create_dir_all(&work).with_context(|| format!("{}", work.display()))?;
        let log = Verdict::log_path(host, scenario);
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&log)
            .with_context(|| format!("{}", log.display()))?;
        Ok(Self {
            host: host.to_owned(),
            volumes: work.join("volumes"),
            work,
            scenario: scenario.to_owned(),
            log,
        })
    }

    /// A program of ours.
    pub fn program(name: &str) -> PathBuf {
        Path::new("/opt/trustme").join(name)
    }

    /// A program of ours with a configuration of the scenario's own: what it keeps is in the scenario's directory, the volumes in
    /// `self.volumes`, the TPM is the machine's.
    ///
    /// # Errors
    /// The configuration cannot be written.
    pub fn ours(&self, program: &str, mode: &str) -> Result<Command> {
        let path = self.work.join("config.toml");
        let text = format!(
            "[launch]\nmode = \"{mode}\"\nanchors = \"{}\"\nfloors = \"{dir}/floors\"\n\
             [log]\npath = \"{dir}/measure.log\"\n[volumes]\ndir = \"{}\"\n",
            self.host.join("bundles").join(ANCHOR).display(),
            self.volumes.display(),
            dir = self.work.display()
        );
        fs::write(&path, text).with_context(|| format!("{}", path.display()))?;
        let mut command = Command::new(Self::program(program));
        command.env("TRUSTME_CONFIG", path);
        Ok(command)
    }

    /// Writes a line into the scenario's log.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn note(&mut self, line: &str) -> Result<()> {
        writeln!(self.log, "{line}").context("the scenario's log")
    }

    /// Runs a program and returns its standard output.
    ///
    /// # Errors
    /// It fails; its standard error is in the error.
    pub fn run(&mut self, command: &mut Command) -> Result<String> {
        self.outcome(command)?.ok()
    }

    /// Runs a program to its end.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn outcome(&mut self, command: &mut Command) -> Result<command::Ran> {
        let begin = Instant::now();
        let ran = command::run(command)?;
        let seconds = begin.elapsed().as_secs_f64();
        self.note(&format!("$ {}: {}, {seconds:.1} s", ran.line, ran.status))?;
        for line in ran.stdout.lines().chain(ran.stderr.lines()) {
            self.note(&format!("  {line}"))?;
        }
        Ok(ran)
    }
}

/// What a file of the kernel's says, without the line feed.
fn kernel_file(path: impl AsRef<Path>) -> Result<String> {
    let path = path.as_ref();
    let text = fs::read_to_string(path).with_context(|| format!("{}", path.display()))?;
    Ok(text.trim_end().to_owned())
}

/// Fails unless a file of the kernel's says `wanted`.
fn says(path: impl AsRef<Path>, wanted: &str) -> Result<()> {
    let path = path.as_ref();
    let text = kernel_file(path)?;
    if text != wanted {
        bail!("{}: {wanted:?} expected, {text:?} found", path.display());
    }
    Ok(())
}

/// The value of a PCR of the SHA-256 bank, by tpm2_pcrread, lower-case hex.
fn pcr(guest: &mut Guest, number: u8) -> Result<String> {
    let printed = guest.run(Command::new("tpm2_pcrread").arg(format!("sha256:{number}")))?;
    let value = printed.split("0x").nth(1).context("no value")?;
    Ok(value.trim().to_lowercase())
}
