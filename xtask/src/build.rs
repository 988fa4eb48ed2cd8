//! Runs cargo: builds the programs and names the directory they are in.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

/// The programs that the demo, the tests and the benchmarks drive.
const PROGRAMS: &[&str] = &["trustme", "trustme-hook", "trustme-convert", "trustmectl"];

/// The workspace's directory.
pub fn workspace() -> PathBuf {
    // xtask is always run by cargo, from the checkout that it was built in.
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_owned()
}

/// Cargo's target directory.
///
/// # Errors
/// `cargo metadata` fails.
pub fn target() -> Result<PathBuf> {
    let output = cargo(&["metadata", "--no-deps", "--format-version", "1"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "cargo metadata: {}", output.status);
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let target = metadata["target_directory"]
        .as_str()
        .context("cargo metadata names no target directory")?;
    Ok(target.into())
}

/// Builds the programs with the release profile; the directory they are in.
///
/// # Errors
/// The build fails.
pub fn release() -> Result<PathBuf> {
    let mut command = cargo(&["build", "--release"]);
    for program in PROGRAMS {
        command.args(["--package", program]);
    }
    step(&mut command)?;
    Ok(target()?.join("release"))
}

/// cargo with arguments, in the workspace's directory.
pub fn cargo(arguments: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()));
    command.args(arguments).current_dir(workspace());
    command
}

/// Runs a command and shows it.
///
/// # Errors
/// It cannot be run, or fails.
pub fn step(command: &mut Command) -> Result<()> {
    let program = Path::new(command.get_program()).file_name();
    let mut line = program.unwrap_or_default().to_os_string();
    for argument in command.get_args() {
        line.push(" ");
        line.push(argument);
    }
    let line = line.display().to_string();
    println!("== {line}");
    let status = command
        .stdin(Stdio::null())
        .status()
        .with_context(|| format!("cannot run {line}"))?;
    ensure!(status.success(), "{line}: {status}");
    Ok(())
}
