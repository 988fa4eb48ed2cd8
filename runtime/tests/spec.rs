//! What the specification demands of a container, seen from inside of it.

mod support;

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

use serde_json::{Value, json};
use support::{Bundle, text};

/// A bundle that runs a shell script.
fn script(script: &str) -> Bundle {
    Bundle::new(&["sh", "-c", script])
}

fn add_mount(bundle: &mut Bundle, mount: Value) {
    bundle.config["mounts"].as_array_mut().unwrap().push(mount);
}

fn remove_mount(bundle: &mut Bundle, destination: &str) {
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["destination"] != destination);
}

/// A user namespace whose root is the host's user 100000.
fn map_users(bundle: &mut Bundle) {
    let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    bundle.config["linux"]["uidMappings"] = mapping.clone();
    bundle.config["linux"]["gidMappings"] = mapping;
    let namespaces = &mut bundle.config["linux"]["namespaces"];
    namespaces
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "user"}));
    for dir in [bundle.file(""), bundle.path(), bundle.rootfs()] {
        std::fs::set_permissions(dir, PermissionsExt::from_mode(0o755)).unwrap();
    }
}

#[test]
fn id_mapped_mounts_change_owners() {
    let mut bundle = script("stat -c %u:%g /mapped/f /plain/f; touch /mapped/new");
    let source = bundle.file("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("f"), "").unwrap();
    std::os::unix::fs::chown(source.join("f"), Some(1), Some(2)).unwrap();
    std::fs::set_permissions(&source, PermissionsExt::from_mode(0o777)).unwrap();
    let mapping = json!([{"containerID": 0, "hostID": 1000, "size": 100}]);
    let mount = json!({"destination": "/mapped", "type": "bind", "source": source, "options": ["rbind", "idmap"],
        "uidMappings": mapping, "gidMappings": mapping});
    add_mount(&mut bundle, mount);
    add_mount(
        &mut bundle,
        json!({"destination": "/plain", "source": source, "options": ["bind"]}),
    );
    bundle.config["process"]["user"] = json!({"uid": 1005, "gid": 1006});
    assert_eq!(bundle.ok("run --bundle BUNDLE ID"), "1001:1002\n1:2\n");
    let new = std::fs::metadata(source.join("new")).unwrap();
    assert_eq!((new.uid(), new.gid()), (5, 6));
    bundle.assert_gone();
}

#[test]
fn id_mapped_mounts_of_a_user_namespace_take_its_mapping() {
    let mut bundle = script("stat -c %u:%g /mapped/f; cat /mapped/f; touch /mapped/new");
    map_users(&mut bundle);
    let source = bundle.file("source");
    std::fs::create_dir(&source).unwrap();
    std::fs::write(source.join("f"), "content\n").unwrap();
    std::fs::set_permissions(source.join("f"), PermissionsExt::from_mode(0o600)).unwrap();
    let mount = json!({"destination": "/mapped", "source": source, "options": ["rbind", "ridmap"]});
    add_mount(&mut bundle, mount);
    // The directory that mounts are made in: its owner has no name in there.
    std::fs::create_dir(bundle.rootfs().join("mapped")).unwrap();
    assert_eq!(bundle.ok("run --bundle BUNDLE ID"), "0:0\ncontent\n");
    assert_eq!(std::fs::metadata(source.join("new")).unwrap().uid(), 0);
    bundle.assert_gone();
}

#[test]
fn id_mapped_mounts_that_cannot_be_are_named() {
    let mut bundle = Bundle::new(&["true"]);
    add_mount(
        &mut bundle,
        json!({"destination": "/m", "source": "/tmp", "options": ["bind", "idmap"]}),
    );
    let err = bundle.fails("run --bundle BUNDLE ID", 1);
    assert!(
        err.contains("mount of /m: id-mapped, but there are no mappings"),
        "{err}"
    );
    bundle.assert_gone();
}

#[test]
fn masked_and_read_only_paths_hold() {
    let mut bundle = script(
        "cat /secret; ls -a /hidden | wc -l; echo x > /fixed/f; cat /fixed/f; touch /hidden/x; grep -c ' /fixed ' /proc/mounts
        grep -o ' /fixed .*' /proc/mounts | grep -c noexec",
    );
    for dir in ["hidden", "fixed"] {
        std::fs::create_dir(bundle.rootfs().join(dir)).unwrap();
        std::fs::write(bundle.rootfs().join(dir).join("f"), "kept\n").unwrap();
    }
    std::fs::write(bundle.rootfs().join("secret"), "secret\n").unwrap();
    bundle.config["linux"]["maskedPaths"] =
        json!(["/secret", "/hidden", "/nosuch", "/secret/below"]);
    bundle.config["linux"]["readonlyPaths"] = json!(["/fixed", "/nosuch"]);
    let output = bundle.run("run --bundle BUNDLE ID");
    assert_eq!(
        text(&output.stdout),
        "2\nkept\n1\n0\n",
        "{}",
        text(&output.stderr)
    );
    let err = text(&output.stderr);
    assert!(
        err.contains("can't create /fixed/f: Read-only file system"),
        "{err}"
    );
    assert!(err.contains("/hidden/x: Read-only file system"), "{err}");
}

#[test]
fn dev_is_complete_and_may_be_read_only() {
    let list = "stat -c '%n %t:%T %a' /dev/null /dev/zero /dev/full /dev/random /dev/urandom /dev/tty
        for link in fd stdin stdout stderr ptmx; do readlink /dev/$link; done; touch /dev/x 2>&1; echo ok > /dev/null";
    let mut bundle = script(list);
    remove_mount(&mut bundle, "/dev");
    let dev = json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "ro", "mode=755"]});
    bundle.config["mounts"]
        .as_array_mut()
        .unwrap()
        .insert(1, dev);
    let expected = "/dev/null 1:3 666\n/dev/zero 1:5 666\n/dev/full 1:7 666\n/dev/random 1:8 666\n\
        /dev/urandom 1:9 666\n/dev/tty 5:0 666\n/proc/self/fd\n/proc/self/fd/0\n/proc/self/fd/1\n/proc/self/fd/2\n\
        pts/ptmx\ntouch: /dev/x: Read-only file system\n";
    assert_eq!(bundle.ok("run --bundle BUNDLE ID"), expected);
    map_users(&mut bundle);
    assert_eq!(bundle.ok("run --bundle BUNDLE ID"), expected);
}

#[test]
fn the_hosts_dev_is_left_alone_where_it_is_bind_mounted() {
    let mut bundle = script("ls /dev");
    let dev = bundle.file("dev");
    std::fs::create_dir(&dev).unwrap();
    std::fs::write(dev.join("ptmx"), "").unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dev.join("null"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::from_raw_mode(0o666),
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    add_mount(
        &mut bundle,
        json!({"destination": "/dev/", "source": dev, "options": ["rbind"]}),
    );
    assert_eq!(bundle.ok("run --bundle BUNDLE ID"), "null\nptmx\n");
}

#[test]
fn a_tmpfs_gets_what_it_covers() {
    let mut bundle =
        script("stat -c %a /etc; cat /etc/passwd | wc -l; cat /etc/deep/link; touch /etc/new");
    std::fs::create_dir(bundle.rootfs().join("etc/deep")).unwrap();
    symlink("../passwd", bundle.rootfs().join("etc/deep/link")).unwrap();
    std::fs::set_permissions(
        bundle.rootfs().join("etc"),
        PermissionsExt::from_mode(0o750),
    )
    .unwrap();
    add_mount(
        &mut bundle,
        json!({"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}),
    );
    let passwd = std::fs::read_to_string(bundle.rootfs().join("etc/passwd")).unwrap();
    assert_eq!(
        bundle.ok("run --bundle BUNDLE ID"),
        format!("750\n2\n{passwd}")
    );
    assert!(!bundle.rootfs().join("etc/new").exists());
}

/// As /etc/resolv.conf is in many images; an absolute link counts from the container's root.
#[test]
fn a_bind_target_may_be_a_link_to_what_is_not_there() {
    let mut bundle = script("cat /etc/resolv.conf /absolute; readlink /etc/resolv.conf");
    let outside = bundle.file("outside");
    std::os::unix::fs::symlink("../run/not/there", bundle.rootfs().join("etc/resolv.conf"))
        .unwrap();
    std::os::unix::fs::symlink(&outside, bundle.rootfs().join("absolute")).unwrap();
    let source = bundle.file("source");
    std::fs::write(&source, "bound\n").unwrap();
    for destination in ["/etc/resolv.conf", "/absolute"] {
        add_mount(
            &mut bundle,
            json!({"destination": destination, "source": source, "options": ["bind", "ro"]}),
        );
    }
    assert_eq!(
        bundle.ok("run --bundle BUNDLE ID"),
        "bound\nbound\n../run/not/there\n"
    );
    assert!(!outside.exists());
    assert!(bundle.rootfs().join("run/not/there").exists());
}

/// fsconfig(2) takes 255 bytes: the layers of an overlay are more.
#[test]
fn long_options_reach_the_file_system() {
    let mut bundle = script("cat /merged/file");
    let mut layers = Vec::new();
    for at in 0..6 {
        let layer = bundle.file(&format!("{}{at}", "layer".repeat(12)));
        std::fs::create_dir(&layer).unwrap();
        layers.push(layer.display().to_string());
    }
    std::fs::write(
        bundle.file(&format!("{}5/file", "layer".repeat(12))),
        "deep\n",
    )
    .unwrap();
    let lower = format!("lowerdir={}", layers.join(":"));
    assert!(lower.len() > 255);
    add_mount(
        &mut bundle,
        json!({"destination": "/merged", "type": "overlay", "source": "overlay", "options": ["ro", lower]}),
    );
    assert_eq!(bundle.ok("run --bundle BUNDLE ID"), "deep\n");
}

#[test]
fn a_mount_that_fails_names_itself_and_the_file_systems_reason() {
    let mut bundle = script("true");
    add_mount(
        &mut bundle,
        json!({"destination": "/x", "type": "tmpfs", "source": "tmpfs", "options": ["size=much"]}),
    );
    let said = bundle.fails("run --bundle BUNDLE ID", 1);
    assert!(
        said.contains("error mounting \"tmpfs\" to rootfs at \"/x\"")
            && said.contains("Bad value for 'size'"),
        "{said}"
    );
    bundle.assert_gone();
}

#[test]
fn recursive_attributes_reach_mounts_below() {
    let mut bundle = script("touch /r/sub/x; touch /n/sub/y");
    let source = bundle.file("source");
    std::fs::create_dir_all(source.join("sub")).unwrap();
    rustix::mount::mount(
        "tmpfs",
        source.join("sub"),
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        c"",
    )
    .unwrap();
    add_mount(
        &mut bundle,
        json!({"destination": "/r", "source": source, "options": ["rbind", "rro"]}),
    );
    add_mount(
        &mut bundle,
        json!({"destination": "/n", "source": source, "options": ["rbind", "ro"]}),
    );
    let output = bundle.run("run --bundle BUNDLE ID");
    let made = (source.join("sub/x").exists(), source.join("sub/y").exists());
    rustix::mount::unmount(source.join("sub"), rustix::mount::UnmountFlags::empty()).unwrap();
    assert_eq!(made, (false, true), "{}", text(&output.stderr));
}

#[test]
fn the_process_has_the_attributes_it_asks_for() {
    let mut bundle = script(
        "umask; grep -E '^(Groups|NoNewPrivs)' /proc/self/status; hostname; cat /proc/sys/kernel/domainname
        cat /proc/sys/net/ipv4/ip_forward /proc/self/oom_score_adj; grep 'open files' /proc/self/limits
        cat /proc/self/timens_offsets; uname -m; ionice; chrt -p $$; pwd",
    );
    let config = &mut bundle.config;
    config["process"]["user"] =
        json!({"uid": 0, "gid": 0, "umask": 0o027, "additionalGids": [7, 9]});
    config["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 100, "hard": 200}]);
    config["process"]["oomScoreAdj"] = 500.into();
    config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
    config["process"]["scheduler"] =
        json!({"policy": "SCHED_BATCH", "nice": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]});
    config["process"]["cwd"] = "/tmp".into();
    config["hostname"] = "one".into();
    config["domainname"] = "two".into();
    config["linux"]["sysctl"] = json!({"net.ipv4.ip_forward": "1"});
    config["linux"]["timeOffsets"] = json!({"monotonic": {"secs": 1000, "nanosecs": 5}});
    config["linux"]["personality"] = json!({"domain": "LINUX32"});
    config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "time"}));
    let out = bundle.ok("run --bundle BUNDLE ID");
    let machine = if cfg!(target_arch = "x86_64") {
        "i686"
    } else {
        "armv8l"
    };
    for expected in [
        "0027\nGroups:\t7 9 \nNoNewPrivs:\t1\none\ntwo\n1\n500\n",
        "Max open files            100                  200",
        "monotonic        1000         5",
        machine,
        "idle",
        "/tmp\n",
    ] {
        assert!(out.contains(expected), "{expected:?} in {out}");
    }
}

#[test]
fn the_callers_groups_are_not_the_containers() {
    let bundle = script("grep ^Groups /proc/self/status");
    bundle.write();
    let command = bundle.command("run --bundle BUNDLE ID");
    let args: Vec<_> = command.get_args().collect();
    let output = std::process::Command::new("setpriv")
        .args(["--groups", "4,20"])
        .arg(command.get_program())
        .args(args)
        .output()
        .unwrap();
    assert_eq!(
        text(&output.stdout),
        "Groups:\t \n",
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn hooks_of_all_kinds_run_where_and_when_they_should() {
    let mut bundle = script("echo program >> /log");
    let log = bundle.rootfs().join("log");
    let script = bundle.file("hook");
    std::fs::write(
        &script,
        "#!/bin/sh\nstate=$(cat); field() { echo \"$state\" | sed -n \"s/.*\\\"$1\\\":\\\"*\\([^,\\\"}]*\\).*/\\1/p\"; }\n\
         root=$2; [ -e /bin/busybox ] && [ ! -e /etc/debian_version ] && root=\n\
         echo \"$1 $(field status) $(readlink /proc/self/ns/mnt | cmp -s - $3 && echo host || echo container) $VAR\" >> $root/log\n",
    )
    .unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::copy(&script, bundle.rootfs().join("hook")).unwrap();
    let mount_namespace = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    let host = bundle.file("host-ns");
    std::fs::write(&host, format!("{}\n", mount_namespace.display())).unwrap();
    let hook = |name: &str| {
        let path = match name {
            "startContainer" => json!("/hook"),
            _ => json!(script),
        };
        json!([{"path": path, "args": ["hook", name, bundle.rootfs(), host], "timeout": 10,
                "env": ["PATH=/bin:/usr/bin", format!("VAR={name}")]}])
    };
    let kinds = [
        "prestart",
        "createRuntime",
        "createContainer",
        "startContainer",
        "poststart",
        "poststop",
    ];
    let hooks: serde_json::Map<_, _> = kinds
        .iter()
        .map(|kind| ((*kind).to_owned(), hook(kind)))
        .collect();
    bundle.config["hooks"] = hooks.into();
    bundle.ok("create --bundle BUNDLE ID");
    let created = "prestart creating host prestart\ncreateRuntime creating host createRuntime\n\
        createContainer creating container createContainer\n";
    assert_eq!(std::fs::read_to_string(&log).unwrap(), created);
    bundle.ok("start ID");
    bundle.wait_for("stopped");
    bundle.ok("delete ID");
    let all = std::fs::read_to_string(&log).unwrap();
    for line in [
        "startContainer created container startContainer\n",
        "program\n",
        "poststart running host poststart\n",
    ] {
        assert!(all.contains(line), "{line:?} in {all}");
    }
    assert!(all.ends_with("poststop stopped host poststop\n"), "{all}");
    let place = |text: &str| all.find(text).unwrap();
    assert!(place("startContainer") < place("program"), "{all}");
}

#[test]
fn a_hook_that_fails_or_takes_too_long_stops_the_container() {
    let mut bundle = Bundle::new(&["sleep", "100"]);
    for kind in ["prestart", "createRuntime", "createContainer"] {
        for (hook, reason) in [
            (json!({"path": "/bin/false"}), "exit code: 1"),
            (
                json!({"path": "/bin/sleep", "args": ["sleep", "100"], "timeout": 1}),
                "timeout",
            ),
            (json!({"path": "/nosuch"}), "hook"),
        ] {
            bundle.config["hooks"] = json!({kind: [hook]});
            let err = bundle.fails("create --bundle BUNDLE ID", 1);
            assert!(
                err.contains(&format!("{kind} hook")) && err.contains(reason),
                "{err}"
            );
            bundle.assert_gone();
        }
    }
    bundle.config["hooks"] = json!({"startContainer": [{"path": "/bin/false"}]});
    bundle.ok("create --bundle BUNDLE ID");
    bundle.run("start ID");
    bundle.wait_for("stopped");
    bundle.ok("delete ID");
    bundle.config["hooks"] = json!({"poststart": [{"path": "/bin/false"}]});
    bundle.ok("create --bundle BUNDLE ID");
    assert!(bundle.fails("start ID", 1).contains("poststart hook"));
    bundle.wait_for("stopped");
}

#[test]
fn a_user_namespace_can_be_joined() {
    let mut first = Bundle::new(&["sleep", "100"]);
    map_users(&mut first);
    first.ok("run -d --bundle BUNDLE ID");
    let state: Value = serde_json::from_str(&first.ok("state ID")).unwrap();
    let pid = state["pid"].as_i64().unwrap();
    let mut second = script("cat /proc/self/uid_map; id -u; hostname");
    map_users(&mut second);
    for kind in ["user", "uts"] {
        let namespaces = second.config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|namespace| namespace["type"] != kind);
        namespaces.push(json!({"type": kind, "path": format!("/proc/{pid}/ns/{kind}")}));
    }
    second.config.as_object_mut().unwrap().remove("hostname");
    second.config["linux"]
        .as_object_mut()
        .unwrap()
        .remove("uidMappings");
    second.config["linux"]
        .as_object_mut()
        .unwrap()
        .remove("gidMappings");
    let out = second.ok("run --bundle BUNDLE ID");
    let fields: Vec<_> = out.split_whitespace().collect();
    assert_eq!(fields, ["0", "100000", "65536", "0", "trustme"], "{out}");
}

#[test]
fn a_seccomp_listener_gets_the_descriptor() {
    use std::io::Read;
    let mut bundle = script("exit 3");
    let socket = bundle.file("listener");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": socket, "listenerMetadata": "told",
        "syscalls": [{"names": ["mkdir"], "action": "SCMP_ACT_NOTIFY"}],
    });
    let told = std::thread::spawn(move || {
        let (mut connection, _) = listener.accept().unwrap();
        let mut message = String::new();
        connection.read_to_string(&mut message).unwrap();
        serde_json::from_str::<Value>(&message).unwrap()
    });
    assert_eq!(bundle.run("run --bundle BUNDLE ID").status.code(), Some(3));
    let message = told.join().unwrap();
    assert_eq!(message["metadata"], "told");
    assert_eq!(message["state"]["id"], bundle.id);
    assert_eq!(message["fds"], json!(["seccompFd"]));
}
