//! Exclusive advisory locks on files, with a limit on the wait.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};

/// How often a lock that another program holds is tried.
const INTERVAL: Duration = Duration::from_millis(5);

/// An exclusive lock on the file `path`, made if absent (mode 0600); released when the file is dropped.
///
/// # Errors
/// The file cannot be opened, or is still locked at `deadline` (`TimedOut`).
pub(crate) fn exclusive(path: &Path, deadline: Instant) -> io::Result<File> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = File::from(open(path, flags, Mode::RUSR | Mode::WUSR)?);
    wait(&file, deadline)?;
    Ok(file)
}

/// Waits until `file` is locked for this open file description.
///
/// # Errors
/// Still locked by another at `deadline` (`TimedOut`).
pub(crate) fn wait(file: impl AsFd, deadline: Instant) -> io::Result<()> {
    loop {
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() < deadline => {
                std::thread::sleep(INTERVAL);
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "held by another program",
                ));
            }
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
