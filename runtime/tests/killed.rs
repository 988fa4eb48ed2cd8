//! The program is killed at many points; the next command finds and removes what is left.

mod support;

use std::time::{Duration, Instant};

use support::{Bundle, text};

/// Number of points at which each command is killed.
const POINTS: u32 = 25;

/// How long a command takes, so that the points lie all over it.
fn duration_of(bundle: &Bundle, line: &str) -> Duration {
    let start = Instant::now();
    bundle.ok(line);
    start.elapsed()
}

/// Starts a command and kills it after a while.
fn kill_after(bundle: &Bundle, line: &str, after: Duration) {
    let mut child = bundle
        .command(line)
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_killed_create_is_cleaned_by_the_next() {
    let bundle = Bundle::new(&["sleep", "100"]);
    let takes = duration_of(&bundle, "create --bundle BUNDLE ID");
    bundle.ok("delete -f ID");
    for point in 0..POINTS {
        kill_after(
            &bundle,
            "create --bundle BUNDLE ID",
            takes * point / (POINTS - 1),
        );
        let output = bundle.run("create --bundle BUNDLE ID");
        if !output.status.success() {
            // It had got to its end.
            assert!(
                text(&output.stderr).contains("already exists"),
                "point {point}: {}",
                text(&output.stderr)
            );
        }
        assert_eq!(bundle.status(), "created", "point {point}");
        bundle.ok("delete -f ID");
        bundle.assert_gone();
    }
}

#[test]
fn a_killed_create_is_named_by_list_and_cleaned_by_delete() {
    let bundle = Bundle::new(&["sleep", "100"]);
    let takes = duration_of(&bundle, "create --bundle BUNDLE ID");
    bundle.ok("delete -f ID");
    for point in 0..POINTS {
        kill_after(
            &bundle,
            "create --bundle BUNDLE ID",
            takes * point / (POINTS - 1),
        );
        let list = bundle.run("list");
        let named =
            text(&list.stdout).contains(&bundle.id) || text(&list.stderr).contains(&bundle.id);
        assert_eq!(
            named,
            bundle.root().join(&bundle.id).exists(),
            "point {point}: {}",
            text(&list.stderr)
        );
        bundle.ok("delete -f ID");
        bundle.assert_gone();
    }
}

#[test]
fn a_killed_start_leaves_a_container_that_says_what_it_is() {
    let bundle = Bundle::new(&["sleep", "100"]);
    bundle.ok("create --bundle BUNDLE ID");
    let takes = duration_of(&bundle, "start ID");
    bundle.ok("delete -f ID");
    for point in 0..POINTS {
        bundle.ok("create --bundle BUNDLE ID");
        kill_after(&bundle, "start ID", takes * point / (POINTS - 1));
        let status = bundle.status();
        if status == "created" {
            // The killed command may have told it to start: then it does so while this one asks.
            let output = bundle.run("start ID");
            let said = text(&output.stderr);
            assert!(
                output.status.success() || said.contains("already running"),
                "point {point}: {said}"
            );
        }
        bundle.wait_for("running");
        bundle.ok("delete -f ID");
        bundle.assert_gone();
    }
}

#[test]
fn a_killed_delete_is_finished_by_the_next() {
    let bundle = Bundle::new(&["sleep", "100"]);
    bundle.ok("run -d --bundle BUNDLE ID");
    let takes = duration_of(&bundle, "delete -f ID");
    for point in 0..POINTS {
        bundle.ok("run -d --bundle BUNDLE ID");
        kill_after(&bundle, "delete -f ID", takes * point / (POINTS - 1));
        if point % 2 == 0 {
            bundle.ok("delete -f ID");
            bundle.assert_gone();
        } else {
            let output = bundle.run("run -d --bundle BUNDLE ID");
            assert!(
                output.status.success() || text(&output.stderr).contains("already exists"),
                "point {point}"
            );
            bundle.ok("delete -f ID");
            bundle.assert_gone();
        }
    }
}
