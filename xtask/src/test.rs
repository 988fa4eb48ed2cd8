//! `cargo xtask test`: everything that has to hold before a change lands.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use crate::build::{self, cargo, step};
use crate::fuzz;

/// What is run before the suites.
type Step = fn() -> Result<()>;

/// The steps before the suites of conformance/tests, in order.
const STEPS: &[(&str, Step)] = &[
    ("fmt", fmt),
    ("clippy", clippy),
    ("deny", deny),
    ("unit", unit),
    ("fuzz", fuzz::run_seeds),
];

/// Runs all steps and suites, or those named.
///
/// # Errors
/// Some fail: the error names them. Or a name is that of none, or the programs cannot be built.
pub fn run(only: &[String]) -> Result<()> {
    let suites = suites()?;
    for name in only {
        if !suites.contains(name) && !STEPS.iter().any(|(step, _)| step == name) {
            let steps = STEPS.iter().map(|(step, _)| (*step).to_owned());
            let known: Vec<String> = steps.chain(suites).collect();
            bail!("no such suite: {name}; there are {}", known.join(", "));
        }
    }
    let wanted = |name: &str| only.is_empty() || only.iter().any(|given| given == name);
    let begin = Instant::now();
    let mut steps = Steps::default();
    for (name, run) in STEPS.iter().filter(|(name, _)| wanted(name)) {
        steps.run(name, run);
    }
    let suites: Vec<String> = suites.into_iter().filter(|name| wanted(name)).collect();
    if !suites.is_empty() {
        let programs = build::release()?;
        for name in &suites {
            steps.run(name, || suite(name, &programs));
        }
    }
    println!("cargo xtask test:");
    for line in &steps.lines {
        println!("  {line}");
    }
    println!("  {:<12} {:>5.0} s", "all", begin.elapsed().as_secs_f64());
    ensure!(
        steps.failed.is_empty(),
        "failed: {}",
        steps.failed.join(", ")
    );
    println!("everything passed");
    Ok(())
}

/// What has been run.
#[derive(Debug, Default)]
struct Steps {
    /// A line for each, with the time it took.
    lines: Vec<String>,
    /// Names of those that failed.
    failed: Vec<String>,
}

impl Steps {
    /// Runs one. A failure does not stop the others.
    fn run(&mut self, name: &str, run: impl FnOnce() -> Result<()>) {
        let begin = Instant::now();
        let result = run();
        let seconds = begin.elapsed().as_secs_f64();
        let end = if result.is_ok() { "" } else { "  FAILED" };
        self.lines.push(format!("{name:<12} {seconds:>5.0} s{end}"));
        if let Err(error) = result {
            eprintln!("error: {name}: {error:#}");
            self.failed.push(name.to_owned());
        }
    }
}

/// The suites: a file each in conformance/tests.
fn suites() -> Result<Vec<String>> {
    let dir = build::workspace().join("conformance/tests");
    let entries = std::fs::read_dir(&dir).with_context(|| dir.display().to_string())?;
    let mut suites = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "rs")
            && let Some(name) = path.file_stem().and_then(|name| name.to_str())
        {
            suites.push(name.to_owned());
        }
    }
    suites.sort();
    Ok(suites)
}

fn fmt() -> Result<()> {
    step(&mut cargo(&["fmt", "--all", "--check"]))?;
    let fuzz = ["fmt", "--manifest-path", "fuzz/Cargo.toml", "--check"];
    step(&mut cargo(&fuzz))
}

fn clippy() -> Result<()> {
    step(&mut cargo(&[
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "-D",
        "warnings",
    ]))
}

/// Licences, sources and bans. Not the advisories: their database is on GitHub, which CI cannot reach.
fn deny() -> Result<()> {
    let deny = tool("cargo-deny")?;
    let mut command = std::process::Command::new(deny);
    command
        .args([
            "--workspace",
            "check",
            "--hide-inclusion-graph",
            "bans",
            "licenses",
            "sources",
        ])
        .current_dir(build::workspace());
    step(&mut command)
}

/// Tests beside the code, and those of each program alone.
fn unit() -> Result<()> {
    let mut all = cargo(&["test", "--workspace", "--exclude", "trustme-conformance"]);
    // Else a test that passes because it cannot run here would not be heard.
    all.args(["--no-fail-fast", "--", "--show-output"]);
    step(&mut all)?;
    step(&mut cargo(&[
        "test",
        "--package",
        "trustme-conformance",
        "--lib",
    ]))
}

fn suite(name: &str, programs: &Path) -> Result<()> {
    let mut command = cargo(&["test", "--package", "trustme-conformance", "--test", name]);
    step(command.env("TRUSTME_PROGRAMS", programs))
}

/// A cargo plug-in: the installed one, else one built into target/tools.
///
/// # Errors
/// It cannot be built.
pub fn tool(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let tools = build::target()?.join("tools");
    let mut places: Vec<PathBuf> = std::env::split_paths(&path).collect();
    places.push(tools.join("bin"));
    let found = places
        .iter()
        .map(|dir| dir.join(name))
        .find(|program| program.is_file());
    if let Some(program) = found {
        return Ok(program);
    }
    let mut install = cargo(&["install", "--locked", "--quiet", "--root"]);
    // Its own target directory, so that xtask's lock on the workspace's is not waited for.
    install
        .arg(&tools)
        .arg(name)
        .env("CARGO_TARGET_DIR", tools.join("build"));
    step(&mut install)?;
    Ok(tools.join("bin").join(name))
}
