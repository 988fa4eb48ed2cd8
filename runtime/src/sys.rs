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

/// As [`fork`], the child being the first process of a new pid namespace.
///
/// # Errors
/// As clone3(2).
pub fn fork_into_pid_namespace(child: impl FnOnce() -> i32) -> io::Result<i32> {
    clone(libc::CLONE_NEWPID, libc::SIGCHLD, child)
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

/// Makes sure that the file exists and this process may execute it, by its real ids. Not by the effective ones: that
/// takes faccessat2(2), which older seccomp profiles know nothing of and answer with EPERM.
///
/// # Errors
/// As access(2).
pub fn is_executable(path: &CStr) -> io::Result<()> {
    // SAFETY: `path` is a NUL-terminated string that lives across the call.
    check(unsafe { libc::access(path.as_ptr(), libc::X_OK) }.into())
}

/// Sets attributes of a mount, and with `namespace` maps its ids as that user namespace does.
///
/// # Errors
/// As mount_setattr(2).
pub fn set_mount_attributes(
    mount: &OwnedFd,
    set: rustix::mount::MountAttrFlags,
    namespace: Option<BorrowedFd<'_>>,
    recursive: bool,
) -> io::Result<()> {
    let mut attributes = no_attributes();
    attributes.attr_set = set.bits().into();
    if let Some(namespace) = namespace {
        attributes.attr_set |= libc::MOUNT_ATTR_IDMAP;
        attributes.userns_fd = namespace.as_raw_fd() as u64;
    }
    mount_setattr(mount, &attributes, recursive)
}

/// Clears attributes of a mount, and sets others, by the bits of linux/mount.h.
///
/// # Errors
/// As mount_setattr(2).
pub fn change_mount_attributes(
    mount: &OwnedFd,
    set: u64,
    clear: u64,
    recursive: bool,
) -> io::Result<()> {
    let mut attributes = no_attributes();
    attributes.attr_set = set;
    attributes.attr_clr = clear;
    mount_setattr(mount, &attributes, recursive)
}

fn no_attributes() -> libc::mount_attr {
    libc::mount_attr {
        attr_set: 0,
        attr_clr: 0,
        propagation: 0,
        userns_fd: 0,
    }
}

fn mount_setattr(
    mount: &OwnedFd,
    attributes: &libc::mount_attr,
    recursive: bool,
) -> io::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH;
    if recursive {
        flags |= libc::AT_RECURSIVE;
    }
    // SAFETY: the path is empty and NUL-terminated; the attributes live across the call and are as large as said.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const *attributes,
            size_of::<libc::mount_attr>(),
        )
    })
}

/// struct sched_attr of sched_setattr(2), in its first version.
#[repr(C)]
#[derive(Debug, Default)]
pub struct SchedulerAttributes {
    /// Size of the structure; set by [`set_scheduler`].
    pub size: u32,
    /// SCHED_OTHER and so on.
    pub policy: u32,
    /// SCHED_FLAG_RESET_ON_FORK and so on.
    pub flags: u64,
    /// For SCHED_OTHER and SCHED_BATCH.
    pub nice: i32,
    /// For SCHED_FIFO and SCHED_RR.
    pub priority: u32,
    /// For SCHED_DEADLINE, in nanoseconds.
    pub runtime: u64,
    /// For SCHED_DEADLINE, in nanoseconds.
    pub deadline: u64,
    /// For SCHED_DEADLINE, in nanoseconds.
    pub period: u64,
}

/// Sets this process' scheduling policy.
///
/// # Errors
/// As sched_setattr(2).
pub fn set_scheduler(attributes: &SchedulerAttributes) -> io::Result<()> {
    let attributes = SchedulerAttributes {
        size: size_of::<SchedulerAttributes>() as u32,
        ..*attributes
    };
    // SAFETY: the kernel reads as many bytes as `size` says.
    check(unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attributes, 0) })
}

/// linux/bpf.h: commands of bpf(2), type and attach point of device programs, and the flag that lets several be attached.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// More device programs than this are not attached to one cgroup (BPF_CGROUP_MAX_PROGS in the kernel).
const MAX_PROGRAMS: usize = 64;

/// bpf(2)'s attributes, as words of 32 bits: large enough for the commands used here, zero where not used.
#[repr(C, align(8))]
#[derive(Default)]
struct BpfAttributes([u32; 32]);

impl BpfAttributes {
    fn set_pointer(&mut self, at: usize, pointer: *const libc::c_void) {
        let address = (pointer as u64).to_ne_bytes();
        let [a, b, c, d, e, f, g, h] = address;
        self.0[at] = u32::from_ne_bytes([a, b, c, d]);
        self.0[at + 1] = u32::from_ne_bytes([e, f, g, h]);
    }

    fn call(&mut self, command: libc::c_int) -> io::Result<i32> {
        // SAFETY: the attributes are as large as said; pointers in them lead to memory that lives across the call and
        // is as large as the attributes say, which the callers below see to.
        let ret = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                command,
                self.0.as_mut_ptr(),
                size_of::<Self>(),
            )
        };
        check(ret)?;
        Ok(ret as i32)
    }
}

/// Loads a program that decides on accesses to devices, of instructions of 64 bits.
///
/// # Errors
/// `EPERM` without the right to load programs, `EINVAL` if the kernel finds fault with it.
pub fn load_device_program(code: &[u64]) -> io::Result<OwnedFd> {
    let mut attributes = BpfAttributes::default();
    attributes.0[0] = BPF_PROG_TYPE_CGROUP_DEVICE;
    attributes.0[1] = code.len() as u32;
    attributes.set_pointer(2, code.as_ptr().cast());
    attributes.set_pointer(4, c"Apache-2.0".as_ptr().cast());
    attributes.call(BPF_PROG_LOAD).map(own)
}

/// Ids of the device programs that are attached to a cgroup.
///
/// # Errors
/// As bpf(2).
pub fn device_programs_of(cgroup: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; MAX_PROGRAMS];
    let mut attributes = BpfAttributes::default();
    attributes.0[0] = cgroup.as_raw_fd() as u32;
    attributes.0[1] = BPF_CGROUP_DEVICE;
    attributes.set_pointer(4, ids.as_mut_ptr().cast());
    attributes.0[6] = MAX_PROGRAMS as u32;
    attributes.call(BPF_PROG_QUERY)?;
    let count = attributes.0[6] as usize;
    Ok(ids[..count.min(MAX_PROGRAMS)].to_vec())
}

/// Attaches a device program to a cgroup, besides those that are there.
///
/// # Errors
/// As bpf(2).
pub fn attach_device_program(cgroup: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = BpfAttributes::default();
    attributes.0[0] = cgroup.as_raw_fd() as u32;
    attributes.0[1] = program.as_raw_fd() as u32;
    attributes.0[2] = BPF_CGROUP_DEVICE;
    attributes.0[3] = BPF_F_ALLOW_MULTI;
    attributes.call(BPF_PROG_ATTACH).map(drop)
}

/// Detaches the device program with this id from a cgroup.
///
/// # Errors
/// As bpf(2).
pub fn detach_device_program(cgroup: BorrowedFd<'_>, id: u32) -> io::Result<()> {
    let mut attributes = BpfAttributes::default();
    attributes.0[0] = id;
    let program = own(attributes.call(BPF_PROG_GET_FD_BY_ID)?);
    let mut attributes = BpfAttributes::default();
    attributes.0[0] = cgroup.as_raw_fd() as u32;
    attributes.0[1] = program.as_raw_fd() as u32;
    attributes.0[2] = BPF_CGROUP_DEVICE;
    attributes.call(BPF_PROG_DETACH).map(drop)
}

fn check(ret: libc::c_long) -> io::Result<()> {
    if ret < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
