//! Not written yet.

use std::process::ExitCode;

fn main() -> ExitCode {
    trustme_conformance::suite::main(&[])
}
