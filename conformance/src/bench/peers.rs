//! The runtimes that trustme is compared with: Debian 12's, and those that have to be built or fetched, once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::Effort;
use crate::archive::Archive;
use crate::command::{ok, run};

/// The youki that is compared, from crates.io.
const YOUKI: &str = "0.7.0";

/// A runtime: its name in the tables, and its program.
pub(super) type Runtime = (String, PathBuf);

/// The peers, the slowest to have last; what cannot be had is said and left out.
pub(super) fn all(cache: &Path, effort: Effort) -> Vec<Runtime> {
    let mut runtimes: Vec<Runtime> = vec![
        ("runc".to_owned(), "/usr/sbin/runc".into()),
        ("crun".to_owned(), "/usr/bin/crun".into()),
    ];
    for (name, program) in [
        ("newest runc", newest_runc(cache, effort)),
        ("youki", youki(cache, effort)),
    ] {
        match program {
            Ok(program) => runtimes.push((name.to_owned(), program)),
            Err(reason) => println!("{name}: skipped: {reason:#}"),
        }
    }
    runtimes
}

/// The runc of Debian's unstable suite, kept in `cache`. It wants a newer C library than Debian 12's, which it is given by a
/// change of its loader and its search path: it executes itself, so it cannot be started by the loader.
fn newest_runc(cache: &Path, effort: Effort) -> Result<PathBuf> {
    let dir = cache.join("runc-sid");
    let program = dir.join("runc");
    if program.is_file() {
        return Ok(program);
    }
    ensure!(
        effort == Effort::Full,
        "not fetched yet, and --quick fetches nothing"
    );
    let root = dir.join("root");
    let archive = Archive::open(&dir.join("apt"), "deb", "sid")?;
    archive.unpack(&["runc", "libc6", "libseccomp2"], &root)?;
    fs::remove_dir_all(dir.join("apt"))?;
    let changed = dir.join("changed");
    fs::copy(root.join("usr/sbin/runc"), &changed).context("runc")?;
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    ok(Command::new("patchelf")
        .arg("--set-interpreter")
        .arg(libraries.join("ld-linux-x86-64.so.2"))
        .arg("--set-rpath")
        .arg(&libraries)
        .arg(&changed))?;
    fs::rename(&changed, &program)?;
    Ok(program)
}

/// youki built from crates.io, kept in `cache`.
fn youki(cache: &Path, effort: Effort) -> Result<PathBuf> {
    let root = cache.join(format!("youki-{YOUKI}-v1"));
    let program = root.join("bin/youki");
    if program.is_file() {
        return Ok(program);
    }
    ensure!(
        effort == Effort::Full,
        "not built yet, and --quick builds nothing"
    );
    println!("building youki {YOUKI} from crates.io, once");
    let mut cargo = Command::new("cargo");
    cargo.args([
        "install",
        "youki",
        "--version",
        YOUKI,
        "--locked",
        "--quiet",
        // Left out by default.
        "--features=v1",
        "--root",
    ]);
    cargo.arg(&root).env("CARGO_TARGET_DIR", root.join("build"));
    let built = cargo.output()?;
    let said = String::from_utf8_lossy(&built.stderr);
    let reason = said
        .lines()
        .find(|line| line.starts_with("error"))
        .unwrap_or("no reason given");
    ensure!(
        built.status.success(),
        "cargo install youki {YOUKI}: {reason}"
    );
    // Only the program is wanted.
    run(Command::new("rm").arg("-rf").arg(root.join("build")))?.ok()?;
    Ok(program)
}

/// What `--version` says in its first line, for the tables.
pub(super) fn version(program: &Path) -> Result<String> {
    let said = ok(Command::new(program).arg("--version"))?;
    let words = said.lines().next().unwrap_or_default().split_whitespace();
    Ok(words.last().unwrap_or_default().to_owned())
}
