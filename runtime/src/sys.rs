//! The system calls that neither rustix nor nix offer as safe functions: the only place of this crate with `unsafe`.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

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

/// Runs `child` in a child process, which ends with its exit code; returns the child's pid.
///
/// # Errors
/// As fork(2).
pub fn fork(child: impl FnOnce() -> i32) -> io::Result<i32> {
    clone(0, libc::SIGCHLD, child)
}

/// Runs `child` in a process that is a child of this process' parent; returns its pid.
///
/// # Errors
/// As clone3(2).
pub fn fork_sibling(child: impl FnOnce() -> i32) -> io::Result<i32> {
    // With CLONE_PARENT, the signal at the end is the one that this process sends (clone3 demands 0 here).
    clone(libc::CLONE_PARENT, 0, child)
}

fn clone(flags: libc::c_int, signal: libc::c_int, child: impl FnOnce() -> i32) -> io::Result<i32> {
    // SAFETY: all fields of clone_args are integers, for which 0 is valid.
    let mut args: libc::clone_args = unsafe { std::mem::zeroed() };
    args.flags = flags as u64;
    args.exit_signal = signal as u64;
    // SAFETY: as fork(2): no memory is shared and no stack given, so the child goes on with a copy of this one. The
    // process has a single thread, so no lock is held by a thread that the child lacks.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            &raw const args,
            size_of::<libc::clone_args>(),
        )
    };
    match pid {
        0 => {
            let code = child();
            // SAFETY: ends the process without running what the parent has registered for its own end.
            unsafe { libc::_exit(code) }
        }
        pid if pid > 0 => Ok(pid as i32),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes a descriptor over that was received as a number.
pub fn own(descriptor: RawFd) -> OwnedFd {
    // SAFETY: libcontainer hands such numbers out to be owned: it has forgotten them.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

/// Names this process, as ps(1) shows it.
///
/// # Errors
/// If the name holds a NUL.
pub fn set_name(name: &str) -> io::Result<()> {
    let name = std::ffi::CString::new(name)?;
    rustix::thread::set_name(&name)?;
    Ok(())
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
