//! The container's terminal: made inside of the container by libcontainer, finished here and handed on.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use anyhow::{Context, Result, bail};
use oci_spec::runtime::Process;
use rustix::fs::{Mode, OFlags, Uid};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Termios, Winsize};

/// The longest path in a socket address (unix(7)), without its NUL.
const MAX_SOCKET_PATH: usize = 107;

/// Checks `--console-socket` against the process, with runc's words.
///
/// # Errors
/// If a detached process with a terminal has no socket, or a socket is given where it is of no use.
pub fn check(process: &Process, detach: bool, console_socket: Option<&Path>) -> Result<()> {
    let detached_terminal = detach && process.terminal() == Some(true);
    match (detached_terminal, console_socket) {
        (true, None) => {
            bail!("cannot allocate tty if the runtime will detach without setting console socket")
        }
        (false, Some(_)) => {
            bail!("cannot use console socket if the runtime will not detach or allocate tty")
        }
        _ => Ok(()),
    }
}

/// The way on which the master of the terminal comes out of the container.
#[derive(Debug)]
pub struct Channel {
    ours: OwnedFd,
    /// The end that libcontainer takes.
    pub theirs: OwnedFd,
}

impl Channel {
    /// Makes the channel.
    ///
    /// # Errors
    /// If no sockets are to be had.
    pub fn new() -> Result<Self> {
        let (ours, theirs) = rustix::net::socketpair(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        Ok(Self { ours, theirs })
    }

    /// Receives the master, after the container was built, and gives the terminal its owner and size.
    ///
    /// # Errors
    /// If there is no terminal to receive, or it cannot be given to the user.
    pub fn receive(self, process: &Process, owner: u32) -> Result<OwnedFd> {
        drop(self.theirs);
        let master = receive_fd(&self.ours)?;
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
        let slave =
            rustix::pty::ioctl_tiocgptpeer(&master, flags).context("cannot open the terminal")?;
        rustix::fs::fchown(&slave, Some(Uid::from_raw(owner)), None)
            .context("cannot give the terminal to its user")?;
        if let Some(size) = process.console_size() {
            set_size(&master, size.height() as u16, size.width() as u16)?;
        }
        Ok(master)
    }
}

fn set_size(master: &OwnedFd, rows: u16, columns: u16) -> Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(master, size).context("cannot set the terminal's size")
}

fn receive_fd(socket: &OwnedFd) -> Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = [0; 64];
    let mut slices = [IoSliceMut::new(&mut bytes)];
    rustix::net::recvmsg(socket, &mut slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)
        .context("cannot receive the terminal")?;
    ancillary
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .context("the container sent no terminal")
}

/// Sends the master to the engine's socket.
///
/// # Errors
/// If the socket cannot be connected to.
pub fn send_to(socket: &Path, master: &OwnedFd) -> Result<()> {
    // The text is what runc sends: where the master comes from.
    send_descriptor(socket, b"/dev/ptmx", master).context("cannot hand the terminal over")
}

/// Sends a descriptor with a message to a socket.
///
/// # Errors
/// If the socket cannot be connected to.
pub fn send_descriptor(socket: &Path, message: &[u8], descriptor: &OwnedFd) -> Result<()> {
    let connection = connect_to(socket)?;
    let fds = [descriptor.as_fd()];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        bail!("no space for a descriptor in a message");
    }
    rustix::net::sendmsg(
        &connection,
        &[IoSlice::new(message)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .with_context(|| format!("cannot send to {}", socket.display()))?;
    Ok(())
}

/// Connects to a socket, also where its path is too long for an address.
fn connect(connection: &OwnedFd, socket: &Path) -> Result<()> {
    if socket.as_os_str().len() <= MAX_SOCKET_PATH {
        return Ok(rustix::net::connect(
            connection,
            &SocketAddrUnix::new(socket)?,
        )?);
    }
    let handle = rustix::fs::open(socket, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let short = format!("/proc/self/fd/{}", handle.as_raw_fd());
    Ok(rustix::net::connect(
        connection,
        &SocketAddrUnix::new(short.as_bytes())?,
    )?)
}

/// A connection to a stream socket, also where its path is too long for an address.
///
/// # Errors
/// If nobody listens there.
pub fn connect_to(socket: &Path) -> Result<UnixStream> {
    let connection = stream_socket()?;
    connect(&connection, socket)
        .with_context(|| format!("cannot connect to {}", socket.display()))?;
    Ok(connection.into())
}

/// Listens on a new socket, also where its path is too long for an address.
///
/// # Errors
/// If it exists, or cannot be made.
pub fn listen(socket: &Path) -> Result<UnixListener> {
    let name = || format!("cannot make {}", socket.display());
    let (Some(dir), Some(file)) = (socket.parent(), socket.file_name()) else {
        bail!("{}: no name of a socket", socket.display());
    };
    let listener = stream_socket()?;
    let handle = rustix::fs::open(dir, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let short = Path::new("/proc/self/fd")
        .join(handle.as_raw_fd().to_string())
        .join(file);
    rustix::net::bind(&listener, &SocketAddrUnix::new(&short)?).with_context(name)?;
    rustix::net::listen(&listener, 1).with_context(name)?;
    Ok(listener.into())
}

fn stream_socket() -> Result<OwnedFd> {
    Ok(rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// The caller's terminal, in raw mode as long as this lives.
#[derive(Debug)]
pub struct RawMode {
    before: Termios,
}

impl RawMode {
    /// Puts standard input into raw mode; none if it is no terminal.
    pub fn enter() -> Option<Self> {
        let before = rustix::termios::tcgetattr(rustix::stdio::stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that is gone needs no restoring.
        let _ =
            rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, &self.before);
    }
}

/// Gives the container's terminal the size of the caller's.
pub fn copy_size(master: &OwnedFd) {
    if let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdin()) {
        // The container may have ended.
        let _ = rustix::termios::tcsetwinsize(master, size);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_is_sent_over_long_paths() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(100)).join("e".repeat(60));
        std::fs::create_dir_all(&deep).unwrap();
        let short = dir.path().join("s");
        let listener = std::os::unix::net::UnixListener::bind(&short).unwrap();
        let socket = deep.join("console.sock");
        std::fs::rename(&short, &socket).unwrap();
        assert!(socket.as_os_str().len() > MAX_SOCKET_PATH);
        let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        send_to(&socket, &master).unwrap();
        let (connection, _) = listener.accept().unwrap();
        let received = receive_fd(&connection.into()).unwrap();
        set_size(&received, 7, 9).unwrap();
        let size = rustix::termios::tcgetwinsize(&master).unwrap();
        assert_eq!((size.ws_row, size.ws_col), (7, 9));
    }

    #[test]
    fn console_sockets_are_checked() {
        let mut process = Process::default();
        let socket = Some(Path::new("/s"));
        process.set_terminal(Some(true));
        assert!(check(&process, true, None).is_err());
        assert!(check(&process, true, socket).is_ok());
        assert!(check(&process, false, socket).is_err());
        assert!(check(&process, false, None).is_ok());
        process.set_terminal(Some(false));
        assert!(check(&process, true, socket).is_err());
        assert!(check(&process, true, None).is_ok());
    }
}
