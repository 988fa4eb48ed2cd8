//! The known ways out of a container, tried for real: configurations and images that a hostile builder makes, and what an
//! accomplice on a shared volume does meanwhile. docs/threat-model.md lists them.

mod support;

use std::os::unix::fs::{FileTypeExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use support::{Bundle, text};

fn mounts(bundle: &mut Bundle) -> &mut Vec<Value> {
    bundle.config["mounts"].as_array_mut().unwrap()
}

/// A bundle that mounts nothing on /dev, so that the image's own is what the container gets.
fn with_the_images_dev(args: &[&str]) -> Bundle {
    let mut bundle = Bundle::new(args);
    mounts(&mut bundle).retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev"));
    bundle
}

/// A directory of the host that the root file system has under the same path.
fn on_both_sides(bundle: &Bundle) -> (PathBuf, PathBuf) {
    let host = bundle.file("outside");
    let inside = bundle.rootfs().join(host.strip_prefix("/").unwrap());
    std::fs::create_dir(&host).unwrap();
    std::fs::create_dir_all(&inside).unwrap();
    (host, inside)
}

fn entries(dir: &Path) -> usize {
    std::fs::read_dir(dir).unwrap().count()
}

/// libcontainer 0.7: an image whose /dev is a link gets its devices and links made on the host.
#[test]
fn links_in_place_of_dev_lead_nowhere() {
    for keep_mount in [true, false] {
        let mut bundle = match keep_mount {
            true => Bundle::new(&["true"]),
            false => with_the_images_dev(&["true"]),
        };
        let (host, inside) = on_both_sides(&bundle);
        std::fs::remove_dir(bundle.rootfs().join("dev")).unwrap();
        symlink(&host, bundle.rootfs().join("dev")).unwrap();
        mounts(&mut bundle)
            .retain(|mount| !mount["destination"].as_str().unwrap().starts_with("/dev/"));
        bundle.ok("run --bundle BUNDLE ID");
        assert_eq!(entries(&host), 0);
        assert_eq!(
            entries(&inside) > 0,
            !keep_mount,
            "the image's own directory"
        );
    }
}

/// CVE-2019-16884, CVE-2023-27561, CVE-2025-52881: what the runtime writes to /proc ends up elsewhere, because the image or the
/// configuration has put something in its place.
#[test]
fn nothing_takes_the_place_of_proc() {
    let fake = |bundle: &Bundle| {
        let dir = bundle.file("fake");
        std::fs::create_dir_all(dir.join("self/attr")).unwrap();
        std::fs::create_dir_all(dir.join("sys/kernel")).unwrap();
        std::fs::write(dir.join("sys/kernel/domainname"), "").unwrap();
        dir
    };
    for destination in [
        "/proc",
        "/proc/self/attr",
        "/proc/sys",
        "/proc/self",
        "/proc/../proc/sys/kernel",
    ] {
        for kind in ["bind", "tmpfs"] {
            let mut bundle = Bundle::new(&["true"]);
            let source = fake(&bundle);
            bundle.config["linux"]["sysctl"] = json!({"kernel.domainname": "written"});
            let options = if kind == "bind" {
                json!(["rbind"])
            } else {
                json!([])
            };
            let mount = json!({"destination": destination, "type": kind, "source": source, "options": options});
            mounts(&mut bundle).push(mount);
            let output = bundle.run("run --bundle BUNDLE ID");
            let fooled = std::fs::read(source.join("sys/kernel/domainname")).unwrap();
            assert!(fooled.is_empty(), "{destination} {kind}");
            assert!(!output.status.success(), "{destination} {kind} was mounted");
            bundle.assert_gone();
        }
    }
    let bundle = Bundle::new(&["true"]);
    std::fs::remove_dir(bundle.rootfs().join("proc")).unwrap();
    std::fs::create_dir(bundle.rootfs().join("elsewhere")).unwrap();
    symlink("/elsewhere", bundle.rootfs().join("proc")).unwrap();
    let err = bundle.fails("run --bundle BUNDLE ID", 1);
    assert!(err.contains("proc"), "{err}");
    assert_eq!(entries(&bundle.rootfs().join("elsewhere")), 0);
}

/// CVE-2021-30465: a process of another container exchanges a directory on the way to a mount point for a link.
#[test]
fn exchanged_links_do_not_move_mounts_out() {
    let mut bundle = Bundle::new(&["true"]);
    let host = bundle.file("outside");
    std::fs::create_dir(&host).unwrap();
    let volume = bundle.file("volume");
    std::fs::create_dir_all(volume.join("race")).unwrap();
    symlink(&host, volume.join("link")).unwrap();
    mounts(&mut bundle).extend([
        json!({"destination": "/vol", "source": volume, "options": ["rbind"]}),
        json!({"destination": "/vol/race/a/b", "type": "tmpfs", "source": "tmpfs", "options": ["mode=700"]}),
        json!({"destination": "/vol/race/c", "type": "bind", "source": "/etc/hostname", "options": ["bind"]}),
    ]);
    bundle.config["linux"]["devices"] =
        json!([{"path": "/vol/race/d/e", "type": "c", "major": 1, "minor": 3}]);
    bundle.config["linux"]["maskedPaths"] = json!(["/vol/race/a"]);
    bundle.config["linux"]["readonlyPaths"] = json!(["/vol/race/a"]);
    let stop = Arc::new(AtomicBool::new(false));
    let accomplice = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let (one, other) = (volume.join("race"), volume.join("link"));
            let mut count = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(rustix::fs::CWD, &one, rustix::fs::CWD, &other, flags)
                    .unwrap();
                count += 1;
            }
            count
        }
    });
    let mut succeeded = 0;
    for _ in 0..60 {
        succeeded += usize::from(bundle.run("run --bundle BUNDLE ID").status.success());
        bundle.assert_gone();
    }
    stop.store(true, Ordering::Relaxed);
    let exchanges = accomplice.join().unwrap();
    assert_eq!(entries(&host), 0, "{succeeded} runs, {exchanges} exchanges");
    assert!(exchanges > 100, "{exchanges}");
}

/// CVE-2022-29162: capabilities that were added for an exec became inheritable.
#[test]
fn added_capabilities_are_not_inheritable() {
    let bundle = Bundle::new(&["sleep", "100"]);
    bundle.ok("run -d --bundle BUNDLE ID");
    let status = bundle.ok("exec --cap CAP_SYS_ADMIN ID grep -E ^Cap(Inh|Prm): /proc/self/status");
    let sets: Vec<_> = status.split_whitespace().collect();
    assert_eq!(sets[1], "0000000000000000", "{status}");
    let permitted = u64::from_str_radix(sets[3], 16).unwrap();
    assert_ne!(permitted & (1 << 21), 0, "{status}");
}

/// CVE-2024-21626: a working directory by a descriptor that the runtime holds leads to the host's root.
#[test]
fn working_directories_by_descriptor_lead_nowhere() {
    let mut bundle = Bundle::new(&["sh", "-c", "cat ../../../../../../../../etc/debian_version"]);
    for prefix in ["/proc/self/fd", "/proc/thread-self/fd", "/dev/fd"] {
        for fd in 3..40 {
            bundle.config["process"]["cwd"] = format!("{prefix}/{fd}").into();
            let output = bundle.run("run --bundle BUNDLE ID");
            assert!(
                !output.status.success(),
                "{prefix}/{fd}: {}",
                text(&output.stdout)
            );
            assert!(output.stdout.is_empty(), "{prefix}/{fd}");
            bundle.assert_gone();
        }
    }
    let mut bundle = Bundle::new(&["sleep", "100"]);
    bundle.config["process"]["cwd"] = "/".into();
    bundle.ok("run -d --bundle BUNDLE ID");
    for fd in 3..40 {
        let output = bundle.run(&format!(
            "exec --cwd /proc/self/fd/{fd} ID cat ../../../../../../etc/debian_version"
        ));
        assert!(!output.status.success() && output.stdout.is_empty(), "{fd}");
    }
}

/// CVE-2025-31133: what covers masked files is the image's /dev/null, which may be a link to a file of /proc.
#[test]
fn a_false_null_device_masks_nothing() {
    let pattern = Path::new("/proc/sys/kernel/core_pattern");
    let before = std::fs::read(pattern).unwrap();
    for target in ["/proc/sys/kernel/core_pattern", "/secret"] {
        let mut bundle = with_the_images_dev(&[
            "sh",
            "-c",
            "echo pwned > /proc/sysrq-trigger; echo pwned > /covered; cat /secret",
        ]);
        std::fs::write(bundle.rootfs().join("secret"), "").unwrap();
        std::fs::write(bundle.rootfs().join("covered"), "").unwrap();
        symlink(target, bundle.rootfs().join("dev/null")).unwrap();
        bundle.config["linux"]["maskedPaths"] = json!(["/proc/sysrq-trigger", "/covered"]);
        let err = bundle.fails("run --bundle BUNDLE ID", 1);
        assert!(err.contains("/dev/null"), "{err}");
        bundle.assert_gone();
    }
    let mut bundle = with_the_images_dev(&["true"]);
    std::fs::write(bundle.rootfs().join("dev/null"), "").unwrap();
    bundle.config["linux"]["maskedPaths"] = json!(["/proc/sysrq-trigger"]);
    assert!(
        bundle
            .fails("run --bundle BUNDLE ID", 1)
            .contains("/dev/null is not the null device")
    );
    assert_eq!(std::fs::read(pattern).unwrap(), before);
}

/// CVE-2025-52565: the terminal is mounted on the image's /dev/console, which may be a link to a file of /proc.
#[test]
fn a_console_that_is_a_link_is_not_followed() {
    let mut bundle = with_the_images_dev(&["sh", "-c", "cat /proc/mounts"]);
    std::fs::write(bundle.rootfs().join("target"), "").unwrap();
    symlink("/target", bundle.rootfs().join("dev/console")).unwrap();
    let devpts = json!({"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]});
    mounts(&mut bundle).push(devpts);
    bundle.config["process"]["terminal"] = true.into();
    let socket = bundle.file("console");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let line = format!(
        "create --bundle BUNDLE --console-socket {} ID",
        socket.display()
    );
    let err = bundle.fails(&line, 1);
    assert!(err.contains("terminal") || err.contains("console"), "{err}");
    assert!(
        !std::fs::metadata(bundle.rootfs().join("target"))
            .unwrap()
            .file_type()
            .is_char_device()
    );
    drop(listener);
    bundle.assert_gone();
}

/// Files of the bundle that the runtime reads or writes as root on the host are not reached through links of the image.
#[test]
fn the_images_links_do_not_lead_bind_targets_out() {
    let mut bundle = Bundle::new(&["sh", "-c", "cat /a/file"]);
    let (host, inside) = on_both_sides(&bundle);
    symlink(&host, bundle.rootfs().join("a")).unwrap();
    let source = bundle.file("source");
    std::fs::write(&source, "content\n").unwrap();
    std::fs::set_permissions(&source, PermissionsExt::from_mode(0o644)).unwrap();
    mounts(&mut bundle)
        .push(json!({"destination": "/a/file", "source": source, "options": ["bind"]}));
    let mapping = json!([{"containerID": 0, "hostID": 0, "size": 1000}]);
    mounts(&mut bundle).push(
        json!({"destination": "/a/mapped", "source": source, "options": ["bind", "idmap"],
        "uidMappings": mapping, "gidMappings": mapping}),
    );
    assert_eq!(bundle.ok("run --bundle BUNDLE ID"), "content\n");
    assert_eq!(entries(&host), 0);
    assert_eq!(entries(&inside), 2);
}
