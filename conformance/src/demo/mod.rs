//! The demo: a real Docker image converted, signed, measured, running with a sealed volume; and what is refused.

mod story;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::command::{self, ok};
use crate::fixtures::Fixtures;
use crate::image::PAGE;
use crate::machine::Machine;
use crate::network::fetch;
use crate::programs::Programs;
use crate::replay::replay;
use story::Story;

/// The GuestOS's name.
const NAME: &str = "nginx";

/// What is written into the volume.
const NOTE: &str = "written by the container, kept by the volume";

/// Runs the demo with the programs in a directory. It cleans up after itself, also when it fails.
///
/// # Errors
/// A step's expectation is not met.
pub fn run(programs: &Path) -> Result<()> {
    let fixtures = Fixtures::with(Programs::in_dir(programs)?)?;
    let mut story = Story::begin();
    println!(
        "trustme: one Docker image, signed, measured, running. Everything happens in temporary directories."
    );
    let store = tempfile::Builder::new().prefix("trustme-demo-").tempdir()?;
    let conf = convert(&mut story, &fixtures, store.path())?;
    let machine = Machine::new(&fixtures, "enforce")?;
    let bundle = machine.make_bundle(&conf)?;
    let demo = Demo {
        machine,
        bundle,
        conf,
    };
    serve(&mut story, &demo)?;
    show_log(&mut story, &demo)?;
    refuse(&mut story, &demo)?;
    let demo = other_boot_state(&mut story, demo)?;
    story.step(
        "Nothing is left behind",
        "no mount, loop device, cgroup, process or state directory",
        || {
            demo.machine.assert_clean()?;
            Ok("none".to_owned())
        },
    )?;
    story.end();
    Ok(())
}

/// A GuestOS on a machine.
struct Demo {
    machine: Machine,
    bundle: PathBuf,
    conf: PathBuf,
}

impl Demo {
    fn start(&self) -> Result<u32> {
        self.machine.launch("run --detach", &self.bundle)?.ok()?;
        self.machine.init()
    }

    /// As `docker stop`: the image's stop signal, then the container is deleted.
    fn stop(&self) -> Result<()> {
        ok(&mut self.machine.trustme("kill ID QUIT"))?;
        self.machine.wait_for("stopped")?;
        ok(&mut self.machine.trustme("delete ID"))?;
        self.machine.assert_clean()
    }

    /// Starts it, which has to fail with an error that names `named` and leave nothing; the error.
    fn refused(&self, named: &Path) -> Result<String> {
        let ran = self.machine.launch("run --detach", &self.bundle)?;
        let named = named.display().to_string();
        let error = ran.fails_saying(&[&named])?;
        self.machine.assert_clean()?;
        Ok(error)
    }

    /// A file of the bundle's, from its configuration text's name and a suffix.
    fn file(&self, suffix: &str) -> PathBuf {
        let stem = self.conf.with_extension("");
        PathBuf::from(format!("{}{suffix}", stem.display()))
    }
}

fn convert(story: &mut Story, fixtures: &Fixtures, store: &Path) -> Result<PathBuf> {
    let mut image = None;
    story.step(
        "A Docker image of Debian bookworm with nginx",
        "at least three layers, as docker save writes them; the first time, debootstrap needs a minute",
        || {
            let made = fixtures.demo_image()?;
            let manifest = ok(command::line("skopeo inspect --raw")
                .arg(format!("docker-archive:{}", made.archive.display())))?;
            let manifest: serde_json::Value = serde_json::from_str(&manifest)?;
            let layers = manifest["layers"].as_array().context("layers")?.len();
            ensure!(layers >= 3, "{layers} layers");
            let size = fs::metadata(&made.archive)?.len() >> 20;
            let observed = format!("{}: {layers} layers, {size} MiB", made.archive.display());
            image = Some(made);
            Ok(observed)
        },
    )?;
    let image = image.context("the step has made an image")?;
    story.step(
        "A development PKI",
        "root CA, sub-CA and signing leaf with GyroidOS's file names",
        || {
            let mut names: Vec<String> = Vec::new();
            for entry in fs::read_dir(fixtures.pki()?)? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.sort();
            ensure!(names.len() >= 6, "{names:?}");
            Ok(names.join(" "))
        },
    )?;
    let conf = store.join(format!("{NAME}-1.conf"));
    story.step(
        "The image becomes a signed GuestOS bundle",
        "trustme-convert verify accepts it with the root CA as anchor",
        || {
            ok(&mut fixtures.convert_as(NAME, &image, store, 1)?)?;
            let mut verify = fixtures.programs.command("trustme-convert", "verify");
            ok(verify.arg(&conf).arg("--anchors").arg(fixtures.anchor()?))
        },
    )?;
    Ok(conf)
}

fn serve(story: &mut Story, demo: &Demo) -> Result<()> {
    story.step(
        "It starts in launch mode enforce",
        "curl in the container's network namespace gets the image's page from the new volume",
        || {
            let pid = demo.start()?;
            let page = fetch(pid, "/")?;
            ensure!(page == PAGE, "{page}");
            Ok(page)
        },
    )?;
    story.step(
        "The container writes into its volume",
        "nginx serves what was written",
        || {
            let script = format!("echo '{NOTE}' > /var/www/html/note.txt");
            ok(demo.machine.trustme("exec ID sh -c").arg(script))?;
            let note = fetch(demo.machine.init()?, "/note.txt")?;
            ensure!(note.trim() == NOTE, "{note}");
            Ok(note)
        },
    )?;
    story.step(
        "Stopped, the volume is closed and encrypted",
        "the note is found nowhere in the volume's files",
        || {
            demo.stop()?;
            let found = command::run(
                command::line("grep --recursive --files-with-matches --fixed-strings")
                    .arg(NOTE)
                    .arg(demo.machine.path("volumes")),
            )?;
            ensure!(found.status.code() == Some(1), "{found:?}");
            ok(&mut demo.machine.trustmectl("volume list"))
        },
    )?;
    story.step(
        "Started again, the data is still there",
        "the note, by curl",
        || {
            let note = fetch(demo.start()?, "/note.txt")?;
            ensure!(note.trim() == NOTE, "{note}");
            demo.stop()?;
            Ok(note)
        },
    )
}

fn show_log(story: &mut Story, demo: &Demo) -> Result<()> {
    story.step(
        "The measurement log says what was started",
        "one image and one configuration, trusted, though it started twice",
        || {
            let shown = ok(&mut demo.machine.trustmectl("log show"))?;
            ensure!(shown.lines().count() == 3, "{shown}");
            ensure!(shown.matches(", trusted").count() == 2, "{shown}");
            Ok(shown)
        },
    )?;
    story.step(
        "Log and TPM agree",
        "tpm2_pcrread, trustmectl log verify and an independent replay give the same PCR 11 and 13",
        || {
            let verified = ok(&mut demo.machine.trustmectl("log verify"))?;
            let replayed = replay(&demo.machine.path("measure.log"))?;
            for pcr in [11, 13] {
                let chip = demo.machine.tpm.pcr(pcr)?;
                ensure!(
                    replayed.get(&pcr) == Some(&chip),
                    "PCR {pcr}: {chip}, {replayed:?}"
                );
                ensure!(verified.contains(&chip), "{verified}");
            }
            Ok(verified)
        },
    )
}

fn refuse(story: &mut Story, demo: &Demo) -> Result<()> {
    let image = demo.file("/root.img");
    let middle = usize::try_from(fs::metadata(&image)?.len())? / 2;
    let flips: [(&'static str, PathBuf, usize); 3] = [
        ("One bit of the image flipped", image, middle),
        (
            "One bit of the configuration text flipped",
            demo.conf.clone(),
            10,
        ),
        ("One bit of the signature flipped", demo.file(".sig"), 100),
    ];
    for (title, path, place) in flips {
        let expected = format!("refused, naming {}", path.display());
        story.step(title, &expected, || {
            flipped(&path, place, || demo.refused(&path))
        })?;
    }
    let blob = demo.machine.volume()?.join("sealed.json");
    let text = fs::read_to_string(&blob)?;
    let key = "\"private\":";
    let begin = text.find(key).context("no sealed object")? + key.len();
    let value = begin + text[begin..].find('"').context("no value")? + 1;
    // In the middle, where the result is base64 still: it is the TPM that has to notice.
    let stays = |place: &usize| (text.as_bytes()[*place] ^ 1).is_ascii_alphanumeric();
    let place = (value + 80..text.len()).find(stays).context("no value")?;
    let volume = blob
        .parent()
        .and_then(Path::file_name)
        .context("a volume")?;
    story.step(
        "One bit of the volume's sealed key flipped",
        "refused by the TPM, naming the volume",
        || flipped(&blob, place, || demo.refused(Path::new(volume))),
    )?;
    story.step(
        "All of them flipped back",
        "the container starts, and the note is there",
        || {
            let note = fetch(demo.start()?, "/note.txt")?;
            ensure!(note.trim() == NOTE, "{note}");
            demo.stop()?;
            Ok(note)
        },
    )
}

fn other_boot_state(story: &mut Story, mut demo: Demo) -> Result<Demo> {
    demo.machine.tpm.reboot()?;
    demo.machine.tpm.extend(7)?;
    let volume = demo.machine.volume()?;
    let volume = PathBuf::from(volume.file_name().context("a volume")?);
    story.step(
        "The machine boots another state: PCR 7 is extended",
        "the image is as trusted as ever, but the volume's key is not released",
        || demo.refused(&volume),
    )?;
    demo.machine.tpm.reboot()?;
    story.step(
        "It boots the first state again",
        "the volume opens, the log of this boot agrees with the TPM",
        || {
            let note = fetch(demo.start()?, "/note.txt")?;
            ensure!(note.trim() == NOTE, "{note}");
            demo.stop()?;
            let verified = ok(&mut demo.machine.trustmectl("log verify"))?;
            Ok(format!("{note}{verified}"))
        },
    )?;
    Ok(demo)
}

/// Flips the lowest bit of a byte, acts, and flips it back.
fn flipped(path: &Path, place: usize, act: impl FnOnce() -> Result<String>) -> Result<String> {
    let original = fs::read(path)?;
    let mut bytes = original.clone();
    *bytes.get_mut(place).context("the file is too short")? ^= 1;
    fs::write(path, bytes)?;
    let acted = act();
    fs::write(path, original)?;
    acted
}
