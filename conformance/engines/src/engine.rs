//! Starts the engines, each with daemons, storage and network of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use trustme_conformance::archive::Archive;
use trustme_conformance::command::{ok, run, until, wait};

use crate::check::{Check, normal};
use crate::isolation::{UID, USER};
use crate::{ctr, docker, image};

/// An engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Debian 12's containerd, by ctr.
    Containerd,
    /// containerd 2, from a newer Debian.
    Containerd2,
    /// dockerd.
    Docker,
    /// podman as root.
    Podman,
    /// podman as an ordinary user.
    Rootless,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::Containerd,
        Self::Containerd2,
        Self::Docker,
        Self::Podman,
        Self::Rootless,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Containerd => "containerd",
            Self::Containerd2 => "containerd2",
            Self::Docker => "docker",
            Self::Podman => "podman",
            Self::Rootless => "rootless",
        }
    }

    /// Its checks.
    pub fn checks(self) -> impl Iterator<Item = &'static Check> {
        let table = match self {
            Self::Containerd | Self::Containerd2 => ctr::CHECKS,
            Self::Docker | Self::Podman | Self::Rootless => docker::CHECKS,
        };
        table
            .iter()
            .filter(move |check| !check.not_with.contains(&self.name()))
    }
}

/// A running engine.
#[derive(Debug)]
pub struct Engine {
    kind: Kind,
    dir: PathBuf,
    /// Name of the cgroup that its containers are in.
    cgroup: String,
    /// Directory of containerd's programs, if it is not the installed one.
    path: Option<PathBuf>,
    /// In the order of their start.
    daemons: Vec<Child>,
}

impl Engine {
    /// Starts it, below `home`.
    ///
    /// # Errors
    /// A daemon does not come up.
    pub fn start(kind: Kind, home: &Path, programs: &Path) -> Result<Self> {
        let dir = home.join(kind.name());
        fs::create_dir(&dir)?;
        // Whatever configuration this machine has, the containers start in mode off.
        fs::write(dir.join("config.toml"), "[launch]\nmode = \"off\"\n")?;
        let cgroup = home
            .file_name()
            .context("no name")?
            .to_string_lossy()
            .into_owned();
        let mut engine = Self {
            kind,
            dir,
            cgroup,
            path: None,
            daemons: Vec::new(),
        };
        match kind {
            Kind::Containerd => engine.start_containerd()?,
            Kind::Containerd2 => {
                engine.path = Some(newer_containerd(&engine.dir)?);
                engine.start_containerd()?;
            }
            Kind::Docker => {
                engine.start_containerd()?;
                engine.start_dockerd(programs)?;
            }
            Kind::Podman => (),
            Kind::Rootless => {
                let user_home = engine.dir.join("home");
                fs::create_dir(&user_home)?;
                for dir in [&engine.dir, &user_home] {
                    std::os::unix::fs::chown(dir, Some(UID), Some(UID))?;
                }
            }
        }
        Ok(engine)
    }

    fn start_containerd(&mut self) -> Result<()> {
        let dir = self.dir.display();
        let text = format!(
            "version = 2\nroot = \"{dir}/containerd\"\nstate = \"{dir}/state\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n\
             [grpc]\naddress = \"{dir}/containerd.sock\"\n[ttrpc]\naddress = \"{dir}/ttrpc.sock\"\n"
        );
        let config = self.dir.join("containerd.toml");
        fs::write(&config, text)?;
        // A network namespace of their own: bridge and ports of containers are not this machine's.
        let mut command = self.command("unshare");
        command
            .args([
                "--net",
                "sh",
                "-c",
                "ip link set lo up && exec containerd --config $0",
            ])
            .arg(&config);
        self.daemon(&mut command, "containerd.log")?;
        until("containerd", || {
            run(&mut self.shell("$E version", &[])).is_ok_and(|ran| ran.status.success())
                || run(&mut self.ctr("version")).is_ok_and(|ran| ran.status.success())
        })
    }

    fn start_dockerd(&mut self, programs: &Path) -> Result<()> {
        let dir = self.dir.display();
        let line = format!(
            "dockerd --containerd {dir}/containerd.sock --data-root {dir}/docker --exec-root {dir}/exec \
             --host unix://{dir}/docker.sock --pidfile {dir}/docker.pid --iptables=false --ip6tables=false \
             --cgroup-parent /{} --add-runtime trustme={}",
            self.cgroup,
            programs.join("trustme").display()
        );
        let mut command = self.command("nsenter");
        command
            .args(["--net", "--target", &self.network()])
            .args(line.split(' '));
        self.daemon(&mut command, "dockerd.log")?;
        until("dockerd", || {
            run(&mut self.shell("$E version", &[])).is_ok_and(|ran| ran.status.success())
        })
    }

    fn daemon(&mut self, command: &mut Command, log: &str) -> Result<()> {
        let log = File::create(self.dir.join(log))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        self.daemons.push(child);
        Ok(())
    }

    /// The process whose network namespace is the engine's.
    fn network(&self) -> String {
        self.daemons
            .first()
            .map(|child| child.id().to_string())
            .unwrap_or_default()
    }

    /// Loads the image.
    ///
    /// # Errors
    /// The engine refuses it.
    pub fn load(&self, archive: &Path) -> Result<()> {
        let script = match self.kind {
            Kind::Containerd | Kind::Containerd2 => "$E images import $ARCHIVE",
            _ => "$E load --input $ARCHIVE",
        };
        let archive = archive.display().to_string();
        ok(&mut self.shell(script, &[("ARCHIVE", archive)]))?;
        Ok(())
    }

    /// Runs a check with a runtime; what it printed and its exit code, normalised.
    ///
    /// # Errors
    /// It takes longer than five minutes.
    pub fn run(&self, check: &Check, runtime: &Path) -> Result<String> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        // Never an id that another run has left behind: runc's root directory is this machine's.
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let id = format!("box{}n{number}", std::process::id());
        let tmp = self.dir.join(&id);
        fs::create_dir(&tmp)?;
        if self.kind == Kind::Rootless {
            std::os::unix::fs::chown(&tmp, Some(UID), Some(UID))?;
        }
        let name = runtime
            .file_name()
            .context("no name")?
            .to_string_lossy()
            .into_owned();
        let path = runtime.display();
        let cgroup = &self.cgroup;
        let run_line = match self.kind {
            Kind::Containerd | Kind::Containerd2 => {
                format!(
                    "{} run --runc-binary {path} --cgroup /{cgroup}/{id}",
                    self.cli()
                )
            }
            Kind::Docker => format!("{} run --runtime {name}", self.cli()),
            Kind::Podman => format!(
                "{} run {} --cgroup-parent /{cgroup}",
                self.cli(),
                docker::PODMAN_FLAGS
            ),
            Kind::Rootless => format!("{} run {}", self.cli(), docker::PODMAN_FLAGS),
        };
        let variables = [
            ("RUN", run_line),
            ("ID", id.clone()),
            ("TMP", tmp.display().to_string()),
            ("RUNTIME", path.to_string()),
            ("CG", format!("/{cgroup}/{id}")),
        ];
        let ran = run(&mut self.shell(check.script, &variables))?;
        // What a check leaves is removed; mostly there is nothing.
        run(&mut self.shell(self.removal(), &variables))?;
        let code = ran
            .status
            .code()
            .map_or("killed".to_owned(), |code| code.to_string());
        let text = format!("{}{}exit code {code}\n", ran.stdout, ran.stderr);
        let text = text
            .replace(&id, "NAME")
            .replace(&self.dir.display().to_string(), "DIR");
        Ok(normal(&normal(&text, &path.to_string()), &name))
    }

    fn removal(&self) -> &'static str {
        match self.kind {
            Kind::Containerd | Kind::Containerd2 => {
                "$E task kill -s KILL $ID; sleep 0.1; $E task delete -f $ID; $E containers delete $ID"
            }
            _ => "$E rm --force --volumes $ID ${ID}b",
        }
    }

    /// The engine's command line.
    fn cli(&self) -> String {
        let dir = self.dir.display();
        match self.kind {
            Kind::Containerd | Kind::Containerd2 => format!("ctr --address {dir}/containerd.sock"),
            Kind::Docker => format!("docker --host unix://{dir}/docker.sock"),
            Kind::Podman | Kind::Rootless => format!(
                "podman --root {dir}/storage --runroot {dir}/run --tmpdir {dir}/tmp --events-backend none \
                 --cgroup-manager cgroupfs --storage-driver vfs --runtime ${{RUNTIME:-runc}}"
            ),
        }
    }

    fn ctr(&self, line: &str) -> Command {
        let mut command = self.command("ctr");
        command
            .arg("--address")
            .arg(self.dir.join("containerd.sock"))
            .args(line.split(' '));
        command
    }

    /// A shell that runs `script` with variables, where the engine's network is, and as its user.
    fn shell(&self, script: &str, variables: &[(&str, String)]) -> Command {
        // The engine's command line has variables in it.
        let expand = "E=$(eval echo \\\"$E\\\"); RUN=$(eval echo \\\"${RUN:-}\\\"); export E RUN;";
        let script = format!("exec 2>&1; {expand} {script}");
        let mut command = match self.kind {
            Kind::Containerd | Kind::Containerd2 | Kind::Docker => {
                let mut command = self.command("nsenter");
                command.args(["--net", "--target", &self.network(), "sh", "-c", &script]);
                command
            }
            Kind::Podman => {
                let mut command = self.command("sh");
                command.args(["-c", &script]);
                command
            }
            Kind::Rootless => {
                let mut command = self.command("setpriv");
                let uid = UID.to_string();
                command
                    .args([
                        "--reuid",
                        &uid,
                        "--regid",
                        &uid,
                        "--clear-groups",
                        "--inh-caps=-all",
                    ])
                    .args(["sh", "-c", &script])
                    .env("HOME", self.dir.join("home"))
                    .env("USER", USER)
                    .env("XDG_RUNTIME_DIR", &self.dir);
                command
            }
        };
        command.env("E", self.cli()).env("IMAGE", image::NAME).envs(
            variables
                .iter()
                .map(|(name, value)| (*name, value.as_str())),
        );
        command
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command
            .env("TRUSTME_CONFIG", self.dir.join("config.toml"))
            .current_dir(&self.dir);
        if let Some(dir) = &self.path {
            let path = std::env::var("PATH").unwrap_or_default();
            command.env("PATH", format!("{}:{path}", dir.display()));
        }
        command
    }

    /// Stops it, and asserts that no cgroup is left.
    ///
    /// # Errors
    /// A daemon does not end, or something is left.
    pub fn stop(mut self) -> Result<()> {
        if matches!(self.kind, Kind::Podman | Kind::Rootless) {
            run(&mut self.shell(
                "$E rm --all --force; $E rmi --all --force; $E unshare rm -rf storage run",
                &[],
            ))?;
        }
        if self.kind == Kind::Rootless {
            // Ends the process that keeps the user's namespaces.
            run(&mut self.shell("$E system migrate", &[]))?;
        }
        self.end_daemons()?;
        for hierarchy in fs::read_dir("/sys/fs/cgroup")?.flatten() {
            let parent = hierarchy.path().join(&self.cgroup);
            if !parent.is_dir() {
                continue;
            }
            // Podman keeps its conmon in one.
            let _ = fs::remove_dir(parent.join("conmon"));
            fs::remove_dir(&parent)
                .with_context(|| format!("cgroups are left in {}", parent.display()))?;
        }
        Ok(())
    }

    fn end_daemons(&mut self) -> Result<()> {
        while let Some(mut child) = self.daemons.pop() {
            ok(Command::new("kill").arg(child.id().to_string()))?;
            let ended = wait(&mut child, Duration::from_secs(15))?;
            ensure!(
                ended.is_some(),
                "a daemon of {} does not end",
                self.kind.name()
            );
        }
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Err(error) = self.end_daemons() {
            eprintln!("{error:#}");
        }
    }
}

/// Fetches containerd 2 from Debian's unstable suite, with a private configuration of apt, and unpacks it: it runs on
/// Debian 12's C library. The directory of its programs.
fn newer_containerd(dir: &Path) -> Result<PathBuf> {
    let root = dir.join("newer");
    Archive::open(&dir.join("apt"), "deb", "sid")?.unpack(&["containerd"], &root)?;
    Ok(root.join("usr/bin"))
}
