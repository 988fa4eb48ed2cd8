//! Whether a configuration stays within what a signed GuestOS grants.
//!
//! Both are compared as JSON, so that a field that this version does not know counts as a difference. Whatever is not
//! named here has to be equal in both.

use std::path::Path;

use serde_json::{Map, Value};

use super::namespace::is_host_network;

/// What engines choose freely: none of it gives a container a right.
const FREE: [&str; 9] = [
    "ociVersion",
    "hostname",
    "domainname",
    "annotations",
    "process.terminal",
    "process.consoleSize",
    "root.path",
    "linux.cgroupsPath",
    // All but the device rules in it are limits.
    "linux.resources",
];

/// Lists of which a configuration may have fewer.
const SUBSETS: [&str; 8] = [
    "mounts",
    "linux.devices",
    "process.rlimits",
    "process.capabilities.bounding",
    "process.capabilities.effective",
    "process.capabilities.inheritable",
    "process.capabilities.permitted",
    "process.capabilities.ambient",
];

/// Lists of which a configuration may have more.
const SUPERSETS: [&str; 2] = ["linux.maskedPaths", "linux.readonlyPaths"];

/// Switches that a configuration may turn on by itself, and must not turn off.
const RESTRICTIONS: [&str; 2] = ["process.noNewPrivileges", "root.readonly"];

/// Objects whose fields are compared one by one.
const OBJECTS: [&str; 4] = ["process", "process.capabilities", "root", "linux"];

/// Each way in which `requested` asks for more than `granted`, beginning with the field's name; both are OCI runtime
/// configurations. Empty where it stays within.
#[must_use]
pub fn excess(granted: &Value, requested: &Value) -> Vec<String> {
    let mut found = Vec::new();
    fields("", &bare(granted), &bare(requested), &mut found);
    found
}

/// The value without members that say nothing: null, and empty lists and objects.
fn bare(value: &Value) -> Value {
    match value {
        Value::Object(members) => {
            let kept = members
                .iter()
                .map(|(name, member)| (name.clone(), bare(member)));
            Value::Object(kept.filter(|(_, member)| !says_nothing(member)).collect())
        }
        Value::Array(elements) => Value::Array(elements.iter().map(bare).collect()),
        other => other.clone(),
    }
}

fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(elements) => elements.is_empty(),
        Value::Object(members) => members.is_empty(),
        _ => false,
    }
}

/// Compares the members of two objects; `path` is empty or ends in a dot.
fn fields(path: &str, granted: &Value, requested: &Value, found: &mut Vec<String>) {
    let none = Map::new();
    let granted = granted.as_object().unwrap_or(&none);
    let Some(requested) = requested.as_object() else {
        found.push(format!("{}: not an object", path.trim_end_matches('.')));
        return;
    };
    let mut names: Vec<&String> = granted.keys().chain(requested.keys()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names {
        let field = format!("{path}{name}");
        let granted = granted.get(name).unwrap_or(&Value::Null);
        let requested = requested.get(name).unwrap_or(&Value::Null);
        member(&field, granted, requested, found);
    }
}

/// Compares one member by the rule for it.
fn member(field: &str, granted: &Value, requested: &Value, found: &mut Vec<String>) {
    let field_is = |list: &[&str]| list.contains(&field);
    if field == "linux.namespaces" {
        namespaces(field, granted, requested, found);
    } else if field == "linux.resources" {
        device_rules(
            "linux.resources.devices",
            &granted["devices"],
            &requested["devices"],
            found,
        );
    } else if field_is(&FREE) {
        // Nothing to compare.
    } else if field_is(&SUBSETS) {
        for element in elements(requested)
            .iter()
            .filter(|element| !contains(granted, element))
        {
            found.push(format!("{field}: {element} is not granted"));
        }
    } else if field_is(&SUPERSETS) {
        for element in elements(granted)
            .iter()
            .filter(|element| !contains(requested, element))
        {
            found.push(format!("{field}: {element} is missing"));
        }
    } else if field_is(&RESTRICTIONS) {
        if *granted == Value::Bool(true) && *requested != Value::Bool(true) {
            found.push(format!("{field}: has to be true"));
        }
    } else if field_is(&OBJECTS) {
        let empty = Value::Object(Map::new());
        let requested = if requested.is_null() {
            &empty
        } else {
            requested
        };
        fields(&format!("{field}."), granted, requested, found);
    } else if granted != requested {
        found.push(format!(
            "{field}: {}, granted is {}",
            excerpt(requested),
            excerpt(granted)
        ));
    }
}

/// The elements of a list; a value that is none counts as its own only element, so that it is never passed over.
fn elements(value: &Value) -> &[Value] {
    match value {
        Value::Null => &[],
        Value::Array(elements) => elements,
        other => std::slice::from_ref(other),
    }
}

fn contains(list: &Value, element: &Value) -> bool {
    elements(list).contains(element)
}

/// A value as JSON, shortened.
pub(super) fn excerpt(value: &Value) -> String {
    const LENGTH: usize = 200;
    match value {
        Value::Null => "absent".to_owned(),
        value => {
            let text = value.to_string();
            match text.char_indices().nth(LENGTH) {
                Some((end, _)) => format!("{}…", &text[..end]),
                None => text,
            }
        }
    }
}

/// Every namespace that is granted has to be a new one. A network namespace may be one that exists, but not the host's;
/// a user namespace only where it is granted.
fn namespaces(field: &str, granted: &Value, requested: &Value, found: &mut Vec<String>) {
    let kind = |namespace: &Value| namespace["type"].as_str().unwrap_or_default().to_owned();
    let kinds: Vec<String> = elements(requested).iter().map(kind).collect();
    for missing in elements(granted)
        .iter()
        .map(kind)
        .filter(|granted| !kinds.contains(granted))
    {
        found.push(format!(
            "{field}: no {missing} namespace, so the host's would be used"
        ));
    }
    for namespace in elements(requested) {
        let kind = kind(namespace);
        if kind == "user"
            && !elements(granted)
                .iter()
                .any(|granted| granted["type"] == "user")
        {
            found.push(format!("{field}: a user namespace is not granted"));
        }
        match &namespace["path"] {
            Value::Null => {}
            Value::String(path) if kind == "network" => match is_host_network(Path::new(path)) {
                Ok(false) => {}
                Ok(true) => found.push(format!("{field}: {path} is the host's network namespace")),
                Err(error) => found.push(format!("{field}: {path}: {error}")),
            },
            path => found.push(format!(
                "{field}: the {kind} namespace has to be a new one, not {path}"
            )),
        }
    }
}

/// Rules are applied in order: the one that denies everything has to come first, as it does in what is granted, and
/// every rule that allows something has to be granted.
fn device_rules(field: &str, granted: &Value, requested: &Value, found: &mut Vec<String>) {
    if let Some(first) = elements(granted).first()
        && elements(requested).first() != Some(first)
    {
        found.push(format!("{field}: the first rule has to be {first}"));
    }
    for rule in elements(requested) {
        if rule["allow"] != Value::Bool(false) && !contains(granted, rule) {
            found.push(format!("{field}: {rule} is not granted"));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn granted() -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": 33, "gid": 33},
                "args": ["nginx", "-g", "daemon off;"],
                "env": ["PATH=/usr/bin"],
                "cwd": "/",
                "capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"], "permitted": ["CAP_CHOWN"]},
                "noNewPrivileges": true
            },
            "root": {"path": "rootfs", "readonly": true},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro", "nosuid"]}
            ],
            "linux": {
                "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "mount"}],
                "resources": {"devices": [
                    {"allow": false, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"}
                ]},
                "maskedPaths": ["/proc/kcore"],
                "readonlyPaths": ["/proc/sys"],
                "seccomp": {"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}
            }
        })
    }

    /// What [`excess`] says after `value` is put at a JSON pointer, or what is there removed for null.
    fn changed(pointer: &str, value: Value) -> Vec<String> {
        let mut requested = granted();
        let (parent, name) = pointer.rsplit_once('/').unwrap();
        let parent = requested.pointer_mut(parent).unwrap();
        match parent {
            Value::Array(elements) if name == "-" => elements.push(value),
            Value::Array(elements) => elements[name.parse::<usize>().unwrap()] = value,
            Value::Object(members) if value.is_null() => drop(members.remove(name)),
            Value::Object(members) => drop(members.insert(name.to_owned(), value)),
            _ => unreachable!(),
        }
        excess(&granted(), &requested)
    }

    #[test]
    fn what_gives_no_right_is_free() {
        assert_eq!(excess(&granted(), &granted()), [] as [&str; 0]);
        for (pointer, value) in [
            ("/ociVersion", json!("1.2.0")),
            ("/hostname", json!("web")),
            ("/annotations", json!({"a": "b"})),
            ("/hooks", json!({"poststop": []})),
            ("/process/terminal", json!(true)),
            ("/process/consoleSize", json!({"height": 24, "width": 80})),
            ("/process/capabilities", Value::Null),
            ("/process/capabilities/bounding", json!(["CAP_KILL"])),
            ("/process/capabilities/ambient", json!([])),
            ("/root/path", json!("/elsewhere")),
            (
                "/mounts",
                json!([{"destination": "/proc", "type": "proc", "source": "proc"}]),
            ),
            (
                "/mounts/0",
                json!({"destination": "/proc", "type": "proc", "source": "proc", "options": []}),
            ),
            ("/linux/cgroupsPath", json!("/web")),
            ("/linux/resources/memory", json!({"limit": 1})),
            (
                "/linux/resources/devices/-",
                json!({"allow": false, "type": "b"}),
            ),
            ("/linux/maskedPaths/-", json!("/proc/keys")),
            ("/linux/namespaces/-", json!({"type": "cgroup"})),
            (
                "/linux/namespaces/1",
                json!({"type": "network", "path": "/proc/self/ns/mnt"}),
            ),
        ] {
            assert_eq!(changed(pointer, value), [] as [&str; 0], "{pointer}");
        }
    }

    #[test]
    fn every_excess_is_named() {
        let cases = [
            (
                "/process/args/0",
                json!("sh"),
                "process.args: [\"sh\",\"-g\",\"daemon off;\"], granted is [\"nginx\"",
            ),
            ("/process/env/-", json!("LD_PRELOAD=x"), "process.env: "),
            (
                "/process/cwd",
                json!("/tmp"),
                "process.cwd: \"/tmp\", granted is \"/\"",
            ),
            (
                "/process/user/uid",
                json!(0),
                "process.user: {\"gid\":33,\"uid\":0}, granted is {\"gid\":33,\"uid\":33}",
            ),
            (
                "/process/capabilities/bounding/-",
                json!("CAP_SYS_ADMIN"),
                "process.capabilities.bounding: \"CAP_SYS_ADMIN\" is not granted",
            ),
            (
                "/process/capabilities/ambient",
                json!(["CAP_CHOWN"]),
                "process.capabilities.ambient: \"CAP_CHOWN\" is not granted",
            ),
            (
                "/process/capabilities/bounding",
                json!("CAP_SYS_ADMIN"),
                "process.capabilities.bounding: \"CAP_SYS_ADMIN\" is not granted",
            ),
            (
                "/process/capabilities/new",
                json!(["CAP_CHOWN"]),
                "process.capabilities.new: ",
            ),
            (
                "/process/rlimits",
                json!([{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1}]),
                "process.rlimits: ",
            ),
            (
                "/process/noNewPrivileges",
                Value::Null,
                "process.noNewPrivileges: has to be true",
            ),
            (
                "/process/noNewPrivileges",
                json!(false),
                "process.noNewPrivileges: has to be true",
            ),
            (
                "/process/selinuxLabel",
                json!("unconfined_t"),
                "process.selinuxLabel: \"unconfined_t\", granted is absent",
            ),
            (
                "/process/new",
                json!(1),
                "process.new: 1, granted is absent",
            ),
            (
                "/root/readonly",
                json!(false),
                "root.readonly: has to be true",
            ),
            (
                "/mounts/-",
                json!({"destination": "/x", "type": "bind", "source": "/", "options": ["rbind"]}),
                "mounts: {\"destination\":\"/x\"",
            ),
            (
                "/mounts/1/options",
                json!(["nosuid"]),
                "mounts: {\"destination\":\"/sys\"",
            ),
            (
                "/hooks",
                json!({"poststop": [{"path": "/bin/sh"}]}),
                "hooks: ",
            ),
            (
                "/linux/namespaces",
                json!([{"type": "pid"}, {"type": "mount"}]),
                "linux.namespaces: no network namespace",
            ),
            (
                "/linux/namespaces",
                Value::Null,
                "linux.namespaces: no pid namespace",
            ),
            (
                "/linux/namespaces/0",
                json!({"type": "pid", "path": "/proc/1/ns/pid"}),
                "linux.namespaces: the pid namespace has to be a new one",
            ),
            (
                "/linux/namespaces/1",
                json!({"type": "network", "path": "/proc/self/ns/net"}),
                "linux.namespaces: /proc/self/ns/net is the host's network namespace",
            ),
            (
                "/linux/namespaces/1",
                json!({"type": "network", "path": "/nonexistent"}),
                "linux.namespaces: /nonexistent: No such file",
            ),
            (
                "/linux/namespaces/-",
                json!({"type": "user"}),
                "linux.namespaces: a user namespace is not granted",
            ),
            (
                "/linux/devices",
                json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]),
                "linux.devices: ",
            ),
            (
                "/linux/resources/devices/-",
                json!({"allow": true, "access": "rwm"}),
                "linux.resources.devices: {\"access\":\"rwm\",\"allow\":true} is not granted",
            ),
            (
                "/linux/resources/devices/0",
                json!({"allow": false, "type": "c"}),
                "linux.resources.devices: the first rule has to be",
            ),
            (
                "/linux/resources",
                Value::Null,
                "linux.resources.devices: the first rule has to be",
            ),
            (
                "/linux/maskedPaths",
                Value::Null,
                "linux.maskedPaths: \"/proc/kcore\" is missing",
            ),
            (
                "/linux/readonlyPaths",
                json!(["/x"]),
                "linux.readonlyPaths: \"/proc/sys\" is missing",
            ),
            (
                "/linux/seccomp",
                Value::Null,
                "linux.seccomp: absent, granted is {",
            ),
            (
                "/linux/seccomp/syscalls/0/names/-",
                json!("mount"),
                "linux.seccomp: {",
            ),
            (
                "/linux/sysctl",
                json!({"net.ipv4.ip_forward": "1"}),
                "linux.sysctl: ",
            ),
            (
                "/linux/rootfsPropagation",
                json!("shared"),
                "linux.rootfsPropagation: \"shared\", granted is absent",
            ),
            (
                "/linux/uidMappings",
                json!([{"containerID": 0}]),
                "linux.uidMappings: ",
            ),
            ("/linux", Value::Null, "linux.maskedPaths: "),
            ("/linux", json!("x"), "linux: not an object"),
            ("/process", json!([1]), "process: not an object"),
            ("/vm", json!({"kernel": {}}), ""),
            (
                "/windows",
                json!({"ignoreFlushesDuringBoot": true}),
                "windows: ",
            ),
        ];
        for (pointer, value, reason) in cases {
            let found = changed(pointer, value.clone());
            if reason.is_empty() {
                assert_eq!(found, [] as [&str; 0]);
                continue;
            }
            assert!(
                found.iter().any(|text| text.starts_with(reason)),
                "{pointer} = {value}: {found:?}"
            );
        }
        assert_eq!(excess(&granted(), &json!([])), [": not an object"]);
    }
}
