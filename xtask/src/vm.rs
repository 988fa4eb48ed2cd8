//! `cargo xtask test --vm` and `cargo xtask vm`: the machine that has what this one's kernel lacks.

use anyhow::Result;
use trustme_vm::suite;
use trustme_vm::workshop::Workshop;

use crate::build::{self, cargo, step};

/// Runs the scenarios, or those named; a line for each.
///
/// # Errors
/// Some fail, or a machine cannot be made.
pub fn test(only: &[String]) -> Result<()> {
    suite::run(&workshop()?, only)
}

/// A console in the machine `direct`; `exit` or Ctrl-A X ends it.
///
/// # Errors
/// The machine cannot be made.
pub fn shell() -> Result<()> {
    suite::shell(&workshop()?)
}

/// Builds what the guest runs.
///
/// # Errors
/// The build fails.
pub fn workshop() -> Result<Workshop> {
    let programs = build::release()?;
    step(&mut cargo(&[
        "build",
        "--release",
        "--package",
        "trustme-vm",
        "--bins",
    ]))?;
    Workshop::new(build::target()?.join("vm"), programs)
}
