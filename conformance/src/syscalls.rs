//! Counts a program's system calls, and kills it at one of them: strace does both.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command::ok;

/// A command under strace, killed by SIGKILL when it enters its system call number `number`, counted from 1 in its first
/// thread. Ends by itself if it makes fewer.
pub fn killed_at(command: &Command, number: u32) -> Command {
    let inject = format!("inject=all:signal=SIGKILL:when={number}");
    traced(command, &["-o", "/dev/null", "-e", &inject])
}

/// Number of system calls of a command that has to succeed, with those of the processes that it starts if `all`.
///
/// # Errors
/// It fails, or strace's table has no total.
pub fn count(command: &Command, all: bool, file: &Path) -> Result<u32> {
    let output = file.display().to_string();
    let mut arguments = vec!["-c", "-o", &output];
    if all {
        arguments.push("-f");
    }
    ok(&mut traced(command, &arguments))?;
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

fn traced(command: &Command, arguments: &[&str]) -> Command {
    let mut strace = Command::new("strace");
    strace.args(arguments).arg("--").arg(command.get_program());
    strace.args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => strace.env(name, value),
            None => strace.env_remove(name),
        };
    }
    strace
}
