//! Debian packages that the machine needs and this machine must not have installed: the kernel and its modules.
//!
//! They are fetched with `apt-get download` and unpacked with `dpkg -x`, never installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// A Debian kernel unpacked on disk.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// Release, for example `6.1.0-56-amd64`.
    pub release: String,
    /// The bzImage.
    pub image: PathBuf,
    /// The directory that holds `lib/modules/<release>`, with `modules.dep` made by depmod.
    pub root: PathBuf,
}

/// Fetches the kernel that Debian's `linux-image-amd64` names, and unpacks it below `cache`.
///
/// A kernel that is there already is used as it is.
///
/// # Errors
/// Fails when apt names no kernel, the download fails, or the package does not hold a kernel.
pub fn kernel(cache: &Path) -> Result<Kernel> {
    let package = dependency_of("linux-image-amd64", "linux-image-")?;
    let release = package.trim_start_matches("linux-image-").to_owned();
    let root = cache.join(&package);
    let image = root.join("boot").join(format!("vmlinuz-{release}"));
    if !image.exists() {
        let staging = tempfile::tempdir_in(cache)?;
        // The package lists may be older than the archive.
        if download(&package, staging.path()).is_err() {
            checked(Command::new("apt-get").args(["update", "-qq"]))?;
            download(&package, staging.path())?;
        }
        let unpacked = staging.path().join("root");
        for entry in std::fs::read_dir(staging.path())? {
            let path = entry?.path();
            if path.extension().is_some_and(|e| e == "deb") {
                checked(Command::new("dpkg").arg("-x").arg(&path).arg(&unpacked))?;
            }
        }
        checked(
            Command::new("depmod")
                .arg("-b")
                .arg(&unpacked)
                .arg(&release),
        )?;
        std::fs::rename(&unpacked, &root).with_context(|| format!("{}: rename", root.display()))?;
    }
    ensure!(
        image.exists(),
        "{}: package {package} holds no such kernel",
        image.display()
    );
    Ok(Kernel {
        release,
        image,
        root,
    })
}

fn download(package: &str, into: &Path) -> Result<()> {
    checked(
        Command::new("apt-get")
            .args(["download", "-qq", "-o", "APT::Sandbox::User=root", package])
            .current_dir(into),
    )
}

fn dependency_of(package: &str, prefix: &str) -> Result<String> {
    let output = Command::new("apt-cache")
        .args(["depends", package])
        .output()
        .context("apt-cache")?;
    let text = String::from_utf8_lossy(&output.stdout);
    match text
        .lines()
        .filter_map(|l| l.trim().strip_prefix("Depends: "))
        .find(|d| d.starts_with(prefix))
    {
        Some(name) => Ok(name.to_owned()),
        None => {
            bail!("apt-cache depends {package}: names no {prefix}*; has apt-get update been run?")
        }
    }
}

/// Runs a command and fails with its standard error when it does not succeed.
///
/// # Errors
/// The program cannot be started, or ends with another code than 0.
pub fn checked(command: &mut Command) -> Result<()> {
    printed(command).map(drop)
}

/// As [`checked`]; what it prints.
///
/// # Errors
/// As [`checked`].
pub fn printed(command: &mut Command) -> Result<String> {
    let output = command
        .output()
        .with_context(|| format!("{:?}", command.get_program()))?;
    ensure!(
        output.status.success(),
        "{command:?}: {}: {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
