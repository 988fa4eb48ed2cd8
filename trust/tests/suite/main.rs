//! Tests against a real TPM emulator and the running kernel.

mod log;
mod swtpm;
mod tpm;
mod volume;
