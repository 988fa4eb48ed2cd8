//! The OCI command line, from create to delete, on a busybox bundle; launch mode off.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use trustme_conformance::busybox;
use trustme_conformance::command::{ok, run, until};
use trustme_conformance::fixtures::Fixtures;
use trustme_conformance::remains;
use trustme_conformance::suite::{self, Outcome};

fn main() -> ExitCode {
    suite::main(&[
        ("create_start_kill_delete", create_start_kill_delete),
        (
            "run_passes_output_and_exit_code",
            run_passes_output_and_exit_code,
        ),
        ("exec_and_ps", exec_and_ps),
        ("list", list),
        ("pause_and_resume", pause_and_resume),
        ("update_and_events", update_and_events),
        ("spec_and_features", spec_and_features),
        (
            "pid_file_holds_the_first_process",
            pid_file_holds_the_first_process,
        ),
        (
            "a_failed_create_leaves_nothing",
            a_failed_create_leaves_nothing,
        ),
        ("errors_go_to_the_log", errors_go_to_the_log),
        ("exit_codes_are_those_of_runc", exit_codes_are_those_of_runc),
    ])
}

/// A busybox bundle and a container of it.
struct Container<'a> {
    fixtures: &'a Fixtures,
    dir: tempfile::TempDir,
    id: String,
}

impl<'a> Container<'a> {
    fn new(fixtures: &'a Fixtures, args: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("trustme-lifecycle-")
            .tempdir()?;
        busybox::bundle(
            &fixtures.programs.path("trustme"),
            &dir.path().join("bundle"),
            args,
        )?;
        let name = dir.path().file_name().unwrap_or_default().to_string_lossy();
        let id = name.to_lowercase().replace('.', "");
        Ok(Self { fixtures, dir, id })
    }

    fn bundle(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// trustme with arguments separated by single spaces; `ID` and `BUNDLE` are replaced.
    fn trustme(&self, line: &str) -> Command {
        let mut command = self.fixtures.programs.command("trustme", "");
        command.arg("--root").arg(self.root());
        for part in line.split(' ') {
            match part {
                "ID" => command.arg(&self.id),
                "BUNDLE" => command.arg(self.bundle()),
                other => command.arg(other),
            };
        }
        // A configuration of the machine that the test runs on has no say.
        command.env("TRUSTME_CONFIG", self.off());
        command
    }

    fn off(&self) -> PathBuf {
        let path = self.dir.path().join("config.toml");
        if !path.exists() {
            std::fs::write(&path, "[launch]\nmode = \"off\"\n")
                .expect("the configuration is written");
        }
        path
    }

    fn ok(&self, line: &str) -> Result<String> {
        ok(&mut self.trustme(line))
    }

    fn state(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.ok("state ID")?)?)
    }

    fn wait_for(&self, status: &str) -> Result<()> {
        until(status, || {
            self.state().is_ok_and(|state| state["status"] == status)
        })
    }

    fn assert_gone(&self) -> Result<()> {
        remains::assert_none(self.dir.path(), &self.id)?;
        let left: Vec<_> = entries(&self.root())?;
        ensure!(left.is_empty(), "left in the root directory: {left:?}");
        Ok(())
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        if let Err(error) = run(&mut self.trustme("delete --force ID")) {
            eprintln!("cannot delete {}: {error:#}", self.id);
        }
    }
}

/// What containers leave in the state directory; the directory of launches stays.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten() {
        let path = entry?.path();
        if !path.ends_with("@launch") {
            found.push(path);
        }
    }
    Ok(found)
}

fn create_start_kill_delete(fixtures: &Fixtures) -> Result<Outcome> {
    let container = Container::new(fixtures, &["sleep", "1000"])?;
    container.ok("create --bundle BUNDLE ID")?;
    let state = container.state()?;
    ensure!(state["status"] == "created", "{state}");
    ensure!(state["id"] == container.id.as_str(), "{state}");
    ensure!(state["bundle"] == json!(container.bundle()), "{state}");
    let pid = state["pid"].as_u64().unwrap_or_default();
    let root = std::fs::read_link(format!("/proc/{pid}/ns/mnt"))?;
    ensure!(
        root != std::fs::read_link("/proc/self/ns/mnt")?,
        "a mount namespace of its own"
    );

    container.ok("start ID")?;
    container.wait_for("running")?;
    let executes = std::fs::read_link(format!("/proc/{pid}/exe"))?;
    ensure!(
        executes == Path::new("/bin/busybox"),
        "{}",
        executes.display()
    );
    run(&mut container.trustme("delete ID"))?.fails_saying(&[&container.id])?;
    container.ok("kill ID KILL")?;
    container.wait_for("stopped")?;
    container.ok("delete ID")?;
    container.assert_gone()?;
    run(&mut container.trustme("state ID"))?.fails_saying(&["does not exist"])?;
    Ok(Outcome::Passed)
}

fn run_passes_output_and_exit_code(fixtures: &Fixtures) -> Result<Outcome> {
    let container = Container::new(fixtures, &["sh", "-c", "echo out; echo err >&2; exit 7"])?;
    let ran = run(&mut container.trustme("run --bundle BUNDLE ID"))?;
    ensure!(ran.status.code() == Some(7), "{ran:?}");
    ensure!(
        (ran.stdout.as_str(), ran.stderr.as_str()) == ("out\n", "err\n"),
        "{ran:?}"
    );
    container.assert_gone()?;
    Ok(Outcome::Passed)
}

fn exec_and_ps(fixtures: &Fixtures) -> Result<Outcome> {
    let container = Container::new(fixtures, &["sleep", "1000"])?;
    container.ok("run --detach --bundle BUNDLE ID")?;
    let ran = run(&mut container.trustme("exec --env A=b --cwd /tmp ID sh -c pwd;exit${IFS}3"))?;
    ensure!(
        ran.status.code() == Some(3) && ran.stdout == "/tmp\n",
        "{ran:?}"
    );
    let environment = container.ok("exec --env A=b ID env")?;
    ensure!(
        environment.lines().any(|line| line == "A=b"),
        "{environment}"
    );
    let processes = container.ok("exec ID ps")?;
    ensure!(
        processes.contains("sleep 1000") && processes.lines().count() == 3,
        "{processes}"
    );
    let listed = container.ok("ps ID")?;
    ensure!(listed.contains("sleep 1000"), "{listed}");
    let pids: Value = serde_json::from_str(&container.ok("ps --format json ID")?)?;
    ensure!(pids == json!([container.state()?["pid"]]), "{pids}");
    container.ok("delete --force ID")?;
    container.assert_gone()?;
    Ok(Outcome::Passed)
}

fn list(fixtures: &Fixtures) -> Result<Outcome> {
    let container = Container::new(fixtures, &["sleep", "1000"])?;
    container.ok("create --bundle BUNDLE ID")?;
    let table = container.ok("list")?;
    ensure!(
        table.lines().count() == 2 && table.contains("created"),
        "{table}"
    );
    ensure!(container.ok("list --quiet")?.trim() == container.id);
    let listed: Value = serde_json::from_str(&container.ok("list --format json")?)?;
    ensure!(listed[0]["id"] == container.id.as_str(), "{listed}");
    ensure!(listed[0]["bundle"] == json!(container.bundle()), "{listed}");
    container.ok("delete --force ID")?;
    ensure!(container.ok("list --quiet")?.is_empty());
    Ok(Outcome::Passed)
}

fn pause_and_resume(fixtures: &Fixtures) -> Result<Outcome> {
    let container = Container::new(
        fixtures,
        &["sh", "-c", "while :; do echo x >> /tmp/x; sleep 0.01; done"],
    )?;
    busybox::change(&container.bundle(), |config| {
        config["root"]["readonly"] = json!(false)
    })?;
    container.ok("run --detach --bundle BUNDLE ID")?;
    let written = container.bundle().join("rootfs/tmp/x");
    let size = || std::fs::metadata(&written).map_or(0, |found| found.len());
    until("the container to write", || size() > 0)?;
    container.ok("pause ID")?;
    ensure!(
        container.state()?["status"] == "paused",
        "{}",
        container.state()?
    );
    let paused = size();
    std::thread::sleep(std::time::Duration::from_millis(200));
    ensure!(size() == paused, "a paused container has written");
    container.ok("resume ID")?;
    until("the container to write again", || size() > paused)?;
    container.ok("delete --force ID")?;
    container.assert_gone()?;
    Ok(Outcome::Passed)
}

fn update_and_events(fixtures: &Fixtures) -> Result<Outcome> {
    let container = Container::new(fixtures, &["sleep", "1000"])?;
    container.ok("run --detach --bundle BUNDLE ID")?;
    container.ok("update --pids-limit 20 ID")?;
    let event: Value = serde_json::from_str(&container.ok("events --stats ID")?)?;
    ensure!(
        event["type"] == "stats" && event["id"] == container.id.as_str(),
        "{event}"
    );
    ensure!(event["data"]["pids"]["limit"] == 20, "{event}");
    ensure!(event["data"]["pids"]["current"] == 1, "{event}");
    let script = "for i in $(seq 30); do sleep 5 & done; wait";
    let ran = run(container.trustme("exec ID sh -c").arg(script))?;
    ensure!(
        ran.stderr.contains("fork"),
        "the limit has no effect: {ran:?}"
    );
    container.ok("delete --force ID")?;
    container.assert_gone()?;
    Ok(Outcome::Passed)
}

fn spec_and_features(fixtures: &Fixtures) -> Result<Outcome> {
    let container = Container::new(fixtures, &["true"])?;
    run(&mut container.trustme("spec --bundle BUNDLE"))?.fails_saying(&["config.json"])?;
    let features: Value = serde_json::from_str(&container.ok("features")?)?;
    ensure!(
        features["linux"]["seccomp"]["enabled"] == true,
        "{features}"
    );
    let namespaces = features["linux"]["namespaces"]
        .as_array()
        .map_or(0, Vec::len);
    ensure!(namespaces >= 7, "{features}");
    ensure!(
        features["annotations"]["org.trustme.launch.mode"] == "off",
        "{features}"
    );
    let version = ok(fixtures.programs.command("trustme", "").arg("--version"))?;
    ensure!(
        version.starts_with("trustme version ") && version.contains("spec: 1."),
        "{version}"
    );
    Ok(Outcome::Passed)
}

fn pid_file_holds_the_first_process(fixtures: &Fixtures) -> Result<Outcome> {
    let container = Container::new(fixtures, &["sleep", "1000"])?;
    let file = container.dir.path().join("pid");
    let mut create = container.trustme("create --bundle BUNDLE ID --pid-file");
    ok(create.arg(&file))?;
    let written = std::fs::read_to_string(&file)?;
    ensure!(
        json!(written.trim().parse::<u32>()?) == container.state()?["pid"],
        "{written}"
    );
    Ok(Outcome::Passed)
}

/// What is changed in a configuration, and what the error must name.
type Broken = (fn(&mut Value), &'static str);

/// Configurations of which no container can be made.
const BROKEN: &[Broken] = &[
    (
        |config| config["root"]["path"] = json!("missing"),
        "missing",
    ),
    (
        |config| config["process"]["args"] = json!(["/bin/missing"]),
        "/bin/missing",
    ),
    (|config| config["process"]["args"] = json!([]), "args"),
    (|config| config["process"]["cwd"] = json!("relative"), "cwd"),
    (
        |config| config["linux"]["namespaces"] = json!([{"type": "mount"}, {"type": "uts"}, {"type": "network", "path": "/no/such/file"}]),
        "/no/such/file",
    ),
    (
        |config| {
            config["linux"]["namespaces"] =
                json!([{"type": "mount"}, {"type": "uts"}, {"type": "mount"}])
        },
        "mount",
    ),
    (
        |config| config["mounts"] = json!([{"destination": "/srv", "type": "bind", "source": "/no/such/file", "options": ["bind"]}]),
        "/no/such/file",
    ),
];

fn a_failed_create_leaves_nothing(fixtures: &Fixtures) -> Result<Outcome> {
    for (number, (change, named)) in BROKEN.iter().enumerate() {
        let container = Container::new(fixtures, &["true"])?;
        busybox::change(&container.bundle(), change)?;
        run(&mut container.trustme("create --bundle BUNDLE ID"))?
            .fails_saying(&[named])
            .with_context(|| format!("case {number}"))?;
        container.assert_gone()?;
    }
    let container = Container::new(fixtures, &["true"])?;
    std::fs::write(container.bundle().join("config.json"), "{\"ociVersion\": ")?;
    run(&mut container.trustme("create --bundle BUNDLE ID"))?.fails_saying(&["config.json"])?;
    container.assert_gone()?;
    Ok(Outcome::Passed)
}

fn errors_go_to_the_log(fixtures: &Fixtures) -> Result<Outcome> {
    let container = Container::new(fixtures, &["true"])?;
    let log = container.dir.path().join("log.json");
    let mut command = fixtures.programs.command("trustme", "--log-format json");
    command.env("TRUSTME_CONFIG", container.off());
    command
        .arg("--root")
        .arg(container.root())
        .arg("--log")
        .arg(&log);
    run(command.args(["start", "nothing-here"]))?.fails_saying(&["does not exist"])?;
    let written = std::fs::read_to_string(&log)?;
    let last: Value = serde_json::from_str(written.lines().last().unwrap_or_default())?;
    ensure!(last["level"] == "error", "{written}");
    ensure!(
        last["msg"]
            .as_str()
            .is_some_and(|text| text.contains("does not exist")),
        "{written}"
    );
    ensure!(last["time"].is_string(), "{written}");
    Ok(Outcome::Passed)
}

/// What runc 1.1 of Debian ends with, asked at the same time.
fn exit_codes_are_those_of_runc(fixtures: &Fixtures) -> Result<Outcome> {
    let container = Container::new(fixtures, &["true"])?;
    let lines = [
        "state nothing-here",
        "start nothing-here",
        "kill nothing-here KILL",
        "delete nothing-here",
        "delete --force nothing-here",
        "exec nothing-here true",
        "nonsense",
        "create",
        "state",
        "--nonsense",
        "list",
        "--version",
        "create --bundle /nonexistent x",
    ];
    for line in lines {
        let ours = run(&mut container.trustme(line))?.status.code();
        let mut runc = Command::new("runc");
        runc.arg("--root")
            .arg(container.dir.path().join("runc"))
            .args(line.split(' '));
        let theirs = run(&mut runc)?.status.code();
        ensure!(
            ours == theirs,
            "trustme {line}: exit code {ours:?}, runc's is {theirs:?}"
        );
    }
    Ok(Outcome::Passed)
}
