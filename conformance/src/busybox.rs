//! A root file system of busybox, and an OCI bundle on it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::command::ok;

/// Debian's busybox-static.
const BUSYBOX: &str = "/usr/bin/busybox";

/// Makes a root file system in `root`: busybox under all its names, and the usual directories.
///
/// # Errors
/// busybox-static is not installed, or `root` cannot be written.
pub fn install(root: &Path) -> Result<()> {
    for dir in [
        "bin", "etc", "proc", "sys", "dev", "tmp", "root", "srv", "run",
    ] {
        fs::create_dir_all(root.join(dir))?;
    }
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777))?;
    fs::copy(BUSYBOX, root.join("bin/busybox")).context(BUSYBOX)?;
    for applet in ok(Command::new(BUSYBOX).arg("--list"))?.lines() {
        if applet != "busybox" {
            symlink("busybox", root.join("bin").join(applet))?;
        }
    }
    fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\n")?;
    fs::write(root.join("etc/group"), "root:x:0:\n")?;
    Ok(())
}

/// Makes an OCI bundle in `bundle` that runs `args`; `spec` is the runtime to ask for its default configuration.
///
/// # Errors
/// As [`install`], or `spec` fails.
pub fn bundle(runtime: &Path, bundle: &Path, args: &[&str]) -> Result<()> {
    install(&bundle.join("rootfs"))?;
    ok(Command::new(runtime).args(["spec", "--bundle"]).arg(bundle))?;
    change(bundle, |config| {
        config["process"]["args"] = json!(args);
        config["process"]["terminal"] = json!(false);
        // This machine's root may raise no limit.
        config["process"]["rlimits"] = json!([]);
    })
}

/// Changes a bundle's config.json.
///
/// # Errors
/// It cannot be read or written.
pub fn change(bundle: &Path, change: impl FnOnce(&mut Value)) -> Result<()> {
    let path = bundle.join("config.json");
    let mut config = serde_json::from_slice(&fs::read(&path)?)?;
    change(&mut config);
    fs::write(&path, config.to_string())?;
    Ok(())
}
