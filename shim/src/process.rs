//! A process of a container: its first one, or the one of an exec.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use containerd_shim_protos::api::Status;

use crate::clock;
use crate::events::{Event, Events};
use crate::exits::Exit;
use crate::failure;
use crate::relay::Relay;
use crate::stdio::{Paths, Streams};

/// A process.
#[derive(Debug)]
pub struct Process {
    /// The exec's id; empty for the first process.
    pub exec: String,
    /// Its standard input and output.
    pub paths: Paths,
    /// What an exec runs: JSON of an OCI process.
    pub spec: Vec<u8>,
    life: Mutex<Life>,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct Life {
    pid: i32,
    running: bool,
    /// It is being started: its end is told only after its start.
    starting: bool,
    exit: Option<Exit>,
    streams: Streams,
}

impl Process {
    /// Not made yet.
    pub fn new(exec: String, paths: Paths, spec: Vec<u8>) -> Arc<Self> {
        Arc::new(Self {
            exec,
            paths,
            spec,
            life: Mutex::default(),
            ended: Condvar::new(),
        })
    }

    fn life(&self) -> MutexGuard<'_, Life> {
        // No code that could panic runs with the lock held.
        self.life.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its pid, which is 0 before it is made.
    pub fn pid(&self) -> i32 {
        self.life().pid
    }

    /// How it ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        self.life().exit
    }

    /// What containerd calls its state.
    pub fn status(&self) -> Status {
        let life = self.life();
        match (life.exit, life.running) {
            (Some(_), _) => Status::STOPPED,
            (None, true) => Status::RUNNING,
            (None, false) => Status::CREATED,
        }
    }

    /// Waits for its end.
    pub fn wait(&self) -> Exit {
        let mut life = self.life();
        loop {
            if let Some(exit) = life.exit {
                return exit;
            }
            life = self
                .ended
                .wait(life)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// It is there, with these streams.
    pub fn made(&self, pid: i32, streams: Streams) {
        let mut life = self.life();
        life.pid = pid;
        life.streams = streams;
    }

    /// Begins a start.
    ///
    /// # Errors
    /// It was started already, or has ended.
    pub fn begin_start(&self) -> Result<()> {
        let mut life = self.life();
        if life.exit.is_some() {
            return Err(failure::failed_precondition("the process has ended"));
        }
        if life.running || life.starting {
            return Err(failure::failed_precondition(
                "the process was started already",
            ));
        }
        life.starting = true;
        Ok(())
    }

    /// Tells that it was started, and then that it has ended, if it has.
    pub fn started(&self, container: &str, events: &Events, relay: &Relay) {
        let mut life = self.life();
        life.starting = false;
        life.running = true;
        events.publish(match self.exec.as_str() {
            "" => Event::start(container, life.pid),
            exec => Event::exec_started(container, exec, life.pid),
        });
        if let Some(exit) = life.exit {
            // Its streams may have been connected after its end.
            life.streams.settle(relay);
            events.publish(Event::exit(container, &self.exec, life.pid, exit));
        }
    }

    /// A start has failed. An exec has ended by that; a container's first process may be there still.
    pub fn start_failed(&self, container: &str, events: &Events) {
        let mut life = self.life();
        life.starting = false;
        match (life.exit, self.exec.is_empty()) {
            (Some(exit), true) => {
                events.publish(Event::exit(container, "", life.pid, exit));
            }
            (None, false) => life.exit = Some(Exit::now(FAILED_EXEC)),
            _ => (),
        }
        drop(life);
        self.ended.notify_all();
    }

    /// It has ended.
    pub fn ended(&self, container: &str, pid: i32, exit: Exit, events: &Events, relay: &Relay) {
        let mut life = self.life();
        life.streams.settle(relay);
        life.exit = Some(exit);
        // Nobody writes to it any more.
        life.streams.close_input();
        if !life.starting {
            events.publish(Event::exit(container, &self.exec, pid, exit));
        }
        drop(life);
        self.ended.notify_all();
    }

    /// The client has written all input.
    pub fn close_input(&self) {
        self.life().streams.close_input();
    }

    /// Sets its terminal's size.
    ///
    /// # Errors
    /// The kernel's.
    pub fn resize(&self, width: u32, height: u32) -> Result<()> {
        let size = |value: u32| u16::try_from(value).context("no size of a terminal");
        // A process without a terminal has no size, which is no error to containerd's own shim either.
        self.life().streams.resize(size(width)?, size(height)?)?;
        Ok(())
    }

    /// Its streams, to be finished.
    pub fn take_streams(&self) -> Streams {
        std::mem::take(&mut self.life().streams)
    }
}

/// Exit status of an exec that could not be started, as from containerd's own shim.
const FAILED_EXEC: u32 = 255;

impl Exit {
    /// At this moment.
    pub fn now(status: u32) -> Self {
        Self {
            status,
            at: clock::now(),
        }
    }
}
