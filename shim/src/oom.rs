//! Tells when a container reaches its limit of memory: the kernel writes to an eventfd (cgroup v1), or changes
//! `memory.events` (v2).

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use rustix::buffer::spare_capacity;
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::inotify;

use crate::cgroup::Cgroups;

/// The cgroups that are watched.
#[derive(Debug)]
pub struct Oom {
    epoll: OwnedFd,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    watched: HashMap<u64, Watch>,
}

#[derive(Debug)]
struct Watch {
    container: String,
    fd: File,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// The cgroup's directory: the eventfd is written to when it is removed as well.
    Legacy(PathBuf),
    /// `memory.events`, and how many processes were killed so far.
    Unified(PathBuf, u64),
}

impl Oom {
    /// Watches nothing.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> Result<Self> {
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            table: Mutex::default(),
        })
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Watches a container's cgroup.
    ///
    /// # Errors
    /// It has none, or the kernel's.
    pub fn watch(&self, container: &str, cgroups: &Cgroups) -> Result<()> {
        let dir = cgroups
            .dir("memory")
            .context("no cgroup limits its memory")?;
        let (fd, kind) = match cgroups {
            Cgroups::Legacy(_) => legacy(dir)?,
            Cgroups::Unified(_) => unified(dir)?,
        };
        let mut table = self.table();
        table.next += 1;
        let number = table.next;
        epoll::add(
            &self.epoll,
            &fd,
            epoll::EventData::new_u64(number),
            epoll::EventFlags::IN,
        )?;
        let container = container.to_owned();
        let watch = Watch {
            container,
            fd: fd.into(),
            kind,
        };
        table.watched.insert(number, watch);
        Ok(())
    }

    /// Watches a container's cgroup no longer.
    pub fn forget(&self, container: &str) {
        // A closed descriptor is not waited for any more.
        self.table()
            .watched
            .retain(|_, watch| watch.container != container);
    }

    /// Tells for ever which containers have reached their limit.
    ///
    /// # Errors
    /// The kernel's.
    pub fn run(&self, reached: impl Fn(&str)) -> Result<()> {
        let mut events = Vec::with_capacity(4);
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other.context("cannot wait for the kernel's word about memory")?,
            };
            for event in events.drain(..) {
                let number = event.data.u64();
                let mut table = self.table();
                let Some(watch) = table.watched.get_mut(&number) else {
                    continue;
                };
                match watch.turn() {
                    Some(true) => reached(&watch.container),
                    Some(false) => (),
                    None => drop(table.watched.remove(&number)),
                }
            }
        }
    }
}

impl Watch {
    /// Whether the limit was reached; none if the cgroup is gone.
    fn turn(&mut self) -> Option<bool> {
        // What is in there does not matter.
        let _length = (&self.fd).read(&mut [0; 1024]).ok()?;
        match &mut self.kind {
            Kind::Legacy(dir) => dir.exists().then_some(true),
            Kind::Unified(file, before) => {
                let killed = kills(&std::fs::read_to_string(file).ok()?);
                let more = killed > *before;
                *before = killed;
                Some(more)
            }
        }
    }
}

fn legacy(dir: &Path) -> Result<(OwnedFd, Kind)> {
    let fd = eventfd(0, EventfdFlags::CLOEXEC)?;
    let control = File::open(dir.join("memory.oom_control"))?;
    // Kernel, Documentation/admin-guide/cgroup-v1/memory.rst, section 10.
    let line = format!("{} {}", fd.as_raw_fd(), control.as_fd().as_raw_fd());
    std::fs::write(dir.join("cgroup.event_control"), line)?;
    Ok((fd, Kind::Legacy(dir.to_owned())))
}

fn unified(dir: &Path) -> Result<(OwnedFd, Kind)> {
    let file = dir.join("memory.events");
    let fd = inotify::init(inotify::CreateFlags::CLOEXEC)?;
    inotify::add_watch(&fd, &file, inotify::WatchFlags::MODIFY)?;
    let before = kills(&std::fs::read_to_string(&file)?);
    Ok((fd, Kind::Unified(file, before)))
}

/// How many processes were killed, in `memory.events`.
fn kills(events: &str) -> u64 {
    let mut lines = events.lines().filter_map(|line| line.split_once(' '));
    let found = lines.find(|(name, _)| *name == "oom_kill");
    found.and_then(|(_, count)| count.parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kills_are_counted() {
        assert_eq!(
            kills("low 0\nmax 4\noom 2\noom_kill 3\noom_group_kill 0\n"),
            3
        );
        assert_eq!(kills(""), 0);
    }
}
