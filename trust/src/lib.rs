//! Launch identity and policy, measurement log, TPM, sealed volumes.

mod encoding;
pub mod identity;
mod kernel;
mod lock;
pub mod log;
mod mount;
pub mod policy;
pub mod tpm;
pub mod volume;

pub use kernel::quiet_tss;
