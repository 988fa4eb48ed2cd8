//! The contract with the launch hook (docs/architecture.md), with a hook that only keeps to it.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Output;

use serde_json::Value;
use support::{Bundle, text};

/// A bundle, a configuration with a launch mode, and a hook.
struct Launched {
    bundle: Bundle,
    config: PathBuf,
    hook: PathBuf,
}

impl Launched {
    fn new(mode: &str, hook: &str) -> Self {
        let bundle = Bundle::new(&["sleep", "100"]);
        let config = bundle.file("config.toml");
        std::fs::write(&config, format!("[launch]\nmode = \"{mode}\"\n")).unwrap();
        let path = bundle.file("hook");
        let log = bundle.file("hook-log");
        std::fs::write(
            &path,
            format!("#!/bin/sh\nset -e\nLOG={}\n{hook}", log.display()),
        )
        .unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        Self {
            bundle,
            config,
            hook: path,
        }
    }

    fn run(&self, line: &str) -> Output {
        let mut command = self.bundle.command(line);
        command
            .env("TRUSTME_CONFIG", &self.config)
            .env("TRUSTME_HOOK", &self.hook);
        support::output(command, &self.bundle.file("launched"))
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.bundle.file("hook-log")).unwrap_or_default()
    }
}

/// Allows the launch of a configuration that runs another program, and releases.
const ALLOWING: &str = r#"
    [ "$2" = --state-dir ]
    dir=$3
    case $1 in
    launch)
        echo "launch $(cat)" >> $LOG
        [ "$(stat -c %a $dir)" = 700 ]
        flock --nonblock $dir/lock true && exit 1
        mkdir $dir/bundle $dir/mnt
        sed "s/sleep\",\"100/sleep\",\"777/; s|\"path\":\"rootfs\"|\"path\":\"$(dirname $0)/bundle/rootfs\"|" \
            $dir/config.json > $dir/bundle/config.json
        ;;
    release)
        echo release >> $LOG
        rm -rf $dir
        ;;
    esac"#;

#[test]
fn the_container_is_built_from_what_the_hook_wrote() {
    let launched = Launched::new("enforce", ALLOWING);
    let bundle = &launched.bundle;
    bundle.write();
    let output = launched.run("run --detach --bundle BUNDLE ID");
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(bundle.ok("ps ID").contains("sleep 777"));
    let state: Value = serde_json::from_str(&bundle.ok("state ID")).unwrap();
    assert_eq!(
        state["bundle"],
        bundle.path().to_str().unwrap(),
        "the caller's bundle is shown"
    );
    let log = launched.log();
    let given: Value = serde_json::from_str(log.trim().strip_prefix("launch ").unwrap()).unwrap();
    assert_eq!(given["status"], "creating");
    assert_eq!(given["id"], bundle.id.as_str());
    assert_eq!(given["bundle"], bundle.path().to_str().unwrap());
    assert!(bundle.root().join("@launch").join(&bundle.id).is_dir());

    assert!(launched.run("exec ID true").status.success());
    let features: Value = serde_json::from_slice(&launched.run("features").stdout).unwrap();
    assert_eq!(
        features["annotations"]["org.trustme.launch.mode"],
        "enforce"
    );
    let deleted = launched.run("delete -f ID");
    assert!(deleted.status.success(), "{}", text(&deleted.stderr));
    assert!(launched.log().ends_with("release\n"));
    bundle.assert_gone();
}

#[test]
fn a_refusal_is_the_error_and_nothing_is_left() {
    let refusing = r#"if [ $1 = launch ]; then echo "error: image /x.img: signature does not match" >&2; exit 1; fi; rm -rf $3"#;
    let launched = Launched::new("enforce", refusing);
    launched.bundle.write();
    let output = launched.run("create --bundle BUNDLE ID");
    assert_eq!(output.status.code(), Some(1));
    let said = text(&output.stderr);
    assert_eq!(
        said.trim(),
        "create failed: launch refused: image /x.img: signature does not match"
    );
    launched.bundle.assert_gone();
}

#[test]
fn a_container_that_cannot_be_built_is_released() {
    let launched = Launched::new("measure", ALLOWING);
    let mut config = launched.bundle.config.clone();
    config["hooks"] = serde_json::json!({"createRuntime": [{"path": "/bin/false"}]});
    std::fs::write(
        launched.bundle.path().join("config.json"),
        config.to_string(),
    )
    .unwrap();
    assert!(!launched.run("create --bundle BUNDLE ID").status.success());
    assert!(launched.log().ends_with("release\n"));
    launched.bundle.assert_gone();
}

#[test]
fn launches_that_were_killed_are_released_by_the_next() {
    let slow = format!("if [ $1 = launch ]; then sleep 30; fi\n{ALLOWING}");
    let launched = Launched::new("enforce", &slow);
    let bundle = &launched.bundle;
    bundle.write();
    let mut child = bundle
        .command("create --bundle BUNDLE ID")
        .env("TRUSTME_CONFIG", &launched.config)
        .env("TRUSTME_HOOK", &launched.hook)
        .spawn()
        .unwrap();
    let dir = bundle.root().join("@launch").join(&bundle.id);
    support::wait_until("the launch has begun", || dir.join("config.json").exists());
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(dir.exists());
    let deleted = launched.run("delete -f ID");
    assert!(deleted.status.success(), "{}", text(&deleted.stderr));
    assert!(launched.log().ends_with("release\n"));
    bundle.assert_gone();
}

#[test]
fn mode_off_has_neither_hook_nor_launch_directory() {
    let launched = Launched::new("off", "echo called >> $LOG");
    launched.bundle.write();
    assert!(
        launched
            .run("run --detach --bundle BUNDLE ID")
            .status
            .success()
    );
    assert!(!launched.bundle.root().join("@launch").exists());
    assert!(launched.run("delete -f ID").status.success());
    assert_eq!(launched.log(), "");
}

#[test]
fn a_wrong_configuration_file_stops_the_program() {
    let launched = Launched::new("sometimes", ALLOWING);
    launched.bundle.write();
    let output = launched.run("create --bundle BUNDLE ID");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("config.toml"),
        "{}",
        text(&output.stderr)
    );
    launched.bundle.assert_gone();
}

#[test]
fn without_a_hook_nothing_starts_and_nothing_is_left() {
    let launched = Launched::new("measure", ALLOWING);
    std::fs::remove_file(&launched.hook).unwrap();
    launched.bundle.write();
    let output = launched.run("create --bundle BUNDLE ID");
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("cannot run"),
        "{}",
        text(&output.stderr)
    );
    launched.bundle.assert_gone();
}
