#![doc = include_str!("../README.md")]

mod encoding;
pub mod identity;
mod kernel;
pub mod launch;
mod lock;
pub mod log;
mod mount;
pub mod policy;
pub mod tpm;
pub mod volume;

pub use kernel::quiet_tss;
