//! Drives the built programs from outside, as their users do: nothing here links them.
//!
//! The suites are in tests/ (docs/testing.md), the demo in [`demo`], the benchmarks in [`bench`]; `cargo xtask` runs them.

pub mod archive;
pub mod bench;
pub mod busybox;
pub mod command;
pub mod cosign;
pub mod demo;
pub mod fixtures;
pub mod image;
pub mod machine;
pub mod network;
pub mod programs;
pub mod registry;
pub mod remains;
pub mod replay;
pub mod suite;
pub mod swtpm;
pub mod syscalls;
pub mod twin;
