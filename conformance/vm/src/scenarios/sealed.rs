//! A volume over three boots: Secure Boot on, off, on again.

use std::fs;

use anyhow::{Result, ensure};
use trustme_conformance::replay::records;

use super::container::Container;
use super::{Boot, Guest, Scenario, pcr};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "sealed-on",
        about: "a GuestOS makes its volume; the log begins with the PCR 11 that systemd's stub left",
        boot: Boot::SecureBoot,
        run: on,
    },
    Scenario {
        name: "sealed-off",
        about: "with Secure Boot off the volume's key is not released",
        boot: Boot::SecureBootOff,
        run: off,
    },
    Scenario {
        name: "sealed-again",
        about: "with Secure Boot on again the volume opens, and the data are there",
        boot: Boot::SecureBootAgain,
        run: again,
    },
];

/// What is written into the volume.
const NOTE: &str = "written with Secure Boot on";

/// The same container in all boots; its volume is on the disk.
fn container(guest: &mut Guest) -> Result<Container<'_>> {
    guest.volumes = "/disk/volumes".into();
    fs::create_dir_all(&guest.volumes)?;
    Container::guestos(guest, "small", "sealed")
}

fn on(guest: &mut Guest) -> Result<()> {
    let begin = pcr(guest, 11)?;
    let mut container = container(guest)?;
    container.start()?;
    container.script(&format!("echo '{NOTE}' > /data/note"))?;
    container.end("KILL")?;
    container.ctl("log verify")?;
    let log = container.guest.work.join("measure.log");
    let start = records(&log)?.remove(0)["content"]["pcrs"].to_string();
    ensure!(start.contains(&begin), "PCR 11 was {begin}, start: {start}");
    let shown = container.ctl("log show")?;
    ensure!(shown.contains("root verified by dm-verity"), "{shown}");
    container
        .guest
        .run(&mut std::process::Command::new("sync"))?;
    Ok(())
}

fn off(guest: &mut Guest) -> Result<()> {
    container(guest)?.start_refused(&["PCR"])
}

fn again(guest: &mut Guest) -> Result<()> {
    let mut container = container(guest)?;
    container.start()?;
    let note = container.script("cat /data/note")?;
    ensure!(note.trim() == NOTE, "{note}");
    container.end("KILL")
}
