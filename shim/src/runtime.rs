//! Runs the OCI runtime's commands for one container.

use std::ffi::OsStr;
use std::io::{ErrorKind, Read, Seek};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, anyhow};
use serde::Deserialize;

use crate::exits::{Exit, Exits};
use crate::options::Options;
use crate::{log, serve, sys};

/// The runtime, as it is called for one container.
#[derive(Debug)]
pub struct Runtime {
    binary: PathBuf,
    root: PathBuf,
    bundle: PathBuf,
    systemd_cgroup: bool,
}

/// A command of the runtime.
#[derive(Debug)]
pub struct Call {
    command: Command,
    /// Where the command writes what is wrong; removed with the call.
    log: PathBuf,
}

/// A line of the runtime's log.
#[derive(Deserialize)]
struct Line {
    level: String,
    msg: String,
}

impl Runtime {
    /// The runtime for the container in a bundle.
    pub fn new(options: &Options, namespace: &str, bundle: &Path) -> Self {
        Self {
            binary: options.binary(),
            root: options.root(namespace),
            bundle: bundle.to_owned(),
            systemd_cgroup: options.systemd_cgroup,
        }
    }

    /// A command without standard input and output.
    pub fn call(&self, name: &str) -> Call {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // A file for each call, for several may run at a time.
        let log = self.bundle.join(format!("log-{name}-{number}.json"));
        let mut command = Command::new(&self.binary);
        command.arg("--root").arg(&self.root);
        command
            .arg("--log")
            .arg(&log)
            .args(["--log-format", "json"]);
        // They are the shim's own.
        for variable in [serve::ARENAS_VARIABLE, serve::STACK_VARIABLE] {
            command.env_remove(variable);
        }
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
        command
            .arg(name)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // What is to be done when the shim is killed is decided without it: no command goes on meanwhile.
        sys::die_with_parent(&mut command);
        Call { command, log }
    }
}

impl Call {
    /// Adds an argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Sets standard input, output and error.
    pub fn stdio(mut self, stdin: Stdio, stdout: Stdio, stderr: Stdio) -> Self {
        self.command.stdin(stdin).stdout(stdout).stderr(stderr);
        self
    }

    /// Runs the command.
    ///
    /// # Errors
    /// It cannot be run, or fails: then the error is what it has logged.
    pub fn run(mut self, exits: &Exits) -> Result<()> {
        let exit = exits.run(&mut self.command);
        self.finish(exit)
    }

    /// Runs the command with `input` on standard input; its standard output.
    ///
    /// # Errors
    /// As [`Call::run`].
    pub fn output(mut self, exits: &Exits, input: &[u8]) -> Result<Vec<u8>> {
        let mut stdout = tempfile::tempfile()?;
        self.command.stdout(stdout.try_clone()?);
        if !input.is_empty() {
            let mut stdin = tempfile::tempfile()?;
            std::io::Write::write_all(&mut stdin, input)?;
            stdin.rewind()?;
            self.command.stdin(stdin);
        }
        let exit = exits.run(&mut self.command);
        self.finish(exit)?;
        let mut bytes = Vec::new();
        stdout.rewind()?;
        stdout.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    /// Ends the call: passes warnings on, and makes the last error the error.
    fn finish(self, exit: Result<Exit>) -> Result<()> {
        let logged = match std::fs::read_to_string(&self.log) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(error) => return Err(error).context("cannot read the runtime's log"),
        };
        if !logged.is_empty() {
            std::fs::remove_file(&self.log).context("cannot remove the runtime's log")?;
        }
        let mut last = None;
        for line in logged.lines() {
            match serde_json::from_str(line) {
                Ok(Line { level, msg }) if level == "error" => last = Some(msg),
                Ok(Line { level, msg }) if level == "warning" => log::warning(&msg),
                _ => (),
            }
        }
        match exit?.status {
            0 => Ok(()),
            status => Err(match last {
                Some(message) => anyhow!("{}", message.trim()),
                None => anyhow!(
                    "{}: exit status {status}",
                    self.command.get_program().display()
                ),
            }),
        }
    }
}
