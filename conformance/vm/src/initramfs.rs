//! Makes the initramfs: busybox, tools with the libraries they need, kernel modules, and a short init.
//!
//! The archive is cached under a name made of the digest of everything that goes into it, so a change of a tool, a module or
//! the init makes a new one and nothing else does. Our own programs are not in it: they come over 9p, only their libraries are here.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use sha2::{Digest, Sha256};

use crate::cpio::Archive;
use crate::packages::Kernel;

/// Programs of this machine that the scenarios use in the guest.
const PROGRAMS: &[&str] = &[
    "/bin/bash",
    // busybox's tar does not look for compression.
    "/bin/gzip",
    "/bin/tar",
    "/sbin/mkfs.ext4",
    "/sbin/e2fsck",
    "/sbin/veritysetup",
    "/sbin/cryptsetup",
    "/sbin/losetup",
    "/sbin/ip",
    "/usr/bin/tpm2",
    "/usr/bin/crun",
    "/usr/sbin/runc",
    "/usr/bin/curl",
    "/usr/bin/nsenter",
    "/usr/bin/openssl",
    "/usr/bin/strace",
    "/usr/bin/unshare",
    "/bin/findmnt",
    "/bin/mount",
    "/bin/umount",
];

/// Shared objects that are opened by name at run time, so `ldd` does not list them.
const DLOPENED: &[&str] = &[
    "libtss2-tcti-device.so.0",
    "libgcc_s.so.1",
    "libnss_files.so.2",
    "ossl-modules/legacy.so",
];

/// tpm2-tools is one program that looks at the name it is called by.
const TPM2_NAMES: &[&str] = &[
    "tpm2_pcrread",
    "tpm2_pcrextend",
    "tpm2_getcap",
    "tpm2_clear",
    "tpm2_readpublic",
];

/// Modules loaded by the init, in order; what they depend on is loaded before them.
const MODULES: &[&str] = &[
    "virtio_pci",
    "9pnet_virtio",
    "9p",
    "virtio_blk",
    // ext4's checksums; its module asks for it by an alias that busybox's modprobe does not follow.
    "crc32c_generic",
    "overlay",
    "squashfs",
    "erofs",
    "ext4",
    "loop",
    "dm-mod",
    "dm-verity",
    "dm-crypt",
    "dm-integrity",
    "sha256_generic",
    "sha512_generic",
    "aes_generic",
    "cbc",
    "ecb",
    "xts",
    "cts",
    "hmac",
    "aesni-intel",
    "tpm_crb",
    "tpm_tis",
    "efivarfs",
    "vfat",
    "nls_ascii",
    "nls_cp437",
    "veth",
];

/// Where Debian keeps shared objects of this architecture.
const LIBRARY_DIRS: &[&str] = &["/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu"];

/// The guest's PID 1: prepares the root that pivot_root needs (not the initramfs itself) and hands over to the guest program on 9p.
const INIT: &str = r#"#!/bin/busybox sh
/bin/busybox --install -s /bin 2>/dev/null
export PATH=/sbin:/usr/sbin:/bin:/usr/bin DM_DISABLE_UDEV=1 HOME=/root TPM2TOOLS_TCTI=device:/dev/tpmrm0
if [ "$1" != second ]; then
    mount -t proc proc /proc; mount -t sysfs sys /sys
    # efivarfs refuses on a machine without EFI.
    for m in $(cat /modules); do modprobe -q $m 2>/dev/null; done
    mkdir /new; mount -t tmpfs -o mode=755,size=80% tmpfs /new
    for d in bin sbin usr lib lib64 etc root init; do cp -a /$d /new/; done
    mkdir -p /new/proc /new/sys /new/dev /new/tmp /new/run /new/var /new/host /new/mnt
    umount /proc /sys
    exec switch_root /new /init second
fi
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm; mount -t devpts devpts /dev/pts; mount -t tmpfs shm /dev/shm; mount -t tmpfs run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup; mount -t securityfs securityfs /sys/kernel/security
[ -d /sys/firmware/efi ] && mount -t efivarfs efivarfs /sys/firmware/efi/efivars
ip link set lo up
mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144,cache=none host /host || echo "trustme-vm: no 9p"
mkdir -p /disk; for d in /dev/vdb /dev/vda; do mount -t ext4 $d /disk 2>/dev/null && break; done
# From tmpfs: IMA would read and hash a program on 9p at every start.
mkdir -p /opt/trustme && cp /host/bin/* /opt/trustme
if grep -q trustme.shell /proc/cmdline; then
    export PATH=$PATH:/opt/trustme PS1='vm# '
    setsid cttyhack sh
else
    /opt/trustme/trustme-vm-guest /host || echo "trustme-vm: guest program ended with $?"
fi
sync
poweroff -f
"#;

/// An initramfs and the kernel that its modules belong to.
#[derive(Debug, Clone)]
pub struct Made {
    /// The cpio archive.
    pub path: PathBuf,
    /// The kernel.
    pub kernel: Kernel,
}

/// Makes the initramfs, or finds it in `cache`.
///
/// `own_programs` are built binaries whose shared objects go in; they themselves do not.
///
/// # Errors
/// Fails when a program, library or module is missing, or writing fails.
pub fn make(cache: &Path, kernel: Kernel, own_programs: &[PathBuf]) -> Result<Made> {
    let files = contents(&kernel, own_programs)?;
    let mut digest = Sha256::new();
    for (name, content) in &files {
        digest.update(name.as_bytes());
        digest.update([0]);
        match content {
            Content::Link(target) => digest.update(target.as_bytes()),
            Content::Bytes(bytes, mode) => {
                digest.update(mode.to_le_bytes());
                digest.update(Sha256::digest(bytes));
            }
        }
    }
    let path = cache.join(format!(
        "initramfs-{}.cpio",
        &hex::encode(digest.finalize())[..16]
    ));
    if path.exists() {
        return Ok(Made { path, kernel });
    }
    let staging = tempfile::NamedTempFile::new_in(cache)?;
    let mut archive = Archive::new(std::io::BufWriter::new(staging));
    for directory in directories(files.keys()) {
        archive.directory(&directory)?;
    }
    archive.character_device("dev/console", 5, 1)?;
    for (name, content) in &files {
        match content {
            Content::Link(target) => archive.symlink(name, target)?,
            Content::Bytes(bytes, mode) => archive.file(name, *mode, bytes)?,
        }
    }
    let mut out = archive.finish()?;
    out.flush()?;
    let staging = out.into_inner().map_err(|e| e.into_error())?;
    staging
        .persist(&path)
        .with_context(|| format!("{}: rename", path.display()))?;
    Ok(Made { path, kernel })
}

enum Content {
    Bytes(Vec<u8>, u32),
    Link(String),
}

fn contents(kernel: &Kernel, own_programs: &[PathBuf]) -> Result<BTreeMap<String, Content>> {
    let mut files = BTreeMap::new();
    files.insert("init".into(), Content::Bytes(INIT.into(), 0o755));
    files.insert(
        "modules".into(),
        Content::Bytes(MODULES.join("\n").into(), 0o644),
    );
    files.insert(
        "etc/passwd".into(),
        Content::Bytes(b"root:x:0:0:root:/root:/bin/sh\n".to_vec(), 0o644),
    );
    files.insert(
        "etc/group".into(),
        Content::Bytes(b"root:x:0:\n".to_vec(), 0o644),
    );
    files.insert(
        "etc/mke2fs.conf".into(),
        read(Path::new("/etc/mke2fs.conf"))?,
    );
    files.insert("root/.keep".into(), Content::Bytes(Vec::new(), 0o644));
    files.insert("bin/busybox".into(), read(Path::new("/bin/busybox"))?);
    // Where Debian has it.
    files.insert(
        "usr/bin/busybox".into(),
        Content::Link("/bin/busybox".into()),
    );
    files.insert("sbin/modprobe".into(), Content::Link("/bin/busybox".into()));
    for name in TPM2_NAMES {
        files.insert(format!("usr/bin/{name}"), Content::Link("tpm2".into()));
    }
    let mut needed: BTreeSet<PathBuf> = BTreeSet::new();
    for program in PROGRAMS {
        add(&mut files, Path::new(program))?;
        needed.extend(libraries(Path::new(program))?);
    }
    for own in own_programs {
        needed.extend(libraries(own)?);
    }
    for name in DLOPENED {
        match LIBRARY_DIRS
            .iter()
            .map(|d| Path::new(d).join(name))
            .find(|p| p.exists())
        {
            Some(path) => {
                needed.extend(libraries(&path)?);
                needed.insert(path);
            }
            // glibc 2.34 and later carry the files service themselves.
            None if name.starts_with("libnss") => {}
            None => bail!("{name}: not found in {LIBRARY_DIRS:?}"),
        }
    }
    for library in needed {
        add(&mut files, &library)?;
    }
    add_modules(&mut files, kernel)?;
    Ok(files)
}

fn add(files: &mut BTreeMap<String, Content>, path: &Path) -> Result<()> {
    files.insert(relative(path)?, read(path)?);
    Ok(())
}

fn read(path: &Path) -> Result<Content> {
    let mode = fs::metadata(path)
        .with_context(|| format!("{}", path.display()))?
        .permissions()
        .mode();
    Ok(Content::Bytes(
        fs::read(path).with_context(|| format!("{}", path.display()))?,
        mode,
    ))
}

fn relative(path: &Path) -> Result<String> {
    let text = path
        .to_str()
        .with_context(|| format!("{}: not UTF-8", path.display()))?;
    // The guest's root has no merged /usr: a library is put where the dynamic linker looks first.
    Ok(text.trim_start_matches('/').to_owned())
}

/// The shared objects that `ldd` lists, by absolute path.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    if text.contains("not found") {
        bail!("ldd {}: {}", program.display(), text.trim());
    }
    Ok(text
        .lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect())
}

/// Adds the modules of [`MODULES`] with what they depend on, and the index that modprobe reads.
fn add_modules(files: &mut BTreeMap<String, Content>, kernel: &Kernel) -> Result<()> {
    let base = kernel.root.join("lib/modules").join(&kernel.release);
    let dep = fs::read_to_string(base.join("modules.dep"))
        .with_context(|| format!("{}", base.display()))?;
    let wanted: BTreeSet<String> = MODULES.iter().map(|m| m.replace('-', "_")).collect();
    let mut chosen = BTreeSet::new();
    for line in dep.lines() {
        let (module, needs) = line
            .split_once(':')
            .with_context(|| format!("modules.dep: {line}"))?;
        let name = module
            .rsplit('/')
            .next()
            .unwrap_or(module)
            .trim_end_matches(".ko")
            .replace('-', "_");
        if wanted.contains(&name) {
            chosen.insert(module.to_owned());
            chosen.extend(needs.split_whitespace().map(str::to_owned));
        }
    }
    let index: String = dep
        .lines()
        .filter(|line| {
            line.split_once(':')
                .is_some_and(|(module, _)| chosen.contains(module))
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let target = format!("lib/modules/{}", kernel.release);
    for module in &chosen {
        files.insert(format!("{target}/{module}"), read(&base.join(module))?);
    }
    files.insert(
        format!("{target}/modules.dep"),
        Content::Bytes(index.into(), 0o644),
    );
    for name in [
        "modules.alias",
        "modules.softdep",
        "modules.symbols",
        "modules.builtin",
    ] {
        files.insert(format!("{target}/{name}"), read(&base.join(name))?);
    }
    Ok(())
}

fn directories<'a>(names: impl Iterator<Item = &'a String>) -> BTreeSet<String> {
    let mut found: BTreeSet<String> = ["dev", "proc", "sys", "lib64", "lib", "etc"]
        .map(String::from)
        .into();
    for name in names {
        let mut at = Path::new(name);
        while let Some(parent) = at.parent().filter(|p| !p.as_os_str().is_empty()) {
            found.insert(parent.to_string_lossy().into_owned());
            at = parent;
        }
    }
    found
}
