//! A logging program, `binary:///program?key=value`: it reads the container's output from descriptors 3 and 4, and closes 5
//! (or writes to it) when it is ready.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use crate::exits::Exits;
use crate::stdio::{Owner, pipe};
use crate::{sys, uri};

/// How long it may take to be ready, and to end after the container: containerd's own limit.
const LIMIT: Duration = Duration::from_secs(10);

/// A running logging program; ended with this.
#[derive(Debug)]
pub struct Logger(OwnedFd);

impl Logger {
    /// Starts it, and waits until it is ready; the writing ends of standard output and error.
    ///
    /// # Errors
    /// It cannot be run, or is not ready in time.
    pub fn start(rest: &str, owner: Owner<'_>, exits: &Exits) -> Result<(Self, File, File)> {
        let program = uri::path(rest)?;
        let (stdout_read, stdout) = pipe(owner)?;
        let (stderr_read, stderr) = pipe(owner)?;
        let (ready, signal) = pipe(owner)?;
        let mut command = Command::new(&program);
        command
            .args(uri::arguments(rest)?)
            .env("CONTAINER_ID", owner.id)
            .env("CONTAINER_NAMESPACE", owner.namespace)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        sys::give(&mut command, [stdout_read, stderr_read, signal])?;
        let pid = exits.spawn(&mut command)?;
        let logger = Self(
            pidfd_open(pid, PidfdFlags::empty())
                .with_context(|| format!("logging program {} has ended", program.display()))?,
        );
        // Our copies of its ends go with it.
        drop(command);
        ensure!(
            readable(&ready)?,
            "logging program {} is not ready after {} s",
            program.display(),
            LIMIT.as_secs()
        );
        Ok((logger, stdout, stderr))
    }
}

impl Drop for Logger {
    /// It has read everything when its pipes end, and then ends itself, or is told to.
    fn drop(&mut self) {
        if !readable(&self.0).unwrap_or(false) {
            // It has ended in this moment.
            let _ = pidfd_send_signal(&self.0, Signal::TERM);
        }
    }
}

/// Waits until a pipe is written to or closed, or a process has ended; whether it was in time.
fn readable(file: impl AsFd) -> Result<bool> {
    let mut wait = [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN)];
    let limit = Timespec {
        tv_sec: LIMIT.as_secs().cast_signed(),
        tv_nsec: 0,
    };
    Ok(poll(&mut wait, Some(&limit)).context("cannot wait for a logging program")? > 0)
}
