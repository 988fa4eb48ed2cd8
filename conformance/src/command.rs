//! Runs a command to its end, within a time limit, and keeps what it printed.

use std::fs::File;
use std::io::{Read, Seek};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

/// Whatever takes longer hangs.
const LIMIT: Duration = Duration::from_secs(300);

/// A command that has ended.
#[derive(Debug)]
pub struct Ran {
    /// The command line.
    pub line: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed.
    pub stdout: String,
    /// What it complained of.
    pub stderr: String,
}

impl Ran {
    /// Its standard output.
    ///
    /// # Errors
    /// It has failed.
    pub fn ok(self) -> Result<String> {
        ensure!(
            self.status.success(),
            "{}: {}\n{}{}",
            self.line,
            self.status,
            self.stdout,
            self.stderr
        );
        Ok(self.stdout)
    }

    /// Its standard error.
    ///
    /// # Errors
    /// It has succeeded, or was killed.
    pub fn fails(self) -> Result<String> {
        ensure!(
            self.status.code().is_some_and(|code| code != 0),
            "{}: should fail: {}\n{}{}",
            self.line,
            self.status,
            self.stdout,
            self.stderr
        );
        Ok(self.stderr)
    }

    /// As [`Ran::fails`], with an error message that holds each of `texts`.
    ///
    /// # Errors
    /// It has succeeded, or says something else.
    pub fn fails_saying(self, texts: &[&str]) -> Result<String> {
        let line = self.line.clone();
        let stderr = self.fails()?;
        for text in texts {
            ensure!(
                stderr.contains(text),
                "{line}: the error should name {text:?}: {stderr}"
            );
        }
        Ok(stderr)
    }
}

/// A command line, its parts separated by single spaces.
pub fn line(text: &str) -> Command {
    let mut parts = text.split(' ');
    let mut command = Command::new(parts.next().unwrap_or_default());
    command.args(parts);
    command
}

/// Runs a command. Its output goes to files: a pipe would stay open as long as a container that it leaves behind.
///
/// # Errors
/// It cannot be run, or takes longer than five minutes and is killed.
pub fn run(command: &mut Command) -> Result<Ran> {
    let line = shown(command);
    let mut stdout = tempfile::tempfile()?;
    let mut stderr = tempfile::tempfile()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout.try_clone()?)
        .stderr(stderr.try_clone()?)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot run {line}"))?;
    let status = wait(&mut child, LIMIT)?;
    let stdout = written(&mut stdout)?;
    let stderr = written(&mut stderr)?;
    let Some(status) = status else {
        bail!("{line}: takes longer than {LIMIT:?}; killed\n{stdout}{stderr}");
    };
    Ok(Ran {
        line,
        status,
        stdout,
        stderr,
    })
}

/// Runs a command that has to succeed; its standard output.
///
/// # Errors
/// It fails.
pub fn ok(command: &mut Command) -> Result<String> {
    run(command)?.ok()
}

/// Waits until a child ends; kills it and returns nothing after `limit`.
///
/// # Errors
/// The kernel's.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let begin = Instant::now();
    let mut pause = Duration::from_micros(200);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if begin.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(10));
    }
}

/// Waits until `condition` holds.
///
/// # Errors
/// It does not within ten seconds.
pub fn until(what: &str, mut condition: impl FnMut() -> bool) -> Result<()> {
    let begin = Instant::now();
    while !condition() {
        ensure!(
            begin.elapsed() < Duration::from_secs(10),
            "waited for {what} in vain"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A command as a person would type it.
pub fn shown(command: &Command) -> String {
    let mut line = command.get_program().display().to_string();
    for argument in command.get_args() {
        line.push(' ');
        line.push_str(&argument.to_string_lossy());
    }
    line
}

fn written(file: &mut File) -> Result<String> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}
