//! Containers from creation to deletion, by the built program.

mod support;

use serde_json::{Value, json};
use support::{Bundle, text, trustme, wait_until};

#[test]
fn a_container_is_created_started_killed_and_deleted() {
    let bundle = Bundle::new(&["sleep", "100"]);
    let pid_file = bundle.file("pid");
    bundle.ok(&format!(
        "create --bundle BUNDLE --pid-file {} ID",
        pid_file.display()
    ));
    let state: Value = serde_json::from_str(&bundle.ok("state ID")).unwrap();
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], bundle.id.as_str());
    assert_eq!(state["bundle"], bundle.path().to_str().unwrap());
    assert_eq!(state["rootfs"], bundle.rootfs().to_str().unwrap());
    assert_eq!(state["owner"], "");
    assert_eq!(
        state["pid"].to_string(),
        std::fs::read_to_string(&pid_file).unwrap()
    );
    assert!(
        bundle
            .fails("create --bundle BUNDLE ID", 1)
            .contains("container with given ID already exists")
    );
    assert_eq!(bundle.status(), "created", "the failed create did no harm");

    bundle.ok("start ID");
    assert_eq!(bundle.status(), "running");
    assert!(
        bundle
            .fails("start ID", 1)
            .contains("cannot start an already running container")
    );
    assert!(
        bundle
            .fails("delete ID", 1)
            .contains("is not stopped: running")
    );
    assert!(bundle.ok("ps ID").contains("sleep 100"));
    assert_eq!(
        bundle.ok("ps --format json ID").trim(),
        format!("[{}]", state["pid"])
    );
    assert!(bundle.ok("list").contains("running"));
    assert_eq!(bundle.ok("list -q").trim(), bundle.id);
    let list: Value = serde_json::from_str(&bundle.ok("list -f json")).unwrap();
    assert_eq!(list[0]["owner"], "root");

    bundle.ok("kill ID KILL");
    bundle.wait_for("stopped");
    let state: Value = serde_json::from_str(&bundle.ok("state ID")).unwrap();
    assert_eq!(state["pid"], 0);
    assert!(bundle.fails("kill ID", 1).contains("container not running"));
    assert!(
        bundle
            .fails("exec ID true", 255)
            .contains("cannot exec in a stopped container")
    );
    bundle.ok("delete ID");
    bundle.assert_gone();
    assert!(
        bundle
            .fails("delete ID", 1)
            .contains("container does not exist")
    );
    bundle.ok("delete --force ID");
    assert!(
        bundle
            .fails("state ID", 1)
            .contains("container does not exist")
    );
}

#[test]
fn run_gives_the_exit_code_and_removes_the_container() {
    let mut bundle = Bundle::new(&["sh", "-c", "echo out; echo err >&2; exit 7"]);
    let output = bundle.run("run --bundle BUNDLE ID");
    assert_eq!(output.status.code(), Some(7));
    assert_eq!(
        (text(&output.stdout).as_str(), text(&output.stderr).as_str()),
        ("out\n", "err\n")
    );
    bundle.assert_gone();

    bundle.config["process"]["args"] = json!(["sh", "-c", "sh -c 'kill -9 $$'; exit $?"]);
    assert_eq!(
        bundle.run("run --bundle BUNDLE ID").status.code(),
        Some(137)
    );

    bundle.config["process"]["args"] = json!(["true"]);
    bundle.ok("run --keep --bundle BUNDLE ID");
    assert_eq!(bundle.status(), "stopped");
    bundle.ok("delete ID");
    bundle.assert_gone();
}

#[test]
fn missing_programs_are_reported_as_runc_does_and_leave_nothing() {
    let mut bundle = Bundle::new(&[]);
    let pid_file = bundle.file("pid");
    for (program, reason) in [
        (
            "nosuch",
            "exec: \"nosuch\": executable file not found in $PATH",
        ),
        (
            "/nosuch",
            "exec: \"/nosuch\": stat /nosuch: no such file or directory",
        ),
        ("/etc", "exec: \"/etc\": permission denied"),
        ("/etc/passwd", "exec: \"/etc/passwd\": permission denied"),
    ] {
        bundle.config["process"]["args"] = json!([program]);
        let log = bundle.file("log");
        bundle.write();
        let mut command = trustme();
        command
            .arg("--log")
            .arg(&log)
            .args(["--log-format", "json", "--root"])
            .arg(bundle.root());
        command
            .args(["create", "--pid-file"])
            .arg(&pid_file)
            .arg("--bundle")
            .arg(bundle.path())
            .arg(&bundle.id);
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let expected = format!("create failed: unable to start container process: {reason}");
        assert_eq!(text(&output.stderr).trim(), expected);
        let line: Value = serde_json::from_str(
            std::fs::read_to_string(&log)
                .unwrap()
                .lines()
                .last()
                .unwrap(),
        )
        .unwrap();
        assert_eq!(line["level"], "error");
        assert_eq!(line["msg"], expected.as_str());
        bundle.assert_gone();
        assert!(!pid_file.exists());
    }
}

#[test]
fn whatever_fails_a_create_leaves_nothing() {
    type Change = fn(&mut Value);
    let changes: [(&str, Change); 9] = [
        ("ociVersion", |config| config["ociVersion"] = "2.0".into()),
        ("args", |config| config["process"]["args"] = json!([])),
        ("rootfs", |config| config["root"]["path"] = "nosuch".into()),
        ("/nosuch/source", |config| {
            let mount = json!({"destination": "/m", "type": "bind", "source": "/nosuch/source", "options": ["bind"]});
            config["mounts"].as_array_mut().unwrap().push(mount);
        }),
        ("hook", |config| {
            config["hooks"] = json!({"prestart": [{"path": "/bin/false"}]})
        }),
        ("hook", |config| {
            config["hooks"] = json!({"createRuntime": [{"path": "/nosuch/hook"}]})
        }),
        ("hook", |config| {
            config["hooks"] = json!({"createContainer": [{"path": "/bin/false"}]})
        }),
        ("tty", |config| config["process"]["terminal"] = true.into()),
        ("memory", |config| {
            config["linux"]["resources"] = json!({"memory": {"limit": 1}})
        }),
    ];
    for (reason, change) in changes {
        let mut bundle = Bundle::new(&["true"]);
        change(&mut bundle.config);
        let said = bundle.fails("create --bundle BUNDLE ID", 1);
        assert!(said.contains(reason), "{reason}: {said}");
        bundle.assert_gone();
        bundle.fails("state ID", 1);
    }
}

#[test]
fn a_bad_configuration_is_named_with_its_place() {
    let bundle = Bundle::new(&["true"]);
    let config = bundle.path().join("config.json");
    let create = || {
        let output = bundle
            .command("create --bundle BUNDLE ID")
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(1));
        text(&output.stderr)
    };
    std::fs::write(&config, "{\"ociVersion\": \"1.0.2\",\n \"process\": 7}").unwrap();
    let said = create();
    assert!(
        said.contains("config.json") && said.contains("line 2 column"),
        "{said}"
    );
    std::fs::remove_file(&config).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", &config).unwrap();
    assert!(create().contains("symbolic link"));
    std::fs::remove_file(&config).unwrap();
    assert!(create().contains("not found"));
    bundle.assert_gone();
}

#[test]
fn a_paused_container_is_thawed_and_killed() {
    let bundle = Bundle::new(&["sleep", "100"]);
    bundle.ok("run -d --bundle BUNDLE ID");
    assert!(bundle.fails("resume ID", 1).contains("not paused"));
    bundle.ok("pause ID");
    assert_eq!(bundle.status(), "paused");
    assert!(bundle.fails("exec ID true", 255).contains("paused"));
    assert!(bundle.fails("start ID", 1).contains("paused"));
    bundle.ok("resume ID");
    assert_eq!(bundle.status(), "running");
    bundle.ok("pause ID");
    bundle.ok("delete -f ID");
    bundle.assert_gone();
}

#[test]
fn delete_removes_cgroups_below_the_containers() {
    let bundle = Bundle::new(&["sleep", "100"]);
    bundle.ok("run -d --bundle BUNDLE ID");
    let cgroups = bundle.cgroups();
    assert!(!cgroups.is_empty());
    for cgroup in &cgroups {
        std::fs::create_dir_all(cgroup.join("a/b")).unwrap();
    }
    bundle.ok("exec -d --cgroup a/b ID sleep 200");
    assert!(bundle.ok("ps ID").contains("sleep 200"));
    bundle.ok("delete -f ID");
    bundle.assert_gone();
}

#[test]
fn limits_are_set_and_updated() {
    let mut bundle = Bundle::new(&["sleep", "100"]);
    bundle.config["linux"]["resources"] = json!({
        "memory": {"limit": 50 << 20}, "pids": {"limit": 33}, "cpu": {"quota": 20000, "period": 100_000},
    });
    bundle.ok("run -d --bundle BUNDLE ID");
    let unified = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
    let read = |v1: &str, v2: &str| {
        let below = format!("{}/{}", support::CGROUP_PARENT, bundle.id);
        let file = match (unified, v1.split_once('.')) {
            (false, Some((controller, _))) => format!("/sys/fs/cgroup/{controller}/{below}/{v1}"),
            _ => format!("/sys/fs/cgroup/{below}/{v2}"),
        };
        std::fs::read_to_string(&file)
            .expect(&file)
            .trim()
            .to_owned()
    };
    let limits = || {
        let cpu = match unified {
            true => read("", "cpu.max"),
            false => format!(
                "{} {}",
                read("cpu.cfs_quota_us", ""),
                read("cpu.cfs_period_us", "")
            ),
        };
        (
            read("memory.limit_in_bytes", "memory.max"),
            read("pids.max", "pids.max"),
            cpu,
        )
    };
    let expected =
        |memory: u64, pids: &str, cpu: &str| (memory.to_string(), pids.to_owned(), cpu.to_owned());
    assert_eq!(limits(), expected(50 << 20, "33", "20000 100000"));
    bundle.ok("update --memory 60M --pids-limit 44 ID");
    assert_eq!(limits(), expected(60 << 20, "44", "20000 100000"));
    // A period below the quota's: refused by the kernel unless both are set in the right order.
    bundle.ok("update --cpu-period 10000 --cpu-quota 5000 ID");
    bundle.ok("update --cpu-period 900000 --cpu-quota 800000 ID");
    assert_eq!(limits(), expected(60 << 20, "44", "800000 900000"));
    let stats: Value = serde_json::from_str(&bundle.ok("events --stats ID")).unwrap();
    assert_eq!(stats["type"], "stats");
    assert_eq!(stats["data"]["memory"]["usage"]["limit"], 60 << 20);
    assert_eq!(stats["data"]["pids"]["current"], 1);
}

#[test]
fn hooks_run_in_order_and_get_the_state() {
    let mut bundle = Bundle::new(&["sleep", "100"]);
    let log = bundle.file("hooks");
    let hook = |name: &str| {
        let script = format!("(printf '{name} '; cat; echo) >> {}", log.display());
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script]}])
    };
    bundle.config["hooks"] = json!({
        "prestart": hook("prestart"), "createRuntime": hook("createRuntime"),
        "createContainer": hook("createContainer"), "poststart": hook("poststart"), "poststop": hook("poststop"),
    });
    bundle.config["annotations"] = json!({"org.example": "yes"});
    bundle.ok("create --bundle BUNDLE ID");
    bundle.ok("start ID");
    bundle.ok("delete -f ID");
    let text = std::fs::read_to_string(&log).unwrap();
    let runs: Vec<(&str, Value)> = text
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, state)| (name, serde_json::from_str(state).unwrap()))
        .collect();
    let names: Vec<_> = runs.iter().map(|(name, _)| *name).collect();
    assert_eq!(
        names,
        [
            "prestart",
            "createRuntime",
            "createContainer",
            "poststart",
            "poststop"
        ]
    );
    for (name, state) in &runs {
        assert_eq!(state["id"], bundle.id.as_str(), "{name}");
        assert_eq!(state["bundle"], bundle.path().to_str().unwrap(), "{name}");
        assert_eq!(state["annotations"]["org.example"], "yes", "{name}");
    }
    let status: Vec<_> = runs
        .iter()
        .map(|(_, state)| state["status"].as_str().unwrap())
        .collect();
    assert_eq!(
        status,
        ["creating", "creating", "creating", "running", "stopped"]
    );
}

#[test]
fn a_signal_reaches_the_container_in_the_foreground() {
    let bundle = Bundle::new(&[
        "sh",
        "-c",
        "trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done",
    ]);
    bundle.write();
    let output = bundle.file("output");
    let mut run = bundle
        .command("run --bundle BUNDLE ID")
        .stdout(std::fs::File::create(&output).unwrap())
        .spawn()
        .unwrap();
    wait_until("the container is ready", || {
        std::fs::read_to_string(&output).is_ok_and(|text| text == "ready\n")
    });
    rustix::process::kill_process(
        rustix::process::Pid::from_child(&run),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    assert_eq!(support::wait(&mut run).code(), Some(5));
    bundle.assert_gone();
}
