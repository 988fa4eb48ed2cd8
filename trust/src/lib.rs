//! Launch identity and policy, measurement log, TPM, sealed volumes.

mod encoding;
mod lock;
pub mod log;
pub mod tpm;
