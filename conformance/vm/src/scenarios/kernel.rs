//! What the machine itself must have, so that a later scenario's failure is ours and not the kernel's.

use std::fs;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Guest, Scenario};

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "kernel",
    about: "TPM device, device mapper targets, cgroup v2, IMA, lockdown and module signatures are there",
    run: kernel,
}];

fn kernel(guest: &mut Guest) -> Result<()> {
    for path in [
        "/dev/tpmrm0",
        "/dev/mapper/control",
        "/sys/kernel/security/ima/binary_runtime_measurements",
    ] {
        ensure!(fs::exists(path)?, "{path}: not there");
    }
    let controllers = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")?;
    for wanted in ["cpu", "io", "memory", "pids"] {
        ensure!(
            controllers.split_whitespace().any(|c| c == wanted),
            "cgroup v2: no {wanted} in {controllers}"
        );
    }
    let lockdown = fs::read_to_string("/sys/kernel/security/lockdown").context("lockdown")?;
    ensure!(lockdown.contains("[integrity]"), "lockdown is {lockdown}");
    let signatures =
        fs::read_to_string("/sys/module/module/parameters/sig_enforce").context("sig_enforce")?;
    ensure!(
        signatures.trim() == "Y",
        "module.sig_enforce is {signatures}"
    );
    let pcrs = guest.run(Command::new("tpm2_pcrread").args([
        "-T",
        "device:/dev/tpmrm0",
        "sha256:0,7,10,11",
    ]))?;
    guest.note(pcrs);
    Ok(())
}
