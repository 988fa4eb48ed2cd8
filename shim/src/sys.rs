//! The one place with unsafe code.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

use rustix::io::Errno;
use rustix::process::{Pid, Signal, kill_process, set_parent_process_death_signal, setsid};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// The first descriptor behind standard input, output and error.
const FIRST: RawFd = 3;

/// Has the kernel kill the command when the thread that spawns it ends, which is there until the command has ended.
pub fn die_with_parent(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec; all that it does is one system call.
    unsafe {
        command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?));
    }
}

/// Has the command begin a session of its own.
pub fn new_session(command: &mut Command) {
    // SAFETY: the closure runs between fork and exec; all that it does is one system call.
    unsafe {
        command.pre_exec(|| Ok(setsid().map(drop)?));
    }
}

/// Gives the command these files as descriptors 3 and following.
///
/// # Errors
/// The kernel's.
pub fn give<const COUNT: usize>(command: &mut Command, files: [File; COUNT]) -> io::Result<()> {
    // Out of the way of the descriptors that they become, and closed with the others at exec.
    let mut moved: [Option<OwnedFd>; COUNT] = [const { None }; COUNT];
    for (slot, file) in moved.iter_mut().zip(&files) {
        *slot = Some(rustix::io::fcntl_dupfd_cloexec(
            file,
            FIRST + COUNT as RawFd,
        )?);
    }
    // SAFETY: the closure runs between fork and exec; dup2 is one system call each, and allocates nothing. What it writes
    // over was opened by us to be closed at exec.
    unsafe {
        command.pre_exec(move || {
            for (number, file) in (FIRST..).zip(moved.iter().flatten()) {
                let mut target = std::mem::ManuallyDrop::new(OwnedFd::from_raw_fd(number));
                rustix::io::dup2(file, &mut target)?;
            }
            Ok(())
        });
    }
    Ok(())
}

/// The listening socket that [`give`] has given to this process.
pub fn given() -> OwnedFd {
    // SAFETY: called once, first of all, in a process that was started with this descriptor, which nobody else names.
    let fd = unsafe { OwnedFd::from_raw_fd(FIRST) };
    debug_assert_eq!(fd.as_raw_fd(), FIRST);
    fd
}

/// Gives this thread a working directory of its own.
///
/// # Errors
/// The kernel's.
pub fn own_working_directory() -> io::Result<()> {
    // SAFETY: only the working directory, root directory and umask are unshared, no descriptors.
    unsafe { Ok(unshare_unsafe(UnshareFlags::FS)?) }
}

/// Sends a signal, real-time signals too.
///
/// # Errors
/// The kernel's.
pub fn kill(pid: i32, signal: i32) -> Result<(), Errno> {
    let pid = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
    // SAFETY: the number is only handed to the kernel, which refuses wrong ones; signals that libc keeps for itself reach
    // another process than this one.
    let signal = unsafe { Signal::from_raw_unchecked(signal) };
    kill_process(pid, signal)
}
