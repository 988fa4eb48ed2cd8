//! Whether a configuration that an engine made keeps to the bounds of a launch manifest.
//!
//! Engines add a good deal to what an image says: mounts of /proc and the like, `HOSTNAME`, default devices, seccomp filters.
//! What of it gives no right is named here. Everything that is neither named here nor in the bounds is an excess, fields that
//! this version does not know too.

use std::path::{Component, Path};

use serde_json::{Map, Value};
use trustme_guestos::manifest::Bounds;

use super::namespace::is_host_network;

/// Fields that give no right.
const FREE: [&str; 18] = [
    "ociVersion",
    "hostname",
    "domainname",
    "annotations",
    "process.terminal",
    "process.consoleSize",
    "process.rlimits",
    "process.oomScoreAdj",
    "process.apparmorProfile",
    "process.selinuxLabel",
    "process.ioPriority",
    "process.user.umask",
    "root.path",
    "linux.cgroupsPath",
    "linux.mountLabel",
    "linux.uidMappings",
    "linux.gidMappings",
    "linux.intelRdt",
];

/// Environment variables that engines set.
const ENGINE_VARIABLES: [&str; 3] = ["HOSTNAME", "TERM", "container"];

/// Variables with the values that engines give them where the image gives none.
const ENGINE_DEFAULTS: [&str; 4] = [
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "HOME=/",
    "TERM=xterm",
];

/// File systems of the kernel that every container has, and where; `true` where only read-only.
const KERNEL_MOUNTS: [(&str, &str, bool); 10] = [
    ("proc", "/proc", false),
    ("tmpfs", "/dev", false),
    ("devpts", "/dev/pts", false),
    ("tmpfs", "/dev/shm", false),
    ("mqueue", "/dev/mqueue", false),
    ("sysfs", "/sys", true),
    ("cgroup", "/sys/fs/cgroup", true),
    ("cgroup2", "/sys/fs/cgroup", true),
    ("tmpfs", "/run", false),
    ("tmpfs", "/run/lock", false),
];

/// What engines mount from the container's own directory on the host.
const ENGINE_MOUNTS: [&str; 7] = [
    "/etc/hosts",
    "/etc/hostname",
    "/etc/resolv.conf",
    "/dev/shm",
    "/run/.containerenv",
    "/run/secrets",
    "/etc/mtab",
];

/// Devices that every container has: null, zero, full, random, urandom, tty, console, ptmx; 136 is the pseudo-terminals.
const DEVICES: [(i64, i64); 8] = [
    (1, 3),
    (1, 5),
    (1, 7),
    (1, 8),
    (1, 9),
    (5, 0),
    (5, 1),
    (5, 2),
];

/// Pseudo-terminals.
const PTS: i64 = 136;

/// Namespaces that have to be the container's own.
const NAMESPACES: [&str; 5] = ["pid", "mount", "ipc", "uts", "network"];

/// What has to be masked, and what read-only, as every engine does for a container that is not privileged.
const MASKED: [&str; 3] = ["/proc/kcore", "/proc/keys", "/proc/sched_debug"];
const READ_ONLY: [&str; 2] = ["/proc/sys", "/proc/sysrq-trigger"];

/// Kernel parameters that Docker sets: of the container's own network namespace.
const SYSCTLS: [&str; 2] = [
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
];

/// Each way in which `config`, of the container `id` in `bundle`, does not keep to `bounds`; begins with the field's name.
#[must_use]
pub fn beyond(bounds: &Bounds, config: &Value, id: &str, bundle: &Path) -> Vec<String> {
    let mut check = Check {
        bounds,
        id,
        bundle,
        found: vec![],
    };
    check.members("", config);
    for (field, missing) in [
        ("process", "/process"),
        ("linux.namespaces", "/linux/namespaces"),
        ("linux.maskedPaths", "/linux/maskedPaths"),
        ("linux.readonlyPaths", "/linux/readonlyPaths"),
        ("linux.resources.devices", "/linux/resources/devices"),
    ] {
        if says_nothing(config.pointer(missing).unwrap_or(&Value::Null)) {
            check.found.push(format!("{field}: absent"));
        }
    }
    // What is absent has a meaning too.
    let nothing = Value::Array(vec![]);
    for (field, pointer) in [
        ("process.args", "/process/args"),
        ("process.env", "/process/env"),
    ] {
        if says_nothing(config.pointer(pointer).unwrap_or(&Value::Null)) {
            check.member(field, &nothing);
        }
    }
    for (field, pointer) in [
        ("process.user.uid", "/process/user/uid"),
        ("process.user.gid", "/process/user/gid"),
    ] {
        if config.pointer(pointer).is_none_or(Value::is_null) {
            check.member(field, &0.into());
        }
    }
    if config.pointer("/process/cwd").is_none_or(Value::is_null) {
        check.member("process.cwd", &Value::Null);
    }
    let is_true = |pointer: &str| config.pointer(pointer) == Some(&Value::Bool(true));
    if bounds.readonly_root && !is_true("/root/readonly") {
        check.excess("root.readonly", "has to be true");
    }
    if bounds.no_new_privileges && !is_true("/process/noNewPrivileges") {
        check.excess("process.noNewPrivileges", "has to be true");
    }
    let filter = config
        .pointer("/linux/seccomp/defaultAction")
        .and_then(Value::as_str);
    if bounds.seccomp
        && !filter.is_some_and(|action| {
            action.starts_with("SCMP_ACT_ERRNO") || action.starts_with("SCMP_ACT_KILL")
        })
    {
        check.excess("linux.seccomp", "has to deny by default");
    }
    check.found
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(elements) => elements.is_empty(),
        Value::Object(members) => members.is_empty(),
        Value::Number(_) | Value::Bool(true) => false,
    }
}

struct Check<'c> {
    bounds: &'c Bounds,
    id: &'c str,
    bundle: &'c Path,
    found: Vec<String>,
}

impl Check<'_> {
    fn excess(&mut self, field: &str, reason: impl std::fmt::Display) {
        self.found.push(format!("{field}: {reason}"));
    }

    /// Checks the members of an object; `path` is empty or ends in a dot.
    fn members(&mut self, path: &str, value: &Value) {
        let Some(members) = value.as_object() else {
            return self.excess(path.trim_end_matches('.'), "not an object");
        };
        for (name, value) in members {
            if !says_nothing(value) {
                self.member(&format!("{path}{name}"), value);
            }
        }
    }

    fn member(&mut self, field: &str, value: &Value) {
        let bounds = self.bounds;
        match field {
            _ if FREE.contains(&field) => {}
            "process"
            | "process.user"
            | "process.capabilities"
            | "root"
            | "linux"
            | "linux.resources" => {
                self.members(&format!("{field}."), value);
            }
            "process.args" => self.equal(field, value, &bounds.args.clone().into()),
            "process.cwd" => self.equal(field, value, &bounds.cwd.clone().into()),
            "process.user.uid" => self.equal(field, value, &bounds.uid.into()),
            "process.user.gid" => self.equal(field, value, &bounds.gid.into()),
            "process.user.additionalGids" => self.each(field, value, |gid| {
                gid.as_u64().is_some_and(|gid| {
                    gid == u64::from(bounds.gid)
                        || bounds
                            .additional_gids
                            .iter()
                            .any(|own| u64::from(*own) == gid)
                })
            }),
            "process.env" => self.environment(field, value),
            _ if field.starts_with("process.capabilities.") => {
                self.each(field, value, |name| {
                    name.as_str()
                        .is_some_and(|name| bounds.capabilities.iter().any(|own| own == name))
                });
            }
            // Both only restrict; what is demanded of them is checked elsewhere.
            "process.noNewPrivileges" | "root.readonly" | "linux.seccomp" => {}
            "mounts" => self.mounts(field, value),
            "hooks" => self.hooks(value),
            "linux.namespaces" => self.namespaces(field, value),
            "linux.devices" => {
                let allowed = |device: &Value| self.is_device(device);
                let denied: Vec<Value> = list(value)
                    .iter()
                    .filter(|device| !allowed(device))
                    .cloned()
                    .collect();
                for device in denied {
                    self.excess(field, format!("{device} is not within the bounds"));
                }
            }
            "linux.resources.devices" => self.device_rules(field, value),
            // All else in it are limits.
            _ if field.starts_with("linux.resources.") => {}
            "linux.maskedPaths" => self.includes(field, value, &MASKED),
            "linux.readonlyPaths" => self.includes(field, value, &READ_ONLY),
            "linux.sysctl" => self.sysctls(field, value),
            "linux.rootfsPropagation" => {
                if !matches!(
                    value.as_str(),
                    Some("private" | "rprivate" | "slave" | "rslave")
                ) {
                    self.excess(field, format!("{value} is not within the bounds"));
                }
            }
            _ => self.excess(
                field,
                format!("{} is not within the bounds", super::rights::excerpt(value)),
            ),
        }
    }

    fn equal(&mut self, field: &str, value: &Value, bound: &Value) {
        if value != bound {
            let (value, bound) = (super::rights::excerpt(value), super::rights::excerpt(bound));
            self.excess(field, format!("{value}, the manifest says {bound}"));
        }
    }

    fn each(&mut self, field: &str, value: &Value, allowed: impl Fn(&Value) -> bool) {
        for element in list(value).iter().filter(|element| !allowed(element)) {
            self.excess(field, format!("{element} is not within the bounds"));
        }
    }

    fn includes(&mut self, field: &str, value: &Value, needed: &[&str]) {
        for path in needed
            .iter()
            .filter(|path| !list(value).iter().any(|own| own == **path))
        {
            self.excess(field, format!("{path:?} is missing"));
        }
    }

    /// Every variable that the manifest names, with its value; and what engines add.
    fn environment(&mut self, field: &str, value: &Value) {
        let own = &self.bounds.env;
        let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
        let set: Vec<&str> = list(value).iter().filter_map(Value::as_str).collect();
        let mut found = Vec::new();
        for variable in own
            .iter()
            .filter(|variable| !set.contains(&variable.as_str()))
        {
            found.push(format!("{variable:?} is missing"));
        }
        for variable in &set {
            let is_own = own.iter().any(|own| own == variable);
            let of_engine = !own.iter().any(|own| name(own) == name(variable))
                && (ENGINE_VARIABLES.contains(&name(variable).as_str())
                    || ENGINE_DEFAULTS.contains(variable));
            if !is_own && !of_engine {
                found.push(format!("{variable:?} is not within the bounds"));
            }
        }
        if set.len() != list(value).len() {
            found.push("not a list of strings".to_owned());
        }
        for reason in found {
            self.excess(field, reason);
        }
    }

    fn mounts(&mut self, field: &str, value: &Value) {
        for mount in list(value) {
            if !self.is_mount(mount) {
                self.excess(
                    field,
                    format!("{} is not within the bounds", super::rights::excerpt(mount)),
                );
            }
        }
    }

    fn is_mount(&self, mount: &Value) -> bool {
        let text = |name: &str| mount[name].as_str().unwrap_or_default();
        let (kind, source) = (text("type"), text("source"));
        let destination = text("destination").trim_end_matches('/');
        let has = |option: &str| list(&mount["options"]).iter().any(|own| own == option);
        let is_bind = kind == "bind" || has("bind") || has("rbind");
        let within = self.bounds.mounts.iter().any(|own| {
            own.destination.trim_end_matches('/') == destination
                && own
                    .source
                    .as_deref()
                    .map_or(source != "/", |own| own == source)
        });
        let of_kernel = KERNEL_MOUNTS
            .iter()
            .any(|(own_kind, own_destination, read_only)| {
                (kind, destination) == (*own_kind, *own_destination) && (has("ro") || !read_only)
            });
        let of_engine = ENGINE_MOUNTS.contains(&destination) && self.is_own(source);
        within || (!is_bind && of_kernel) || (is_bind && of_engine)
    }

    /// Whether a path on the host belongs to this container alone: it is in its bundle, or a directory of it is named after it.
    fn is_own(&self, path: &str) -> bool {
        let path = Path::new(path);
        let climbs = path.components().any(|part| part == Component::ParentDir);
        !climbs
            && (path.starts_with(self.bundle)
                || path.components().any(|part| part.as_os_str() == self.id))
    }

    /// Hooks run on the host, with the rights of whoever starts the container. An engine names itself, by its process.
    fn hooks(&mut self, value: &Value) {
        let none = Map::new();
        for (name, hooks) in value.as_object().unwrap_or(&none) {
            for hook in list(hooks) {
                if !hook["path"]
                    .as_str()
                    .is_some_and(crate::identity::is_engine_itself)
                {
                    self.excess(
                        &format!("hooks.{name}"),
                        format!("{} is not within the bounds", hook["path"]),
                    );
                }
            }
        }
    }

    fn namespaces(&mut self, field: &str, value: &Value) {
        let kind = |namespace: &Value| namespace["type"].as_str().unwrap_or_default().to_owned();
        let may_be_shared = |kind: &str| self.bounds.host_namespaces.iter().any(|own| own == kind);
        let mut found = Vec::new();
        for needed in NAMESPACES {
            if !may_be_shared(needed) && !list(value).iter().any(|own| kind(own) == needed) {
                found.push(format!(
                    "no {needed} namespace, so the host's would be used"
                ));
            }
        }
        for namespace in list(value) {
            let kind = kind(namespace);
            match &namespace["path"] {
                _ if may_be_shared(&kind) => {}
                Value::Null => {}
                Value::String(path) if path.is_empty() => {}
                Value::String(path) if kind == "network" => {
                    match is_host_network(Path::new(path)) {
                        Ok(false) => {}
                        Ok(true) => found.push(format!("{path} is the host's network namespace")),
                        Err(error) => found.push(format!("{path}: {error}")),
                    }
                }
                path => found.push(format!(
                    "the {kind} namespace has to be a new one, not {path}"
                )),
            }
        }
        for reason in found {
            self.excess(field, reason);
        }
    }

    fn is_device(&self, device: &Value) -> bool {
        let (major, minor) = (device["major"].as_i64(), device["minor"].as_i64());
        let kind = device["type"].as_str().unwrap_or_default();
        let (Some(major), Some(minor)) = (major, minor) else {
            // All pseudo-terminals.
            return kind == "c" && major == Some(PTS) && minor.is_none_or(|minor| minor < 0);
        };
        (kind == "c" && (DEVICES.contains(&(major, minor)) || (major == PTS && minor == -1)))
            || self
                .bounds
                .devices
                .iter()
                .any(|own| (own.kind.as_str(), own.major, own.minor) == (kind, major, minor))
    }

    /// Everything has to be denied first. To make a node gives nothing to read or write.
    fn device_rules(&mut self, field: &str, value: &Value) {
        let denies_all = |rule: &Value| {
            rule["allow"] == Value::Bool(false)
                && matches!(rule["type"].as_str(), None | Some("a"))
                && ["major", "minor"]
                    .iter()
                    .all(|name| rule[name].as_i64().is_none_or(|number| number < 0))
                && matches!(rule["access"].as_str(), None | Some("" | "rwm"))
        };
        let rules = list(value);
        if !rules.first().is_some_and(denies_all) {
            self.excess(field, "the first rule has to deny everything");
        }
        let allowed = |rule: &Value| {
            rule["allow"] == Value::Bool(false) || rule["access"] == "m" || self.is_device(rule)
        };
        let denied: Vec<String> = rules
            .iter()
            .filter(|rule| !allowed(rule))
            .map(Value::to_string)
            .collect();
        for rule in denied {
            self.excess(field, format!("{rule} is not within the bounds"));
        }
    }

    fn sysctls(&mut self, field: &str, value: &Value) {
        let none = Map::new();
        for (name, value) in value.as_object().unwrap_or(&none) {
            let own = self.bounds.sysctl.get(name).map(String::as_str);
            if !SYSCTLS.contains(&name.as_str()) && (own.is_none() || own != value.as_str()) {
                self.excess(field, format!("{name}={value} is not within the bounds"));
            }
        }
    }
}

/// The elements of a list; a value that is none counts as its own only element, so that it is never passed over.
fn list(value: &Value) -> &[Value] {
    match value {
        Value::Null => &[],
        Value::Array(elements) => elements,
        other => std::slice::from_ref(other),
    }
}

#[cfg(test)]
mod tests;
