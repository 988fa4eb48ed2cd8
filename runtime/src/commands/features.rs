//! `features`: prints what this runtime supports (runtime-spec, features.md).

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::{Value, json};

use crate::launch;

/// The newest specification whose fields are understood.
pub const SPEC_VERSION: &str = "1.3.0";

/// The capabilities of linux/capability.h, in its order.
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// Mount options that have an effect; all others go to the file system.
const MOUNT_OPTIONS: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "idmap",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "ratime",
    "rbind",
    "rdev",
    "rdiratime",
    "relatime",
    "rexec",
    "ridmap",
    "rnoatime",
    "rnodev",
    "rnodiratime",
    "rnoexec",
    "rnorelatime",
    "rnostrictatime",
    "rnosuid",
    "rnosymfollow",
    "ro",
    "rprivate",
    "rrelatime",
    "rro",
    "rrw",
    "rshared",
    "rslave",
    "rstrictatime",
    "rsuid",
    "runbindable",
    "rw",
    "shared",
    "slave",
    "strictatime",
    "suid",
    "sync",
    "tmpcopyup",
    "unbindable",
];

/// Prints the features as JSON.
///
/// # Errors
/// If the configuration file, which says the launch mode, is wrong.
pub fn features() -> Result<()> {
    println!("{}", serde_json::to_string_pretty(&description()?)?);
    Ok(())
}

fn description() -> Result<Value> {
    let mut annotations = BTreeMap::from([
        ("io.github.seccomp.libseccomp.version", libseccomp_version()),
        (
            "org.opencontainers.runc.checkpoint.enabled",
            "false".to_owned(),
        ),
        ("org.trustme.version", env!("CARGO_PKG_VERSION").to_owned()),
    ]);
    annotations.insert("org.trustme.launch.mode", launch::mode()?.to_string());
    Ok(json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": SPEC_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": MOUNT_OPTIONS,
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "capabilities": CAPABILITIES,
            "cgroup": {"v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true},
            "seccomp": {
                "enabled": true,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_NOTIFY", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
                ],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT", "SCMP_CMP_MASKED_EQ",
                    "SCMP_CMP_NE",
                ],
                "archs": [
                    "SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM", "SCMP_ARCH_MIPS", "SCMP_ARCH_MIPS64",
                    "SCMP_ARCH_MIPS64N32", "SCMP_ARCH_MIPSEL", "SCMP_ARCH_MIPSEL64", "SCMP_ARCH_MIPSEL64N32",
                    "SCMP_ARCH_PPC", "SCMP_ARCH_PPC64", "SCMP_ARCH_PPC64LE", "SCMP_ARCH_RISCV64", "SCMP_ARCH_S390",
                    "SCMP_ARCH_S390X", "SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64",
                ],
                "knownFlags": [
                    "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC",
                    "SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV",
                ],
                "supportedFlags": [
                    "SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC",
                ],
            },
            "apparmor": {"enabled": true},
            "selinux": {"enabled": true},
            "intelRdt": {"enabled": true},
            "mountExtensions": {"idmap": {"enabled": true}},
            "netDevices": {"enabled": true},
        },
        "annotations": annotations,
        // They decide what runs, and which volumes are opened.
        "potentiallyUnsafeConfigAnnotations": ["org.trustme.guestos", "org.trustme.volume."],
    }))
}

/// Version of the library that loads seccomp filters.
pub fn libseccomp_version() -> String {
    match libseccomp::ScmpVersion::current() {
        Ok(version) => version.to_string(),
        Err(_) => "unknown".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_capability_is_one_that_is_recognized() {
        for name in CAPABILITIES {
            serde_json::from_value::<oci_spec::runtime::Capability>((*name).into()).expect(name);
        }
    }

    #[test]
    fn the_description_is_what_the_specification_defines() {
        let features: oci_spec::runtime::Features =
            serde_json::from_value(description().unwrap()).unwrap();
        assert_eq!(features.oci_version_max(), SPEC_VERSION);
        assert_eq!(
            features.annotations().as_ref().unwrap()["org.trustme.launch.mode"],
            "off"
        );
    }

    #[test]
    fn mount_options_are_sorted_and_known() {
        assert!(MOUNT_OPTIONS.is_sorted());
        for option in MOUNT_OPTIONS {
            let mount = oci_spec::runtime::MountBuilder::default()
                .destination("/d")
                .options(vec![(*option).to_owned()])
                .build()
                .unwrap();
            if crate::mounts::handles(option) || *option == crate::filesystem::NO_LINKS {
                continue;
            }
            let parsed = libcontainer::rootfs::utils::parse_mount(&mount).unwrap();
            assert!(parsed.data.is_empty(), "{option}");
        }
    }
}
