//! SIGKILL at any point of create, start and delete, to the runtime or to its hook: the next command cleans up.
//!
//! strace kills at a system call with a given number, so the points are exact, the same in each run, and spread evenly from
//! the first to the last.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use trustme_conformance::command::{Ran, ok, run};
use trustme_conformance::fixtures::Fixtures;
use trustme_conformance::machine::Machine;
use trustme_conformance::suite::{self, Outcome};
use trustme_conformance::syscalls::{count, killed_at};

fn main() -> ExitCode {
    suite::main(&[
        ("create_killed_at_24_points", create_killed_at_24_points),
        (
            "launch_hook_killed_at_24_points",
            launch_hook_killed_at_24_points,
        ),
        ("start_killed_at_12_points", start_killed_at_12_points),
        ("delete_killed_at_12_points", delete_killed_at_12_points),
        (
            "release_hook_killed_at_12_points",
            release_hook_killed_at_12_points,
        ),
    ])
}

/// A machine in launch mode enforce with the small GuestOS.
struct Victim {
    machine: Machine,
    bundle: PathBuf,
}

impl Victim {
    fn new(fixtures: &Fixtures) -> Result<Self> {
        let machine = Machine::new(fixtures, "enforce")?;
        let conf = machine.install_small(fixtures)?;
        let bundle = machine.make_bundle(&conf)?;
        Ok(Self { machine, bundle })
    }

    fn create(&self) -> Command {
        let mut command = self.machine.trustme("create");
        command
            .arg("--bundle")
            .arg(&self.bundle)
            .arg(&self.machine.id);
        command
    }

    /// Deletes the volume and everything that was measured, so that the next launch does all that the first one did.
    fn forget(&mut self) -> Result<()> {
        let volumes = self.machine.path("volumes");
        if volumes.exists() {
            fs::remove_dir_all(volumes)?;
        }
        self.machine.tpm.reboot()
    }

    /// What comes after a kill: every second time `delete --force`, else `create` again. Then nothing may be left, and
    /// the log must be whole.
    fn recover(&self, point: usize) -> Result<()> {
        if point.is_multiple_of(2) {
            let again = run(&mut self.create())?;
            let finished = again.stderr.contains("already exists");
            ensure!(again.status.success() || finished, "create: {again:?}");
            if !finished {
                self.log_is_complete()?;
            }
        }
        ok(&mut self.machine.trustme("delete --force ID"))?;
        self.machine.assert_clean()?;
        // One launch later the log is whole, wherever the last one was killed.
        ok(&mut self.create())?;
        self.log_is_complete()?;
        ok(&mut self.machine.trustme("delete --force ID"))?;
        self.machine.assert_clean()?;
        let transient = self.machine.tpm.tool("tpm2_getcap handles-transient")?;
        ensure!(transient.trim().is_empty(), "left in the TPM: {transient}");
        Ok(())
    }

    fn log_is_complete(&self) -> Result<()> {
        let verify = run(&mut self.machine.trustmectl("log verify --json"))?;
        let report: Value =
            serde_json::from_str(&verify.stdout).with_context(|| format!("{verify:?}"))?;
        ensure!(report["state"] == "complete", "{report}");
        Ok(())
    }

    /// A hook program that is killed at a system call of `verb`, launch or release.
    fn hook_killed_at(&self, fixtures: &Fixtures, verb: &str, number: u32) -> Result<PathBuf> {
        let hook = fixtures.programs.path("trustme-hook");
        let path = self.machine.path("hook");
        let text = format!(
            "#!/bin/sh\n\
             [ \"$1\" = {verb} ] || exec {hook} \"$@\"\n\
             exec strace -o /dev/null -e inject=all:signal=SIGKILL:when={number} -- {hook} \"$@\"\n",
            hook = hook.display()
        );
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    /// How many system calls the hook makes for `verb` while `command` runs.
    fn count_hook(&self, fixtures: &Fixtures, verb: &str, command: Command) -> Result<u32> {
        let hook = fixtures.programs.path("trustme-hook");
        let (path, trace) = (self.machine.path("hook"), self.machine.path("calls"));
        let text = format!(
            "#!/bin/sh\n[ \"$1\" = {verb} ] || exec {hook} \"$@\"\nexec strace -o {} -- {hook} \"$@\"\n",
            trace.display(),
            hook = hook.display()
        );
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        let mut command = command;
        ok(command.env("TRUSTME_HOOK", &path))?;
        let calls = fs::read_to_string(&trace)?.lines().count();
        Ok(u32::try_from(calls)?)
    }
}

/// Numbers of calls differ a little from run to run, as file descriptors and wake-ups do; this many are left out at the
/// end, so that the program is always killed.
const SPARE: u32 = 5;

/// `points` numbers of system calls, evenly spread from the first of `calls` to nearly the last.
fn spread(calls: u32, points: u32) -> Vec<u32> {
    let last = calls - SPARE;
    (0..points)
        .map(|point| 1 + (last - 1) * point / (points - 1))
        .collect()
}

/// strace ends as its tracee does.
fn was_killed(ran: &Ran) -> Result<()> {
    ensure!(ran.status.signal() == Some(9), "not killed: {ran:?}");
    Ok(())
}

fn create_killed_at_24_points(fixtures: &Fixtures) -> Result<Outcome> {
    let mut victim = Victim::new(fixtures)?;
    let calls = count(&victim.create(), false, &victim.machine.path("calls"))?;
    ok(&mut victim.machine.trustme("delete --force ID"))?;
    for (point, number) in spread(calls, 24).into_iter().enumerate() {
        victim.forget()?;
        let killed = run(&mut killed_at(&victim.create(), number))?;
        was_killed(&killed)?;
        victim
            .recover(point)
            .with_context(|| format!("create killed at call {number} of {calls}: {killed:?}"))?;
    }
    Ok(Outcome::Passed)
}

fn launch_hook_killed_at_24_points(fixtures: &Fixtures) -> Result<Outcome> {
    let mut victim = Victim::new(fixtures)?;
    let calls = victim.count_hook(fixtures, "launch", victim.create())?;
    ok(&mut victim.machine.trustme("delete --force ID"))?;
    for (point, number) in spread(calls, 24).into_iter().enumerate() {
        victim.forget()?;
        let hook = victim.hook_killed_at(fixtures, "launch", number)?;
        let killed = run(victim.create().env("TRUSTME_HOOK", hook))?;
        ensure!(killed.stderr.contains("signal: 9"), "{killed:?}");
        victim
            .recover(point)
            .with_context(|| format!("hook killed at call {number} of {calls}: {killed:?}"))?;
    }
    Ok(Outcome::Passed)
}

fn start_killed_at_12_points(fixtures: &Fixtures) -> Result<Outcome> {
    let victim = Victim::new(fixtures)?;
    let start = victim.machine.trustme("start ID");
    ok(&mut victim.create())?;
    let calls = count(&start, false, &victim.machine.path("calls"))?;
    ok(&mut victim.machine.trustme("delete --force ID"))?;
    for (point, number) in spread(calls, 12).into_iter().enumerate() {
        ok(&mut victim.create())?;
        let killed = run(&mut killed_at(&start, number))?;
        was_killed(&killed)?;
        victim
            .recover(point)
            .with_context(|| format!("start killed at call {number} of {calls}: {killed:?}"))?;
    }
    Ok(Outcome::Passed)
}

fn delete_killed_at_12_points(fixtures: &Fixtures) -> Result<Outcome> {
    let victim = Victim::new(fixtures)?;
    let delete = victim.machine.trustme("delete --force ID");
    ok(&mut victim.create())?;
    let calls = count(&delete, false, &victim.machine.path("calls"))?;
    for (point, number) in spread(calls, 12).into_iter().enumerate() {
        ok(&mut victim.create())?;
        let killed = run(&mut killed_at(&delete, number))?;
        was_killed(&killed)?;
        victim
            .recover(point)
            .with_context(|| format!("delete killed at call {number} of {calls}: {killed:?}"))?;
    }
    Ok(Outcome::Passed)
}

fn release_hook_killed_at_12_points(fixtures: &Fixtures) -> Result<Outcome> {
    let victim = Victim::new(fixtures)?;
    ok(&mut victim.create())?;
    let delete = || victim.machine.trustme("delete --force ID");
    let calls = victim.count_hook(fixtures, "release", delete())?;
    for (point, number) in spread(calls, 12).into_iter().enumerate() {
        ok(&mut victim.create())?;
        let hook = victim.hook_killed_at(fixtures, "release", number)?;
        let killed = run(delete().env("TRUSTME_HOOK", hook))?;
        ensure!(!killed.status.success(), "{killed:?}");
        victim
            .recover(point)
            .with_context(|| format!("hook killed at call {number} of {calls}: {killed:?}"))?;
    }
    Ok(Outcome::Passed)
}
