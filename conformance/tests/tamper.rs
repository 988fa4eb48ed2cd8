//! What was changed after it was signed: refused in launch mode enforce before any container process exists; started in
//! launch mode measure, and the log says why it was not trusted.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use trustme_conformance::busybox;
use trustme_conformance::command::{ok, run};
use trustme_conformance::fixtures::{Fixtures, NAME};
use trustme_conformance::machine::Machine;
use trustme_conformance::replay::records;
use trustme_conformance::suite::{self, Outcome};

fn main() -> ExitCode {
    suite::main(&[
        ("enforce_refuses_a_changed_root_image", |f| {
            refuses(f, "small-1/root.img", 12)
        }),
        ("enforce_refuses_a_changed_hash_tree", |f| {
            refuses(f, "small-1/root.hash.img", 12)
        }),
        ("enforce_refuses_a_changed_image_configuration", |f| {
            refuses(f, "small-1/config.img", 12)
        }),
        ("enforce_refuses_a_changed_text", |f| {
            refuses(f, "small-1.conf", 40)
        }),
        ("enforce_refuses_a_changed_signature", |f| {
            refuses(f, "small-1.sig", 20)
        }),
        ("enforce_refuses_a_changed_certificate", |f| {
            refuses(f, "small-1.cert", 40)
        }),
        (
            "verify_refuses_every_changed_byte",
            verify_refuses_every_changed_byte,
        ),
        (
            "enforce_refuses_missing_truncated_and_grown_files",
            enforce_refuses_missing_truncated_and_grown_files,
        ),
        ("enforce_refuses_more_rights", enforce_refuses_more_rights),
        (
            "enforce_refuses_another_signer",
            enforce_refuses_another_signer,
        ),
        (
            "enforce_refuses_an_old_version",
            enforce_refuses_an_old_version,
        ),
        (
            "enforce_refuses_a_plain_bundle",
            enforce_refuses_a_plain_bundle,
        ),
        ("a_refusal_runs_nothing", a_refusal_runs_nothing),
        ("measure_starts_and_says_why", measure_starts_and_says_why),
    ])
}

/// A machine with its own copy of the small GuestOS.
struct Store {
    machine: Machine,
    bundle: PathBuf,
}

impl Store {
    fn new(fixtures: &Fixtures, mode: &str) -> Result<Self> {
        let machine = Machine::new(fixtures, mode)?;
        let conf = machine.install_small(fixtures)?;
        let bundle = machine.make_bundle(&conf)?;
        Ok(Self { machine, bundle })
    }

    fn file(&self, name: &str) -> PathBuf {
        self.machine.path("store").join(name)
    }

    /// Asserts that the launch is refused with an error that holds `named`, and that no process of a container ever was:
    /// there is no pid file, no state, no cgroup, no launch directory.
    fn refused(&self, named: &str) -> Result<()> {
        let pid_file = self.machine.path("pid");
        let mut create = self.machine.trustme("create");
        create.arg("--pid-file").arg(&pid_file);
        create
            .arg("--bundle")
            .arg(&self.bundle)
            .arg(&self.machine.id);
        run(&mut create)?.fails_saying(&[named])?;
        ensure!(!pid_file.exists(), "there was a process");
        run(&mut self.machine.trustme("state ID"))?.fails_saying(&["does not exist"])?;
        self.machine.assert_clean()
    }

    /// Asserts that an unchanged bundle does start: the counter-check of each refusal.
    fn accepted(&self) -> Result<()> {
        self.machine.launch("create", &self.bundle)?.ok()?;
        ok(&mut self.machine.trustme("delete --force ID"))?;
        self.machine.assert_clean()
    }
}

/// Flips one bit of a file, runs `check`, and flips it back.
fn with_flipped(path: &Path, place: usize, check: impl FnOnce() -> Result<()>) -> Result<()> {
    let original = fs::read(path)?;
    let mut bytes = original.clone();
    bytes[place] ^= 1;
    fs::write(path, bytes)?;
    let checked = check();
    fs::write(path, original)?;
    checked.with_context(|| format!("bit 0 of byte {place} of {}", path.display()))
}

/// `count` places in a file, evenly spread, with the first and the last.
fn places(path: &Path, count: usize) -> Result<Vec<usize>> {
    let last = usize::try_from(fs::metadata(path)?.len())? - 1;
    let mut places: Vec<usize> = (0..count)
        .map(|number| last * number / (count - 1))
        .collect();
    places.dedup();
    Ok(places)
}

fn refuses(fixtures: &Fixtures, name: &str, count: usize) -> Result<Outcome> {
    let store = Store::new(fixtures, "enforce")?;
    store.accepted()?;
    let path = store.file(name);
    for place in places(&path, count)? {
        with_flipped(&path, place, || store.refused(&path.display().to_string()))?;
    }
    store.accepted()?;
    Ok(Outcome::Passed)
}

/// Cheaper than a launch, so for all bytes of the small files.
fn verify_refuses_every_changed_byte(fixtures: &Fixtures) -> Result<Outcome> {
    let store = Store::new(fixtures, "enforce")?;
    let mut verify = fixtures.programs.command("trustme-convert", "verify");
    verify
        .arg(store.file("small-1.conf"))
        .arg("--anchors")
        .arg(fixtures.anchor()?);
    for (name, step) in [
        ("small-1.conf", 3),
        ("small-1.sig", 7),
        ("small-1.cert", 7),
        ("small-1/config.img", 11),
        ("small-1/root.hash.img", 997),
        ("small-1/root.img", 99_991),
    ] {
        let path = store.file(name);
        let length = usize::try_from(fs::metadata(&path)?.len())?;
        for place in (0..length).step_by(step) {
            with_flipped(&path, place, || {
                run(&mut verify)?.fails_saying(&[&path.display().to_string()])?;
                Ok(())
            })?;
        }
    }
    ok(&mut verify)?;
    Ok(Outcome::Passed)
}

fn enforce_refuses_missing_truncated_and_grown_files(fixtures: &Fixtures) -> Result<Outcome> {
    let store = Store::new(fixtures, "enforce")?;
    let names = [
        "small-1.conf",
        "small-1.sig",
        "small-1.cert",
        "small-1/root.img",
        "small-1/root.hash.img",
        "small-1/config.img",
    ];
    for name in names {
        let path = store.file(name);
        let named = path.display().to_string();
        let original = fs::read(&path)?;
        fs::remove_file(&path)?;
        store
            .refused(&named)
            .with_context(|| format!("{name} missing"))?;
        std::os::unix::fs::symlink("/etc/passwd", &path)?;
        store
            .refused(&named)
            .with_context(|| format!("{name} a symlink"))?;
        fs::remove_file(&path)?;
        fs::write(&path, &original[..original.len() / 2])?;
        store
            .refused(&named)
            .with_context(|| format!("{name} truncated"))?;
        fs::write(&path, [&original[..], b"x"].concat())?;
        store
            .refused(&named)
            .with_context(|| format!("{name} grown"))?;
        fs::write(&path, original)?;
    }
    store.accepted()?;
    Ok(Outcome::Passed)
}

/// Everything that the GuestOS does not grant.
fn enforce_refuses_more_rights(fixtures: &Fixtures) -> Result<Outcome> {
    use serde_json::{Value, json};
    type Change = (&'static str, fn(&mut Value));
    let changes: &[Change] = &[
        ("capabilit", |config| {
            for set in ["bounding", "effective", "permitted"] {
                config["process"]["capabilities"][set] = json!(["CAP_SYS_ADMIN"]);
            }
        }),
        ("namespace", |config| {
            let namespaces = config["linux"]["namespaces"]
                .as_array_mut()
                .expect("namespaces");
            namespaces.retain(|namespace| namespace["type"] != "pid");
        }),
        ("device", |config| {
            config["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]);
        }),
        ("mount", |config| {
            let mount = json!({"destination": "/host", "type": "bind", "source": "/", "options": ["rbind"]});
            config["mounts"].as_array_mut().expect("mounts").push(mount);
        }),
        ("eccomp", |config| {
            config["linux"]
                .as_object_mut()
                .expect("linux")
                .remove("seccomp");
        }),
        ("noNewPrivileges", |config| {
            config["process"]["noNewPrivileges"] = json!(false)
        }),
        ("args", |config| {
            config["process"]["args"] = json!(["/bin/sh", "-c", "id"])
        }),
        ("maskedPaths", |config| {
            config["linux"]["maskedPaths"] = json!([])
        }),
        ("hooks", |config| {
            config["hooks"] = json!({"createRuntime": [{"path": "/bin/true"}]})
        }),
    ];
    for (named, change) in changes {
        let store = Store::new(fixtures, "enforce")?;
        busybox::change(&store.bundle, change)?;
        store.refused(named)?;
    }
    Ok(Outcome::Passed)
}

fn enforce_refuses_another_signer(fixtures: &Fixtures) -> Result<Outcome> {
    let others = Fixtures::with(fixtures.programs.clone())?;
    let machine = Machine::new(fixtures, "enforce")?;
    let conf = machine.install_small(&others)?;
    let bundle = machine.make_bundle(&conf)?;
    let store = Store { machine, bundle };
    store.refused(&store.file("small-1.cert").display().to_string())?;
    Ok(Outcome::Passed)
}

fn enforce_refuses_an_old_version(fixtures: &Fixtures) -> Result<Outcome> {
    let store = Store::new(fixtures, "enforce")?;
    ok(&mut store.machine.trustmectl(&format!("floor {NAME} 1")))?;
    store.accepted()?;
    ok(&mut store.machine.trustmectl(&format!("floor {NAME} 2")))?;
    store.refused("version 1")?;
    Ok(Outcome::Passed)
}

fn enforce_refuses_a_plain_bundle(fixtures: &Fixtures) -> Result<Outcome> {
    let machine = Machine::new(fixtures, "enforce")?;
    let bundle = machine.path("plain");
    busybox::bundle(&fixtures.programs.path("trustme"), &bundle, &["/bin/true"])?;
    Store { machine, bundle }.refused("refused")?;
    Ok(Outcome::Passed)
}

/// Watched by strace: no namespace is made, and no program runs but the runtime and its hook.
fn a_refusal_runs_nothing(fixtures: &Fixtures) -> Result<Outcome> {
    let store = Store::new(fixtures, "enforce")?;
    let trace = store.machine.path("trace");
    let traced = |verb: &str| -> Result<String> {
        let create = store.machine.trustme(verb);
        let mut command = Command::new("strace");
        command.args([
            "-f",
            "-e",
            "trace=execve,execveat,clone,clone3,unshare,setns",
            "-o",
        ]);
        command
            .arg(&trace)
            .arg(create.get_program())
            .args(create.get_args());
        command.env("TRUSTME_CONFIG", store.machine.path("config.toml"));
        command
            .arg("--bundle")
            .arg(&store.bundle)
            .arg(&store.machine.id);
        // The counter-check's init holds strace until it is deleted, so it runs to its end.
        run(&mut command)?;
        Ok(fs::read_to_string(&trace)?)
    };
    let path = store.file("small-1.sig");
    with_flipped(&path, 100, || {
        let calls = traced("create")?;
        for sign in [
            "CLONE_NEWPID",
            "CLONE_NEWNET",
            "CLONE_NEWUTS",
            "setns(",
            "/bin/service",
        ] {
            ensure!(!calls.contains(sign), "{sign} in\n{calls}");
        }
        let executed = calls
            .lines()
            .filter(|line| line.contains("execve") && !line.contains("= -1"))
            // The rest of a call whose beginning is another line.
            .filter(|line| !line.contains("resumed>"));
        for line in executed {
            let ours = ["trustme", "memfd", "/proc/self/fd"]
                .iter()
                .any(|name| line.contains(name));
            ensure!(ours, "{line}");
        }
        ensure!(
            calls.contains("trustme-hook"),
            "strace has seen nothing:\n{calls}"
        );
        Ok(())
    })?;
    Ok(Outcome::Passed)
}

/// The image without volumes: an untrusted container gets none.
fn measure_starts_and_says_why(fixtures: &Fixtures) -> Result<Outcome> {
    let converted = tempfile::tempdir()?;
    ok(&mut fixtures.convert(&fixtures.stateless_image()?, converted.path(), 1)?)?;
    for name in [
        "small-1.conf",
        "small-1.sig",
        "small-1.cert",
        "small-1/root.img",
        "small-1/root.hash.img",
        "small-1/config.img",
    ] {
        let machine = Machine::new(fixtures, "measure")?;
        let store = machine.path("store");
        ok(Command::new("cp")
            .arg("-a")
            .arg(converted.path())
            .arg(&store))?;
        let bundle = machine.make_bundle(&store.join("small-1.conf"))?;
        let path = store.join(name);
        change_harmlessly(&path)?;
        machine
            .launch("run --detach", &bundle)?
            .ok()
            .with_context(|| name.to_owned())?;
        machine.wait_for("running")?;
        let records = records(&machine.path("measure.log"))?;
        let image = records
            .iter()
            .find(|record| record["content"]["eventType"] == "image")
            .context("no image event")?;
        ensure!(
            image["content"]["verdict"] == "untrusted",
            "{name}: {image}"
        );
        let reason = image["content"]["reason"].as_str().context("no reason")?;
        ensure!(
            reason.contains(&path.display().to_string()),
            "{name}: {reason}"
        );
        ok(&mut machine.trustmectl("log verify"))?;
        ok(&mut machine.trustme("delete --force ID"))?;
        machine.assert_clean()?;
    }
    Ok(Outcome::Passed)
}

/// Changes a file so that a container can still be made of it.
fn change_harmlessly(path: &Path) -> Result<()> {
    let mut bytes = fs::read(path)?;
    let find = |text: &[u8]| bytes.windows(text.len()).position(|window| window == text);
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    let place = match name {
        // In the description, in a label.
        "small-1.conf" => find(b"en: \"").context("no description")? + 5,
        "config.img" => find(b"org.example.label").context("no label")?,
        "small-1.cert" => find(b"-----END").context("no certificate")? - 100,
        // Random file content in the middle.
        "root.img" => bytes.len() / 2,
        _ => bytes.len() - 100,
    };
    bytes[place] ^= 1;
    Ok(fs::write(path, bytes)?)
}
