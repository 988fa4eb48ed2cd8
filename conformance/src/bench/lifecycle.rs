//! create, start and delete of `true`, launch mode off, against other runtimes.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use serde_json::json;

use super::{Effort, Table, timed};
use crate::busybox;
use crate::command::{ok, run as run_command};
use crate::fixtures::Fixtures;
use crate::syscalls::count;

/// The youki that is compared, from crates.io.
const YOUKI: &str = "0.7.0";

pub(super) fn run(fixtures: &Fixtures, effort: Effort) -> Result<()> {
    let dir = tempfile::Builder::new()
        .prefix("trustme-bench-")
        .tempdir()?;
    let bundle = dir.path().join("bundle");
    let ours = fixtures.programs.path("trustme");
    busybox::bundle(&ours, &bundle, &["/bin/true"])?;
    busybox::change(&bundle, |config| {
        // Debian's crun knows no newer one.
        config["ociVersion"] = json!("1.0.2");
        config["linux"]["cgroupsPath"] = json!("/trustme-bench/container");
    })?;
    let config = dir.path().join("config.toml");
    std::fs::write(&config, "[launch]\nmode = \"off\"\n")?;

    let mut runtimes: Vec<(&str, PathBuf)> = vec![("runc", "runc".into()), ("crun", "crun".into())];
    match youki(&fixtures.programs.cache(), effort) {
        Ok(program) => runtimes.push(("youki", program)),
        Err(reason) => println!("youki: skipped: {reason:#}"),
    }
    runtimes.push(("trustme", ours));
    let names: Vec<&str> = runtimes.iter().map(|(name, _)| *name).collect();
    let mut table = Table::new("create + start + delete of `true`, launch mode off", &names);

    let command = |program: &Path, words: &str| {
        let mut command = Command::new(program);
        command
            .arg("--root")
            .arg(dir.path().join(program.file_name().unwrap_or_default()));
        command
            .args(words.split(' '))
            .env("TRUSTME_CONFIG", &config);
        command.current_dir(&bundle);
        command
    };
    for round in 0..=effort.runs(3, 40) {
        for (row, (_, program)) in table.rows.iter_mut().zip(&runtimes) {
            let lines = [
                "create --bundle . benchmark",
                "start benchmark",
                "delete --force benchmark",
            ];
            let mut commands = lines.map(|words| command(program, words));
            let time = timed(&mut commands)?;
            // The first round warms caches.
            if round > 0 {
                row.times.push(time);
            }
        }
    }
    for (row, (_, program)) in table.rows.iter_mut().zip(&runtimes) {
        let whole = command(program, "run --bundle . benchmark");
        let calls = count(&whole, &dir.path().join("calls"))?;
        row.note = format!("{calls} system calls in `run`");
    }
    table.print();
    remove_cgroups()
}

/// The cgroup that the containers were in; not every runtime removes the parents that it made.
fn remove_cgroups() -> Result<()> {
    for hierarchy in std::fs::read_dir("/sys/fs/cgroup")? {
        let parent = hierarchy?.path().join("trustme-bench");
        if parent.is_dir() {
            ok(Command::new("find")
                .arg(&parent)
                .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"]))?;
        }
    }
    Ok(())
}

/// youki built from crates.io, kept in `cache`.
fn youki(cache: &Path, effort: Effort) -> Result<PathBuf> {
    let root = cache.join(format!("youki-{YOUKI}-v1"));
    let program = root.join("bin/youki");
    if program.is_file() {
        return Ok(program);
    }
    anyhow::ensure!(
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
    anyhow::ensure!(
        built.status.success(),
        "cargo install youki {YOUKI}: {reason}"
    );
    // Only the program is wanted.
    run_command(Command::new("rm").arg("-rf").arg(root.join("build")))?.ok()?;
    Ok(program)
}
