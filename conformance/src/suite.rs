//! The harness of the suites in tests/: named tests with fixtures in common, and skips that say why.

use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::fixtures::Fixtures;

/// How a test ends that does not fail.
#[derive(Debug)]
pub enum Outcome {
    /// All that it looked at was as it should be.
    Passed,
    /// It cannot run on this machine, and why.
    Skipped(String),
}

/// A test.
pub type Test = fn(&Fixtures) -> Result<Outcome>;

/// Runs a suite as `cargo test` would; its closing line counts passed, failed and skipped tests.
pub fn main(tests: &[(&str, Test)]) -> ExitCode {
    let mut arguments = Arguments::from_args();
    // Cores are few and the tests are mostly other programs' work.
    arguments.test_threads = arguments.test_threads.or(Some(2));
    let fixtures = match Fixtures::new() {
        Ok(fixtures) => Arc::new(fixtures),
        Err(error) => {
            eprintln!("error: {error:#}");
            return ExitCode::FAILURE;
        }
    };
    let trials = tests.iter().map(|(name, test)| {
        let fixtures = Arc::clone(&fixtures);
        let test = *test;
        Trial::ignorable_test(*name, move || match test(&fixtures) {
            Ok(Outcome::Passed) => Ok(Completion::Completed),
            Ok(Outcome::Skipped(reason)) => Ok(Completion::ignored_with(reason)),
            Err(error) => Err(Failed::from(format!("{error:#}"))),
        })
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    // Tests have ended; what they share goes now.
    drop(fixtures);
    conclusion.exit_code()
}
