//! Attributes of the container's process that are neither namespaces nor mounts: scheduling, personality, ids, labels,
//! and the kernel parameters of its namespaces.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use libcontainer::config::PersonalityDomain;
use libcontainer::syscall::Syscall;
use nix_of_libcontainer::unistd::{Gid, Uid};
use oci_spec::runtime::{
    IOPriorityClass, Linux, LinuxIOPriority, LinuxPersonalityDomain, LinuxSchedulerFlag,
    LinuxSchedulerPolicy, Process, Scheduler,
};
use pathrs::flags::OpenFlags;
use pathrs::procfs::{ProcfsBase, ProcfsHandle, ProcfsHandleBuilder};

use crate::sys;

/// Sets priorities and policies of processor, input and output, and memory.
///
/// # Errors
/// The kernel refuses one; it is named.
pub fn schedule(process: &Process, linux: &Linux, syscall: &dyn Syscall) -> Result<()> {
    if let Some(priority) = process.io_priority() {
        syscall
            .set_io_priority(class_of(priority), priority.priority())
            .context("cannot set ioPriority")?;
    }
    if let Some(scheduler) = process.scheduler() {
        sys::set_scheduler(&attributes(scheduler)).context("cannot set the scheduler")?;
    }
    libcontainer::process::memory_policy::setup_memory_policy(linux.memory_policy(), syscall)
        .context("cannot set the memory policy")
}

/// linux/ioprio.h
fn class_of(priority: &LinuxIOPriority) -> i64 {
    match priority.class() {
        IOPriorityClass::IoprioClassRt => 1,
        IOPriorityClass::IoprioClassBe => 2,
        IOPriorityClass::IoprioClassIdle => 3,
    }
}

/// sched_setattr(2), with the numbers of linux/sched.h and sched/types.h.
fn attributes(scheduler: &Scheduler) -> sys::SchedulerAttributes {
    let policy = match scheduler.policy() {
        LinuxSchedulerPolicy::SchedOther => 0,
        LinuxSchedulerPolicy::SchedFifo => 1,
        LinuxSchedulerPolicy::SchedRr => 2,
        LinuxSchedulerPolicy::SchedBatch => 3,
        LinuxSchedulerPolicy::SchedIso => 4,
        LinuxSchedulerPolicy::SchedIdle => 5,
        LinuxSchedulerPolicy::SchedDeadline => 6,
    };
    let flag = |flag: &LinuxSchedulerFlag| match flag {
        LinuxSchedulerFlag::SchedResetOnFork => 0x01,
        LinuxSchedulerFlag::SchedFlagReclaim => 0x02,
        LinuxSchedulerFlag::SchedFlagDLOverrun => 0x04,
        LinuxSchedulerFlag::SchedFlagKeepPolicy => 0x08,
        LinuxSchedulerFlag::SchedFlagKeepParams => 0x10,
        LinuxSchedulerFlag::SchedFlagUtilClampMin => 0x20,
        LinuxSchedulerFlag::SchedFlagUtilClampMax => 0x40,
    };
    let flags = scheduler.flags().iter().flatten();
    sys::SchedulerAttributes {
        policy,
        flags: flags.map(flag).fold(0, |all, flag| all | flag),
        nice: scheduler.nice().unwrap_or(0),
        priority: scheduler.priority().unwrap_or(0).unsigned_abs(),
        runtime: scheduler.runtime().unwrap_or(0),
        deadline: scheduler.deadline().unwrap_or(0),
        period: scheduler.period().unwrap_or(0),
        ..sys::SchedulerAttributes::default()
    }
}

/// Sets the execution domain.
///
/// # Errors
/// The kernel refuses it, or flags are asked for: the specification knows none.
pub fn personality(linux: &Linux, syscall: &dyn Syscall) -> Result<()> {
    let Some(personality) = linux.personality() else {
        return Ok(());
    };
    if let Some(flag) = personality.flags().iter().flatten().next() {
        bail!("linux.personality: unknown flag {flag:?}");
    }
    let domain = match personality.domain() {
        LinuxPersonalityDomain::PerLinux => PersonalityDomain::Linux,
        LinuxPersonalityDomain::PerLinux32 => PersonalityDomain::Linux32,
    };
    syscall
        .personality(domain)
        .context("cannot set the personality")
}

/// Sets kernel parameters of the container's namespaces.
///
/// # Errors
/// The first that cannot be set; it is named.
pub fn sysctl(parameters: &HashMap<String, String>) -> Result<()> {
    // A procfs of our own: the container's may be anything (CVE-2025-52881).
    let procfs = ProcfsHandleBuilder::new().unmasked().build()?;
    for (name, value) in parameters {
        let path = Path::new("sys").join(name.replace('.', "/"));
        let flags = OpenFlags::O_WRONLY | OpenFlags::O_CLOEXEC;
        let write = || -> Result<()> {
            let mut file = procfs.open(ProcfsBase::ProcRoot, path, flags)?;
            Ok(file.write_all(value.as_bytes())?)
        };
        write().with_context(|| format!("cannot set {name} to {value:?}"))?;
    }
    Ok(())
}

/// Sets the labels that the kernel gives the program when it is executed.
///
/// # Errors
/// The kernel does not know one.
pub fn label(process: &Process) -> Result<()> {
    if let Some(profile) = process.apparmor_profile() {
        libcontainer::apparmor::apply_profile(profile)
            .with_context(|| format!("unable to apply apparmor profile {profile:?}"))?;
    }
    if let Some(label) = process.selinux_label() {
        let flags = OpenFlags::O_WRONLY | OpenFlags::O_CLOEXEC;
        let write = || -> Result<()> {
            let attribute = PathBuf::from("attr/exec");
            let mut file =
                ProcfsHandle::new()?.open(ProcfsBase::ProcThreadSelf, attribute, flags)?;
            Ok(file.write_all(label.as_bytes())?)
        };
        write().with_context(|| format!("unable to apply SELinux label {label:?}"))?;
    }
    Ok(())
}

/// Becomes the user of the process, with its groups and no others, and keeps the capabilities that it has for now.
///
/// # Errors
/// Groups are asked for where they cannot be set, or an id is not mapped.
pub fn become_user(process: &Process, syscall: &dyn Syscall) -> Result<()> {
    let user = process.user();
    let groups = user.additional_gids().as_deref().unwrap_or_default();
    let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    if let Err(err) = syscall.set_groups(&groups) {
        // Where nobody may set groups, those of the caller cannot be given up either.
        match may_set_groups()? {
            false if groups.is_empty() => (),
            false => {
                bail!("cannot set additional groups: setgroups is denied in this user namespace")
            }
            true => {
                return Err(err)
                    .with_context(|| format!("cannot set additional groups {groups:?}"));
            }
        }
    }
    let (uid, gid) = (user.uid(), user.gid());
    syscall
        .set_id(Uid::from_raw(uid), Gid::from_raw(gid))
        .with_context(|| format!("cannot become user {uid}, group {gid}"))
}

/// False in a user namespace that an ordinary user has made (user_namespaces(7)).
fn may_set_groups() -> Result<bool> {
    let path = "/proc/thread-self/setgroups";
    match ProcfsHandle::new()?.open(ProcfsBase::ProcThreadSelf, "setgroups", OpenFlags::O_RDONLY) {
        Ok(file) => Ok(std::io::read_to_string(file).context(path)?.trim() != "deny"),
        // Without user namespaces in the kernel, there is no such file.
        Err(_) => Ok(true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedulers_become_the_kernels_numbers() {
        let scheduler: Scheduler = serde_json::from_value(serde_json::json!({
            "policy": "SCHED_DEADLINE", "nice": 3, "priority": 4, "flags": ["SCHED_RESET_ON_FORK", "SCHED_FLAG_D_L_OVERRUN"],
            "runtime": 5, "deadline": 6, "period": 7,
        }))
        .unwrap();
        let found = attributes(&scheduler);
        assert_eq!(
            (found.policy, found.flags, found.nice, found.priority),
            (6, 0x05, 3, 4)
        );
        assert_eq!((found.runtime, found.deadline, found.period), (5, 6, 7));
    }
}
