//! The runtime's commands against those of other runtimes, launch mode off: time, system calls, memory.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::peers::{self, Runtime};
use super::{Effort, Grid, Table, median, milliseconds, timed};
use crate::busybox;
use crate::command::{self, ok};
use crate::fixtures::Fixtures;
use crate::syscalls::{count, traced};

/// What a container of `true` takes; the sum is the first table.
const LIFE: [&str; 3] = [
    "create --bundle . benchmark",
    "start benchmark",
    "delete --force benchmark",
];
/// What is asked of a container that runs.
const WHILE_RUNNING: [&str; 4] = [
    "--version",
    "state benchmark",
    "kill benchmark CONT",
    "exec benchmark /bin/true",
];

/// The runtimes, and what their commands need.
struct Bench<'a> {
    runtimes: Vec<Runtime>,
    dir: &'a Path,
    config: PathBuf,
}

pub(super) fn run(fixtures: &Fixtures, effort: Effort) -> Result<()> {
    let dir = tempfile::Builder::new()
        .prefix("trustme-bench-")
        .tempdir()?;
    let ours = fixtures.programs.path("trustme");
    let config = dir.path().join("config.toml");
    std::fs::write(&config, "[launch]\nmode = \"off\"\n")?;
    let mut runtimes = peers::all(&fixtures.programs.cache(), effort);
    for (name, program) in &mut runtimes {
        *name = format!("{name} {}", peers::version(program)?);
    }
    runtimes.push(("trustme".to_owned(), ours.clone()));
    let bench = Bench {
        runtimes,
        dir: dir.path(),
        config,
    };
    for (name, args) in [
        ("true", &["/bin/true"][..]),
        ("sleep", &["/bin/sleep", "1000"]),
    ] {
        let bundle = dir.path().join(name);
        busybox::bundle(&ours, &bundle, args)?;
        busybox::change(&bundle, |config| {
            // Debian's crun knows no newer one.
            config["ociVersion"] = json!("1.0.2");
            config["linux"]["cgroupsPath"] = json!("/trustme-bench/container");
        })?;
    }
    let times = bench.lives(effort)?;
    bench.commands(effort, times)?;
    bench.system_calls()?;
    bench.memory()?;
    remove_cgroups()
}

impl Bench<'_> {
    fn names(&self) -> Vec<&str> {
        self.runtimes
            .iter()
            .map(|(name, _)| name.as_str())
            .collect()
    }

    /// A command of a runtime, in the bundle of that name.
    fn command(&self, program: &Path, bundle: &str, words: &str) -> Command {
        let mut command = Command::new(program);
        let root = program.to_string_lossy().replace('/', "-");
        command.arg("--root").arg(self.dir.join(root));
        command
            .args(words.split(' '))
            .env("TRUSTME_CONFIG", &self.config)
            // Cargo's, which makes the loader of dynamic programs look in more places.
            .env_remove("LD_LIBRARY_PATH")
            .current_dir(self.dir.join(bundle))
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        command
    }

    /// Creates, starts and deletes; the medians of the commands by themselves, a list for each runtime.
    fn lives(&self, effort: Effort) -> Result<Vec<Vec<Duration>>> {
        let mut table = Table::new(
            "create + start + delete of `true`, launch mode off",
            &self.names(),
        );
        let mut single = vec![[const { Vec::new() }; LIFE.len()]; self.runtimes.len()];
        for round in 0..=effort.runs(3, 40) {
            for (at, (_, program)) in self.runtimes.iter().enumerate() {
                let mut times = [Duration::ZERO; LIFE.len()];
                for (time, words) in times.iter_mut().zip(LIFE) {
                    *time = timed(&mut [self.command(program, "true", words)])?;
                }
                // The first round warms caches.
                if round > 0 {
                    table.rows[at].times.push(times.iter().sum());
                    for (list, time) in single[at].iter_mut().zip(times) {
                        list.push(time);
                    }
                }
            }
        }
        table.print();
        let medians =
            |lists: &[Vec<_>; LIFE.len()]| lists.iter().map(|list| median(list)).collect();
        Ok(single.iter().map(medians).collect())
    }

    /// The commands alone.
    fn commands(&self, effort: Effort, lives: Vec<Vec<Duration>>) -> Result<()> {
        let mut grid = Grid::new("one command, median, ms", &self.names());
        for (at, words) in LIFE.iter().enumerate() {
            let cells = lives.iter().map(|times| shown(times[at]));
            grid.row(words, cells);
        }
        let mut times = vec![[const { Vec::new() }; WHILE_RUNNING.len()]; self.runtimes.len()];
        for _ in 0..effort.runs(3, 20) {
            for (at, (_, program)) in self.runtimes.iter().enumerate() {
                let _running = Running::new(self, program)?;
                for (list, words) in times[at].iter_mut().zip(WHILE_RUNNING) {
                    list.push(timed(&mut [self.command(program, "sleep", words)])?);
                }
            }
        }
        for (at, words) in WHILE_RUNNING.iter().enumerate() {
            let cells = times.iter().map(|lists| shown(median(&lists[at])));
            grid.row(words, cells);
        }
        grid.print();
        Ok(())
    }

    fn system_calls(&self) -> Result<()> {
        let mut grid = Grid::new("system calls, with those of child processes", &self.names());
        let file = self.dir.join("calls");
        let mut cells: Vec<Vec<String>> = Vec::new();
        for (_, program) in &self.runtimes {
            let mut of_runtime = Vec::new();
            for words in WHILE_RUNNING {
                let _running = Running::new(self, program)?;
                of_runtime.push(count(&self.command(program, "sleep", words), &file)?.to_string());
            }
            of_runtime.push(self.create_calls(program, &file)?.to_string());
            for (before, words) in [(&LIFE[..1], LIFE[1]), (&LIFE[..2], LIFE[2])] {
                for words in before {
                    ok(&mut self.command(program, "true", words))?;
                }
                of_runtime.push(count(&self.command(program, "true", words), &file)?.to_string());
                if words != LIFE[2] {
                    ok(&mut self.command(program, "true", LIFE[2]))?;
                }
            }
            let whole = self.command(program, "true", "run --bundle . benchmark");
            of_runtime.push(count(&whole, &file)?.to_string());
            cells.push(of_runtime);
        }
        let rows = WHILE_RUNNING
            .iter()
            .chain(&LIFE)
            .chain(&["run --bundle . benchmark"]);
        for (at, words) in rows.enumerate() {
            grid.row(words, cells.iter().map(|list| list[at].clone()));
        }
        grid.print();
        Ok(())
    }

    /// System calls of `create`, without the container's program: strace waits for that, so it is started and ended.
    fn create_calls(&self, program: &Path, file: &Path) -> Result<u32> {
        let output = file.display().to_string();
        let create = self.command(program, "sleep", LIFE[0]);
        let mut strace = traced(&create, &["-f", "-o", &output]);
        let mut child: Child = strace.stdout(Stdio::null()).stdin(Stdio::null()).spawn()?;
        command::until("the container is created", || {
            let state = self
                .command(program, "sleep", "state benchmark")
                .stdout(Stdio::piped())
                .output();
            state.is_ok_and(|state| String::from_utf8_lossy(&state.stdout).contains("\"created\""))
        })?;
        // What the process does from now on is waiting.
        let text = std::fs::read_to_string(file)?;
        ok(&mut self.command(program, "sleep", LIFE[2]))?;
        let ended = command::wait(&mut child, Duration::from_secs(30))?;
        ensure!(ended.is_some(), "strace does not end");
        // A call that another thread interrupts has two lines: "<unfinished ...>" and "resumed".
        let calls = text
            .lines()
            .filter(|line| line.contains('(') && !line.contains(" resumed>"));
        u32::try_from(calls.count()).context("too many calls")
    }

    /// The most that a process of a command has in memory at a time (ru_maxrss, by time(1)).
    fn memory(&self) -> Result<()> {
        let mut grid = Grid::new("peak memory of the largest process, MiB", &self.names());
        let file = self.dir.join("memory");
        for words in [WHILE_RUNNING[1], WHILE_RUNNING[3], LIFE[0]] {
            let mut cells = Vec::new();
            for (_, program) in &self.runtimes {
                let creates = words == LIFE[0];
                let _running = (!creates)
                    .then(|| Running::new(self, program))
                    .transpose()?;
                let inner = self.command(program, "sleep", words);
                let mut time = Command::new("time");
                time.args(["-f", "%M", "-o"]).arg(&file);
                time.arg(inner.get_program()).args(inner.get_args());
                time.env("TRUSTME_CONFIG", &self.config)
                    .env_remove("LD_LIBRARY_PATH")
                    .current_dir(self.dir.join("sleep"));
                timed(&mut [time])?;
                if creates {
                    timed(&mut [self.command(program, "sleep", LIFE[2])])?;
                }
                let kib: f64 = std::fs::read_to_string(&file)?.trim().parse()?;
                cells.push(format!("{:.1}", kib / 1024.0));
            }
            grid.row(words, cells);
        }
        grid.print();
        Ok(())
    }
}

fn shown(time: Duration) -> String {
    format!("{:.1}", milliseconds(time))
}

/// A container that sleeps, until this is dropped.
struct Running<'a> {
    bench: &'a Bench<'a>,
    program: &'a Path,
}

impl<'a> Running<'a> {
    fn new(bench: &'a Bench<'a>, program: &'a Path) -> Result<Self> {
        for words in &LIFE[..2] {
            timed(&mut [bench.command(program, "sleep", words)])?;
        }
        Ok(Self { bench, program })
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if let Err(error) = timed(&mut [self.bench.command(self.program, "sleep", LIFE[2])]) {
            eprintln!("{}: {error:#}", self.program.display());
        }
    }
}

/// The cgroup that the containers were in; not every runtime removes the parents that it made.
fn remove_cgroups() -> Result<()> {
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup")? {
        let parent = hierarchy?.path().join("trustme-bench");
        if parent.is_dir() {
            ok(Command::new("find")
                .arg(&parent)
                .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]))?;
        }
    }
    Ok(())
}
