//! Parts of the specification that hand something of the kernel's on: scheduling, memory policy, network devices, resctrl; and
//! an ordinary user.

mod support;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use serde_json::json;
use support::{Bundle, text};

/// An ordinary user who is in no /etc/passwd, and has no subordinate ids.
const UID: u32 = 54_321;

#[test]
fn exec_has_scheduling_of_its_own() {
    let bundle = Bundle::new(&["sleep", "100"]);
    bundle.ok("run -d --bundle BUNDLE ID");
    // Niceness and policy: SCHED_BATCH is 3, SCHED_OTHER 0 (proc_pid_stat(5)).
    let script =
        "ionice; cut -d' ' -f19,41 /proc/self/stat; grep Cpus_allowed_list /proc/self/status";
    let process = json!({
        "args": ["sh", "-c", script],
        "cwd": "/",
        "env": ["PATH=/bin"],
        "user": {"uid": 0, "gid": 0},
        "scheduler": {"policy": "SCHED_BATCH", "nice": 7},
        "ioPriority": {"class": "IOPRIO_CLASS_BE", "priority": 6},
        "execCPUAffinity": {"initial": "0-1", "final": "0"},
    });
    let file = bundle.file("process.json");
    std::fs::write(&file, process.to_string()).unwrap();
    let line = format!("exec --process {} ID", file.display());
    assert_eq!(
        bundle.ok(&line),
        "best-effort: prio 6\n7 3\nCpus_allowed_list:\t0\n"
    );
    // Without them, it is as its caller.
    let plain = bundle
        .command("exec ID sh -c")
        .arg(script)
        .output()
        .unwrap();
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let cpus = own
        .lines()
        .find(|line| line.starts_with("Cpus_allowed_list"))
        .unwrap();
    let plain = text(&plain.stdout);
    assert!(plain.ends_with(&format!("\n0 0\n{cpus}\n")), "{plain}");
}

#[test]
fn wrong_affinities_are_named() {
    let bundle = Bundle::new(&["sleep", "100"]);
    bundle.ok("run -d --bundle BUNDLE ID");
    let process = json!({
        "args": ["true"], "cwd": "/", "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0},
        "execCPUAffinity": {"initial": "x"},
    });
    let file = bundle.file("process.json");
    std::fs::write(&file, process.to_string()).unwrap();
    let said = bundle.fails(&format!("exec --process {} ID", file.display()), 255);
    assert!(
        said.contains("execCPUAffinity format: x at line 1"),
        "{said}"
    );
}

#[test]
fn the_memory_policy_is_the_containers() {
    if !Path::new("/proc/self/numa_maps").exists() {
        println!("skipped: this kernel has no NUMA");
        return;
    }
    let mut bundle = Bundle::new(&["cat", "/proc/self/numa_maps"]);
    bundle.config["linux"]["memoryPolicy"] =
        json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]});
    let out = bundle.ok("run --bundle BUNDLE ID");
    assert!(out.contains(" bind=static:0 "), "{out}");
    bundle.config["linux"]["memoryPolicy"] = json!({"mode": "MPOL_BIND", "nodes": "900"});
    let said = bundle.fails("run --bundle BUNDLE ID", 1);
    assert!(said.contains("memory policy"), "{said}");
    bundle.assert_gone();
}

#[test]
fn resctrl_that_is_not_there_is_an_error() {
    if Path::new("/sys/fs/resctrl/schemata").exists() {
        println!("skipped: this machine has Intel RDT");
        return;
    }
    let mut bundle = Bundle::new(&["true"]);
    bundle.config["linux"]["intelRdt"] = json!({"closID": "c", "l3CacheSchema": "L3:0=f"});
    let said = bundle.fails("run --bundle BUNDLE ID", 1);
    assert!(said.to_lowercase().contains("resctrl"), "{said}");
    bundle.assert_gone();
}

/// In a network namespace of the test's own: no device of this machine is moved.
#[test]
fn a_network_device_moves_in_with_its_address() {
    let mut bundle = Bundle::new(&["ip", "address", "show", "dev", "inside"]);
    bundle.config["linux"]["netDevices"] = json!({"outside": {"name": "inside"}});
    bundle.write();
    let run = bundle.command("run --bundle BUNDLE ID");
    let words: Vec<_> = std::iter::once(run.get_program())
        .chain(run.get_args())
        .map(|word| word.to_str().unwrap())
        .collect();
    let script = format!(
        "ip link add outside type veth peer name other && ip link set other up && ip address add 10.99.0.1/24 dev outside && {} && ! ip link show outside",
        words.join(" ")
    );
    let output = Command::new("unshare")
        .args(["--net", "sh", "-c", &script])
        .output()
        .unwrap();
    let out = text(&output.stdout);
    assert!(output.status.success(), "{out}{}", text(&output.stderr));
    assert!(
        out.contains("inet 10.99.0.1/24") && out.contains("UP"),
        "{out}"
    );
    bundle.assert_gone();
}

#[test]
fn a_network_device_that_is_not_there_is_named() {
    let mut bundle = Bundle::new(&["true"]);
    bundle.config["linux"]["netDevices"] = json!({"nosuch0": {"name": "inside"}});
    let said = bundle.fails("run --bundle BUNDLE ID", 1);
    assert!(said.contains("nosuch0"), "{said}");
    bundle.assert_gone();
}

/// Who has no subordinate ids maps but the own one. There is no cgroup for such a user, and so no limit.
#[test]
fn an_ordinary_user_runs_a_container() {
    let mut bundle = Bundle::new(&[
        "sh",
        "-c",
        "id -u; cat /proc/self/uid_map; echo made > /made",
    ]);
    let dir = bundle.file("");
    let owned = Command::new("chown")
        .arg("-R")
        .arg(UID.to_string())
        .arg(&dir)
        .status();
    assert!(owned.unwrap().success());
    let spec = support::trustme()
        .args(["spec", "--rootless", "--bundle"])
        .arg(bundle.file("bundle"))
        .output();
    // The bundle has one already.
    assert!(!spec.unwrap().status.success());
    std::fs::remove_file(bundle.file("bundle/config.json")).unwrap();
    let spec = support::trustme()
        .args(["spec", "--rootless", "--bundle"])
        .arg(bundle.file("bundle"))
        .uid(UID)
        .gid(UID)
        .output()
        .unwrap();
    assert!(spec.status.success(), "{}", text(&spec.stderr));
    let rootless = std::fs::read(bundle.file("bundle/config.json")).unwrap();
    let mut rootless: serde_json::Value = serde_json::from_slice(&rootless).unwrap();
    rootless["process"]["args"] = bundle.config["process"]["args"].clone();
    rootless["process"]["terminal"] = false.into();
    rootless["root"]["readonly"] = false.into();
    bundle.config = rootless;
    bundle.write();
    let run = |bundle: &Bundle| {
        let mut command = bundle.command("run --bundle BUNDLE ID");
        command.env_remove("XDG_RUNTIME_DIR").uid(UID).gid(UID);
        command.output().unwrap()
    };
    let output = run(&bundle);
    let out = text(&output.stdout);
    assert!(output.status.success(), "{out}{}", text(&output.stderr));
    let map: Vec<_> = out.split_whitespace().collect();
    assert_eq!(map, ["0", "0", &UID.to_string(), "1"]);
    let made = std::fs::metadata(bundle.rootfs().join("made")).unwrap();
    assert_eq!(std::os::unix::fs::MetadataExt::uid(&made), UID);
    bundle.assert_gone();

    // A limit that nobody keeps must not be promised.
    bundle.config["linux"]["resources"] = json!({"memory": {"limit": 1 << 26}});
    bundle.write();
    let output = run(&bundle);
    assert!(!output.status.success());
    let said = text(&output.stderr);
    assert!(said.contains("cannot set limits"), "{said}");
    bundle.assert_gone();
}
