//! `cargo xtask test --oci`: the official validation suite, against trustme, runc and crun in one run: here, and with
//! cgroup v2 in the virtual machine.

use std::process::Command;

use anyhow::Result;
use trustme_oci_suite::source;

use crate::build::{self, cargo, step};
use crate::{apt, vm};

/// The runtimes that trustme is compared with.
const PEERS: [&str; 2] = ["runc=/usr/sbin/runc", "crun=/usr/bin/crun"];

/// Builds the suite, if it is not there yet, and runs it.
///
/// # Errors
/// trustme fails where runc passes, or where conformance/oci/expected.txt says that it passes.
pub fn run() -> Result<()> {
    apt::install(source::APT_PACKAGES)?;
    let workshop = vm::workshop()?;
    step(&mut cargo(&[
        "build",
        "--release",
        "--package",
        "trustme-oci-suite",
    ]))?;
    let programs = build::target()?.join("release");
    let runner = programs.join("trustme-oci-suite");
    let suite = source::build(&build::target()?.join("oci-suite"))?;
    let mut command = Command::new(&runner);
    command.arg("run").arg(&suite).arg(format!(
        "--runtime=trustme={}",
        programs.join("trustme").display()
    ));
    for peer in PEERS {
        command.args(["--runtime", peer]);
    }
    let here = step(&mut command);
    if let Err(error) = &here {
        eprintln!("error: {error:#}");
    }
    println!("== the same with cgroup v2 in the virtual machine");
    trustme_vm::suite::oci(&workshop, &suite, &runner).and(here)
}
