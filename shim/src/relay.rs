//! Copies between the containers' pipes and terminals and containerd's fifos: all streams of a pod in one thread.
//!
//! A stream is read only when all that was read before is written: a reader that stops stops its container once the
//! pipes are full, and nobody else. Nothing is lost as long as the fifo exists, because we hold a reading end of it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::buffer::spare_capacity;
use rustix::event::epoll;
use rustix::io::ioctl_fionread;

use crate::log;

/// How much is read at a time.
const CHUNK: usize = 32 * 1024;
/// How many chunks one stream may copy before the others have their turn.
const TURN: usize = 16;
/// How long an ended process's output is waited for before its end is told: clients stop to read then.
const SETTLE_LIMIT: Duration = Duration::from_millis(50);
const SETTLE_PAUSE: Duration = Duration::from_micros(200);
/// How many ready streams are taken at a time.
const EVENTS: usize = 16;

/// Counts the streams of one process that are still open.
#[derive(Debug, Default)]
pub struct Open {
    count: Mutex<usize>,
    closed: Condvar,
}

impl Open {
    fn count(&self) -> MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all streams are closed; whether they are within `limit`.
    pub fn wait(&self, limit: Duration) -> bool {
        let waited = self
            .closed
            .wait_timeout_while(self.count(), limit, |count| *count > 0);
        *waited.unwrap_or_else(PoisonError::into_inner).0 == 0
    }
}

/// One open stream.
#[derive(Debug)]
struct Counted(Arc<Open>);

impl Counted {
    fn new(open: &Arc<Open>) -> Self {
        *open.count() += 1;
        Self(Arc::clone(open))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        *self.0.count() -= 1;
        self.0.closed.notify_all();
    }
}

/// A stream to be copied.
#[derive(Debug)]
pub struct Stream {
    /// Read from; not blocking.
    pub from: File,
    /// Written to; not blocking unless it is a regular file.
    pub to: Arc<File>,
    /// Another end that stays open as long as the stream.
    pub _keep: Option<OwnedFd>,
    /// A regular file: what cannot be written to it is dropped, because its disk may be full for long.
    pub regular: bool,
    /// At the end of the input, this stream is closed as well: a terminal hangs up.
    pub hang_up: Option<Id>,
}

/// Names an open stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id(u64);

#[derive(Debug)]
struct Copying {
    stream: Stream,
    pending: Vec<u8>,
    /// Whether writing has failed, and it was said.
    failing: bool,
    _counted: Option<Counted>,
}

/// What a stream waits for after its turn.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Input,
    Output,
    End,
}

#[derive(Debug, Default)]
struct Table {
    next: u64,
    streams: HashMap<Id, Copying>,
}

/// All streams.
#[derive(Debug)]
pub struct Relay {
    epoll: OwnedFd,
    table: Mutex<Table>,
}

impl Relay {
    /// Without streams.
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

    /// Copies a stream from now on; `open` counts it until it ends.
    ///
    /// # Errors
    /// The kernel's.
    pub fn add(&self, stream: Stream, open: Option<&Arc<Open>>) -> Result<Id> {
        let mut table = self.table();
        table.next += 1;
        let id = Id(table.next);
        let once = epoll::EventFlags::ONESHOT;
        epoll::add(
            &self.epoll,
            &stream.from,
            id.reading(),
            epoll::EventFlags::IN | once,
        )
        .context("cannot wait for a stream")?;
        if !stream.regular {
            // Armed when something could not be written. A closed end is reported once even so.
            epoll::add(&self.epoll, &*stream.to, id.writing(), once)
                .context("cannot wait for a stream")?;
        }
        let copying = Copying {
            stream,
            pending: Vec::new(),
            failing: false,
            _counted: open.map(Counted::new),
        };
        table.streams.insert(id, copying);
        Ok(id)
    }

    /// Waits until what has been written into these streams is copied, for a moment. A stream whose reader does not read is
    /// not waited for.
    pub fn settle(&self, ids: &[Id]) {
        let begin = Instant::now();
        while begin.elapsed() < SETTLE_LIMIT {
            let table = self.table();
            let copied = ids.iter().all(|id| {
                let Some(copying) = table.streams.get(id) else {
                    return true;
                };
                // A terminal that has hung up cannot be asked.
                let unread = ioctl_fionread(&copying.stream.from).unwrap_or(0);
                unread == 0 || !copying.pending.is_empty()
            });
            drop(table);
            if copied {
                return;
            }
            std::thread::sleep(SETTLE_PAUSE);
        }
    }

    /// Has another stream end with this one, at once if it has ended already.
    pub fn hang_up(&self, id: Id, other: Id) {
        let mut table = self.table();
        match table.streams.get_mut(&id) {
            Some(copying) => copying.stream.hang_up = Some(other),
            None => drop(self.remove(&mut table, other)),
        }
    }

    /// Ends streams, whatever they still hold.
    pub fn close(&self, ids: &[Id]) {
        let mut table = self.table();
        for id in ids {
            self.remove(&mut table, *id);
        }
    }

    fn remove(&self, table: &mut Table, id: Id) -> Option<Id> {
        let copying = table.streams.remove(&id)?;
        let stream = copying.stream;
        // They may have other descriptors, so closing would not do. What is not there any more need not be removed.
        let _ = epoll::delete(&self.epoll, &stream.from);
        if !stream.regular {
            let _ = epoll::delete(&self.epoll, &*stream.to);
        }
        stream.hang_up
    }

    /// Copies for ever.
    ///
    /// # Errors
    /// The kernel's.
    pub fn copy(&self) -> Result<()> {
        let mut chunk = vec![0; CHUNK];
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            match epoll::wait(&self.epoll, spare_capacity(&mut events), None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other.context("cannot wait for streams")?,
            };
            for event in events.drain(..) {
                self.turn(Id(event.data.u64() >> 1), &mut chunk);
            }
        }
    }

    /// Copies what one stream has.
    fn turn(&self, id: Id, chunk: &mut [u8]) {
        let mut table = self.table();
        // Closed meanwhile.
        let Some(copying) = table.streams.get_mut(&id) else {
            return;
        };
        let next = copying.turn(chunk);
        let stream = &copying.stream;
        let once = epoll::EventFlags::ONESHOT;
        let armed = match next {
            Next::Input => epoll::modify(
                &self.epoll,
                &stream.from,
                id.reading(),
                epoll::EventFlags::IN | once,
            ),
            Next::Output => epoll::modify(
                &self.epoll,
                &*stream.to,
                id.writing(),
                epoll::EventFlags::OUT | once,
            ),
            Next::End => {
                if let Some(other) = self.remove(&mut table, id) {
                    self.remove(&mut table, other);
                }
                return;
            }
        };
        if let Err(error) = armed {
            log::warning(&format!("cannot wait for a stream: {error}"));
            self.remove(&mut table, id);
        }
    }
}

impl Id {
    fn reading(self) -> epoll::EventData {
        epoll::EventData::new_u64(self.0 << 1)
    }

    fn writing(self) -> epoll::EventData {
        epoll::EventData::new_u64(self.0 << 1 | 1)
    }
}

impl Copying {
    fn turn(&mut self, chunk: &mut [u8]) -> Next {
        let pending = std::mem::take(&mut self.pending);
        match self.write(&pending) {
            Next::Input => (),
            blocked_or_end => return blocked_or_end,
        }
        for _ in 0..TURN {
            let count = match (&self.stream.from).read(chunk) {
                Ok(0) => return Next::End,
                Ok(count) => count,
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return Next::Input,
                    ErrorKind::Interrupted => continue,
                    // EIO: no process has the terminal open any more.
                    _ => return Next::End,
                },
            };
            match self.write(&chunk[..count]) {
                Next::Input => (),
                blocked_or_end => return blocked_or_end,
            }
        }
        Next::Input
    }

    /// Writes, and keeps what does not go through.
    fn write(&mut self, mut bytes: &[u8]) -> Next {
        while !bytes.is_empty() {
            match (&*self.stream.to).write(bytes) {
                Ok(count) => {
                    bytes = &bytes[count..];
                    self.failing = false;
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => {
                        self.pending = bytes.to_vec();
                        return Next::Output;
                    }
                    ErrorKind::Interrupted => (),
                    _ if self.stream.regular => {
                        self.failed(&error);
                        return Next::Input;
                    }
                    _ => return Next::End,
                },
            }
        }
        Next::Input
    }

    fn failed(&mut self, error: &io::Error) {
        if !self.failing {
            log::warning(&format!("output of a container is lost: {error}"));
        }
        self.failing = true;
    }
}

/// Sets a descriptor to not block.
///
/// # Errors
/// The kernel's.
pub fn nonblocking(fd: impl AsFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd)?;
    Ok(rustix::fs::fcntl_setfl(
        &fd,
        flags | rustix::fs::OFlags::NONBLOCK,
    )?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::pipe::{PipeFlags, pipe_with};

    fn pipe() -> (File, File) {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        (read.into(), write.into())
    }

    fn relay() -> &'static Relay {
        let relay: &'static Relay = Box::leak(Box::new(Relay::new().unwrap()));
        std::thread::spawn(|| relay.copy());
        relay
    }

    /// A stream: what is written to the first comes out of the second.
    fn connect(relay: &Relay, open: &Arc<Open>) -> (File, File, Id) {
        let ((from, input), (output, to)) = (pipe(), pipe());
        nonblocking(&from).unwrap();
        nonblocking(&to).unwrap();
        let stream = Stream {
            from,
            to: Arc::new(to),
            _keep: None,
            regular: false,
            hang_up: None,
        };
        let id = relay.add(stream, Some(open)).unwrap();
        (input, output, id)
    }

    #[test]
    fn everything_comes_through_in_order() {
        let open = Arc::default();
        let (mut input, mut output, _) = connect(relay(), &open);
        let sent: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        let expected = sent.clone();
        assert!(!open.wait(Duration::ZERO));
        let writer = std::thread::spawn(move || input.write_all(&sent));
        let mut received = Vec::new();
        output.read_to_end(&mut received).unwrap();
        writer.join().unwrap().unwrap();
        assert!(received == expected);
        assert!(open.wait(Duration::from_secs(1)));
    }

    #[test]
    fn a_reader_that_stops_stops_nobody_else() {
        let relay = relay();
        let open = Arc::default();
        let (blocked, _unread, id) = connect(relay, &open);
        nonblocking(&blocked).unwrap();
        let mut blocked = blocked;
        // Until all pipes are full.
        let begin = std::time::Instant::now();
        while begin.elapsed() < Duration::from_millis(100) {
            let _ = blocked.write(&[0; 4096]);
        }
        let (mut input, mut output, _) = connect(relay, &Arc::default());
        input.write_all(b"other").unwrap();
        let mut bytes = [0; 5];
        output.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"other");
        relay.close(&[id]);
        assert!(open.wait(Duration::ZERO));
    }

    #[test]
    fn a_full_disk_loses_output_but_stops_nothing() {
        let open = Arc::default();
        let (from, mut input) = pipe();
        nonblocking(&from).unwrap();
        let full = File::options().write(true).open("/dev/full").unwrap();
        let stream = Stream {
            from,
            to: Arc::new(full),
            _keep: None,
            regular: true,
            hang_up: None,
        };
        relay().add(stream, Some(&open)).unwrap();
        input.write_all(&vec![0; 1 << 20]).unwrap();
        drop(input);
        assert!(open.wait(Duration::from_secs(1)));
    }

    #[test]
    fn an_end_hangs_up_the_other_stream() {
        let relay = relay();
        let open = Arc::default();
        let (_kept, mut output, other) = connect(relay, &open);
        let ((from, input), (_reader, to)) = (pipe(), pipe());
        nonblocking(&from).unwrap();
        let stream = Stream {
            from,
            to: Arc::new(to),
            _keep: None,
            regular: false,
            hang_up: Some(other),
        };
        relay.add(stream, None).unwrap();
        drop(input);
        assert!(open.wait(Duration::from_secs(1)));
        assert_eq!(output.read(&mut [0; 8]).unwrap(), 0);
    }
}
