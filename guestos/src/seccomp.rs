//! The system calls that a GuestOS may use: a list of what programs need, and an error for all else. What it leaves out
//! reaches beyond the container (kernel modules, clocks, swap, quotas, mounts, namespaces, BPF, performance counters) or has
//! been a way out of one (io_uring, keyrings, userfaultfd).
//!
//! It lies close to the default profile of Docker (docs.docker.com/engine/security/seccomp), so that images which run there
//! run here. Names are those that libseccomp 2.5.4 (Debian 12) knows; what an architecture does not have, it passes over.

use oci_spec::runtime::{
    Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder,
    LinuxSeccompBuilder, LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder,
};

// errno-base.h and errno.h of the kernel's uapi/asm-generic.
const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// Every CLONE_NEW* flag that clone(2) can take (linux/sched.h).
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// Address families (linux/socket.h) from AF_ALG to AF_VSOCK: the kernel's ciphers, NFC, and the host of a virtual machine.
const AF_ALG: u64 = 38;
const AF_VSOCK: u64 = 40;

/// Execution domains for personality(2) (linux/personality.h): PER_LINUX, PER_LINUX32, both with UNAME26, and asking.
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// Allowed whatever the arguments are.
const ALLOWED: &[&[&str]] = &[
    FILES,
    FILE_METADATA,
    DIRECTORIES,
    EVENTS,
    MEMORY,
    PROCESSES,
    IDENTITY,
    SIGNALS,
    TIME,
    SOCKETS,
    MESSAGES,
];

#[rustfmt::skip]
const FILES: &[&str] = &[
    "_llseek", "close", "close_range", "copy_file_range", "creat", "dup", "dup2", "dup3", "fadvise64", "fadvise64_64",
    "fallocate", "fcntl", "fcntl64", "fdatasync", "flock", "fsync", "ftruncate", "ftruncate64", "ioctl", "lseek",
    "memfd_create", "memfd_secret", "open", "openat", "openat2", "pipe", "pipe2", "pread64", "preadv", "preadv2", "pwrite64",
    "pwritev", "pwritev2", "read", "readahead", "readv", "sendfile", "sendfile64", "splice", "sync", "sync_file_range",
    "syncfs", "tee", "truncate", "truncate64", "vmsplice", "write", "writev",
    // Asynchronous, without io_uring.
    "io_cancel", "io_destroy", "io_getevents", "io_pgetevents", "io_pgetevents_time64", "io_setup", "io_submit",
];

#[rustfmt::skip]
const FILE_METADATA: &[&str] = &[
    "access", "chmod", "chown", "chown32", "faccessat", "faccessat2", "fchmod", "fchmodat", "fchown", "fchown32",
    "fchownat", "fgetxattr", "flistxattr", "fremovexattr", "fsetxattr", "fstat", "fstat64", "fstatat64", "fstatfs",
    "fstatfs64", "futimesat", "getxattr", "lchown", "lchown32", "lgetxattr", "listxattr", "llistxattr", "lremovexattr",
    "lsetxattr", "lstat", "lstat64", "name_to_handle_at", "newfstatat", "removexattr", "setxattr", "stat", "stat64",
    "statfs", "statfs64", "statx", "umask", "utime", "utimensat", "utimensat_time64", "utimes",
];

#[rustfmt::skip]
const DIRECTORIES: &[&str] = &[
    "chdir", "fchdir", "getcwd", "getdents", "getdents64", "link", "linkat", "mkdir", "mkdirat", "mknod", "mknodat",
    "readlink", "readlinkat", "rename", "renameat", "renameat2", "rmdir", "symlink", "symlinkat", "unlink", "unlinkat",
];

#[rustfmt::skip]
const EVENTS: &[&str] = &[
    "_newselect", "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2",
    "epoll_wait", "epoll_wait_old", "eventfd", "eventfd2", "inotify_add_watch", "inotify_init",
    "inotify_init1", "inotify_rm_watch", "poll", "ppoll", "ppoll_time64", "pselect6", "pselect6_time64", "select",
    "signalfd", "signalfd4", "timerfd_create", "timerfd_gettime", "timerfd_gettime64", "timerfd_settime",
    "timerfd_settime64",
];

#[rustfmt::skip]
const MEMORY: &[&str] = &[
    "brk", "madvise", "membarrier", "mincore", "mlock", "mlock2", "mlockall", "mmap", "mmap2", "mprotect", "mremap", "msync",
    "munlock", "munlockall", "munmap", "pkey_alloc", "pkey_free", "pkey_mprotect", "process_mrelease",
    "remap_file_pages",
];

#[rustfmt::skip]
const PROCESSES: &[&str] = &[
    "execve", "execveat", "exit", "exit_group", "fork", "futex", "futex_time64", "futex_waitv", "get_robust_list",
    "get_thread_area", "getcpu", "getpgid", "getpgrp", "getpid", "getppid", "getpriority", "getrlimit", "getrusage", "getsid",
    "gettid", "ioprio_get", "ioprio_set", "landlock_add_rule", "landlock_create_ruleset",
    "landlock_restrict_self", "pidfd_getfd", "pidfd_open", "prctl", "prlimit64", "process_vm_readv", "process_vm_writev",
    "ptrace", "restart_syscall", "rseq", "sched_get_priority_max", "sched_get_priority_min", "sched_getaffinity",
    "sched_getattr", "sched_getparam", "sched_getscheduler", "sched_rr_get_interval", "sched_rr_get_interval_time64",
    "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler", "sched_yield", "seccomp",
    "set_robust_list", "set_thread_area", "set_tid_address", "setpgid", "setpriority", "setrlimit", "setsid", "sysinfo",
    "ugetrlimit", "uname", "vfork", "wait4", "waitid", "waitpid",
];

#[rustfmt::skip]
const IDENTITY: &[&str] = &[
    "capget", "capset", "getegid", "getegid32", "geteuid", "geteuid32", "getgid", "getgid32", "getgroups", "getgroups32",
    "getrandom", "getresgid", "getresgid32", "getresuid", "getresuid32", "getuid", "getuid32", "setfsgid", "setfsgid32",
    "setfsuid", "setfsuid32", "setgid", "setgid32", "setgroups", "setgroups32", "setregid", "setregid32", "setresgid",
    "setresgid32", "setresuid", "setresuid32", "setreuid", "setreuid32", "setuid", "setuid32",
];

#[rustfmt::skip]
const SIGNALS: &[&str] = &[
    "alarm", "kill", "pause", "pidfd_send_signal", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo",
    "rt_sigreturn", "rt_sigsuspend", "rt_sigtimedwait", "rt_sigtimedwait_time64", "rt_tgsigqueueinfo", "sigaltstack",
    "signal", "sigpending", "sigprocmask", "sigreturn", "sigsuspend", "tgkill", "tkill",
];

#[rustfmt::skip]
const TIME: &[&str] = &[
    "adjtimex", "clock_adjtime", "clock_adjtime64", "clock_getres", "clock_getres_time64", "clock_gettime",
    "clock_gettime64", "clock_nanosleep", "clock_nanosleep_time64", "getitimer", "gettimeofday", "nanosleep", "setitimer",
    "time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_gettime64", "timer_settime",
    "timer_settime64", "times",
];

/// i386 has all of them in `socketcall` too, whose arguments no filter can see.
#[rustfmt::skip]
const SOCKETS: &[&str] = &[
    "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recv", "recvfrom",
    "recvmmsg", "recvmmsg_time64", "recvmsg", "send", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown",
    "socketcall", "socketpair",
];

#[rustfmt::skip]
const MESSAGES: &[&str] = &[
    "ipc", "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedreceive_time64", "mq_timedsend",
    "mq_timedsend_time64", "mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd", "semctl", "semget", "semop", "semtimedop",
    "semtimedop_time64", "shmat", "shmctl", "shmdt", "shmget",
];

/// A family of processors that a GuestOS names.
#[derive(Debug, Clone, Copy)]
struct Hardware {
    /// The machine's own ABI, then its 32-bit ABI.
    architectures: &'static [Arch],
    /// System calls that only they have.
    allowed: &'static [&'static str],
}

impl Hardware {
    fn named(name: &str) -> Self {
        match name {
            // Without x32, which Debian's kernels switch off and libseccomp then kills.
            "x86" => Self {
                architectures: &[Arch::ScmpArchX86_64, Arch::ScmpArchX86],
                allowed: &["arch_prctl", "modify_ldt"],
            },
            "arm" => Self {
                architectures: &[Arch::ScmpArchAarch64, Arch::ScmpArchArm],
                allowed: &[
                    "arm_fadvise64_64",
                    "arm_sync_file_range",
                    "breakpoint",
                    "cacheflush",
                    "set_tls",
                    "sync_file_range2",
                ],
            },
            _ => Self {
                architectures: &[Arch::ScmpArchRiscv64],
                allowed: &["riscv_flush_icache"],
            },
        }
    }
}

/// The filter for the hardware that a GuestOS configuration names.
pub(crate) fn filter(hardware: &str) -> LinuxSeccomp {
    let hardware = Hardware::named(hardware);
    let names = ALLOWED.iter().copied().chain([hardware.allowed]).flatten();
    let mut rules = vec![
        rule(names.map(|name| (*name).to_owned()).collect(), None, []),
        // glibc then falls back to clone, whose flags a filter can see.
        rule(vec!["clone3".to_owned()], Some(ENOSYS), []),
        allow(
            "clone",
            argument(
                LinuxSeccompOperator::ScmpCmpMaskedEq,
                CLONE_NAMESPACES,
                Some(0),
            ),
        ),
        allow(
            "socket",
            argument(LinuxSeccompOperator::ScmpCmpLt, AF_ALG, None),
        ),
        allow(
            "socket",
            argument(LinuxSeccompOperator::ScmpCmpGt, AF_VSOCK, None),
        ),
    ];
    rules.extend(PERSONALITIES.map(|personality| {
        allow(
            "personality",
            argument(LinuxSeccompOperator::ScmpCmpEq, personality, None),
        )
    }));
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(EPERM)
        .architectures(hardware.architectures)
        .syscalls(rules)
        .build()
        .expect("every field has a default")
}

/// Allows a system call where its first argument fulfils a condition.
fn allow(name: &str, condition: LinuxSeccompArg) -> LinuxSyscall {
    rule(vec![name.to_owned()], None, [condition])
}

/// Allows system calls, or answers them with an error.
fn rule<const N: usize>(
    names: Vec<String>,
    errno: Option<u32>,
    conditions: [LinuxSeccompArg; N],
) -> LinuxSyscall {
    let mut rule = LinuxSyscallBuilder::default().names(names);
    rule = match errno {
        None => rule.action(LinuxSeccompAction::ScmpActAllow),
        Some(errno) => rule
            .action(LinuxSeccompAction::ScmpActErrno)
            .errno_ret(errno),
    };
    if N > 0 {
        rule = rule.args(conditions);
    }
    rule.build().expect("names and action are given")
}

/// A condition on the first argument. For a mask, `value` is the mask and `masked` what is left of the argument.
fn argument(op: LinuxSeccompOperator, value: u64, masked: Option<u64>) -> LinuxSeccompArg {
    let mut argument = LinuxSeccompArgBuilder::default()
        .index(0_usize)
        .op(op)
        .value(value);
    if let Some(masked) = masked {
        argument = argument.value_two(masked);
    }
    argument.build().expect("index, value and op are given")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn no_system_call_is_listed_twice() {
        for hardware in ["x86", "arm", "riscv"] {
            let filter = filter(hardware);
            let rules = filter.syscalls().as_ref().unwrap();
            let unconditional = rules.iter().filter(|rule| rule.args().is_none());
            let names: Vec<&String> = unconditional.flat_map(LinuxSyscall::names).collect();
            let set: BTreeSet<&String> = names.iter().copied().collect();
            assert_eq!(names.len(), set.len());
            for never in [
                "add_key",
                "bpf",
                "chroot",
                "clock_settime",
                "clone",
                "delete_module",
                "finit_module",
                "fsmount",
                "init_module",
                "io_uring_setup",
                "kexec_load",
                "keyctl",
                "mount",
                "open_by_handle_at",
                "open_tree",
                "perf_event_open",
                "personality",
                "pivot_root",
                "quotactl",
                "reboot",
                "request_key",
                "setdomainname",
                "sethostname",
                "setns",
                "settimeofday",
                "socket",
                "swapon",
                "syslog",
                "umount2",
                "unshare",
                "userfaultfd",
            ] {
                assert!(!set.contains(&never.to_owned()), "{never}");
            }
        }
    }

    #[test]
    fn rules_with_conditions_are_written_as_libseccomp_takes_them() {
        let rules = serde_json::to_value(filter("x86").syscalls()).unwrap();
        let conditions: Vec<String> = rules
            .as_array()
            .unwrap()
            .iter()
            .skip(1)
            .map(ToString::to_string)
            .collect();
        let expected = [
            r#"{"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38}"#,
            r#"{"names":["clone"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}"#,
            r#"{"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":38,"op":"SCMP_CMP_LT"}]}"#,
            r#"{"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":40,"op":"SCMP_CMP_GT"}]}"#,
            r#"{"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"}]}"#,
        ];
        for (found, expected) in conditions.iter().zip(expected) {
            let parse = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
            assert_eq!(parse(found), parse(expected));
        }
        assert_eq!(conditions.len(), 4 + PERSONALITIES.len());
    }
}
