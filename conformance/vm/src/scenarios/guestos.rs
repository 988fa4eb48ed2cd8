//! Signed GuestOS in launch mode enforce, with a real TPM device, dm-verity and cgroup v2, under lockdown.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use trustme_conformance::busybox;
use trustme_conformance::image::PAGE;
use trustme_conformance::network::fetch;
use trustme_conformance::replay::{records, replay};

use super::container::Container;
use super::{Boot, Guest, Scenario, pcr};
use crate::bundles::{NOISE, NOISE_COPY};

pub(super) const SCENARIOS: &[Scenario] = &[
    Scenario {
        name: "guestos-demo",
        about: "the demo's GuestOS: served from a dm-verity root and a sealed volume; the log explains PCRs that were not zero",
        boot: Boot::Direct,
        run: demo,
    },
    Scenario {
        name: "guestos-verity",
        about: "a flipped byte in a block that was not read at launch gives EIO, not data",
        boot: Boot::Direct,
        run: verity,
    },
    Scenario {
        name: "guestos-refused",
        about: "a changed text, signature, hash tree or image configuration, and rights that were not granted, are refused",
        boot: Boot::Direct,
        run: refused,
    },
    Scenario {
        name: "guestos-sealed",
        about: "a volume opens in the boot state that it was made in and in no other",
        boot: Boot::Direct,
        run: sealed,
    },
];

/// What is written into the volume.
const NOTE: &str = "written by the container, kept by the volume";

fn demo(guest: &mut Guest) -> Result<()> {
    // As a boot loader might have: a log has to begin with what is there.
    for number in [11, 13] {
        extend(guest, number)?;
    }
    let begin = [pcr(guest, 11)?, pcr(guest, 13)?];
    let mut container = Container::guestos(guest, "nginx", "demo")?;
    container.start()?;
    let page = fetch(container.init()?, "/")?;
    ensure!(page == PAGE, "{page}");
    let root = container.script("grep ' / ' /proc/self/mountinfo")?;
    container.guest.note(&root)?;
    container.script(&format!("echo '{NOTE}' > /var/www/html/note.txt"))?;
    container.end("QUIT")?;

    container.start()?;
    let note = fetch(container.init()?, "/note.txt")?;
    ensure!(note.trim() == NOTE, "{note}");
    container.end("QUIT")?;

    let shown = container.ctl("log show")?;
    ensure!(shown.contains("root verified by dm-verity"), "{shown}");
    log_explains(&mut container, &begin)
}

/// Asserts that the log begins with the values `begin` of PCR 11 and 13, and leads from there to other ones, which the chip holds:
/// by trustmectl and by an independent replay.
fn log_explains(container: &mut Container<'_>, begin: &[String; 2]) -> Result<()> {
    let verified = container.ctl("log verify")?;
    let log = container.guest.work.join("measure.log");
    let start = records(&log)?.remove(0)["content"]["pcrs"].to_string();
    let replayed = replay(&log)?;
    for (number, begin) in [11, 13].into_iter().zip(begin) {
        let chip = pcr(container.guest, number)?;
        ensure!(chip != *begin, "PCR {number} was not extended");
        ensure!(start.contains(begin.as_str()), "{begin}, start: {start}");
        ensure!(
            replayed.get(&number) == Some(&chip) && verified.contains(&chip),
            "PCR {number}: {chip}, {replayed:?}, {verified}"
        );
    }
    Ok(())
}

fn verity(guest: &mut Guest) -> Result<()> {
    let noise = fs::read(guest.host.join("bundles").join(NOISE_COPY))?;
    let mut container = Container::guestos(guest, "small", "verity")?;
    let middle = noise.len() / 2;
    let pattern = &noise[middle..middle + 64];
    let image = container.stored("small-1/root.img");
    let place = fs::read(&image)?
        .windows(pattern.len())
        .position(|window| window == pattern)
        .context("the image does not hold the noise as it is")?;
    flip(&image, place)?;
    container.start()?;
    container.script(&format!("head -c 4096 /{NOISE} > /dev/null"))?;
    let error = container.script_fails(&format!("cat /{NOISE} > /dev/null"))?;
    ensure!(error.contains("Input/output error"), "{error}");
    container.end("KILL")?;

    flip(&image, place)?;
    container.start()?;
    container.script(&format!("cat /{NOISE} > /dev/null"))?;
    container.end("KILL")
}

fn refused(guest: &mut Guest) -> Result<()> {
    let mut container = Container::guestos(guest, "small", "refused")?;
    let hash = container.stored("small-1/root.hash.img");
    for (file, place) in [
        ("small-1.conf", 10),
        ("small-1.sig", 100),
        // The superblock's salt, and the topmost block of the tree.
        ("small-1/root.hash.img", 88),
        ("small-1/root.hash.img", 4096),
        ("small-1/config.img", 10),
    ] {
        let path = container.stored(file);
        flip(&path, place)?;
        container.start_refused(&[&path.display().to_string()])?;
        flip(&path, place)?;
    }
    let whole = fs::read(&hash)?;
    fs::remove_file(&hash)?;
    container.start_refused(&["root.hash.img"])?;
    fs::write(&hash, whole)?;

    let bundle = container.bundle();
    let config = fs::read(bundle.join("config.json"))?;
    busybox::change(&bundle, |config| {
        let bounding = &mut config["process"]["capabilities"]["bounding"];
        if let Some(list) = bounding.as_array_mut() {
            list.push("CAP_SYS_ADMIN".into());
        }
    })?;
    container.start_refused(&["CAP_SYS_ADMIN"])?;
    fs::write(bundle.join("config.json"), config)?;
    container.start()?;
    container.end("KILL")
}

fn sealed(guest: &mut Guest) -> Result<()> {
    let mut container = Container::guestos(guest, "small", "sealed")?;
    container.start()?;
    container.script(&format!("echo '{NOTE}' > /data/note"))?;
    container.end("KILL")?;
    container.start()?;
    let note = container.script("cat /data/note")?;
    ensure!(note.trim() == NOTE, "{note}");
    container.end("KILL")?;
    extend(container.guest, 7)?;
    container.start_refused(&["PCR"])
}

/// Flips the lowest bit of a byte.
fn flip(path: &Path, place: usize) -> Result<()> {
    let mut bytes = fs::read(path).with_context(|| format!("{}", path.display()))?;
    *bytes.get_mut(place).context("the file is too short")? ^= 1;
    fs::write(path, bytes).with_context(|| format!("{}", path.display()))
}

fn extend(guest: &mut Guest, number: u8) -> Result<()> {
    let digest = "ab".repeat(32);
    guest.run(Command::new("tpm2_pcrextend").arg(format!("{number}:sha256={digest}")))?;
    Ok(())
}
