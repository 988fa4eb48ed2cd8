//! Counts a program's system calls, and kills it at one of them: strace does both.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::ok;

/// A system call that a program makes: the `number`th of all calls of its name, from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    name: String,
    number: u32,
}

impl Point {
    /// The option that makes strace kill its program when it enters this call. strace counts each name by itself.
    pub fn option(&self) -> String {
        format!("inject={}:signal=SIGKILL:when={}", self.name, self.number)
    }
}

/// A command under strace, killed by SIGKILL when its first thread enters a system call. Ends by itself if it does not
/// make it.
pub fn killed_at(command: &Command, point: &Point) -> Command {
    traced(command, &["-o", "/dev/null", "-e", &point.option()])
}

/// The system calls of the first thread of a command that has to succeed, in order. `file` is written.
///
/// # Errors
/// It fails, or strace has seen nothing.
pub fn calls(command: &Command, file: &Path) -> Result<Vec<Point>> {
    ok(&mut traced(command, &["-o", &file.display().to_string()]))?;
    read_calls(file)
}

/// The system calls in a file that `strace -o` has written.
///
/// # Errors
/// There are none.
pub fn read_calls(file: &Path) -> Result<Vec<Point>> {
    let text = std::fs::read_to_string(file)?;
    let mut numbers: HashMap<&str, u32> = HashMap::new();
    let mut points = Vec::new();
    // The first is strace's own, which starts the program.
    for line in text.lines().skip(1) {
        // Others are of signals and of the end.
        let Some((name, _)) = line.split_once('(') else {
            continue;
        };
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_') {
            continue;
        }
        let number = numbers.entry(name).or_default();
        *number += 1;
        points.push(Point {
            name: name.to_owned(),
            number: *number,
        });
    }
    ensure!(!points.is_empty(), "strace saw nothing: {text}");
    Ok(points)
}

/// Number of system calls of a command that has to succeed, with those of the processes that it starts. `file` is
/// written.
///
/// # Errors
/// It fails, or strace's table has no total.
pub fn count(command: &Command, file: &Path) -> Result<u32> {
    let output = file.display().to_string();
    ok(&mut traced(command, &["-c", "-f", "-o", &output]))?;
    let table = std::fs::read_to_string(file)?;
    let total = table
        .lines()
        .find(|line| line.trim_end().ends_with(" total"));
    // % time, seconds, usecs/call, calls, errors if any, "total"
    let calls = total.and_then(|line| line.split_whitespace().nth(3));
    let calls = calls.with_context(|| format!("strace's table has no total: {table}"))?;
    let calls: u32 = calls.parse().context("strace's total")?;
    ensure!(calls > 0, "strace saw nothing");
    Ok(calls)
}

/// A command under strace, which gets `arguments`.
pub fn traced(command: &Command, arguments: &[&str]) -> Command {
    let mut strace = Command::new("strace");
    strace.args(arguments).arg("--").arg(command.get_program());
    strace.args(command.get_args());
    if let Some(dir) = command.get_current_dir() {
        strace.current_dir(dir);
    }
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => strace.env(name, value),
            None => strace.env_remove(name),
        };
    }
    strace
}
