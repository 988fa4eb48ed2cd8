//! A volume opens only in its container, on its machine, in its boot state.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use trustme_conformance::command::{ok, run};
use trustme_conformance::fixtures::{Fixtures, NAME};
use trustme_conformance::machine::Machine;
use trustme_conformance::suite::{self, Outcome};

/// Written into the volume; must not be found on disk.
const SECRET: &str = "a-text-that-occurs-nowhere-else-0123456789";

fn main() -> ExitCode {
    suite::main(&[
        (
            "a_volume_keeps_what_was_written",
            a_volume_keeps_what_was_written,
        ),
        (
            "a_volume_begins_with_what_the_image_has",
            a_volume_begins_with_what_the_image_has,
        ),
        (
            "nothing_is_on_disk_in_the_clear",
            nothing_is_on_disk_in_the_clear,
        ),
        (
            "another_boot_state_is_refused",
            another_boot_state_is_refused,
        ),
        ("another_tpm_is_refused", another_tpm_is_refused),
        ("a_changed_blob_is_refused", a_changed_blob_is_refused),
        ("a_new_version_opens_it", a_new_version_opens_it),
        ("another_guestos_is_refused", another_guestos_is_refused),
        ("a_volume_in_use_is_refused", a_volume_in_use_is_refused),
    ])
}

/// A machine whose small GuestOS has written SECRET into its volume, and was deleted.
struct Used {
    machine: Machine,
    bundle: PathBuf,
}

impl Used {
    fn new(fixtures: &Fixtures) -> Result<Self> {
        let machine = Machine::new(fixtures, "enforce")?;
        let conf = machine.install_small(fixtures)?;
        let bundle = machine.make_bundle(&conf)?;
        let used = Self { machine, bundle };
        used.start()?;
        used.inside(&format!("echo {SECRET} > /data/secret"))?;
        used.delete()?;
        Ok(used)
    }

    fn start(&self) -> Result<()> {
        self.machine.launch("run --detach", &self.bundle)?.ok()?;
        Ok(())
    }

    fn inside(&self, script: &str) -> Result<String> {
        ok(self.machine.trustme("exec ID sh -c").arg(script))
    }

    fn delete(&self) -> Result<()> {
        ok(&mut self.machine.trustme("delete --force ID"))?;
        self.machine.assert_clean()
    }

    /// Asserts that the secret is there.
    fn opens(&self) -> Result<()> {
        self.start()?;
        ensure!(self.inside("cat /data/secret")?.trim() == SECRET);
        self.delete()
    }

    /// Asserts that the launch is refused with an error that names the volume, and nothing is left.
    fn refused(&self, named: &[&str]) -> Result<String> {
        let volume = self.machine.volume()?;
        let name = volume
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let error = self
            .machine
            .launch("run --detach", &self.bundle)?
            .fails_saying(&[&[&*name], named].concat())?;
        self.machine.assert_clean()?;
        Ok(error)
    }
}

fn a_volume_keeps_what_was_written(fixtures: &Fixtures) -> Result<Outcome> {
    let mut used = Used::new(fixtures)?;
    used.opens()?;
    used.machine.tpm.reboot()?;
    used.opens()?;
    Ok(Outcome::Passed)
}

fn a_volume_begins_with_what_the_image_has(fixtures: &Fixtures) -> Result<Outcome> {
    let used = Used::new(fixtures)?;
    used.start()?;
    let listed = used.inside("stat -c '%n %a %u:%g' /data /data/from-image")?;
    ensure!(
        listed == "/data 2775 1000:2000\n/data/from-image 640 1000:2000\n",
        "{listed}"
    );
    used.delete()?;
    Ok(Outcome::Passed)
}

fn nothing_is_on_disk_in_the_clear(fixtures: &Fixtures) -> Result<Outcome> {
    let used = Used::new(fixtures)?;
    for text in [SECRET, "copied into a new volume", "from-image"] {
        let found = Command::new("grep")
            .args([
                "--recursive",
                "--files-with-matches",
                "--fixed-strings",
                text,
            ])
            .arg(used.machine.path("volumes"))
            .output()?;
        ensure!(
            found.status.code() == Some(1),
            "{text:?} is in the clear: {found:?}"
        );
    }
    Ok(Outcome::Passed)
}

fn another_boot_state_is_refused(fixtures: &Fixtures) -> Result<Outcome> {
    let mut used = Used::new(fixtures)?;
    used.machine.tpm.reboot()?;
    used.machine.tpm.extend(7)?;
    used.refused(&["PCR 7"])?;
    // Another PCR is none of its business; and the first boot state opens it again.
    used.machine.tpm.reboot()?;
    used.machine.tpm.extend(5)?;
    used.opens()?;
    Ok(Outcome::Passed)
}

fn another_tpm_is_refused(fixtures: &Fixtures) -> Result<Outcome> {
    let used = Used::new(fixtures)?;
    let other = Machine::new(fixtures, "enforce")?;
    for name in ["volumes", "store"] {
        ok(Command::new("cp")
            .arg("-a")
            .arg(used.machine.path(name))
            .arg(other.path(name)))?;
    }
    let bundle = other.make_bundle(&other.path("store/small-1.conf"))?;
    // The same container on the stolen disk, so under the same id.
    let id = &used.machine.id;
    let mut start = other.trustme("run --detach");
    let ran = run(start.arg("--bundle").arg(&bundle).arg(id))?;
    ran.fails_saying(&[id, "TPM"])?;
    other.assert_clean()?;
    Ok(Outcome::Passed)
}

fn a_changed_blob_is_refused(fixtures: &Fixtures) -> Result<Outcome> {
    let used = Used::new(fixtures)?;
    let path = used.machine.volume()?.join("sealed.json");
    let original = fs::read_to_string(&path)?;
    for key in [
        "\"public\":",
        "\"private\":",
        "\"srk_name\":",
        "\"identity\":",
        "\"policy_digest\":",
    ] {
        let begin = original.find(key).with_context(|| format!("no {key}"))? + key.len();
        let text = &original[begin..];
        let open = begin + text.find('"').context("no value")? + 1;
        let end = open + original[open..].find('"').context("no end")?;
        for place in [open + (end - open) / 3, open + (end - open) / 2] {
            let mut changed = original.clone();
            let other = if changed[place..].starts_with('1') {
                "2"
            } else {
                "1"
            };
            changed.replace_range(place..=place, other);
            fs::write(&path, &changed)?;
            used.refused(&[])
                .with_context(|| format!("{key} changed at {place}"))?;
        }
    }
    for broken in ["", "{}", "null", &original[..original.len() / 2]] {
        fs::write(&path, broken)?;
        used.refused(&["sealed.json"])?;
    }
    fs::write(&path, &original)?;
    used.opens()?;
    Ok(Outcome::Passed)
}

fn a_new_version_opens_it(fixtures: &Fixtures) -> Result<Outcome> {
    let used = Used::new(fixtures)?;
    let store = used.machine.path("store");
    ok(&mut fixtures.convert(&fixtures.small_image()?, &store, 2)?)?;
    fs::remove_dir_all(&used.bundle)?;
    used.machine
        .make_bundle(&store.join(format!("{NAME}-2.conf")))?;
    used.opens()?;
    Ok(Outcome::Passed)
}

/// Of the same name, but signed by somebody else whom the machine trusts too.
fn another_guestos_is_refused(fixtures: &Fixtures) -> Result<Outcome> {
    let used = Used::new(fixtures)?;
    let others = Fixtures::with(fixtures.programs.clone())?;
    let anchors = used.machine.path("anchors");
    fs::create_dir(&anchors)?;
    fs::copy(fixtures.anchor()?, anchors.join("one.pem"))?;
    fs::copy(others.anchor()?, anchors.join("two.pem"))?;
    used.machine.trust(&anchors, "enforce")?;
    used.opens()?;
    fs::remove_dir_all(used.machine.path("store"))?;
    fs::remove_dir_all(&used.bundle)?;
    let conf = used.machine.install_small(&others)?;
    used.machine.make_bundle(&conf)?;
    used.refused(&["belongs to"])?;
    Ok(Outcome::Passed)
}

fn a_volume_in_use_is_refused(fixtures: &Fixtures) -> Result<Outcome> {
    let used = Used::new(fixtures)?;
    used.start()?;
    // The same id under another state directory is the same volume.
    let mut second = fixtures.programs.command("trustme", "");
    second.arg("--root").arg(used.machine.path("other-root"));
    second
        .args(["run", "--detach", "--bundle"])
        .arg(&used.bundle)
        .arg(&used.machine.id);
    second.env("TRUSTME_CONFIG", used.machine.path("config.toml"));
    let ran = run(&mut second)?;
    ran.fails_saying(&["in use"])?;
    ensure!(
        used.inside("cat /data/secret")?.trim() == SECRET,
        "the first one goes on"
    );
    used.delete()?;
    Ok(Outcome::Passed)
}
