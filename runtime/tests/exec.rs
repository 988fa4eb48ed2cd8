//! Further processes inside of a container, by the built program.

mod support;

use serde_json::json;
use support::{Bundle, text};

/// A running container.
fn running(change: impl Fn(&mut serde_json::Value)) -> Bundle {
    let mut bundle = Bundle::new(&["sleep", "100"]);
    change(&mut bundle.config);
    bundle.ok("run -d --bundle BUNDLE ID");
    bundle
}

/// What `exec` with these flags prints when it runs a shell script.
fn script(bundle: &Bundle, flags: &[&str], script: &str) -> String {
    let mut command = bundle.command("exec");
    command
        .args(flags)
        .arg(&bundle.id)
        .args(["sh", "-c", script]);
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{script}: {}",
        text(&output.stderr)
    );
    text(&output.stdout)
}

#[test]
fn exit_codes_and_errors_are_runcs() {
    let bundle = running(|_| ());
    let code = |args: &[&str]| {
        let output = bundle.command("exec ID").args(args).output().unwrap();
        (output.status.code().unwrap(), text(&output.stderr))
    };
    assert_eq!(code(&["true"]).0, 0);
    assert_eq!(code(&["sh", "-c", "exit 9"]).0, 9);
    assert_eq!(code(&["sh", "-c", "kill -9 $$"]).0, 137);
    let prefix = "exec failed: unable to start container process: exec: ";
    for (program, reason) in [
        ("nosuch", "\"nosuch\": executable file not found in $PATH\n"),
        (
            "/nosuch",
            "\"/nosuch\": stat /nosuch: no such file or directory\n",
        ),
        ("/etc", "\"/etc\": permission denied\n"),
    ] {
        assert_eq!(code(&[program]), (255, format!("{prefix}{reason}")));
    }
    let left = std::fs::read_dir(bundle.root().join(&bundle.id)).unwrap();
    let mut left: Vec<_> = left
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["config.json", "state.json"], "no sockets are left");
}

#[test]
fn the_process_is_what_the_flags_say() {
    let bundle = running(|_| ());
    let printed = script(
        &bundle,
        &[
            "--user",
            "1000:1001",
            "-g",
            "7",
            "--cwd",
            "/tmp",
            "-e",
            "A=b",
        ],
        "id; pwd; echo $A $HOME",
    );
    assert_eq!(
        printed,
        "uid=1000(user) gid=1001 groups=7\n/tmp\nb /home/user\n"
    );
    let status = script(
        &bundle,
        &["--cap", "CAP_SYS_ADMIN"],
        "grep CapBnd /proc/self/status",
    );
    let bounding = u64::from_str_radix(status.split_whitespace().last().unwrap(), 16).unwrap();
    assert_ne!(
        bounding & (1 << 21),
        0,
        "CAP_SYS_ADMIN (21) is in {bounding:x}"
    );

    let process = bundle.file("process.json");
    let json = json!({"cwd": "/root", "args": ["sh", "-c", "pwd; id -u"], "env": ["PATH=/bin"], "user": {"uid": 5, "gid": 5}});
    std::fs::write(&process, json.to_string()).unwrap();
    let output = bundle
        .command("exec")
        .arg("--process")
        .arg(&process)
        .arg(&bundle.id)
        .output()
        .unwrap();
    assert_eq!(
        text(&output.stdout),
        "/root\n5\n",
        "{}",
        text(&output.stderr)
    );
    std::fs::write(&process, "{\"cwd\":\n 7}").unwrap();
    let output = bundle
        .command("exec")
        .arg("--process")
        .arg(&process)
        .arg(&bundle.id)
        .output()
        .unwrap();
    assert!(
        text(&output.stderr).contains("process.json") && text(&output.stderr).contains("line 2")
    );
}

#[test]
fn the_containers_seccomp_profile_holds_for_it() {
    let bundle = running(|config| {
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}],
        });
        // "false" is what engines write when they mean "not set".
        config["process"]["noNewPrivileges"] = false.into();
    });
    assert_eq!(
        script(&bundle, &[], "grep Seccomp: /proc/self/status"),
        "Seccomp:\t2\n"
    );
    assert_eq!(
        script(&bundle, &[], "mkdir /tmp/d 2>&1 || true"),
        "mkdir: can't create directory '/tmp/d': Function not implemented\n"
    );
}

#[test]
fn it_joins_the_containers_user_namespace() {
    let bundle = running(|config| {
        config["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "user"}));
        let mapping = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
        config["linux"]["uidMappings"] = mapping.clone();
        config["linux"]["gidMappings"] = mapping;
    });
    for user in ["0", "1000"] {
        let map = script(&bundle, &["--user", user], "cat /proc/self/uid_map; id -u");
        let fields: Vec<_> = map.split_whitespace().collect();
        assert_eq!(fields, ["0", "100000", "65536", user]);
    }
    let host = std::fs::read_link("/proc/self/ns/user").unwrap();
    assert_ne!(
        script(&bundle, &[], "readlink /proc/self/ns/user").trim(),
        host.to_str().unwrap()
    );
    let same = "[ $(readlink /proc/self/ns/user) = $(readlink /proc/1/ns/user) ] && echo same";
    assert_eq!(script(&bundle, &[], same), "same\n");
}

#[test]
fn it_does_not_depend_on_the_bundle() {
    let bundle = running(|_| ());
    std::fs::remove_file(bundle.path().join("config.json")).unwrap();
    let output = bundle.command("exec ID echo still").output().unwrap();
    assert_eq!(text(&output.stdout), "still\n");
}

#[test]
fn detached_it_writes_its_pid() {
    let bundle = running(|_| ());
    let pid_file = bundle.file("pid");
    let line = format!(
        "exec --detach --pid-file {} ID sleep 50",
        pid_file.display()
    );
    bundle.ok(&line);
    let pid = std::fs::read_to_string(&pid_file).unwrap();
    assert!(
        std::fs::read_to_string(format!("/proc/{pid}/cmdline"))
            .unwrap()
            .starts_with("sleep")
    );
    bundle.ok("delete -f ID");
    bundle.assert_gone();
}

#[test]
fn preserved_descriptors_are_passed_and_no_others() {
    let bundle = running(|_| ());
    let listed = |flag: &str| {
        let mut command = bundle.command("exec");
        command
            .args(["--preserve-fds", flag])
            .arg(&bundle.id)
            .args(["ls", "/proc/self/fd"]);
        let mut shell = std::process::Command::new("sh");
        // Descriptors 3 and 4 are there for the program.
        shell
            .args(["-c", "exec \"$@\" 3</dev/null 4</dev/null", "sh"])
            .arg(command.get_program())
            .args(command.get_args());
        text(&shell.output().unwrap().stdout)
            .split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    // The last one is ls's own.
    assert_eq!(listed("0"), ["0", "1", "2", "3"]);
    assert_eq!(listed("2"), ["0", "1", "2", "3", "4", "5"]);
}
