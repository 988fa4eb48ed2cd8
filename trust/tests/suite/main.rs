//! Tests against a real TPM emulator and the running kernel.

mod bundle;
mod documented;
mod launch;
mod log;
mod sealing;
mod swtpm;
mod tpm;
mod volume;

/// Runs a program; what it prints.
fn run(program: &str, arguments: &[&str]) -> String {
    let output = std::process::Command::new(program)
        .args(arguments)
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// What an error and its causes say, as the programs print it.
fn chain(error: impl std::error::Error + Send + Sync + 'static) -> String {
    format!("{:#}", anyhow::Error::from(error))
}
