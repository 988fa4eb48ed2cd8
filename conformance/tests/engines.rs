//! containerd, Docker and Podman run a plain image with trustme instead of runc; launch mode off.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use trustme_conformance::command::{Ran, line, ok, run, until, wait};
use trustme_conformance::fixtures::Fixtures;
use trustme_conformance::remains;
use trustme_conformance::suite::{self, Outcome};

/// What skopeo called the small image.
const IMAGE: &str = "example.org/image:1";

/// Prints, and ends with a code that must come out at the other end.
const SCRIPT: &str = "echo out; id -u; echo err >&2; exit 5";

fn main() -> ExitCode {
    suite::main(&[("ctr", ctr), ("docker", docker), ("podman", podman)])
}

/// A daemon of its own; ends with the value.
struct Daemon(Child);

impl Daemon {
    fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let log = File::create(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        Ok(Self(child))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let asked = run(Command::new("kill").arg(self.0.id().to_string()));
        let ended = wait(&mut self.0, Duration::from_secs(10));
        for error in [asked.err(), ended.err()].into_iter().flatten() {
            eprintln!("cannot end a daemon: {error:#}");
        }
    }
}

/// The directory of an engine; its name is also that of the cgroup that the containers are in.
struct Engine {
    dir: tempfile::TempDir,
    name: String,
}

impl Engine {
    fn new() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("trustme-engine-")
            .tempdir()?;
        let name = dir.path().file_name().unwrap_or_default();
        let name = name.to_string_lossy().into_owned();
        // Whatever configuration this machine has, the containers start in mode off.
        fs::write(dir.path().join("config.toml"), "[launch]\nmode = \"off\"\n")?;
        Ok(Self { dir, name })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A command with this machine's configuration out of the way; `DIR` and `NAME` are replaced in its words.
    fn command(&self, words: &str) -> Command {
        let dir = self.dir.path().display().to_string();
        let mut command = line(&words.replace("DIR", &dir).replace("NAME", &self.name));
        command.env("TRUSTME_CONFIG", self.path("config.toml"));
        command
    }

    fn containerd(&self) -> Result<Daemon> {
        let dir = self.dir.path().display();
        let text = format!(
            "version = 2\nroot = \"{dir}/containerd\"\nstate = \"{dir}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{dir}/containerd.sock\"\n[ttrpc]\naddress = \"{dir}/ttrpc.sock\"\n"
        );
        fs::write(self.path("containerd.toml"), text)?;
        let mut command = self.command("containerd --config DIR/containerd.toml");
        let daemon = Daemon::start(&mut command, &self.path("containerd.log"))?;
        until("containerd", || {
            let version = run(&mut self.command("ctr --address DIR/containerd.sock version"));
            version.is_ok_and(|ran| ran.status.success())
        })?;
        Ok(daemon)
    }

    /// Asserts that the engine's containers have left nothing; their cgroups' parent, which is the engine's, is removed.
    fn assert_clean(self) -> Result<()> {
        for hierarchy in fs::read_dir("/sys/fs/cgroup")? {
            let parent = hierarchy?.path().join(&self.name);
            if parent.is_dir() {
                // Podman keeps its conmon in one.
                let conmon = parent.join("conmon");
                if conmon.is_dir() {
                    fs::remove_dir(&conmon).with_context(|| conmon.display().to_string())?;
                }
                fs::remove_dir(&parent)
                    .with_context(|| format!("cgroups are left in {}", parent.display()))?;
            }
        }
        remains::assert_none(self.dir.path(), &self.name)
    }
}

fn as_scripted(ran: &Ran) -> Result<()> {
    ensure!(ran.status.code() == Some(5), "{ran:?}");
    ensure!(
        ran.stdout == "out\n0\n" && ran.stderr.contains("err\n"),
        "{ran:?}"
    );
    Ok(())
}

/// The service is the first process, and `ps` the only other that is ours.
fn as_service(processes: &str) -> Result<()> {
    ensure!(processes.contains("/bin/service"), "{processes}");
    Ok(())
}

fn ctr(fixtures: &Fixtures) -> Result<Outcome> {
    let engine = Engine::new()?;
    let daemon = engine.containerd()?;
    let ctr = |words: &str| engine.command(&format!("ctr --address DIR/containerd.sock {words}"));
    ok(ctr("images import").arg(fixtures.small_image()?.archive))?;
    let runtime = fixtures.programs.path("trustme");
    let run_in = |flags: &str, id: &str| {
        let mut command = ctr(&format!("run --cgroup /NAME/{id} {flags} --runc-binary"));
        command.arg(&runtime).args([IMAGE, id]);
        command
    };
    as_scripted(&run(
        run_in("--rm", "scripted").args(["/bin/sh", "-c", SCRIPT])
    )?)?;

    ok(&mut run_in("--detach", "service"))?;
    as_service(&ok(&mut ctr("task exec --exec-id ps service ps"))?)?;
    ensure!(ok(&mut ctr("task ls"))?.contains("RUNNING"));
    ok(&mut ctr("task pause service"))?;
    ensure!(ok(&mut ctr("task ls"))?.contains("PAUSED"));
    ok(&mut ctr("task resume service"))?;
    ok(&mut ctr("task metrics service"))?;
    ok(&mut ctr("task kill --signal SIGKILL service"))?;
    until("the service to end", || {
        run(&mut ctr("task ls")).is_ok_and(|ran| ran.stdout.contains("STOPPED"))
    })?;
    ok(&mut ctr("task delete service")).or_else(|error| {
        // ctr passes the killed task's code on as its own.
        ensure!(error.to_string().contains("exit status: 137"), "{error:#}");
        Ok(String::new())
    })?;
    ok(&mut ctr("containers delete service"))?;
    ok(ctr("images delete --sync").arg(IMAGE))?;
    drop(daemon);
    engine.assert_clean()?;
    Ok(Outcome::Passed)
}

fn docker(fixtures: &Fixtures) -> Result<Outcome> {
    let engine = Engine::new()?;
    let containerd = engine.containerd()?;
    // No network: neither bridge nor firewall of this machine is touched.
    let mut dockerd = engine.command(
        "dockerd --containerd DIR/containerd.sock --data-root DIR/docker --exec-root DIR/exec \
         --host unix://DIR/docker.sock --pidfile DIR/docker.pid --iptables=false --ip6tables=false \
         --bridge=none --cgroup-parent /NAME --add-runtime",
    );
    dockerd.arg(format!(
        "trustme={}",
        fixtures.programs.path("trustme").display()
    ));
    let daemon = Daemon::start(&mut dockerd, &engine.path("dockerd.log"))?;
    let docker =
        |words: &str| engine.command(&format!("docker --host unix://DIR/docker.sock {words}"));
    until("dockerd", || {
        run(&mut docker("version")).is_ok_and(|ran| ran.status.success())
    })?;
    ok(docker("load --input").arg(fixtures.small_image()?.archive))?;

    let scripted = "run --rm --network none --runtime trustme --entrypoint /bin/sh";
    as_scripted(&run(docker(scripted).args([IMAGE, "-c", SCRIPT]))?)?;
    let limited = "run --rm --network none --runtime trustme --memory 64m --pids-limit 30 --cap-drop ALL --read-only \
         --user 1000 --entrypoint /bin/sh";
    let script = "id -u; grep CapEff /proc/self/status; touch /file";
    let ran = run(docker(limited).args([IMAGE, "-c", script]))?;
    ensure!(ran.stdout == "1000\nCapEff:\t0000000000000000\n", "{ran:?}");
    ensure!(ran.stderr.contains("Read-only file system"), "{ran:?}");

    ok(docker("run --detach --name service --network none --runtime trustme").arg(IMAGE))?;
    as_service(&ok(&mut docker("exec service ps"))?)?;
    as_service(&ok(&mut docker("top service"))?)?;
    ok(&mut docker("pause service"))?;
    ok(&mut docker("unpause service"))?;
    ok(&mut docker("update --pids-limit 20 service"))?;
    ok(&mut docker("stop --time 5 service"))?;
    let state = ok(&mut docker("inspect --format {{.State.ExitCode}} service"))?;
    ensure!(
        state.trim() == "0",
        "the service ends by itself on SIGTERM: {state}"
    );
    ok(&mut docker("start service"))?;
    ok(&mut docker("rm --force --volumes service"))?;
    drop(daemon);
    // Where / is not shared, dockerd mounts its directory on itself to share it, and may leave it so.
    if run(line("mountpoint --quiet").arg(engine.path("docker")))?
        .status
        .success()
    {
        ok(line("umount").arg(engine.path("docker")))?;
    }
    drop(containerd);
    engine.assert_clean()?;
    Ok(Outcome::Passed)
}

fn podman(fixtures: &Fixtures) -> Result<Outcome> {
    let engine = Engine::new()?;
    let runtime = fixtures.programs.path("trustme");
    let podman = |words: &str| {
        let mut command = engine.command(
            "podman --root DIR/storage --runroot DIR/run --tmpdir DIR/tmp --events-backend none --cgroup-manager cgroupfs \
             --runtime",
        );
        command.arg(&runtime).args(words.split(' '));
        command
    };
    ok(podman("load --quiet --input").arg(fixtures.small_image()?.archive))?;
    // Its own defaults are higher than this machine's root may set.
    let flags = format!(
        "--network none --cgroup-parent /{} --ulimit nofile=1024:1024 --ulimit nproc=1024:1024",
        engine.name
    );
    let scripted = format!("run --rm {flags} --entrypoint /bin/sh");
    as_scripted(&run(podman(&scripted).args([IMAGE, "-c", SCRIPT]))?)?;

    ok(podman(&format!("run --detach --name service {flags}")).arg(IMAGE))?;
    as_service(&ok(&mut podman("exec service ps"))?)?;
    ok(&mut podman("pause service"))?;
    ok(&mut podman("unpause service"))?;
    ok(&mut podman("stop --time 5 service"))?;
    let state = ok(&mut podman("inspect --format {{.State.ExitCode}} service"))?;
    ensure!(
        state.trim() == "0",
        "the service ends by itself on SIGTERM: {state}"
    );
    ok(&mut podman("rm --volumes service"))?;
    ok(&mut podman("rmi --all"))?;
    engine.assert_clean()?;
    Ok(Outcome::Passed)
}
