//! `cargo xtask test --engines`: containerd, Docker and Podman with trustme, compared with runc check by check.

use anyhow::Result;

use crate::apt;
use crate::build::{self, cargo, step};

/// What the checks need besides the engines.
const APT_PACKAGES: &[&str] = &["bsdutils", "busybox-static", "curl", "iproute2", "uidmap"];

/// Runs all engines.
///
/// # Errors
/// A check differs from runc, or an engine has fewer than 30.
pub fn run() -> Result<()> {
    apt::install(APT_PACKAGES)?;
    let programs = build::release()?;
    let mut command = cargo(&["run", "--package", "trustme-engines", "--", "--programs"]);
    step(command.arg(programs))
}
