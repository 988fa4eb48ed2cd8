//! Collects ended children: runtime commands, the containers' processes, and orphans of theirs.
//!
//! One thread waits for any child. It needs no signal: while there is no child there can be no orphan either, for an
//! orphan comes to us only when an ancestor of it ends that is our child; so the thread then waits until a command is
//! spawned. What a container's process is called is known only after the command that made it has ended, when it may
//! have ended itself: while a [`Claim`] lives, ends of unknown processes are kept.

use std::collections::HashMap;
use std::io;
use std::process::Command;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use anyhow::{Context, Result};
use rustix::process::{Pid, WaitOptions, WaitStatus, wait};

use crate::container::Container;
use crate::process::Process;

/// Exit statuses of processes that a signal ended start after this.
const SIGNAL_BASE: u32 = 128;

/// How and when a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its exit code, or 128 and the signal's number.
    pub status: u32,
    /// When it was collected.
    pub at: SystemTime,
}

impl Exit {
    fn new(status: WaitStatus) -> Self {
        let signal = status.terminating_signal();
        let status = signal.map_or_else(
            || status.exit_status().unwrap_or_default().cast_unsigned(),
            |signal| SIGNAL_BASE + signal.cast_unsigned(),
        );
        Self {
            status,
            at: SystemTime::now(),
        }
    }
}

/// A container's process: its first one, or the one of an exec.
#[derive(Clone, Debug)]
pub struct Member {
    /// The container.
    pub container: Arc<Container>,
    /// Which of its processes.
    pub process: Arc<Process>,
}

#[derive(Debug)]
enum Watched {
    Command(SyncSender<Exit>),
    Member(Member),
}

#[derive(Debug, Default)]
struct Table {
    /// Counts spawned commands.
    spawned: u64,
    claims: usize,
    unclaimed: Vec<(i32, Exit)>,
    watched: HashMap<i32, Watched>,
}

/// The children of this process.
#[derive(Debug, Default)]
pub struct Exits {
    table: Mutex<Table>,
    /// A command was spawned.
    spawned: Condvar,
}

impl Exits {
    fn table(&self) -> MutexGuard<'_, Table> {
        // No code that could panic runs with the lock held.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the ends of unknown processes while the claim lives.
    pub fn claim(&self) -> Claim<'_> {
        self.table().claims += 1;
        Claim(self)
    }

    /// Runs a command to its end.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn run(&self, command: &mut Command) -> Result<Exit> {
        let claim = self.claim();
        let child = command
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        let (sender, receiver) = sync_channel(1);
        let pid = child.id().cast_signed();
        let mut table = self.table();
        table.spawned += 1;
        match table.take(pid) {
            Some(exit) => return Ok(exit),
            None => table.watched.insert(pid, Watched::Command(sender)),
        };
        drop(table);
        self.spawned.notify_one();
        drop(claim);
        receiver.recv().context("the command's end was missed")
    }

    /// Starts a program that is collected when it ends, whenever that is.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn spawn(&self, command: &mut Command) -> Result<Pid> {
        let child = command
            .spawn()
            .with_context(|| format!("cannot run {}", command.get_program().display()))?;
        self.table().spawned += 1;
        self.spawned.notify_one();
        Ok(Pid::from_child(&child))
    }

    /// Collects children for ever; `ended` gets those of containers.
    pub fn collect(&self, ended: impl Fn(&Member, i32, Exit)) -> io::Error {
        loop {
            let before = self.table().spawned;
            match wait(WaitOptions::empty()) {
                Ok(Some((pid, status))) => {
                    let pid = pid.as_raw_nonzero().get();
                    let member = self.table().end(pid, Exit::new(status));
                    if let Some((member, exit)) = member {
                        ended(&member, pid, exit);
                    }
                }
                Ok(None) | Err(rustix::io::Errno::INTR) => (),
                Err(rustix::io::Errno::CHILD) => {
                    let table = self.table();
                    let unchanged = |table: &mut Table| table.spawned == before;
                    drop(self.spawned.wait_while(table, unchanged));
                }
                Err(error) => return error.into(),
            }
        }
    }
}

impl Table {
    fn take(&mut self, pid: i32) -> Option<Exit> {
        let position = self.unclaimed.iter().position(|(known, _)| *known == pid)?;
        Some(self.unclaimed.swap_remove(position).1)
    }

    /// Tells a command's end to who waits for it; a container's process is the caller's.
    fn end(&mut self, pid: i32, exit: Exit) -> Option<(Member, Exit)> {
        match self.watched.remove(&pid) {
            Some(Watched::Command(sender)) => {
                // Who waits holds the receiver until this.
                let _ = sender.send(exit);
                None
            }
            Some(Watched::Member(member)) => Some((member, exit)),
            None => {
                if self.claims > 0 {
                    self.unclaimed.push((pid, exit));
                }
                None
            }
        }
    }
}

/// Ends of unknown processes are kept while this lives.
#[derive(Debug)]
pub struct Claim<'a>(&'a Exits);

impl Claim<'_> {
    /// Watches a container's process from now on; its end, if it has ended already.
    pub fn watch(self, pid: i32, member: Member) -> Option<Exit> {
        let mut table = self.0.table();
        let exit = table.take(pid);
        if exit.is_none() {
            table.watched.insert(pid, Watched::Member(member));
        }
        exit
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        let mut table = self.0.table();
        table.claims -= 1;
        if table.claims == 0 {
            table.unclaimed = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_end_with_their_status() {
        let exits: &'static Exits = Box::leak(Box::default());
        std::thread::spawn(|| exits.collect(|_, _, _| ()));
        let sh = |script: &str| exits.run(Command::new("sh").args(["-c", script])).unwrap();
        assert_eq!(sh("exit 7").status, 7);
        assert_eq!(sh("kill -9 $$").status, 137);
        let before = SystemTime::now();
        let slow = sh("sleep 0.2");
        assert!(slow.at.duration_since(before).unwrap().as_millis() >= 200);
        assert!(exits.run(&mut Command::new("/nosuch")).is_err());
        let table = exits.table();
        assert_eq!((table.claims, table.watched.len()), (0, 0));
    }

    #[test]
    fn ends_of_unknown_processes_are_kept_for_claims() {
        let exits = Exits::default();
        let exit = Exit {
            status: 3,
            at: SystemTime::now(),
        };
        assert!(exits.table().end(41, exit).is_none());
        let claim = exits.claim();
        assert!(exits.table().end(42, exit).is_none());
        assert_eq!(exits.table().unclaimed, [(42, exit)]);
        drop(claim);
        assert!(exits.table().unclaimed.is_empty());
    }
}
