//! What the tests share: a bundle on busybox, and the built program run on it. They need root.
#![allow(dead_code, reason = "every test file uses its own part")]

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;

/// Debian's busybox-static, which the root file systems are made of.
const BUSYBOX: &str = "/usr/bin/busybox";

/// Cgroups of the tests lie below this.
pub const CGROUP_PARENT: &str = "trustme-test";

/// The built program.
pub fn trustme() -> Command {
    Command::new(env!("CARGO_BIN_EXE_trustme"))
}

/// A bundle with a root directory of its own; its container is deleted at the end.
pub struct Bundle {
    dir: TempDir,
    /// Container id, of no other test.
    pub id: String,
    /// Its config.json.
    pub config: Value,
}

impl Bundle {
    /// A bundle that runs `args`.
    pub fn new(args: &[&str]) -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        assert!(rustix::process::geteuid().is_root(), "this test needs root");
        let dir = tempfile::tempdir().unwrap();
        let id = format!(
            "t{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        make_rootfs(&dir.path().join("bundle/rootfs"));
        let spec = trustme()
            .args(["spec", "--bundle"])
            .arg(dir.path().join("bundle"))
            .output()
            .unwrap();
        assert!(spec.status.success(), "{}", text(&spec.stderr));
        let file = dir.path().join("bundle/config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        config["process"]["args"] = json!(args);
        config["process"]["terminal"] = false.into();
        config["root"]["readonly"] = false.into();
        config["linux"]["cgroupsPath"] = format!("/{CGROUP_PARENT}/{id}").into();
        Self { dir, id, config }
    }

    /// The bundle directory.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("bundle")
    }

    /// The root file system.
    pub fn rootfs(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    /// The directory of `--root`.
    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    /// A file outside of bundle and root directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Writes config.json.
    pub fn write(&self) {
        std::fs::write(self.path().join("config.json"), self.config.to_string()).unwrap();
    }

    /// The program with `--root` and arguments, separated by spaces; `ID` and `BUNDLE` are replaced.
    pub fn command(&self, line: &str) -> Command {
        let mut command = trustme();
        command.arg("--root").arg(self.root());
        for arg in line.split(' ') {
            match arg {
                "ID" => command.arg(&self.id),
                "BUNDLE" => command.arg(self.path()),
                other => command.arg(other),
            };
        }
        command.stdin(Stdio::null());
        command
    }

    /// Writes config.json, runs the program and collects what it prints. The output of a command that leaves a
    /// container behind goes to a file: a pipe would stay open as long as the container.
    pub fn run(&self, line: &str) -> Output {
        self.write();
        output(
            self.command(line),
            &self.file(&format!("output-{}", line.split(' ').next().unwrap())),
        )
    }

    /// As [`Bundle::run`], and asserts that it succeeds; what it printed is returned.
    pub fn ok(&self, line: &str) -> String {
        let output = self.run(line);
        assert!(output.status.success(), "{line}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    /// As [`Bundle::run`], and asserts that it fails with exit code `code`; what it said is returned.
    pub fn fails(&self, line: &str, code: i32) -> String {
        let output = self.run(line);
        assert_eq!(
            output.status.code(),
            Some(code),
            "{line}: {}",
            text(&output.stderr)
        );
        text(&output.stderr)
    }

    /// The status that `state` prints.
    pub fn status(&self) -> String {
        let state: Value = serde_json::from_str(&self.ok("state ID")).unwrap();
        state["status"].as_str().unwrap().to_owned()
    }

    /// Waits until the container has this status.
    pub fn wait_for(&self, status: &str) {
        wait_until(&format!("status {status}"), || self.status() == status);
    }

    /// The directories of the container's cgroups that exist.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let roots = std::fs::read_dir("/sys/fs/cgroup").unwrap();
        let mut found: Vec<_> = roots.flatten().map(|entry| entry.path()).collect();
        found.push("/sys/fs/cgroup".into());
        found.retain_mut(|path| {
            *path = path.join(CGROUP_PARENT).join(&self.id);
            path.exists()
        });
        found
    }

    /// Asserts that nothing of the container is left: no state, cgroup, launch directory or waiting process.
    pub fn assert_gone(&self) {
        assert!(
            !self.root().join(&self.id).exists(),
            "state directory of {}",
            self.id
        );
        assert_eq!(self.cgroups(), Vec::<PathBuf>::new());
        assert!(
            !self.root().join("@launch").join(&self.id).exists(),
            "launch directory of {}",
            self.id
        );
        wait_until("no process of the container", || {
            self.processes().is_empty()
        });
    }

    /// Processes that have something below the root directory open: those of an unfinished creation.
    pub fn processes(&self) -> Vec<i32> {
        let holds = |pid: &i32| {
            std::fs::read_dir(format!("/proc/{pid}/fd")).is_ok_and(|fds| {
                fds.flatten().any(|fd| {
                    std::fs::read_link(fd.path()).is_ok_and(|path| path.starts_with(self.root()))
                })
            })
        };
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(holds)
            .collect()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let _ = self.command("delete -f ID").output();
        for root in std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = std::fs::remove_dir(root.path().join(CGROUP_PARENT));
        }
    }
}

/// Runs a command whose output goes through a file.
pub fn output(mut command: Command, file: &Path) -> Output {
    let stdout = std::fs::File::create(file).unwrap();
    let stderr = std::fs::File::create(file.with_extension("err")).unwrap();
    let status = command.stdout(stdout).stderr(stderr).status().unwrap();
    Output {
        status,
        stdout: std::fs::read(file).unwrap(),
        stderr: std::fs::read(file.with_extension("err")).unwrap(),
    }
}

/// Waits for a child, at most ten seconds.
pub fn wait(child: &mut Child) -> std::process::ExitStatus {
    let mut status = None;
    wait_until("end of the command", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    status.unwrap()
}

/// Waits until a condition holds, at most ten seconds.
pub fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Bytes as text.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn make_rootfs(rootfs: &Path) {
    for dir in ["bin", "etc", "tmp", "proc", "sys", "dev", "root"] {
        std::fs::create_dir_all(rootfs.join(dir)).unwrap();
    }
    std::fs::copy(BUSYBOX, rootfs.join("bin/busybox")).expect("busybox-static is not installed");
    let applets = Command::new(BUSYBOX).arg("--list").output().unwrap();
    for applet in text(&applets.stdout)
        .lines()
        .filter(|name| *name != "busybox")
    {
        symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
    std::fs::write(
        rootfs.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
    )
    .unwrap();
}
