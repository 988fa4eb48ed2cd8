//! trustme-hook as a runtime calls it: exit code, the one line on stderr, what is left.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};

const CONFIG: &str = r#"{"root":{"path":"rootfs"},"process":{"args":["sh"]},"hostname":"web"}"#;
const STATE: &str = r#"{"ociVersion":"1.0.2","id":"web","status":"creating","bundle":"/srv/web"}"#;

/// A directory with a configuration file and a launch directory, in a mount namespace of its own.
struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    fn new(mode: &str) -> Self {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount_change(
            "/",
            MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        )
        .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let machine = Self { dir };
        let path = |name| machine.path(name).display().to_string();
        let text = format!(
            "[launch]\nmode = {mode:?}\nmanifests = {:?}\npolicies = {:?}\n[tpm]\ntcti = \"none\"\n[log]\npath = {:?}\n[volumes]\ndir = {:?}\n",
            path("manifests"),
            path("policy.d"),
            path("measure.log"),
            path("volumes"),
        );
        fs::write(machine.path("config.toml"), text).unwrap();
        fs::create_dir(machine.launch_dir()).unwrap();
        fs::create_dir_all(machine.path("web/rootfs/usr")).unwrap();
        fs::write(machine.path("web/rootfs/usr/file"), "x").unwrap();
        fs::write(machine.launch_dir().join("config.json"), CONFIG).unwrap();
        fs::write(machine.launch_dir().join("lock"), "").unwrap();
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn launch_dir(&self) -> PathBuf {
        self.path("@launch")
    }

    fn hook(&self, command: &str, state: &str) -> Output {
        let web = self.path("web").display().to_string();
        let state = state.replace("/srv/web", &web);
        let mut child = Command::new(env!("CARGO_BIN_EXE_trustme-hook"))
            .arg(command)
            .arg("--state-dir")
            .arg(self.launch_dir())
            .env("TRUSTME_CONFIG", self.path("config.toml"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // The hook may end before it reads: then nobody is there to be written to.
        let _ = child.stdin.take().unwrap().write_all(state.as_bytes());
        child.wait_with_output().unwrap()
    }

    /// The one line of a hook that fails.
    fn error(&self, command: &str, state: &str) -> String {
        let output = self.hook(command, state);
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert_eq!(output.stdout, b"");
        let stderr = String::from_utf8(output.stderr).unwrap();
        let line = stderr
            .strip_prefix("error: ")
            .and_then(|line| line.strip_suffix('\n'));
        let line = line.unwrap_or_else(|| panic!("{stderr:?}"));
        assert!(!line.contains('\n'), "{stderr:?}");
        line.to_owned()
    }

    fn succeeds(&self, command: &str) {
        let output = self.hook(command, STATE);
        assert!(
            output.status.success() && output.stderr.is_empty(),
            "{output:?}"
        );
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("measure.log")).unwrap_or_default()
    }
}

#[test]
fn measure_starts_a_plain_bundle_from_a_mount_of_its_own() {
    let machine = Machine::new("measure");
    machine.succeeds("launch");
    let written = fs::read_to_string(machine.launch_dir().join("bundle/config.json")).unwrap();
    let root = machine.launch_dir().join("mnt/root");
    let expected = CONFIG.replace("\"rootfs\"", &format!("{:?}", root.display().to_string()));
    let json = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(json(&written), json(&expected));
    // Whatever becomes of the path that the caller named: the mount is of what was measured.
    fs::rename(machine.path("web/rootfs"), machine.path("web/gone")).unwrap();
    fs::create_dir(machine.path("web/rootfs")).unwrap();
    assert_eq!(fs::read_to_string(root.join("usr/file")).unwrap(), "x");
    let log = machine.log();
    assert_eq!(log.lines().count(), 3, "{log}");
    assert!(log.contains("\"verified\":\"tree\""), "{log}");
    assert!(log.contains("no launch manifest in "), "{log}");
    machine.succeeds("release");
    assert!(!machine.launch_dir().exists());
    machine.succeeds("release");
}

#[test]
fn a_warning_is_a_line_on_stderr() {
    let machine = Machine::new("measure");
    fs::write(machine.path("measure.log"), "no record\n").unwrap();
    let output = machine.hook("launch", STATE);
    assert!(output.status.success());
    let stderr = String::from_utf8(output.stderr).unwrap();
    let log = machine.path("measure.log").display().to_string();
    let expected = format!(
        "warning: measurement log {log} is incomplete: {log}.1: record 0: does not begin with a record separator (0x1E)\n"
    );
    assert_eq!(stderr, expected);
}

#[test]
fn enforce_refuses_a_plain_bundle_and_records_it() {
    let machine = Machine::new("enforce");
    let error = machine.error("launch", STATE);
    assert!(
        error.starts_with("refused: no launch manifest in "),
        "{error}"
    );
    assert!(!machine.launch_dir().join("bundle").exists());
    assert!(machine.log().contains(
        "\"digests\":[],\"content_type\":\"trustme\",\"content\":{\"eventType\":\"refusal\""
    ));
    machine.error("launch", STATE);
    assert_eq!(
        machine.log().lines().count(),
        2,
        "the same refusal is recorded once"
    );
    machine.succeeds("release");
}

#[test]
fn bad_input_is_one_line() {
    let machine = Machine::new("measure");
    let config = machine.launch_dir().join("config.json");
    for (state, reason) in [
        ("", "OCI state on standard input: EOF while parsing"),
        (
            "{\"id\":\"web\"}",
            "OCI state on standard input: missing field `bundle`",
        ),
        (
            "{\"id\":\"\",\"bundle\":\"/x\"}",
            "OCI state on standard input: an empty id",
        ),
        (
            "{\"id\":\"web\",\"bundle\":\"x\"}",
            "OCI state on standard input: bundle \"x\" is not absolute",
        ),
    ] {
        let error = machine.error("launch", state);
        assert!(error.starts_with(reason), "{error}");
    }
    for (text, reason) in [
        ("", "EOF while parsing"),
        ("[]", "config.json: not an object"),
        (
            "{\"root\":[\"x\"]}",
            "config.json: root.path is not a string",
        ),
        (
            "{\"annotations\":{\"org.trustme.guestos\":1}}",
            "annotation org.trustme.guestos: 1 is not a string",
        ),
        (
            "{\"annotations\":{\"org.trustme.guestos\":\"/nonexistent-1.conf\"}}",
            "/nonexistent-1.conf",
        ),
    ] {
        fs::write(&config, text).unwrap();
        let error = machine.error("launch", STATE);
        assert!(error.contains(reason), "{error:?} has no {reason:?}");
    }
    fs::remove_file(&config).unwrap();
    symlink("/etc/passwd", &config).unwrap();
    let error = machine.error("launch", STATE);
    assert!(
        error.starts_with(&format!(
            "cannot read {}: Too many levels",
            config.display()
        )),
        "{error}"
    );
    machine.succeeds("release");
    let error = machine.error("launch", STATE);
    assert!(
        error.starts_with("cannot open the launch directory "),
        "{error}"
    );

    fs::write(machine.path("config.toml"), "[launch]\nmode = \"on\"\n").unwrap();
    let error = machine.error("launch", STATE);
    assert!(
        error.contains("config.toml:2: launch.mode: unknown variant `on`"),
        "{error}"
    );
    fs::write(machine.path("config.toml"), "").unwrap();
    let error = machine.error("launch", STATE);
    assert!(error.starts_with("launch.mode is off"), "{error}");
}

#[test]
fn release_takes_down_whatever_a_killed_launch_left() {
    let machine = Machine::new("measure");
    let mounts = machine.launch_dir().join("mnt");
    let tmpfs = |path: &Path| {
        fs::create_dir_all(path).unwrap();
        mount("tmpfs", path, "tmpfs", MountFlags::empty(), None).unwrap();
        fs::write(path.join("file"), "x").unwrap();
    };
    for name in [
        "lower",
        "upper",
        "root",
        "volumes/web.data",
        "root/with space",
    ] {
        tmpfs(&mounts.join(name));
    }
    tmpfs(&mounts.join("root"));
    // Half a volume, and one that another launch is making just now.
    let volumes = machine.path("volumes");
    for name in ["web.data.new-0123", "other.data.new-4567"] {
        fs::create_dir_all(volumes.join(name)).unwrap();
        fs::write(volumes.join(name).join("volume.img"), "x").unwrap();
    }
    let lock = fs::File::create(volumes.join(".other.data.lock")).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();

    machine.succeeds("release");
    assert!(!machine.launch_dir().exists());
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    assert!(!table.contains("@launch"), "{table}");
    assert!(!volumes.join("web.data.new-0123").exists());
    assert!(volumes.join("other.data.new-4567").exists());
}

#[test]
fn release_deletes_nothing_that_it_does_not_know() {
    let machine = Machine::new("measure");
    let stray = machine.launch_dir().join("mnt/root/stray");
    fs::create_dir_all(stray.parent().unwrap()).unwrap();
    fs::write(&stray, "x").unwrap();
    let error = machine.error("release", "");
    assert!(
        error.starts_with("cannot remove ") && error.contains("Directory not empty"),
        "{error}"
    );
    assert!(stray.exists());
    fs::remove_file(&stray).unwrap();
    machine.succeeds("release");
}
