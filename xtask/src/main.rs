//! `cargo xtask demo | test | bench | fuzz | apt`: the project's glue. What it runs is in conformance/.

mod apt;
mod build;
mod engines;
mod fuzz;
mod oci;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use trustme_conformance::bench::Effort;

/// The project's commands. Each first installs, with apt, what this machine lacks.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Show the whole path: a Docker image converted, signed, verified, measured, running; and what is refused.
    Demo,
    /// Run all tests: format, lints, licences, unit tests, and the built programs from outside.
    Test {
        /// Run only this: fmt, clippy, deny, unit, fuzz, or a suite of conformance/tests (lifecycle, bundle, ...).
        #[arg(long, value_name = "SUITE")]
        only: Vec<String>,
        /// Run the official OCI validation suite instead, against trustme, runc and crun.
        #[arg(long)]
        oci: bool,
        /// Compare containerd, Docker and Podman with trustme and with runc instead.
        #[arg(long, conflicts_with = "oci")]
        engines: bool,
        /// Run the scenarios of the virtual machine instead (conformance/vm); --only names scenarios or machines.
        #[arg(long, conflicts_with = "oci")]
        vm: bool,
    },
    /// The virtual machine: `shell` opens a console in it, with our programs in PATH.
    Vm {
        /// What to do with it.
        #[command(subcommand)]
        action: VmAction,
    },
    /// Measure the built programs against others of their kind.
    Bench {
        /// Few runs and no peers that must be compiled: checks that the benchmark works.
        #[arg(long)]
        quick: bool,
        /// Run only this.
        #[arg(long, value_parser = ["lifecycle", "trust", "conversion", "big"])]
        only: Option<String>,
    },
    /// Run a fuzz target (docs/testing.md lists them).
    Fuzz {
        /// The target; all of them, one after the other, if absent.
        target: Option<String>,
        /// How long each one runs.
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Only install what is missing.
    Apt,
}

#[derive(Debug, Subcommand)]
enum VmAction {
    /// A console in the machine; `exit` or Ctrl-A X ends it.
    Shell,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<()> {
    apt::install_missing()?;
    match command {
        Command::Demo => trustme_conformance::demo::run(&build::release()?),
        Command::Test { oci: true, .. } => oci::run(),
        Command::Test { engines: true, .. } => engines::run(),
        Command::Test { vm: true, only, .. } => vm::test(&only),
        Command::Vm {
            action: VmAction::Shell,
        } => vm::shell(),
        Command::Test { only, .. } => test::run(&only),
        Command::Bench { quick, only } => {
            let effort = if quick { Effort::Quick } else { Effort::Full };
            let programs = build::release()?;
            // crun does not start beside two kinds of cgroups.
            trustme_oci_suite::private::enter()?;
            trustme_conformance::bench::run(&programs, effort, only.as_deref())
        }
        Command::Fuzz { target, seconds } => fuzz::run(target.as_deref(), seconds),
        Command::Apt => Ok(()),
    }
}
