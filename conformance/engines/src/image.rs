//! The image that the containers run: busybox and two users.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;
use trustme_conformance::command::ok;

/// Its name.
pub const NAME: &str = "localhost/box:1";

/// Debian's busybox-static.
const BUSYBOX: &str = "/usr/bin/busybox";

/// Makes the image as a docker-archive below `dir`.
///
/// # Errors
/// busybox-static or podman is missing.
pub fn make(dir: &Path) -> Result<PathBuf> {
    let rootfs = dir.join("rootfs");
    for name in ["bin", "etc", "proc", "sys", "dev", "tmp", "home/user"] {
        fs::create_dir_all(rootfs.join(name))?;
    }
    fs::set_permissions(rootfs.join("tmp"), PermissionsExt::from_mode(0o1777))?;
    fs::copy(BUSYBOX, rootfs.join("bin/busybox"))?;
    for applet in ok(Command::new(BUSYBOX).arg("--list"))?.lines() {
        if applet != "busybox" {
            symlink("busybox", rootfs.join("bin").join(applet))?;
        }
    }
    fs::write(
        rootfs.join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\nuser:x:1000:1000::/home/user:/bin/sh\n",
    )?;
    fs::write(
        rootfs.join("etc/group"),
        "root:x:0:\nuser:x:1000:\nmore:x:50:user\n",
    )?;
    fs::write(rootfs.join("noexec"), "no program\n")?;
    let tar = dir.join("rootfs.tar");
    ok(Command::new("tar")
        .args([
            "--create",
            "--numeric-owner",
            "--owner=0",
            "--group=0",
            "--file",
        ])
        .arg(&tar)
        .arg("--directory")
        .arg(&rootfs)
        .arg("."))?;
    let podman = || {
        let mut command = Command::new("podman");
        for (flag, name) in [
            ("--root", "make"),
            ("--runroot", "make-run"),
            ("--tmpdir", "make-tmp"),
        ] {
            command.arg(flag).arg(dir.join(name));
        }
        command
    };
    ok(podman()
        .args(["import", "--quiet", "--change", "CMD=/bin/sh"])
        .arg(&tar)
        .arg(NAME))?;
    let archive = dir.join("image.tar");
    ok(podman()
        .args(["save", "--quiet", "--format", "docker-archive", "--output"])
        .arg(&archive)
        .arg(NAME))?;
    fs::set_permissions(&archive, PermissionsExt::from_mode(0o644))?;
    ok(podman().args(["rmi", "--all"]))?;
    Ok(archive)
}
