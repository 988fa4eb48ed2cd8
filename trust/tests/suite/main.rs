//! Tests against a real TPM emulator and the running kernel.

mod log;
mod swtpm;
mod tpm;
mod volume;

/// What an error and its causes say, as the programs print it.
fn chain(error: impl std::error::Error + Send + Sync + 'static) -> String {
    format!("{:#}", anyhow::Error::from(error))
}
