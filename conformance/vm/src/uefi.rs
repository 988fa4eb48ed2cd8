//! The parts of the machine `secureboot`: own keys in the firmware's variables, and a signed unified kernel image on an EFI system
//! partition.
//!
//! A unified kernel image is systemd's stub with kernel, initramfs and command line as sections (UAPI group, specification
//! "Unified Kernel Image"); the stub measures them into PCR 11 before it starts the kernel.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use crate::initramfs::Made;
use crate::machine::Firmware;
use crate::packages::{self, checked};
use crate::workshop::{COMMAND_LINE, Workshop, made_once};

/// OVMF's code with Secure Boot and SMM, and its empty variables (Debian package ovmf).
const CODE: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";
const VARIABLES: &str = "/usr/share/OVMF/OVMF_VARS_4M.fd";

/// systemd's stub (Debian package systemd-boot-efi).
const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";

/// Sections of a unified kernel image begin at multiples of this: the page size.
const ALIGNMENT: u64 = 4096;

/// The owner that our keys have in the firmware's lists.
const OWNER: &str = "6f2b1d1e-5d3c-4f0b-9a55-7a1d0c3e8b42";

/// The release of PyPI's virt-firmware that enrols keys into variables.
const VIRT_FIRMWARE: &str = "virt-firmware==24.11";

/// The keys that a firmware has: platform key, key exchange key, signatures allowed.
const KEYS: [&str; 3] = ["PK", "KEK", "db"];

/// Makes the parts, or finds them in the cache; the variables are a fresh copy for boot `name`.
///
/// # Errors
/// A tool is missing or fails.
pub fn machine(workshop: &Workshop, name: &str, secure_boot: bool) -> Result<Firmware> {
    let cache = workshop.cache();
    let keys = keys(cache)?;
    let enrolled = enrolled(cache, &keys, secure_boot)?;
    let variables = cache.join(format!("variables-{name}.fd"));
    fs::copy(&enrolled, &variables).with_context(|| format!("{}", variables.display()))?;
    Ok(Firmware::Uefi {
        code: CODE.into(),
        variables,
        system_partition: system_partition(cache, &workshop.initramfs()?, &keys)?,
    })
}

/// RSA keys and self-signed certificates, made once.
fn keys(cache: &Path) -> Result<PathBuf> {
    made_once(&cache.join("secureboot-keys"), |staging| {
        fs::create_dir(staging)?;
        for name in KEYS {
            checked(
                Command::new("openssl")
                    .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-sha256"])
                    .args([
                        "-days",
                        "3650",
                        "-subj",
                        &format!("/CN=trustme test {name}"),
                    ])
                    .arg("-keyout")
                    .arg(staging.join(format!("{name}.key")))
                    .arg("-out")
                    .arg(staging.join(format!("{name}.pem"))),
            )?;
        }
        Ok(())
    })
}

/// The firmware's variables with our keys, Secure Boot on or off.
fn enrolled(cache: &Path, keys: &Path, secure_boot: bool) -> Result<PathBuf> {
    let tool = made_once(&cache.join(VIRT_FIRMWARE), |staging| {
        checked(Command::new("python3").args(["-m", "venv"]).arg(staging))?;
        let pip = ["-m", "pip", "install", "--quiet", VIRT_FIRMWARE];
        checked(Command::new(staging.join("bin/python3")).args(pip))
    })?;
    let name = if secure_boot { "on" } else { "off" };
    made_once(&keys.join(format!("variables-{name}.fd")), |staging| {
        // The environment was moved after it was made: its interpreter is named, not its scripts.
        let mut command = Command::new(tool.join("bin/python3"));
        command
            .args(["-m", "virt.firmware.vars", "--input", VARIABLES, "--output"])
            .arg(staging);
        for (option, key) in ["--set-pk", "--add-kek", "--add-db"].iter().zip(KEYS) {
            let certificate = keys.join(format!("{key}.pem"));
            command.args([option, OWNER]).arg(certificate);
        }
        // The one sets the variable after the other, so not both.
        match secure_boot {
            true => command.arg("--secure-boot"),
            false => command.args(["--set-false", "SecureBootEnable"]),
        };
        checked(&mut command)
    })
}

/// A FAT image with the signed unified kernel image as the file that firmware starts by default.
fn system_partition(cache: &Path, made: &Made, keys: &Path) -> Result<PathBuf> {
    let certificate = keys.join("db.pem");
    let mut digest = Sha256::new();
    for part in [
        &made.kernel.image,
        &made.path,
        Path::new(STUB),
        &certificate,
    ] {
        digest.update(fs::read(part).with_context(|| format!("{}", part.display()))?);
    }
    digest.update(COMMAND_LINE);
    let name = format!("esp-{}.img", &hex::encode(digest.finalize())[..16]);
    made_once(&cache.join(name), |staging| {
        let dir = tempfile::tempdir_in(cache)?;
        let image = dir.path().join("unified.efi");
        unified(made, dir.path(), &image)?;
        let signed = dir.path().join("BOOTX64.EFI");
        checked(
            Command::new("sbsign")
                .arg("--key")
                .arg(keys.join("db.key"))
                .arg("--cert")
                .arg(&certificate)
                .arg("--output")
                .arg(&signed)
                .arg(&image),
        )?;
        // Room for FAT's tables; FAT32 wants 32 MiB at least.
        let size = fs::metadata(&signed)?.len() + (48 << 20);
        fs::File::create(staging)?.set_len(size)?;
        checked(Command::new("mkfs.vfat").args(["-F", "32"]).arg(staging))?;
        let tool = |name: &str| {
            let mut command = Command::new(name);
            command.arg("-i").arg(staging);
            command
        };
        checked(tool("mmd").args(["::EFI", "::EFI/BOOT"]))?;
        checked(tool("mcopy").arg(&signed).arg("::EFI/BOOT/BOOTX64.EFI"))
    })
}

/// Adds the sections behind the stub's own.
fn unified(made: &Made, dir: &Path, image: &Path) -> Result<()> {
    let release = dir.join("os-release");
    fs::write(&release, "ID=trustme-vm\nNAME=trustme-vm\nVERSION_ID=1\n")?;
    let command_line = dir.join("cmdline");
    fs::write(&command_line, COMMAND_LINE)?;
    let mut command = Command::new("objcopy");
    let mut at = end_of_sections(Path::new(STUB))?;
    // The kernel last: it needs room behind it when it is not relocated.
    for (section, file) in [
        (".osrel", &release),
        (".cmdline", &command_line),
        (".initrd", &made.path),
        (".linux", &made.kernel.image),
    ] {
        at = at.next_multiple_of(ALIGNMENT);
        command
            .arg("--add-section")
            .arg(format!("{section}={}", file.display()))
            .arg("--change-section-vma")
            .arg(format!("{section}={at:#x}"));
        at += fs::metadata(file)?.len();
    }
    checked(command.arg(STUB).arg(image))
}

/// The first address behind an image's sections, as `objdump -h` lists them.
fn end_of_sections(image: &Path) -> Result<u64> {
    let listed = packages::printed(Command::new("objdump").arg("-h").arg(image))?;
    let mut end = None;
    for line in listed.lines() {
        // Number, name, size, address, …
        let words: Vec<&str> = line.split_whitespace().collect();
        let [number, _, size, address, ..] = words[..] else {
            continue;
        };
        if number.parse::<u32>().is_ok() {
            let hex = |text| u64::from_str_radix(text, 16).with_context(|| line.to_owned());
            end = end.max(Some(hex(address)? + hex(size)?));
        }
    }
    end.with_context(|| format!("{}: objdump lists no section", image.display()))
}
