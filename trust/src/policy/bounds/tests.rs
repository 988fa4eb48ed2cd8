use serde_json::json;

use super::*;

const ID: &str = "0123456789abcdef";

fn bounds() -> Bounds {
    Bounds {
        args: vec!["/bin/web".to_owned()],
        env: vec!["A=b".to_owned()],
        cwd: "/".to_owned(),
        capabilities: vec!["CAP_CHOWN".to_owned(), "CAP_KILL".to_owned()],
        ..Bounds::default()
    }
}

/// In the way of Docker.
fn config() -> Value {
    json!({
        "ociVersion": "1.2.0",
        "hostname": "0123456789ab",
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
            "args": ["/bin/web"], "cwd": "/",
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=0123456789ab", "A=b"],
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_CHOWN"]}
        },
        "root": {"path": "/x"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["ro"]},
            {"destination": "/etc/hosts", "type": "bind", "source": format!("/d/{ID}/hosts"), "options": ["rbind"]}
        ],
        "hooks": {"prestart": [{"path": "/proc/77/exe", "args": ["libnetwork-setkey", ID]}]},
        "linux": {
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}],
            "resources": {"devices": [
                {"allow": false, "access": "rwm"},
                {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
                {"allow": true, "type": "b", "access": "m"}
            ], "memory": {"limit": 1}},
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/sched_debug"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger"],
            "sysctl": {"net.ipv4.ip_unprivileged_port_start": "0"},
            "seccomp": {"defaultAction": "SCMP_ACT_ERRNO"}
        }
    })
}

fn found(bounds: &Bounds, pointer: &str, value: Value) -> Vec<String> {
    let mut config = config();
    let (parent, name) = pointer.rsplit_once('/').unwrap();
    match config.pointer_mut(parent).unwrap() {
        Value::Array(elements) if name == "-" => elements.push(value),
        Value::Array(elements) => elements[name.parse::<usize>().unwrap()] = value,
        Value::Object(members) if value.is_null() => drop(members.remove(name)),
        Value::Object(members) => drop(members.insert(name.to_owned(), value)),
        _ => unreachable!(),
    }
    beyond(bounds, &config, ID, Path::new("/run/b"))
}

#[test]
fn what_an_engine_adds_is_within() {
    assert_eq!(found(&bounds(), "/hostname", json!("x")), [""; 0]);
    for (pointer, value) in [
        ("/process/capabilities", Value::Null),
        ("/process/noNewPrivileges", json!(true)),
        ("/root/readonly", json!(true)),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1}]),
        ),
        (
            "/mounts/-",
            json!({"destination": "/run/secrets", "type": "bind", "source": "/run/b/secrets", "options": ["rbind"]}),
        ),
        (
            "/linux/namespaces/4",
            json!({"type": "network", "path": "/proc/self/ns/mnt"}),
        ),
    ] {
        assert_eq!(found(&bounds(), pointer, value), [""; 0], "{pointer}");
    }
}

#[test]
fn everything_beyond_is_named() {
    for (pointer, value, field) in [
        ("/process/args/-", json!("x"), "process.args: "),
        ("/process/args", Value::Null, "process.args: "),
        (
            "/process/env/2",
            json!("A=c"),
            "process.env: \"A=b\" is missing",
        ),
        (
            "/process/env/-",
            json!("A=c"),
            "process.env: \"A=c\" is not within",
        ),
        (
            "/process/env/-",
            json!("LD_PRELOAD=/x"),
            "process.env: \"LD_PRELOAD=/x\"",
        ),
        (
            "/process/env/-",
            json!("PATH=/evil"),
            "process.env: \"PATH=/evil\"",
        ),
        (
            "/process/env/-",
            json!(1),
            "process.env: not a list of strings",
        ),
        (
            "/process/env",
            Value::Null,
            "process.env: \"A=b\" is missing",
        ),
        ("/process/cwd", json!("/tmp"), "process.cwd: "),
        ("/process/cwd", Value::Null, "process.cwd: "),
        ("/process/user/uid", json!(1), "process.user.uid: "),
        (
            "/process/user/additionalGids/-",
            json!(6),
            "process.user.additionalGids: 6",
        ),
        (
            "/process/capabilities/bounding/-",
            json!("CAP_SYS_ADMIN"),
            "process.capabilities.bounding: \"CAP_SYS_ADMIN\"",
        ),
        (
            "/process/capabilities/ambient",
            json!("CAP_NET_RAW"),
            "process.capabilities.ambient: ",
        ),
        ("/process/new", json!(1), "process.new: "),
        ("/new", json!({"a": 1}), "new: "),
        (
            "/mounts/-",
            json!({"destination": "/h", "type": "bind", "source": "/", "options": ["rbind"]}),
            "mounts: ",
        ),
        (
            "/mounts/-",
            json!({"destination": "/etc/hosts", "type": "bind", "source": "/etc", "options": ["rbind"]}),
            "mounts: ",
        ),
        (
            "/mounts/-",
            json!({"destination": "/etc/hosts", "type": "bind", "source": "/run/b/../../etc", "options": ["rbind"]}),
            "mounts: ",
        ),
        (
            "/mounts/0",
            json!({"destination": "/proc", "type": "proc", "source": "/", "options": ["rbind"]}),
            "mounts: ",
        ),
        ("/mounts/1/options", json!(["rw"]), "mounts: "),
        (
            "/hooks/prestart/-",
            json!({"path": "/bin/sh"}),
            "hooks.prestart: \"/bin/sh\"",
        ),
        (
            "/linux/namespaces/0",
            json!({"type": "user"}),
            "linux.namespaces: no pid namespace",
        ),
        (
            "/linux/namespaces/0",
            json!({"type": "pid", "path": "/proc/1/ns/pid"}),
            "linux.namespaces: the pid namespace has to be a new one",
        ),
        (
            "/linux/namespaces/4",
            json!({"type": "network", "path": "/proc/self/ns/net"}),
            "linux.namespaces: /proc/self/ns/net is the host's",
        ),
        ("/linux/namespaces", Value::Null, "linux.namespaces: absent"),
        (
            "/linux/devices",
            json!([{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]),
            "linux.devices: ",
        ),
        (
            "/linux/resources/devices/-",
            json!({"allow": true, "access": "rwm"}),
            "linux.resources.devices: ",
        ),
        (
            "/linux/resources/devices/-",
            json!({"allow": true, "type": "b", "major": 8, "access": "r"}),
            "linux.resources.devices: ",
        ),
        (
            "/linux/resources/devices/0",
            json!({"allow": false, "type": "c"}),
            "linux.resources.devices: the first rule",
        ),
        (
            "/linux/resources",
            Value::Null,
            "linux.resources.devices: absent",
        ),
        (
            "/linux/maskedPaths",
            Value::Null,
            "linux.maskedPaths: absent",
        ),
        (
            "/linux/maskedPaths/0",
            json!("/x"),
            "linux.maskedPaths: \"/proc/kcore\" is missing",
        ),
        (
            "/linux/readonlyPaths",
            json!(["/x"]),
            "linux.readonlyPaths: ",
        ),
        (
            "/linux/sysctl/kernel.domainname",
            json!("x"),
            "linux.sysctl: kernel.domainname",
        ),
        (
            "/linux/sysctl/kernel.shmmax",
            json!(1),
            "linux.sysctl: kernel.shmmax",
        ),
        (
            "/linux/rootfsPropagation",
            json!("shared"),
            "linux.rootfsPropagation: ",
        ),
        ("/process", json!([1]), "process: not an object"),
    ] {
        let found = found(&bounds(), pointer, value.clone());
        assert!(
            found.iter().any(|text| text.starts_with(field)),
            "{pointer} = {value}: {found:?}"
        );
    }
}

#[test]
fn what_is_demanded_has_to_be_there() {
    let all = Bounds {
        readonly_root: true,
        no_new_privileges: true,
        seccomp: true,
        ..bounds()
    };
    let found = found(
        &all,
        "/linux/seccomp/defaultAction",
        json!("SCMP_ACT_ALLOW"),
    );
    assert_eq!(found.len(), 3, "{found:?}");
}
