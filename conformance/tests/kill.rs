//! SIGKILL at any point of create, start and delete, to the runtime or to its hook: the next command cleans up.
//!
//! strace kills at a system call that was seen in a run before, so the points are exact, the same in each run, and spread
//! evenly from the first to the last.

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
use trustme_conformance::syscalls::{Point, calls, killed_at, read_calls};

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
        let victim = Self { machine, bundle };
        // Once undisturbed: the first launch of all makes directories that stay.
        ok(&mut victim.create())?;
        ok(&mut victim.machine.trustme("delete --force ID"))?;
        Ok(victim)
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
    fn recover(&self, number: usize) -> Result<()> {
        if number.is_multiple_of(2) {
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
    fn hook_killed_at(&self, fixtures: &Fixtures, verb: &str, point: &Point) -> Result<PathBuf> {
        self.traced_hook(
            fixtures,
            verb,
            &format!("-o /dev/null -e {}", point.option()),
        )
    }

    /// The system calls that the hook makes for `verb` while `command` runs.
    fn hook_calls(
        &self,
        fixtures: &Fixtures,
        verb: &str,
        mut command: Command,
    ) -> Result<Vec<Point>> {
        let trace = self.machine.path("calls");
        let hook = self.traced_hook(fixtures, verb, &format!("-o {}", trace.display()))?;
        ok(command.env("TRUSTME_HOOK", &hook))?;
        read_calls(&trace)
    }

    /// A hook program that runs under strace for `verb`.
    fn traced_hook(&self, fixtures: &Fixtures, verb: &str, options: &str) -> Result<PathBuf> {
        let hook = fixtures.programs.path("trustme-hook");
        let path = self.machine.path("hook");
        let text = format!(
            "#!/bin/sh\n[ \"$1\" = {verb} ] || exec {hook} \"$@\"\nexec strace {options} -- {hook} \"$@\"\n",
            hook = hook.display()
        );
        fs::write(&path, text)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }
}

/// `count` of `calls`, evenly spread from the first to the last, numbered from 0.
fn spread(calls: &[Point], count: usize) -> impl Iterator<Item = (usize, &Point)> {
    let last = calls.len() - 1;
    (0..count).map(move |number| (number, &calls[last * number / (count - 1)]))
}

/// strace ends as its tracee does.
fn was_killed(ran: &Ran) -> Result<()> {
    ensure!(ran.status.signal() == Some(9), "not killed: {ran:?}");
    Ok(())
}

fn create_killed_at_24_points(fixtures: &Fixtures) -> Result<Outcome> {
    let mut victim = Victim::new(fixtures)?;
    victim.forget()?;
    let calls = calls(&victim.create(), &victim.machine.path("calls"))?;
    ok(&mut victim.machine.trustme("delete --force ID"))?;
    for (number, point) in spread(&calls, 24) {
        victim.forget()?;
        let killed = run(&mut killed_at(&victim.create(), point))?;
        was_killed(&killed)?;
        victim
            .recover(number)
            .with_context(|| format!("create killed at {point:?}: {killed:?}"))?;
    }
    Ok(Outcome::Passed)
}

fn launch_hook_killed_at_24_points(fixtures: &Fixtures) -> Result<Outcome> {
    let mut victim = Victim::new(fixtures)?;
    victim.forget()?;
    let calls = victim.hook_calls(fixtures, "launch", victim.create())?;
    ok(&mut victim.machine.trustme("delete --force ID"))?;
    for (number, point) in spread(&calls, 24) {
        victim.forget()?;
        let hook = victim.hook_killed_at(fixtures, "launch", point)?;
        let killed = run(victim.create().env("TRUSTME_HOOK", hook))?;
        ensure!(killed.stderr.contains("signal: 9"), "{killed:?}");
        victim
            .recover(number)
            .with_context(|| format!("hook killed at {point:?}: {killed:?}"))?;
    }
    Ok(Outcome::Passed)
}

fn start_killed_at_12_points(fixtures: &Fixtures) -> Result<Outcome> {
    let victim = Victim::new(fixtures)?;
    let start = victim.machine.trustme("start ID");
    ok(&mut victim.create())?;
    let calls = calls(&start, &victim.machine.path("calls"))?;
    ok(&mut victim.machine.trustme("delete --force ID"))?;
    for (number, point) in spread(&calls, 12) {
        ok(&mut victim.create())?;
        let killed = run(&mut killed_at(&start, point))?;
        was_killed(&killed)?;
        victim
            .recover(number)
            .with_context(|| format!("start killed at {point:?}: {killed:?}"))?;
    }
    Ok(Outcome::Passed)
}

fn delete_killed_at_12_points(fixtures: &Fixtures) -> Result<Outcome> {
    let victim = Victim::new(fixtures)?;
    let delete = victim.machine.trustme("delete --force ID");
    ok(&mut victim.create())?;
    let calls = calls(&delete, &victim.machine.path("calls"))?;
    for (number, point) in spread(&calls, 12) {
        ok(&mut victim.create())?;
        let killed = run(&mut killed_at(&delete, point))?;
        was_killed(&killed)?;
        victim
            .recover(number)
            .with_context(|| format!("delete killed at {point:?}: {killed:?}"))?;
    }
    Ok(Outcome::Passed)
}

fn release_hook_killed_at_12_points(fixtures: &Fixtures) -> Result<Outcome> {
    let victim = Victim::new(fixtures)?;
    ok(&mut victim.create())?;
    let delete = || victim.machine.trustme("delete --force ID");
    let calls = victim.hook_calls(fixtures, "release", delete())?;
    for (number, point) in spread(&calls, 12) {
        ok(&mut victim.create())?;
        let hook = victim.hook_killed_at(fixtures, "release", point)?;
        let killed = run(delete().env("TRUSTME_HOOK", hook))?;
        ensure!(!killed.status.success(), "{killed:?}");
        victim
            .recover(number)
            .with_context(|| format!("hook killed at {point:?}: {killed:?}"))?;
    }
    Ok(Outcome::Passed)
}
