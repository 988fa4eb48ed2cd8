//! cgroup v2: directly where it is mounted on /sys/fs/cgroup, else in a mount namespace in which it is. Without
//! controllers (they belong to v1 on a hybrid machine) limits cannot be tested there, but all else can.

mod support;

use std::path::Path;
use std::process::Command;

use serde_json::json;
use support::{Bundle, text};

/// Runs a shell script with cgroup v2 on /sys/fs/cgroup, `$TRUSTME` the program with its root directory, `$ID` and
/// `$BUNDLE`; what it prints, or none where this machine has no cgroup v2.
fn script(bundle: &Bundle, script: &str) -> Option<String> {
    let unified = Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    if !unified && !Path::new("/sys/fs/cgroup/unified/cgroup.controllers").exists() {
        eprintln!("skipped: cgroup v2 is not mounted");
        return None;
    }
    let enter = match unified {
        true => "",
        false => "mount --make-rprivate /; mount --bind /sys/fs/cgroup/unified /sys/fs/cgroup;",
    };
    bundle.write();
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-euc", &format!("{enter} cd /; {script}")]);
    command.env(
        "TRUSTME",
        format!(
            "{} --root {}",
            env!("CARGO_BIN_EXE_trustme"),
            bundle.root().display()
        ),
    );
    command
        .env("ID", &bundle.id)
        .env("BUNDLE", bundle.path())
        .stdin(std::process::Stdio::null());
    let output = support::output(command, &bundle.file("output"));
    assert!(
        output.status.success(),
        "{}{}",
        text(&output.stdout),
        text(&output.stderr)
    );
    Some(text(&output.stdout))
}

#[test]
fn a_container_lives_in_its_cgroup() {
    let mut bundle = Bundle::new(&["sleep", "100"]);
    bundle.config["linux"]["resources"] = json!({});
    let lines = "$TRUSTME run --detach --bundle $BUNDLE $ID
        cat /proc/$($TRUSTME ps --format json $ID | tr -d '[]')/cgroup | grep ^0:
        $TRUSTME exec $ID grep ^0: /proc/self/cgroup
        $TRUSTME exec $ID grep ' /sys/fs/cgroup ' /proc/self/mounts
        $TRUSTME pause $ID; $TRUSTME list; $TRUSTME resume $ID
        mkdir /sys/fs/cgroup/trustme-test/$ID/below
        $TRUSTME delete -f $ID
        find /sys/fs/cgroup/trustme-test -type d -path \"*$ID*\"; rmdir /sys/fs/cgroup/trustme-test 2>/dev/null || true";
    let Some(printed) = script(&bundle, lines) else {
        return;
    };
    let lines: Vec<_> = printed.lines().collect();
    assert_eq!(
        lines[0],
        format!("0::/trustme-test/{}", bundle.id),
        "{printed}"
    );
    assert_eq!(lines[1], "0::/", "a cgroup namespace of its own: {printed}");
    assert!(
        lines[2].starts_with("cgroup /sys/fs/cgroup cgroup2 ro,nosuid,nodev,noexec,relatime"),
        "{printed}"
    );
    assert!(lines[4].contains("paused"), "{printed}");
    assert_eq!(lines.len(), 5, "nothing is left: {printed}");
}

#[test]
fn devices_are_restricted_by_a_program() {
    // Nodes may be made, but not opened: /dev/kmsg (1:11) is not allowed, /dev/null (1:3) always is.
    let attempt = "mknod /tmp/kmsg c 1 11; mknod /tmp/null c 1 3; mknod /tmp/loop b 7 0
        for file in kmsg null loop; do (: < /tmp/$file) && echo $file opened; done; exit 0";
    let mut bundle = Bundle::new(&["sh", "-c", attempt]);
    for set in ["bounding", "effective", "permitted"] {
        bundle.config["process"]["capabilities"][set] =
            json!(["CAP_MKNOD", "CAP_SYS_ADMIN", "CAP_SYSLOG"]);
    }
    let run = "$TRUSTME run --bundle $BUNDLE $ID 2>/dev/null";
    let Some(printed) = script(&bundle, run) else {
        return;
    };
    assert_eq!(printed, "null opened\n");
    let rules = json!([{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}]);
    bundle.config["linux"]["resources"]["devices"] = rules;
    assert_eq!(script(&bundle, run).unwrap(), "kmsg opened\nnull opened\n");
}
