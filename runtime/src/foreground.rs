//! A process in the foreground: signals go to it, its terminal is the caller's, its exit code is ours.

use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use rustix::event::{PollFd, PollFlags, poll};

use crate::sys;
use crate::terminal::{self, RawMode};

/// Exit codes of processes that a signal ended start after this (sh(1), runc).
const SIGNAL_EXIT_BASE: i32 = 128;

/// The signals of this process, held back from before the container is built so that none is lost.
#[derive(Debug)]
pub struct Signals {
    descriptor: SignalFd,
    /// The mask before, which the container's program gets.
    pub before: SigSet,
}

impl Signals {
    /// Holds back all signals that can be.
    ///
    /// # Errors
    /// If the descriptor that they are read from is not to be had.
    pub fn hold() -> Result<Self> {
        let all = SigSet::all();
        let before = SigSet::thread_get_mask()?;
        all.thread_block()?;
        let descriptor =
            SignalFd::with_flags(&all, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        Ok(Self { descriptor, before })
    }

    /// Waits for process `pid`, a child of this one, and returns its exit code. With the master of its terminal, its
    /// input and output are ours meanwhile.
    ///
    /// # Errors
    /// If the waiting fails.
    pub fn wait_for(self, pid: i32, master: Option<OwnedFd>) -> Result<u8> {
        let raw = master.as_ref().and_then(|_| RawMode::enter());
        if let Some(master) = &master {
            terminal::copy_size(master);
        }
        let mut relay = Relay {
            master,
            input_open: true,
        };
        let code = loop {
            relay.wait(&self.descriptor)?;
            if let Some(code) = self.handle(pid, relay.master.as_ref())? {
                break code;
            }
        };
        relay.drain();
        drop(raw);
        Ok(code)
    }

    /// Handles all signals that have come; the exit code, once the process has ended.
    fn handle(&self, pid: i32, master: Option<&OwnedFd>) -> Result<Option<u8>> {
        while let Some(signal) = self
            .descriptor
            .read_signal()
            .context("cannot read signals")?
        {
            match Signal::try_from(signal.ssi_signo as i32) {
                Ok(Signal::SIGCHLD) => {
                    if let Some(code) = reap(pid)? {
                        return Ok(Some(code));
                    }
                }
                Ok(Signal::SIGWINCH) => {
                    if let Some(master) = master {
                        terminal::copy_size(master);
                    }
                }
                Ok(Signal::SIGPIPE | Signal::SIGURG) => (),
                // The process may have ended: then SIGCHLD comes next.
                _ => drop(sys::kill(pid, signal.ssi_signo as i32)),
            }
        }
        Ok(None)
    }
}

/// Collects ended children; the exit code if `pid` is among them.
fn reap(pid: i32) -> Result<Option<u8>> {
    loop {
        let (child, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
            Ok(WaitStatus::Exited(child, code)) => (child, code),
            Ok(WaitStatus::Signaled(child, signal, _)) => (child, SIGNAL_EXIT_BASE + signal as i32),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(None),
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(err) => return Err(err).context("cannot wait for the container"),
        };
        if child.as_raw() == pid {
            return Ok(Some(code as u8));
        }
    }
}

/// Copies between the caller's standard input and output and the container's terminal.
#[derive(Debug)]
struct Relay {
    master: Option<OwnedFd>,
    input_open: bool,
}

impl Relay {
    /// Waits until a signal has come, and copies meanwhile.
    fn wait(&mut self, signals: &SignalFd) -> Result<()> {
        loop {
            let stdin = rustix::stdio::stdin();
            let mut fds = vec![PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
            if let Some(master) = &self.master {
                fds.push(PollFd::new(master, PollFlags::IN));
                if self.input_open {
                    fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
                }
            }
            match poll(&mut fds, None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other.context("cannot wait for the container")?,
            };
            let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(fds);
            if ready.get(1) == Some(&true) {
                self.output();
            }
            if ready.get(2) == Some(&true) {
                self.input();
            }
            if ready[0] {
                return Ok(());
            }
        }
    }

    /// Copies what the container has written; its side closed ends it.
    fn output(&mut self) {
        let Some(master) = &self.master else {
            return;
        };
        let mut bytes = [0; 32 * 1024];
        match rustix::io::read(master, &mut bytes) {
            Ok(count) if count > 0 => write_all(rustix::stdio::stdout(), &bytes[..count]),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => (),
            // EIO: no process has the terminal open any more.
            _ => self.master = None,
        }
    }

    fn input(&mut self) {
        let Some(master) = &self.master else {
            return;
        };
        let mut bytes = [0; 4096];
        match rustix::io::read(rustix::stdio::stdin(), &mut bytes) {
            Ok(count) if count > 0 => write_all(master.as_fd(), &bytes[..count]),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => (),
            _ => self.input_open = false,
        }
    }

    /// Copies what is left once the process has ended.
    fn drain(&mut self) {
        let now = rustix::time::Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        while let Some(master) = &self.master {
            let mut fds = [PollFd::new(master, PollFlags::IN)];
            match poll(&mut fds, Some(&now)) {
                Ok(count) if count > 0 => self.output(),
                _ => return,
            }
        }
    }
}

/// Writes all; whoever does not want it any more does not get it.
fn write_all(fd: std::os::fd::BorrowedFd<'_>, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        match rustix::io::write(fd, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(rustix::io::Errno::INTR) => (),
            Err(rustix::io::Errno::AGAIN) => {
                let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::OUT)];
                if poll(&mut fds, None).is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}
