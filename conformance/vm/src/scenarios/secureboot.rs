//! What Secure Boot gives: the state that volumes are sealed to.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::{Boot, Guest, Scenario, kernel_file, pcr};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "secureboot-state",
        about: "Secure Boot is on, PCR 7 and 11 are measured, the kernel is locked down",
        boot: Boot::SecureBoot,
        run: on,
    },
    Scenario {
        name: "secureboot-state-off",
        about: "Secure Boot is off, which PCR 7 shows",
        boot: Boot::SecureBootOff,
        run: off,
    },
    Scenario {
        name: "secureboot-state-again",
        about: "Secure Boot is on again, PCR 7 and 11 are what they were",
        boot: Boot::SecureBootAgain,
        run: again,
    },
];

/// The variable SecureBoot of EFI's global namespace (UEFI specification, section 3.3): four bytes of attributes and the value.
const VARIABLE: &str = "/sys/firmware/efi/efivars/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c";

/// Where PCR values are kept between the boots.
const KEPT: &str = "/disk/pcrs";

fn secure_boot() -> Result<bool> {
    let value = fs::read(VARIABLE).context(VARIABLE)?;
    Ok(value.get(4) == Some(&1))
}

fn on(guest: &mut Guest) -> Result<()> {
    ensure!(secure_boot()?, "Secure Boot is off");
    let lockdown = kernel_file("/sys/kernel/security/lockdown")?;
    ensure!(lockdown.contains("[integrity]"), "lockdown is {lockdown}");
    let values = values(guest)?;
    let zero = "0".repeat(64);
    ensure!(!values.contains(&zero), "PCR 7 or 11 is zero: {values:?}");
    fs::write(KEPT, values.join("\n")).context(KEPT)
}

fn off(guest: &mut Guest) -> Result<()> {
    ensure!(!secure_boot()?, "Secure Boot is on");
    let (before, now) = (kept()?, values(guest)?);
    ensure!(now[0] != before[0], "PCR 7 is as with Secure Boot");
    ensure!(now[1] == before[1], "the same image, but another PCR 11");
    Ok(())
}

fn again(guest: &mut Guest) -> Result<()> {
    ensure!(secure_boot()?, "Secure Boot is off");
    let (before, now) = (kept()?, values(guest)?);
    ensure!(now == before, "PCRs 7, 11: {now:?}, before {before:?}");
    Ok(())
}

fn values(guest: &mut Guest) -> Result<Vec<String>> {
    [7, 11]
        .map(|number| pcr(guest, number))
        .into_iter()
        .collect()
}

fn kept() -> Result<Vec<String>> {
    let text = fs::read_to_string(KEPT).context(KEPT)?;
    Ok(text.lines().map(str::to_owned).collect())
}
