//! The official OCI runtime validation suite (opencontainers/runtime-tools): fetched as source from Debian, built with
//! Debian's Go, and run against several runtimes in one run, so that a runtime is judged beside others on the same
//! machine. docs/conformance.md says why the tests that no runtime passes fail.

pub mod expectation;
pub mod private;
pub mod report;
pub mod run;
pub mod source;
pub mod tap;
