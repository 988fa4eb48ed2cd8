//! `cargo xtask test --oci`: the official validation suite, against trustme, runc and crun in one run.

use anyhow::Result;
use trustme_oci_suite::source;

use crate::apt;
use crate::build::{self, cargo, step};

/// The runtimes that trustme is compared with.
const PEERS: [&str; 2] = ["runc=/usr/sbin/runc", "crun=/usr/bin/crun"];

/// Builds the suite, if it is not there yet, and runs it.
///
/// # Errors
/// trustme fails where runc passes, or where conformance/oci/expected.txt says that it passes.
pub fn run() -> Result<()> {
    apt::install(source::APT_PACKAGES)?;
    let programs = build::release()?;
    let suite = source::build(&build::target()?.join("oci-suite"))?;
    let mut command = cargo(&["run", "--package", "trustme-oci-suite", "--", "run"]);
    command.arg(suite).arg(format!(
        "--runtime=trustme={}",
        programs.join("trustme").display()
    ));
    for peer in PEERS {
        command.args(["--runtime", peer]);
    }
    step(&mut command)
}
