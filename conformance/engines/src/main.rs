//! `trustme-engines --programs DIR`: engines do the same with trustme as with runc.
//!
//! Every check is a few commands of an engine (docker.rs, ctr.rs). They run once with runc and once with trustme; what
//! they print and their exit code has to be equal, and to hold what the table says, so that two equal failures are
//! none. Daemons, networks and users are private: nothing of this machine's engines is touched.

mod check;
mod ctr;
mod docker;
mod engine;
mod image;
mod isolation;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;

use crate::check::Check;
use crate::engine::{Engine, Kind};

/// Every engine has at least as many checks.
const MIN_CHECKS: usize = 30;

/// How often a check may be made.
const ATTEMPTS: usize = 3;

/// Runs the engines with trustme and with runc.
#[derive(Debug, Parser)]
struct Arguments {
    /// Directory of the built programs.
    #[arg(long)]
    programs: PathBuf,
    /// Only this engine: containerd, containerd2, docker, podman or rootless.
    #[arg(long)]
    engine: Vec<String>,
    /// Only checks whose name begins so.
    #[arg(long, default_value = "")]
    check: String,
    /// The reference runtime.
    #[arg(long, default_value = "/usr/sbin/runc")]
    reference: PathBuf,
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Engines lose output on a busy machine, with every runtime: ctr, for one, stops to copy when the container has ended before
/// it has begun to. What differs only once was that; what the runtime does differs each time.
fn attempts(mut attempt: impl FnMut() -> Result<Result<()>>) -> Result<Result<()>> {
    let mut outcome = attempt()?;
    for _ in 1..ATTEMPTS {
        let Err(difference) = outcome else {
            break;
        };
        println!("once different, and tried again:\n{difference:#}");
        outcome = attempt()?;
    }
    Ok(outcome)
}

fn run(arguments: &Arguments) -> Result<()> {
    let programs = arguments.programs.canonicalize()?;
    let home = tempfile::Builder::new()
        .prefix("trustme-engines-")
        .tempdir()?;
    // An ordinary user has to reach what is in there.
    std::fs::set_permissions(
        home.path(),
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )?;
    isolation::enter(home.path())?;
    let image = image::make(home.path())?;
    let mut wrong = Vec::new();
    for kind in Kind::ALL {
        if !arguments.engine.is_empty() && !arguments.engine.iter().any(|name| name == kind.name())
        {
            continue;
        }
        let checks: Vec<&Check> = kind
            .checks()
            .filter(|check| check.name.starts_with(&arguments.check))
            .collect();
        ensure!(
            !arguments.check.is_empty() || checks.len() >= MIN_CHECKS,
            "{}: only {} checks",
            kind.name(),
            checks.len()
        );
        let engine = Engine::start(kind, home.path(), &programs)?;
        engine.load(&image)?;
        let mut failed = 0;
        for check in &checks {
            let attempt = || {
                let reference = engine.run(check, &arguments.reference)?;
                let ours = engine.run(check, &programs.join("trustme"))?;
                Ok(check.compare(&reference, &ours))
            };
            if let Err(difference) = attempts(attempt)? {
                failed += 1;
                wrong.push(format!("{} {}", kind.name(), check.name));
                println!("{} {}: DIFFERENT\n{difference:#}", kind.name(), check.name);
            }
        }
        engine.stop()?;
        println!(
            "{}: {} of {} checks are equal",
            kind.name(),
            checks.len() - failed,
            checks.len()
        );
    }
    ensure!(
        wrong.is_empty(),
        "different from runc: {}",
        wrong.join(", ")
    );
    Ok(())
}
