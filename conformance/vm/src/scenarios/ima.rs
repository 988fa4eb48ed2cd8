//! The kernel's measurement list and PCR 10.

use std::fs::{self, OpenOptions};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::{Boot, Guest, Scenario};

/// The last of its boot: it spoils PCR 10.
pub(super) const SCENARIOS: &[Scenario] = &[Scenario {
    name: "ima",
    about: "trustmectl log verify --ima explains PCR 10, violations too, and sees a foreign extend",
    boot: Boot::Direct,
    run: ima,
}];

fn ima(guest: &mut Guest) -> Result<()> {
    let before = verify(guest)?;
    // Not on tmpfs, which the kernel's policy leaves out.
    let measured = guest.host.join("verdicts/measured");
    fs::write(&measured, "by root, read")?;
    fs::read(&measured)?;
    // A reader while somebody may write: what was measured may not be what was read.
    let writer = OpenOptions::new().append(true).open(&measured)?;
    fs::read(&measured)?;
    drop(writer);
    let after = verify(guest)?;
    for (key, more) in [("entries", 2), ("violations", 1)] {
        let count = |report: &Value| report[key].as_u64().context(key);
        ensure!(
            count(&after)? >= count(&before)? + more,
            "{key}: before {before}, after {after}"
        );
    }
    let digest = "ab".repeat(32);
    guest.run(Command::new("tpm2_pcrextend").arg(format!("10:sha256={digest}")))?;
    let mut command = guest.ours("trustmectl", "enforce")?;
    guest
        .outcome(command.args(["log", "verify", "--ima"]))?
        .fails()?;
    Ok(())
}

fn verify(guest: &mut Guest) -> Result<Value> {
    let mut command = guest.ours("trustmectl", "enforce")?;
    let report = guest.run(command.args(["log", "verify", "--ima", "--json"]))?;
    let report: Value = serde_json::from_str(&report)?;
    ensure!(report["agree"] == true, "{report}");
    ensure!(report["pcrs"][0]["pcr"] == 10, "{report}");
    // For the unit test of the parser, and for who looks into a failure.
    fs::copy(
        "/sys/kernel/security/ima/binary_runtime_measurements",
        guest.host.join("verdicts/ima.list"),
    )?;
    guest.run(Command::new("tpm2_pcrread").arg("sha256:10"))?;
    Ok(report)
}
