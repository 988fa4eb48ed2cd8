//! The guest side: runs the scenarios of the plan, each in a process of its own, and writes a verdict for each.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process_group};
use trustme_vm::scenarios::{self, Guest};
use trustme_vm::verdict::{PLAN, Plan, Verdict};

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(host), scenario) = (arguments.next().map(PathBuf::from), arguments.next()) else {
        eprintln!("usage: trustme-vm-guest SHARED-DIRECTORY [SCENARIO]");
        return ExitCode::FAILURE;
    };
    let outcome = match scenario {
        None => run_plan(&host),
        Some(scenario) => run(&host, &scenario.to_string_lossy()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs the scenarios one after the other; none can hang the machine or take another with it.
fn run_plan(host: &Path) -> Result<()> {
    let plan: Plan = serde_json::from_slice(&std::fs::read(host.join(PLAN)).context(PLAN)?)?;
    for scenario in plan.scenarios {
        let begin = Instant::now();
        let failure = in_process(host, &scenario, Duration::from_secs(plan.limit))
            .err()
            .map(|error| format!("{error:#}"));
        let verdict = Verdict {
            scenario,
            failure,
            milliseconds: u64::try_from(begin.elapsed().as_millis())?,
        };
        verdict.write(host)?;
    }
    Ok(())
}

/// Runs a scenario as a process group, which is killed when it takes too long.
fn in_process(host: &Path, scenario: &str, limit: Duration) -> Result<()> {
    let reason = tempfile::NamedTempFile::new()?;
    let mut child = Command::new(std::env::current_exe()?)
        .arg(host)
        .arg(scenario)
        .stderr(reason.reopen()?)
        .process_group(0)
        .spawn()?;
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if begin.elapsed() > limit {
            end(&mut child)?;
            bail!("takes longer than {limit:?}; killed");
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    if !status.success() {
        let reason = std::fs::read_to_string(reason.path())?;
        let reason = reason.trim().trim_start_matches("error: ").to_owned();
        bail!(
            "{reason}{}",
            if reason.is_empty() {
                status.to_string()
            } else {
                String::new()
            }
        );
    }
    Ok(())
}

fn end(child: &mut Child) -> Result<()> {
    let group = Pid::from_child(child);
    kill_process_group(group, Signal::KILL)?;
    child.wait()?;
    Ok(())
}

fn run(host: &Path, name: &str) -> Result<()> {
    let scenario = scenarios::find(name).with_context(|| format!("{name}: no such scenario"))?;
    (scenario.run)(&mut Guest::new(host, Path::new("/tmp"), name)?)
}
