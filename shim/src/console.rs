//! The socket on which the runtime hands over a terminal's master end.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tempfile::TempDir;

/// A listening socket, in a directory of its own: a bundle's path may be too long for a socket.
#[derive(Debug)]
pub struct ConsoleSocket {
    dir: TempDir,
    listener: UnixListener,
}

impl ConsoleSocket {
    /// Makes it.
    ///
    /// # Errors
    /// The file system's.
    pub fn new() -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("trustme-pty")
            .tempdir()
            .context("cannot make a directory for the terminal's socket")?;
        let listener = UnixListener::bind(Self::path_in(dir.path()))
            .context("cannot make the terminal's socket")?;
        listener.set_nonblocking(true)?;
        Ok(Self { dir, listener })
    }

    fn path_in(dir: &Path) -> PathBuf {
        dir.join("pty.sock")
    }

    /// Where it is.
    pub fn path(&self) -> PathBuf {
        Self::path_in(self.dir.path())
    }

    /// The terminal that was handed over, after the runtime has ended.
    ///
    /// # Errors
    /// The runtime has handed over none.
    pub fn receive(self) -> Result<OwnedFd> {
        let (connection, _) = self
            .listener
            .accept()
            .context("the runtime has handed over no terminal")?;
        let mut name = [0; 4096];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        recvmsg(
            &connection,
            &mut [IoSliceMut::new(&mut name)],
            &mut ancillary,
            RecvFlags::CMSG_CLOEXEC,
        )
        .context("cannot receive the terminal")?;
        ancillary
            .drain()
            .find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            })
            .context("the runtime has handed over no terminal")
    }
}
