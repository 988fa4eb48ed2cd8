//! Installs the Debian packages that building and testing needs, where they are missing.

use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

/// What the crates need to be built.
const BUILD: &[&str] = &[
    // libFuzzer.
    "g++",
    "gcc",
    "libc6-dev",
    // bindgen, for the TSS and the device mapper.
    "libclang-dev",
    "libdevmapper-dev",
    "libseccomp-dev",
    "libssl-dev",
    "libtss2-dev",
    "pkg-config",
];

/// What trustme runs, and what the tests, the demo and the benchmarks compare it with.
const TEST: &[&str] = &[
    "attr",
    "binutils",
    "buildah",
    "busybox-static",
    "ca-certificates",
    "containerd",
    "crun",
    "cryptsetup-bin",
    "curl",
    "debootstrap",
    "docker.io",
    "dosfstools",
    "e2fsprogs",
    "iproute2",
    "iptables",
    "kmod",
    "libcap2-bin",
    "mtools",
    "openssl",
    // Firmware, signatures and the boot stub for Secure Boot.
    "ovmf",
    // Gives the newest runc its C library (cargo xtask bench).
    "patchelf",
    "podman",
    "procps",
    "python3-venv",
    "qemu-system-x86",
    "runc",
    "sbsigntool",
    "skopeo",
    // A PKCS#11 token.
    "softhsm2",
    "squashfs-tools",
    // tar2sqfs, for trustme-convert.
    "squashfs-tools-ng",
    "strace",
    "swtpm",
    "swtpm-tools",
    "systemd-boot-efi",
    "time",
    "tpm2-tools",
    "uidmap",
    "umoci",
    "util-linux",
];

/// Installs what of [`BUILD`] and [`TEST`] is missing. Quick when nothing is.
///
/// # Errors
/// apt-get fails, or this is not Debian.
pub fn install_missing() -> Result<()> {
    install(&[BUILD, TEST].concat())
}

/// Installs what of `wanted` is missing.
///
/// # Errors
/// apt-get fails, or this is not Debian.
pub fn install(wanted: &[&str]) -> Result<()> {
    let missing = missing(wanted)?;
    if missing.is_empty() {
        return Ok(());
    }
    println!("apt: installing {}", missing.join(" "));
    apt_get(&["update"])?;
    let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
    arguments.extend(&missing);
    apt_get(&arguments)
}

/// Wanted packages that are not installed.
fn missing<'a>(wanted: &[&'a str]) -> Result<Vec<&'a str>> {
    // It ends with 1 where it does not know one of them.
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat", "${Package} ${Status}\n"])
        .args(wanted)
        .stderr(Stdio::null())
        .output()
        .context("cannot run dpkg-query: this needs Debian 12")?;
    let printed = String::from_utf8_lossy(&output.stdout);
    let installed: Vec<&str> = printed
        .lines()
        .filter_map(|line| line.strip_suffix(" install ok installed"))
        .collect();
    Ok(wanted
        .iter()
        .copied()
        .filter(|package| !installed.contains(package))
        .collect())
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "installing packages needs root: run as root, or install them with apt-get first"
    );
    let status = Command::new("apt-get")
        .args(["--quiet", "--quiet"])
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        // What it does is of interest only where it fails, and then it is on stderr.
        .stdout(Stdio::null())
        .status()
        .context("cannot run apt-get")?;
    if !status.success() {
        bail!("apt-get {}: {status}", arguments.join(" "));
    }
    Ok(())
}
