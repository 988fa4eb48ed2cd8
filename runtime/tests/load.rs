//! 200 containers by eight workers, while all of them list. A program of its own: it is the parent of what others leave.

mod support;

use support::{Bundle, text};

/// Processes whose parent this one is, zombies too.
fn children() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    // A thread that has just ended has no list.
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let pids = lists.flat_map(|list| {
        list.split_whitespace()
            .map(str::to_owned)
            .collect::<Vec<_>>()
    });
    pids.map(|pid| std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default())
        .collect()
}

#[test]
fn workers_do_not_get_in_each_others_way() {
    // One root directory for all, so that `list` sees what comes and goes.
    let mut shared = Bundle::new(&["true"]);
    // Each in the cgroup that bears its id.
    shared.config["linux"]["cgroupsPath"].take();
    let line = |id: String| format!("run --bundle BUNDLE {id}");
    shared.write();
    // Whatever process a command leaves behind becomes a child of this one.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    std::thread::scope(|scope| {
        for worker in 0..8 {
            let (shared, line) = (&shared, &line);
            scope.spawn(move || {
                for round in 0..25 {
                    let mut run = shared.command(&line(format!("{}-{worker}-{round}", shared.id)));
                    let output = run.output().unwrap();
                    assert!(output.status.success(), "{}", text(&output.stderr));
                    // One that fails on the way, and is cleaned up after by the command itself.
                    let mut failing =
                        shared.command(&line(format!("{}-{worker}-{round}", shared.id)));
                    let output = failing
                        .args(["--pid-file", "/nosuch/dir/pid"])
                        .output()
                        .unwrap();
                    assert!(!output.status.success());
                    let list = shared.command("list").output().unwrap();
                    assert_eq!(
                        text(&list.stderr),
                        "",
                        "a living command's container is no remains"
                    );
                }
            });
        }
    });
    let children = children();
    assert!(
        children.is_empty(),
        "{} left: {}",
        children.len(),
        children[0]
    );
    let left: Vec<_> = std::fs::read_dir(shared.root()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    shared.assert_gone();
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(
        !mounts.contains(shared.path().to_str().unwrap()),
        "{mounts}"
    );
    let cgroups = std::fs::read_dir("/sys/fs/cgroup").unwrap().flatten();
    for entry in cgroups
        .flat_map(|hierarchy| std::fs::read_dir(hierarchy.path()))
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        assert!(
            !name.to_string_lossy().starts_with(&shared.id),
            "{}",
            entry.path().display()
        );
    }
}
