//! Runs the tests against the runtimes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context, Result};
use trustme_conformance::command;

use crate::private::Scratch;
use crate::tap::Outcome;

/// Whatever test takes longer hangs.
const LIMIT: Duration = Duration::from_secs(90);
/// The tests mostly sleep.
const WORKERS: usize = 4;
/// How often a test is run that decides by a race.
const ATTEMPTS: usize = 5;

/// These tests use the same cgroups and run one after the other.
fn is_exclusive(test: &str) -> bool {
    test.starts_with("linux_cgroups_") || test.starts_with("delete_")
}

/// A runtime under test.
#[derive(Debug, Clone)]
pub struct Runtime {
    /// What it is called in the table.
    pub name: String,
    /// The program.
    pub path: PathBuf,
}

impl std::str::FromStr for Runtime {
    type Err = anyhow::Error;

    /// `NAME=PATH`.
    fn from_str(text: &str) -> Result<Self> {
        let (name, path) = text
            .split_once('=')
            .with_context(|| format!("{text}: expected NAME=PATH"))?;
        let path = Path::new(path)
            .canonicalize()
            .with_context(|| format!("runtime {name}: {path}"))?;
        Ok(Self {
            name: name.to_owned(),
            path,
        })
    }
}

/// The outcomes by test and runtime.
pub type Outcomes = BTreeMap<String, BTreeMap<String, Outcome>>;

/// Runs every test against every runtime, from the directory `programs`; `races` several times. Containers that the tests leave behind are
/// removed.
///
/// # Errors
/// A test cannot be run at all.
pub fn all(
    programs: &Path,
    tests: &[String],
    races: &[String],
    runtimes: &[Runtime],
) -> Result<Outcomes> {
    let scratch = Scratch::new()?;
    // The last are taken first: those that have to be alone, as they take longest together.
    let mut jobs: Vec<(&String, &Runtime)> = tests
        .iter()
        .flat_map(|test| runtimes.iter().map(move |runtime| (test, runtime)))
        .collect();
    jobs.sort_by_key(|(test, _)| is_exclusive(test));
    let jobs = Mutex::new(jobs);
    let outcomes = Mutex::new(Outcomes::new());
    let alone = Mutex::new(());
    std::thread::scope(|scope| {
        let work = || -> Result<()> {
            loop {
                let next = jobs.lock().expect("no worker panics").pop();
                let Some((test, runtime)) = next else {
                    return Ok(());
                };
                let guard = is_exclusive(test).then(|| alone.lock());
                let attempts = if races.contains(test) { ATTEMPTS } else { 1 };
                let mut outcome = one(programs, test, runtime, scratch.path())?;
                for _ in 1..attempts {
                    outcome = outcome.or(one(programs, test, runtime, scratch.path())?);
                }
                drop(guard);
                let mut outcomes = outcomes.lock().expect("no worker panics");
                let of_test = outcomes.entry(test.clone()).or_default();
                of_test.insert(runtime.name.clone(), outcome);
            }
        };
        let workers: Vec<_> = (0..WORKERS).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("no worker panics"))
    })?;
    for runtime in runtimes {
        remove_containers(runtime)?;
    }
    remove_cgroups();
    Ok(outcomes.into_inner().expect("no worker panics"))
}

fn one(programs: &Path, test: &str, runtime: &Runtime, scratch: &Path) -> Result<Outcome> {
    let files = tempfile::tempdir_in(scratch)?;
    let (out, err) = (files.path().join("out"), files.path().join("err"));
    let mut child = Command::new(programs.join(test))
        .current_dir(programs)
        .env("RUNTIME", &runtime.path)
        .env("TMPDIR", files.path())
        .stdin(Stdio::null())
        // Files: a pipe would stay open as long as a container that is left behind.
        .stdout(std::fs::File::create(&out)?)
        .stderr(std::fs::File::create(&err)?)
        .spawn()
        .with_context(|| format!("cannot run {test}"))?;
    let code = command::wait(&mut child, LIMIT)?.and_then(|status| status.code());
    let text = |path: &Path| -> Result<String> {
        Ok(String::from_utf8_lossy(&std::fs::read(path)?).into_owned())
    };
    Ok(Outcome::of(code, &text(&out)?, &text(&err)?))
}

/// Removes all containers of a runtime: in this mount namespace, they are all the suite's.
fn remove_containers(runtime: &Runtime) -> Result<()> {
    let list = command::run(Command::new(&runtime.path).args(["list", "-q"]))?;
    for id in list.stdout.split_whitespace() {
        // One that cannot be removed is of no consequence for the results.
        let _ = command::run(Command::new(&runtime.path).args(["delete", "--force", id]))?;
    }
    Ok(())
}

/// Removes the cgroups that the tests name: runtimes leave those above the container's alone.
fn remove_cgroups() {
    let Ok(hierarchies) = std::fs::read_dir("/sys/fs/cgroup") else {
        return;
    };
    for hierarchy in hierarchies.flatten() {
        for name in [
            "testdir/cgrouptest/container",
            "testdir/cgrouptest",
            "testdir",
            "cgrouptest",
        ] {
            // What is not there, or is in use by somebody else, stays.
            let _ = std::fs::remove_dir(hierarchy.path().join(name));
        }
    }
}
