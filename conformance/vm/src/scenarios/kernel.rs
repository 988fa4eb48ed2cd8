//! What the machine itself must have, so that a later scenario's failure is ours and not the kernel's.

use std::fs;
use std::process::Command;

use anyhow::{Result, ensure};

use super::{Boot, Guest, Scenario, kernel_file, says};

pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "kernel",
    about: "TPM device, device mapper, cgroup v2, IMA, lockdown and module signatures are there",
    boot: Boot::Direct,
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
    let controllers = kernel_file("/sys/fs/cgroup/cgroup.controllers")?;
    for wanted in ["cpu", "cpuset", "io", "memory", "pids"] {
        ensure!(
            controllers.split(' ').any(|found| found == wanted),
            "cgroup v2: no {wanted} in {controllers}"
        );
    }
    let lockdown = kernel_file("/sys/kernel/security/lockdown")?;
    ensure!(lockdown.contains("[integrity]"), "lockdown is {lockdown}");
    says("/sys/module/module/parameters/sig_enforce", "Y")?;
    guest.run(Command::new("tpm2_pcrread").arg("sha256:0,7,10,11"))?;
    Ok(())
}
