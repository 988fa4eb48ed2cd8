//! `cargo xtask fuzz`: libFuzzer on everything that reads untrusted bytes.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::build::{self, step};
use crate::test;

/// Longest input that libFuzzer makes, in bytes.
const MAX_LEN: u32 = 65_536;

/// Runs one target, or all, for `seconds` each.
///
/// # Errors
/// A finding (its input is in fuzz/artifacts), or cargo-fuzz cannot be had.
pub fn run(target: Option<&str>, seconds: u64) -> Result<()> {
    let known = targets()?;
    let chosen = match target {
        Some(target) => {
            ensure!(
                known.iter().any(|name| name == target),
                "no fuzz target {target}; there are {}",
                known.join(", ")
            );
            vec![target.to_owned()]
        }
        None => known,
    };
    let cargo_fuzz = test::tool("cargo-fuzz")?;
    for target in &chosen {
        let found = format!("fuzz/corpus/{target}");
        std::fs::create_dir_all(build::workspace().join(&found))?;
        let limit = format!("-max_total_time={seconds}");
        fuzz(&cargo_fuzz, target, &[&found, &seeds(target)], &limit)?;
    }
    Ok(())
}

/// Runs every target once over its committed seeds.
///
/// # Errors
/// A seed makes a target fail, or cargo-fuzz cannot be had.
pub fn run_seeds() -> Result<()> {
    let cargo_fuzz = test::tool("cargo-fuzz")?;
    for target in targets()? {
        fuzz(&cargo_fuzz, &target, &[&seeds(&target)], "-runs=0")?;
    }
    Ok(())
}

/// Where a target's committed inputs are.
fn seeds(target: &str) -> String {
    format!("fuzz/seeds/{target}")
}

/// Runs a target on the inputs in directories; new ones go into the first.
fn fuzz(cargo_fuzz: &Path, target: &str, inputs: &[&str], limit: &str) -> Result<()> {
    let mut command = Command::new(cargo_fuzz);
    command
        .args(["fuzz", "run", target])
        .args(inputs)
        .args(["--", limit])
        .arg(format!("-max_len={MAX_LEN}"))
        .arg("-timeout=20")
        .current_dir(build::workspace())
        // The sanitizers are switched on by flags that the stable compiler keeps for itself.
        .env("RUSTC_BOOTSTRAP", "1");
    step(&mut command)
}

/// The targets: a file each in fuzz/fuzz_targets.
fn targets() -> Result<Vec<String>> {
    let dir = build::workspace().join("fuzz/fuzz_targets");
    let mut targets = Vec::new();
    for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        if let Some(name) = entry?.path().file_stem().and_then(|name| name.to_str()) {
            targets.push(name.to_owned());
        }
    }
    targets.sort();
    Ok(targets)
}
