//! The system calls that neither rustix nor nix offer as safe functions: the only place of this crate with `unsafe`.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Sends signal number `signal` (real-time signals included) to the process that `pidfd` refers to.
///
/// # Errors
/// `ESRCH` if the process is gone, `EINVAL` if there is no such signal.
pub fn pidfd_send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: the kernel reads no memory of ours: the siginfo pointer is null.
    let ret = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    check(ret)
}

/// Sends signal number `signal` to process `pid`.
///
/// # Errors
/// As kill(2).
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: kill(2) touches no memory of ours.
    check(unsafe { libc::kill(pid, signal) }.into())
}

/// Gives SIGPIPE its default action back, which the Rust runtime had set to "ignore": a program that is
/// executed later would inherit that.
pub fn default_sigpipe() {
    // SAFETY: SIG_DFL installs no handler; failure is impossible for a valid signal number.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
}

/// Joins (or makes) the session keyring `name`, so that a container does not inherit its caller's keys.
///
/// # Errors
/// `ENOSYS` where the kernel has no keyrings, `EDQUOT` where the user has too many.
pub fn join_session_keyring(name: &CStr) -> io::Result<()> {
    /// linux/keyctl.h
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: `name` is a NUL-terminated string that lives across the call.
    check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })
}

/// True if the file exists and this process may execute it, by its effective ids.
pub fn is_executable(path: &CStr) -> io::Result<()> {
    // SAFETY: `path` is a NUL-terminated string that lives across the call.
    check(
        unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::X_OK, libc::AT_EACCESS) }
            .into(),
    )
}

fn check(ret: libc::c_long) -> io::Result<()> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
