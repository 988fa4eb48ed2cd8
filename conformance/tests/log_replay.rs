//! The measurement log against the chip: tpm2_pcrread, `trustmectl log verify` and a second replay say the same.

use std::fs;
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use trustme_conformance::command::{ok, run};
use trustme_conformance::fixtures::Fixtures;
use trustme_conformance::machine::Machine;
use trustme_conformance::replay::{records, replay};
use trustme_conformance::suite::{self, Outcome};

fn main() -> ExitCode {
    suite::main(&[
        (
            "chip_log_and_second_replay_agree",
            chip_log_and_second_replay_agree,
        ),
        (
            "a_pcr_that_was_used_before_is_replayed",
            a_pcr_that_was_used_before_is_replayed,
        ),
        (
            "an_event_is_measured_once_a_boot",
            an_event_is_measured_once_a_boot,
        ),
        ("a_reboot_begins_a_new_log", a_reboot_begins_a_new_log),
        ("a_foreign_extend_is_named", a_foreign_extend_is_named),
        ("a_changed_log_is_noticed", a_changed_log_is_noticed),
        ("without_a_tpm_nothing_starts", without_a_tpm_nothing_starts),
    ])
}

/// A machine on which the small GuestOS has run once.
fn machine_with_a_launch(fixtures: &Fixtures) -> Result<Machine> {
    let machine = Machine::new(fixtures, "enforce")?;
    launch_once(&machine, fixtures)?;
    Ok(machine)
}

fn launch_once(machine: &Machine, fixtures: &Fixtures) -> Result<()> {
    let bundle = machine.path("bundle");
    if !bundle.exists() {
        let conf = machine.install_small(fixtures)?;
        machine.make_bundle(&conf)?;
    }
    machine.launch("run --detach", &bundle)?.ok()?;
    ok(&mut machine.trustme("delete --force ID"))?;
    Ok(())
}

/// Asserts that chip, `log verify` and the second replay agree about PCR 11 and 13.
fn assert_agreement(machine: &Machine) -> Result<()> {
    let replayed = replay(&machine.path("measure.log"))?;
    let report: Value = serde_json::from_str(&ok(&mut machine.trustmectl("log verify --json"))?)?;
    ensure!(report["state"] == "complete", "{report}");
    let reported = report["pcrs"].as_array().context("pcrs")?;
    ensure!(
        reported.len() == 2 && replayed.len() == 2,
        "{report} {replayed:?}"
    );
    for pcr in [11, 13] {
        let chip = machine.tpm.pcr(pcr)?;
        ensure!(
            replayed.get(&pcr) == Some(&chip),
            "PCR {pcr}: {chip}, replayed {replayed:?}"
        );
        let entry = reported
            .iter()
            .find(|entry| entry["pcr"] == pcr)
            .context("no such PCR")?;
        ensure!(
            entry["expected"] == chip.as_str() && entry["actual"] == chip.as_str(),
            "{report}"
        );
        ensure!(chip != "0".repeat(64), "PCR {pcr} was never extended");
    }
    Ok(())
}

fn chip_log_and_second_replay_agree(fixtures: &Fixtures) -> Result<Outcome> {
    let machine = machine_with_a_launch(fixtures)?;
    assert_agreement(&machine)?;
    // The image event holds the bare SHA-256 of the image, as the signed text names it.
    let records = records(&machine.path("measure.log"))?;
    let image = records
        .iter()
        .find(|record| record["content"]["eventType"] == "image")
        .context("no image event")?;
    let digest = image["digests"][0]["digest"].as_str().context("digest")?;
    let root = machine.path("store/small-1/root.img");
    let sum = ok(std::process::Command::new("sha256sum").arg(root))?;
    ensure!(sum.starts_with(digest), "{digest} {sum}");
    ensure!(
        image["pcr"] == 11 && image["content"]["verdict"] == "trusted",
        "{image}"
    );
    Ok(Outcome::Passed)
}

/// As where systemd's stub has measured a unified kernel image into PCR 11.
fn a_pcr_that_was_used_before_is_replayed(fixtures: &Fixtures) -> Result<Outcome> {
    let machine = Machine::new(fixtures, "enforce")?;
    machine.tpm.extend(11)?;
    launch_once(&machine, fixtures)?;
    assert_agreement(&machine)?;
    Ok(Outcome::Passed)
}

fn an_event_is_measured_once_a_boot(fixtures: &Fixtures) -> Result<Outcome> {
    let machine = machine_with_a_launch(fixtures)?;
    let log = machine.path("measure.log");
    let (before, pcr) = (fs::read(&log)?, machine.tpm.pcr(11)?);
    launch_once(&machine, fixtures)?;
    ensure!(
        fs::read(&log)? == before,
        "the second start was recorded again"
    );
    ensure!(
        machine.tpm.pcr(11)? == pcr,
        "the second start was extended again"
    );
    // Another configuration of the same image is an event of its own.
    trustme_conformance::busybox::change(&machine.path("bundle"), |config| {
        config["process"]["args"] = serde_json::json!(["/bin/sleep", "7"]);
    })?;
    machine.set_mode("measure")?;
    let ran = machine.launch("run --detach", &machine.path("bundle"))?;
    ok(&mut machine.trustme("delete --force ID"))?;
    let records = records(&log)?;
    let last = records.last().context("no record")?;
    ensure!(
        last["content"]["eventType"] == "configuration",
        "{ran:?}: {last}"
    );
    assert_agreement(&machine)?;
    Ok(Outcome::Passed)
}

fn a_reboot_begins_a_new_log(fixtures: &Fixtures) -> Result<Outcome> {
    let mut machine = machine_with_a_launch(fixtures)?;
    machine.tpm.reboot()?;
    launch_once(&machine, fixtures)?;
    assert_agreement(&machine)?;
    ensure!(
        machine.path("measure.log.1").is_file(),
        "the old log was not moved aside"
    );
    Ok(Outcome::Passed)
}

fn a_foreign_extend_is_named(fixtures: &Fixtures) -> Result<Outcome> {
    let machine = machine_with_a_launch(fixtures)?;
    machine.tpm.extend(11)?;
    let verify = run(&mut machine.trustmectl("log verify"))?;
    ensure!(verify.status.code() == Some(1), "{verify:?}");
    ensure!(verify.stdout.contains("disagree"), "{verify:?}");
    // The next launch says so in the log, and verify goes on saying it.
    launch_once(&machine, fixtures)?;
    let verify = run(&mut machine.trustmectl("log verify"))?;
    ensure!(
        verify.status.code() == Some(1) && verify.stdout.contains("incomplete"),
        "{verify:?}"
    );
    Ok(Outcome::Passed)
}

/// One digit of a digest in each record, and each record left out.
fn a_changed_log_is_noticed(fixtures: &Fixtures) -> Result<Outcome> {
    let machine = machine_with_a_launch(fixtures)?;
    let path = machine.path("measure.log");
    let log = fs::read_to_string(&path)?;
    let records: Vec<&str> = log.split_inclusive('\n').collect();
    ensure!(records.len() == 3, "{log}");
    let refused = |changed: String, what: &str| -> Result<()> {
        fs::write(&path, changed)?;
        let verify = run(&mut machine.trustmectl("log verify"))?;
        ensure!(verify.status.code() == Some(1), "{what}: {verify:?}");
        Ok(())
    };
    for number in 0..records.len() {
        let left: Vec<&str> = [&records[..number], &records[number + 1..]].concat();
        refused(left.concat(), &format!("without record {number}"))?;
        let key = if number == 0 {
            "\"value\":\""
        } else {
            "\"digest\":\""
        };
        let place = records[number].find(key).context("a digest")? + key.len();
        let mut record = records[number].to_owned();
        let other = if record[place..].starts_with('a') {
            "b"
        } else {
            "a"
        };
        record.replace_range(place..=place, other);
        let changed: Vec<&str> = [
            &records[..number],
            &[record.as_str()],
            &records[number + 1..],
        ]
        .concat();
        refused(changed.concat(), &format!("changed record {number}"))?;
    }
    fs::write(&path, &log)?;
    assert_agreement(&machine)?;
    Ok(Outcome::Passed)
}

/// What cannot be measured does not start, in launch mode measure too.
fn without_a_tpm_nothing_starts(fixtures: &Fixtures) -> Result<Outcome> {
    for mode in ["measure", "enforce"] {
        let mut machine = Machine::new(fixtures, mode)?;
        let conf = machine.install_small(fixtures)?;
        let bundle = machine.make_bundle(&conf)?;
        machine.tpm.power_off()?;
        machine.launch("create", &bundle)?.fails_saying(&["TPM"])?;
        machine.assert_clean()?;
    }
    Ok(Outcome::Passed)
}
