//! The OCI configuration that a GuestOS grants: what `trustme-convert bundle` writes, and what trustme compares the
//! configuration of a launch with. docs/guestos.md lists the rights.
//!
//! EMPTY mounts are not in it: a launch opens those volumes and adds them.

use std::collections::HashMap;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capabilities, Capability, LinuxBuilder, LinuxCapabilities, LinuxCapabilitiesBuilder,
    LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxNamespace,
    LinuxNamespaceBuilder, LinuxNamespaceType, LinuxResourcesBuilder, Mount, MountBuilder,
    ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use crate::config::{self, GuestOsConfig, INJECTED_INIT, MountType};
use crate::image_config::ImageConfig;
use crate::seccomp;

/// The version of the OCI runtime specification that the configuration keeps to.
const OCI_VERSION: &str = "1.0.2";

/// The annotation for the signal that asks a container to end (OCI image specification, conversion.md).
const STOP_SIGNAL: &str = "org.opencontainers.image.stopSignal";

/// Where programs are looked for if the GuestOS does not say, as Docker and Podman do.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The longest host name (HOST_NAME_MAX of linux/limits.h).
const MAX_HOSTNAME: usize = 64;

/// What root in the container may do.
const CAPABILITIES: [Capability; 9] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::NetBindService,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
];

const NAMESPACES: [LinuxNamespaceType; 6] = [
    LinuxNamespaceType::Pid,
    LinuxNamespaceType::Network,
    LinuxNamespaceType::Ipc,
    LinuxNamespaceType::Uts,
    LinuxNamespaceType::Mount,
    LinuxNamespaceType::Cgroup,
];

/// Character devices by major and minor number (Documentation/admin-guide/devices.txt of the kernel).
const DEVICES: [(i64, Option<i64>); 8] = [
    (1, Some(3)), // null
    (1, Some(5)), // zero
    (1, Some(7)), // full
    (1, Some(8)), // random
    (1, Some(9)), // urandom
    (5, Some(0)), // tty
    (5, Some(2)), // ptmx
    (136, None),  // pts/*
];

/// File systems of the kernel: destination, type, source, options.
const MOUNTS: [(&str, &str, &str, &[&str]); 7] = [
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    (
        "/dev",
        "tmpfs",
        "tmpfs",
        &["nosuid", "strictatime", "mode=755", "size=65536k"],
    ),
    (
        "/dev/pts",
        "devpts",
        "devpts",
        // Group 5 is tty in every distribution.
        &[
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ],
    ),
    (
        "/dev/shm",
        "tmpfs",
        "shm",
        &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
    ),
    (
        "/dev/mqueue",
        "mqueue",
        "mqueue",
        &["nosuid", "noexec", "nodev"],
    ),
    (
        "/sys",
        "sysfs",
        "sysfs",
        &["nosuid", "noexec", "nodev", "ro"],
    ),
    (
        "/sys/fs/cgroup",
        "cgroup",
        "cgroup",
        &["nosuid", "noexec", "nodev", "relatime", "ro"],
    ),
];

/// Files that tell of the host, or act on it, hidden as by Docker.
const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];

const READONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Why a GuestOS cannot be run as an OCI container.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GrantError {
    /// Nothing is mounted at `/`, or more than one image.
    #[error("expected one SHARED or SHARED_RW mount at /, found {0}")]
    Root(usize),
    /// A mount that only GyroidOS has.
    #[error(
        "mount {image_file} at {mount_point}: trustme does not mount the type {mount_type} there"
    )]
    Mount {
        /// The mount's image.
        image_file: String,
        /// Where it belongs.
        mount_point: String,
        /// Its type.
        mount_type: MountType,
    },
    /// The init is GyroidOS's own, and no program is named for it.
    #[error("init_param: expected a program and its arguments, found nothing")]
    NoProgram,
    /// oci-spec finds a part missing.
    #[error(transparent)]
    Spec(#[from] OciSpecError),
}

/// The OCI configuration that grants a GuestOS what it may do, and no more. The root file system is `rootfs` in the bundle.
///
/// # Errors
/// There is not one root image, a mount is of a type that only GyroidOS has, or no program is named.
pub fn granted_spec(config: &GuestOsConfig, image: &ImageConfig) -> Result<Spec, GrantError> {
    let user = UserBuilder::default()
        .uid(image.uid)
        .gid(image.gid)
        .additional_gids(image.additional_gids.clone());
    let mut process = ProcessBuilder::default()
        .terminal(false)
        .user(user.build()?)
        .args(arguments(config)?)
        .env(environment(config))
        .cwd(&image.cwd)
        .capabilities(capabilities(image.uid)?)
        .no_new_privileges(true)
        .build()?;
    // The builder's default is 1024 open files.
    process.set_rlimits(None);
    let root = RootBuilder::default()
        .path("rootfs")
        .readonly(root_is_readonly(config)?);
    let resources = LinuxResourcesBuilder::default().devices(devices()?);
    let linux = LinuxBuilder::default()
        .namespaces(namespaces()?)
        .resources(resources.build()?)
        .masked_paths(MASKED_PATHS.map(str::to_owned))
        .readonly_paths(READONLY_PATHS.map(str::to_owned))
        .seccomp(seccomp::filter(&config.hardware));
    let stop_signal = image.stop_signal.clone();
    let annotations = stop_signal.map(|signal| (STOP_SIGNAL.to_owned(), signal));
    let spec = SpecBuilder::default()
        .version(OCI_VERSION)
        .hostname(hostname(&config.name))
        .root(root.build()?)
        .process(process)
        .mounts(mounts()?)
        .linux(linux.build()?)
        .annotations(HashMap::from_iter(annotations));
    Ok(spec.build()?)
}

/// The program and its arguments.
fn arguments(config: &GuestOsConfig) -> Result<Vec<String>, GrantError> {
    let parameters = config.init_param.iter().cloned();
    if config.init_path() != INJECTED_INIT {
        return Ok([config.init_path().to_owned()]
            .into_iter()
            .chain(parameters)
            .collect());
    }
    if config.init_param.is_empty() {
        return Err(GrantError::NoProgram);
    }
    Ok(parameters.collect())
}

fn environment(config: &GuestOsConfig) -> Vec<String> {
    let mut environment = config.init_env.clone();
    if !environment
        .iter()
        .any(|variable| variable.starts_with("PATH="))
    {
        environment.push(DEFAULT_PATH.to_owned());
    }
    environment
}

/// The GuestOS's name, as far as it can be a host's.
fn hostname(name: &str) -> String {
    let letter = |char: char| {
        if char.is_ascii_alphanumeric() || "-_.".contains(char) {
            char
        } else {
            '-'
        }
    };
    name.chars().take(MAX_HOSTNAME).map(letter).collect()
}

/// Whether the root image is read-only. Checks all mounts.
fn root_is_readonly(config: &GuestOsConfig) -> Result<bool, GrantError> {
    let mut roots = Vec::new();
    for mount in &config.mounts {
        match mount.mount_type {
            MountType::Shared | MountType::SharedRw if mount.mount_point == "/" => {
                roots.push(mount.mount_type);
            }
            MountType::Empty if mount.mount_point != "/" => {}
            MountType::StoreOnly => {}
            _ => return Err(unsupported(mount)),
        }
    }
    match roots[..] {
        [root] => Ok(root == MountType::Shared),
        _ => Err(GrantError::Root(roots.len())),
    }
}

fn unsupported(mount: &config::Mount) -> GrantError {
    GrantError::Mount {
        image_file: mount.image_file.clone(),
        mount_point: mount.mount_point.clone(),
        mount_type: mount.mount_type,
    }
}

/// Capabilities of the first program, and the bound for all it starts. Only root has any, and none are inherited.
fn capabilities(uid: u32) -> Result<LinuxCapabilities, OciSpecError> {
    let of_root = if uid == 0 { &CAPABILITIES[..] } else { &[] };
    let of_root: Capabilities = of_root.iter().copied().collect();
    LinuxCapabilitiesBuilder::default()
        .bounding(CAPABILITIES)
        .effective(of_root.clone())
        .permitted(of_root)
        .inheritable([])
        .ambient([])
        .build()
}

fn mounts() -> Result<Vec<Mount>, OciSpecError> {
    let mount = |(destination, typ, source, options): (&str, &str, &str, &[&str])| {
        let options: Vec<String> = options.iter().map(|option| (*option).to_owned()).collect();
        MountBuilder::default()
            .destination(destination)
            .typ(typ)
            .source(source)
            .options(options)
            .build()
    };
    MOUNTS.into_iter().map(mount).collect()
}

fn namespaces() -> Result<Vec<LinuxNamespace>, OciSpecError> {
    let new = |kind| LinuxNamespaceBuilder::default().typ(kind).build();
    NAMESPACES.into_iter().map(new).collect()
}

/// Nothing, then what is listed.
fn devices() -> Result<Vec<LinuxDeviceCgroup>, OciSpecError> {
    let rule = |allow| {
        LinuxDeviceCgroupBuilder::default()
            .allow(allow)
            .access("rwm")
    };
    let mut rules = vec![rule(false).build()?];
    for (major, minor) in DEVICES {
        let mut device = rule(true).typ(LinuxDeviceType::C).major(major);
        if let Some(minor) = minor {
            device = device.minor(minor);
        }
        rules.push(device.build()?);
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn nginx() -> GuestOsConfig {
        let mount =
            |file: &str, at: &str, mount_type| config::Mount::new(file, at, "x", mount_type);
        GuestOsConfig {
            name: "web server".to_owned(),
            hardware: "x86".to_owned(),
            mounts: vec![
                mount("root", "/", MountType::SharedRw),
                mount("html", "/var/www/html", MountType::Empty),
                ImageConfig::mount(),
            ],
            init_path: Some(INJECTED_INIT.to_owned()),
            init_param: vec!["nginx".to_owned(), "-g".to_owned()],
            init_env: vec!["PATH=/usr/sbin".to_owned()],
            ..GuestOsConfig::default()
        }
    }

    fn granted(config: &GuestOsConfig, image: &ImageConfig) -> Value {
        let spec = granted_spec(config, image).unwrap();
        let value = serde_json::to_value(&spec).unwrap();
        let again: Spec = serde_json::from_value(value.clone()).unwrap();
        assert_eq!(again, spec);
        value
    }

    fn sorted(list: &Value) -> Vec<&str> {
        let mut list: Vec<&str> = list
            .as_array()
            .unwrap()
            .iter()
            .filter_map(Value::as_str)
            .collect();
        list.sort_unstable();
        list
    }

    #[test]
    fn root_may_do_little() {
        let image = ImageConfig {
            stop_signal: Some("SIGQUIT".to_owned()),
            cwd: "/srv".to_owned(),
            ..ImageConfig::default()
        };
        let mut granted = granted(&nginx(), &image);
        let capabilities = granted["process"]["capabilities"].take();
        for set in ["bounding", "effective", "permitted"] {
            assert_eq!(
                sorted(&capabilities[set]),
                [
                    "CAP_CHOWN",
                    "CAP_DAC_OVERRIDE",
                    "CAP_FOWNER",
                    "CAP_FSETID",
                    "CAP_KILL",
                    "CAP_NET_BIND_SERVICE",
                    "CAP_SETGID",
                    "CAP_SETPCAP",
                    "CAP_SETUID"
                ]
            );
        }
        assert_eq!(capabilities["inheritable"], json!([]));
        assert_eq!(capabilities["ambient"], json!([]));
        let process = json!({
            "terminal": false,
            "user": {"uid": 0, "gid": 0, "additionalGids": []},
            "args": ["nginx", "-g"],
            "env": ["PATH=/usr/sbin"],
            "cwd": "/srv",
            "capabilities": null,
            "noNewPrivileges": true,
        });
        assert_eq!(granted["process"], process);
        let linux = granted["linux"].as_object_mut().unwrap();
        let seccomp = linux.remove("seccomp").unwrap();
        assert_eq!(seccomp["defaultAction"], "SCMP_ACT_ERRNO");
        let mut fields: Vec<&String> = linux.keys().collect();
        fields.sort();
        assert_eq!(
            fields,
            ["maskedPaths", "namespaces", "readonlyPaths", "resources"]
        );
        let namespaces: Vec<Value> = ["pid", "network", "ipc", "uts", "mount", "cgroup"]
            .map(|kind| json!({"type": kind}))
            .to_vec();
        assert_eq!(linux["namespaces"], Value::Array(namespaces));
        let devices = linux["resources"]["devices"].as_array().unwrap();
        assert_eq!(devices[0], json!({"allow": false, "access": "rwm"}));
        assert_eq!(
            devices[1],
            json!({"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"})
        );
        assert_eq!(
            devices[8],
            json!({"allow": true, "type": "c", "major": 136, "access": "rwm"})
        );
        assert_eq!(devices.len(), 9);
        assert_eq!(
            granted["root"],
            json!({"path": "rootfs", "readonly": false})
        );
        assert_eq!(granted["hostname"], "web-server");
        assert_eq!(
            granted["annotations"],
            json!({"org.opencontainers.image.stopSignal": "SIGQUIT"})
        );
        assert!(granted["hooks"].is_null());
        let destinations: Vec<&Value> = granted["mounts"]
            .as_array()
            .unwrap()
            .iter()
            .map(|mount| &mount["destination"])
            .collect();
        assert_eq!(
            destinations,
            [
                "/proc",
                "/dev",
                "/dev/pts",
                "/dev/shm",
                "/dev/mqueue",
                "/sys",
                "/sys/fs/cgroup"
            ]
        );
    }

    #[test]
    fn a_user_has_no_capability_but_the_bound() {
        let image = ImageConfig {
            uid: 33,
            gid: 34,
            additional_gids: vec![4, 33],
            ..ImageConfig::default()
        };
        let granted = granted(&nginx(), &image);
        let process = &granted["process"];
        assert_eq!(
            process["user"],
            json!({"uid": 33, "gid": 34, "additionalGids": [4, 33]})
        );
        assert_eq!(process["capabilities"]["effective"], json!([]));
        assert_eq!(process["capabilities"]["permitted"], json!([]));
        assert_eq!(
            process["capabilities"]["bounding"]
                .as_array()
                .unwrap()
                .len(),
            9
        );
        assert_eq!(granted["annotations"], json!({}));
    }

    #[test]
    fn an_init_of_its_own_comes_first() {
        let mut config = nginx();
        for (path, first) in [(None, "/init"), (Some("/sbin/init"), "/sbin/init")] {
            config.init_path = path.map(str::to_owned);
            let granted = granted(&config, &ImageConfig::default());
            assert_eq!(granted["process"]["args"], json!([first, "nginx", "-g"]));
        }
        config.init_env = vec!["XPATH=/".to_owned()];
        let granted = granted(&config, &ImageConfig::default());
        assert_eq!(granted["process"]["env"], json!(["XPATH=/", DEFAULT_PATH]));
    }

    #[test]
    fn a_shared_root_is_read_only() {
        let mut config = nginx();
        config.mounts[0].mount_type = MountType::Shared;
        assert_eq!(
            granted(&config, &ImageConfig::default())["root"]["readonly"],
            true
        );
    }

    #[test]
    fn what_only_gyroidos_runs_is_refused() {
        type Change = fn(&mut GuestOsConfig);
        let cases: [(Change, &str); 6] = [
            (
                |config| drop(config.mounts.remove(0)),
                "expected one SHARED or SHARED_RW mount at /, found 0",
            ),
            (
                |config| config.mounts.push(config.mounts[0].clone()),
                "expected one SHARED or SHARED_RW mount at /, found 2",
            ),
            (
                |config| config.mounts[1].mount_type = MountType::OverlayRw,
                "mount html at /var/www/html: trustme does not mount the type OVERLAY_RW there",
            ),
            (
                |config| config.mounts[1].mount_point = "/".to_owned(),
                "mount html at /: trustme does not mount the type EMPTY there",
            ),
            (
                |config| config.mounts[1].mount_type = MountType::Shared,
                "mount html at /var/www/html: trustme does not mount the type SHARED there",
            ),
            (
                |config| config.init_param.clear(),
                "init_param: expected a program and its arguments, found nothing",
            ),
        ];
        for (change, error) in cases {
            let mut config = nginx();
            change(&mut config);
            let said = granted_spec(&config, &ImageConfig::default()).unwrap_err();
            assert_eq!(said.to_string(), error);
        }
    }
}
