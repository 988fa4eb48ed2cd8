//! `features`, field by field: whatever it says is tried.

mod support;

use std::collections::BTreeSet;

use serde_json::{Value, json};
use support::{Bundle, text, trustme};

fn features() -> Value {
    let output = trustme().arg("features").output().unwrap();
    assert!(output.status.success());
    serde_json::from_slice(&output.stdout).unwrap()
}

fn strings<'a>(features: &'a Value, pointer: &str) -> Vec<&'a str> {
    let list = features.pointer(pointer).unwrap().as_array().unwrap();
    assert!(!list.is_empty(), "{pointer}");
    list.iter().map(|value| value.as_str().unwrap()).collect()
}

#[test]
fn versions_are_taken_from_the_oldest_to_the_newest() {
    let features = features();
    let mut bundle = Bundle::new(&["true"]);
    for key in ["ociVersionMin", "ociVersionMax"] {
        bundle.config["ociVersion"] = features[key].clone();
        bundle.ok("run --bundle BUNDLE ID");
    }
}

/// The options that show in mountinfo, as they do there; with `r` in front they count for all mounts below too.
const ATTRIBUTES: [(&str, &str); 8] = [
    ("noatime", "noatime"),
    ("nodev", "nodev"),
    ("nodiratime", "nodiratime"),
    ("noexec", "noexec"),
    ("nosuid", "nosuid"),
    ("nosymfollow", "nosymfollow"),
    ("relatime", "relatime"),
    ("ro", "ro"),
];

#[test]
fn every_mount_option_is_taken_and_has_its_effect() {
    let features = features();
    let mut bundle = Bundle::new(&["grep", " /x ", "/proc/self/mountinfo"]);
    std::fs::create_dir(bundle.file("source")).unwrap();
    let standard = bundle.config["mounts"].clone();
    for option in strings(&features, "/mountOptions") {
        let (kind, source, mut options) = match option {
            // Asked for without a mapping, there is none to take: spec.rs has them.
            "idmap" | "ridmap" => continue,
            "tmpcopyup" | "sync" | "async" | "dirsync" => ("tmpfs", "tmpfs".into(), vec![]),
            _ => ("none", bundle.file("source"), vec!["bind"]),
        };
        options.push(option);
        bundle.config["mounts"] = standard.clone();
        bundle.config["mounts"]
            .as_array_mut()
            .unwrap()
            .push(json!({"destination": "/x", "type": kind, "source": source, "options": options}));
        let line = bundle.ok("run --bundle BUNDLE ID");
        let shown = ATTRIBUTES
            .iter()
            .find(|(name, _)| option == *name || option.strip_prefix('r') == Some(name));
        if let Some((_, word)) = shown {
            let flags = line.split(' ').nth(5).unwrap();
            assert!(
                flags.split(',').any(|flag| flag == *word),
                "{option}: {line}"
            );
        }
        for (name, word) in [
            ("shared", "shared:"),
            ("slave", "master:"),
            ("unbindable", "unbindable"),
        ] {
            if option == name || option.strip_prefix('r') == Some(name) {
                // A slave of nobody is private.
                let found = line.contains(word) || name == "slave" && !line.contains("shared:");
                assert!(found, "{option}: {line}");
            }
        }
    }
}

#[test]
fn every_namespace_is_a_new_one() {
    let mut kinds: Vec<String> = Vec::new();
    let features = features();
    for kind in strings(&features, "/linux/namespaces") {
        kinds.push(match kind {
            "mount" => "mnt".into(),
            "network" => "net".into(),
            other => other.into(),
        });
    }
    let script = kinds
        .iter()
        .map(|kind| format!("readlink /proc/self/ns/{kind}"))
        .collect::<Vec<_>>();
    let mut bundle = Bundle::new(&["sh", "-c", &script.join(";")]);
    let list: Vec<_> = strings(&features, "/linux/namespaces")
        .iter()
        .map(|kind| json!({"type": kind}))
        .collect();
    bundle.config["linux"]["namespaces"] = list.into();
    let mapping = json!([{"containerID": 0, "hostID": 0, "size": 65536}]);
    bundle.config["linux"]["uidMappings"] = mapping.clone();
    bundle.config["linux"]["gidMappings"] = mapping;
    let out = bundle.ok("run --bundle BUNDLE ID");
    for (kind, inside) in kinds.iter().zip(out.lines()) {
        let outside = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        assert_ne!(inside, outside.to_str().unwrap(), "{kind}");
    }
    assert_eq!(out.lines().count(), kinds.len());
}

#[test]
fn every_capability_that_we_have_can_be_given() {
    let features = features();
    let listed = strings(&features, "/linux/capabilities");
    let last: usize = std::fs::read_to_string("/proc/sys/kernel/cap_last_cap")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    assert!(
        listed.len() > last,
        "the kernel knows more than {}",
        listed.len()
    );
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let bits = |status: &str| {
        let line = status
            .lines()
            .find(|line| line.starts_with("CapBnd"))
            .unwrap();
        u64::from_str_radix(line.split_whitespace().last().unwrap(), 16).unwrap()
    };
    let given: Vec<&str> = (0..listed.len())
        .filter(|at| bits(&own) >> at & 1 == 1)
        .map(|at| listed[at])
        .collect();
    let mut bundle = Bundle::new(&["grep", "CapBnd", "/proc/self/status"]);
    bundle.config["process"]["capabilities"] =
        json!({"bounding": given, "effective": given, "permitted": given});
    let out = bundle.ok("run --bundle BUNDLE ID");
    assert_eq!(bits(&out), bits(&own));
}

/// A profile whose rule is about a system call that nobody makes: it has to be loaded, that is all.
fn load(bundle: &mut Bundle, seccomp: Value) -> Result<(), String> {
    bundle.config["linux"]["seccomp"] = seccomp;
    bundle.write();
    let output = bundle.command("run --bundle BUNDLE ID").output().unwrap();
    match output.status.success() {
        true => Ok(()),
        false => Err(text(&output.stderr)),
    }
}

#[test]
fn every_part_of_seccomp_can_be_loaded() {
    let features = features();
    let mut bundle = Bundle::new(&["true"]);
    for action in strings(&features, "/linux/seccomp/actions") {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["swapon"], "action": action}],
        });
        let loaded = load(&mut bundle, profile);
        match action {
            // Nobody listens here (spec.rs has a listener).
            "SCMP_ACT_NOTIFY" => assert!(loaded.unwrap_err().contains("listener"), "{action}"),
            _ => loaded.expect(action),
        }
    }
    for operator in strings(&features, "/linux/seccomp/operators") {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{
                "names": ["swapon"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1,
                "args": [{"index": 0, "value": 7, "valueTwo": 7, "op": operator}],
            }],
        });
        load(&mut bundle, profile).expect(operator);
    }
    for arch in strings(&features, "/linux/seccomp/archs") {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": [arch],
            "syscalls": [{"names": ["swapon"], "action": "SCMP_ACT_ERRNO"}],
        });
        // libseccomp does not mix byte orders: those of the other one are known, and refused as such.
        let other = [
            "MIPS",
            "MIPS64",
            "MIPS64N32",
            "PPC",
            "PPC64",
            "S390",
            "S390X",
        ];
        match load(&mut bundle, profile) {
            Err(said) if other.contains(&&arch["SCMP_ARCH_".len()..]) => {
                assert!(
                    said.contains("Architecture/ABI specific failure"),
                    "{arch}: {said}"
                );
            }
            loaded => loaded.expect(arch),
        }
    }
    let known: BTreeSet<_> = strings(&features, "/linux/seccomp/knownFlags")
        .into_iter()
        .collect();
    let supported = strings(&features, "/linux/seccomp/supportedFlags");
    assert!(supported.iter().all(|flag| known.contains(flag)));
    for flag in supported {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "flags": [flag],
            "syscalls": [{"names": ["swapon"], "action": "SCMP_ACT_ERRNO"}],
        });
        load(&mut bundle, profile).expect(flag);
    }
}

#[test]
fn hooks_are_the_six_that_run() {
    let features = features();
    let mut bundle = Bundle::new(&["true"]);
    let log = bundle.file("hooks");
    // Two of the kinds run inside of the container's namespaces, one also inside of its root: there, a device takes the word.
    std::fs::write(bundle.rootfs().join("log"), "").unwrap();
    let mut wanted = Vec::new();
    for kind in strings(&features, "/hooks") {
        let place = match kind {
            "startContainer" => "/log".to_owned(),
            _ => log.display().to_string(),
        };
        let line = format!("echo {kind} >> {place}");
        bundle.config["hooks"][kind] = json!([{"path": "/bin/sh", "args": ["sh", "-c", line]}]);
        wanted.push(kind.to_owned());
    }
    bundle.ok("run --bundle BUNDLE ID");
    let outside = std::fs::read_to_string(&log).unwrap();
    let inside = std::fs::read_to_string(bundle.rootfs().join("log")).unwrap();
    let mut ran: Vec<&str> = outside.lines().chain(inside.lines()).collect();
    ran.sort_unstable();
    wanted.sort_unstable();
    assert_eq!(ran, wanted);
    assert_eq!(ran.len(), 6);
}

#[test]
fn what_a_configuration_may_do_by_annotation_is_named() {
    let features = features();
    let unsafe_ones = strings(&features, "/potentiallyUnsafeConfigAnnotations");
    for name in ["org.trustme.guestos", "org.trustme.volume."] {
        assert!(unsafe_ones.contains(&name), "{unsafe_ones:?}");
    }
    assert_eq!(
        features["annotations"]["org.opencontainers.runc.checkpoint.enabled"],
        "false"
    );
    let said = Bundle::new(&["true"]).fails("checkpoint ID", 1);
    assert!(said.contains("not supported"), "{said}");
}
