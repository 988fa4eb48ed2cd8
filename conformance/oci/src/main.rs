//! `trustme-oci-suite build DIR | run DIR --runtime NAME=PATH...`: the second half also runs inside of a virtual machine.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::Parser;
use trustme_oci_suite::expectation::Expected;
use trustme_oci_suite::run::{self, Runtime};
use trustme_oci_suite::{expectation, private, report, source};

/// The official OCI runtime validation suite.
#[derive(Debug, Parser)]
enum Arguments {
    /// Fetch and build the suite; prints the directory of its programs.
    Build {
        /// Where to.
        dir: PathBuf,
    },
    /// Run it against runtimes.
    Run {
        /// The directory of its programs.
        programs: PathBuf,
        /// A runtime: NAME=PATH. The one named trustme is compared with the one named runc and with the committed list.
        #[arg(long, required = true)]
        runtime: Vec<Runtime>,
        /// Run only this test.
        #[arg(long)]
        test: Vec<String>,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse() {
        Arguments::Build { dir } => {
            source::build(&dir).map(|programs| println!("{}", programs.display()))
        }
        Arguments::Run {
            programs,
            runtime,
            test,
        } => run(programs, &runtime, test),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(programs: PathBuf, runtimes: &[Runtime], only: Vec<String>) -> Result<()> {
    let expected = expectation::committed()?;
    let programs = programs.canonicalize()?;
    let mut tests = source::tests(&programs)?;
    tests.retain(|test| only.is_empty() || only.contains(test));
    private::enter()?;
    let unified = private::is_unified();
    let races: Vec<String> = expected
        .iter()
        .filter(|(_, versions)| versions[usize::from(unified)] == Expected::Race)
        .map(|(test, _)| test.clone())
        .collect();
    let outcomes = run::all(&programs, &tests, &races, runtimes)?;
    println!("cgroup v{}", if unified { 2 } else { 1 });
    report::print(&outcomes, runtimes);
    let wrong = expectation::compare(&outcomes, &expected, unified)?;
    for line in &wrong {
        eprintln!("{line}");
    }
    ensure!(wrong.is_empty(), "{} results are wrong", wrong.len());
    Ok(())
}
