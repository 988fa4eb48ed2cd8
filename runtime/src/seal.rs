//! Protection of the runtime's own binary against the container it enters (CVE-2019-5736).
//!
//! A process inside a container can reach the file that the runtime executes: through `/proc/<pid>/exe` of a runtime
//! process that has joined its pid namespace, or by making the runtime execute `/proc/self/exe`. With enough rights it
//! could open that file for writing and own the host. So the commands that enter a container (create, run, exec) run
//! from a place that cannot be written by anybody: a detached overlay mount without an upper layer, whose superblock is
//! read-only by nature (the kernel refuses to remount it writable). Nothing is copied. Where the binary already is
//! unwritable by nature (squashfs, erofs, fs-verity) there is no second exec; where no overlay can be mounted, a sealed
//! memory file holds a copy.

use std::convert::Infallible;
use std::ffi::{CString, OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use nix::fcntl::AtFlags as ExecFlags;
use rustix::fs::{AtFlags, Mode, OFlags, SealFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};

const SELF_EXE: &str = "/proc/self/exe";

/// linux/magic.h
const SQUASHFS_MAGIC: u64 = 0x7371_7368;
/// linux/magic.h
const EROFS_SUPER_MAGIC_V1: u64 = 0xE0F5_E1E2;
/// linux/magic.h
const OVERLAYFS_SUPER_MAGIC: u64 = 0x794C_7630;
/// linux/magic.h: memory files live on a tmpfs.
const TMPFS_MAGIC: u64 = 0x0102_1994;

/// Set across the second exec. It is no proof of anything (what runs is always inspected), it only breaks an endless loop.
const ATTEMPT_VARIABLE: &str = "_TRUSTME_SEALED";

/// An overlay without upper layer needs two lower ones; this one only fills the place, nothing is opened through it.
const SECOND_LAYER: &str = "/dev";

/// Makes sure that a command which enters a container runs from an unwritable file, by executing the binary again if
/// it has to be. Returns in the process that is protected, or at once for a command that never enters a container.
///
/// # Errors
/// If neither an overlay nor a memory file can be had: the command must not go on.
pub fn protect_own_binary(args: &[OsString]) -> Result<()> {
    let enters = |arg: &OsString| ["create", "run", "exec"].iter().any(|name| arg == name);
    // A superset: a value that merely is called "run" costs one needless exec.
    if !args.iter().any(enters) {
        return Ok(());
    }
    if is_unwritable().context("cannot inspect the runtime's own binary")? {
        return Ok(());
    }
    if std::env::var_os(ATTEMPT_VARIABLE).is_some() {
        bail!(
            "the runtime's own binary is still writable after it was executed from a protected place"
        );
    }
    let path = std::fs::read_link(SELF_EXE).context("cannot read /proc/self/exe")?;
    let args = arguments(args, &path)?;
    let env = environment()?;
    let Err(overlay) = execute_from_overlay(&path, &args, &env);
    let Err(memory) = execute_from_memory(&args, &env);
    bail!("cannot protect the runtime's own binary: overlay: {overlay:#}; memory file: {memory:#}")
}

/// The directory that the runtime's binary lies in, also when it runs from a protected place: there its first
/// argument is the absolute path that the first process read from /proc/self/exe.
pub fn binary_dir() -> Option<PathBuf> {
    let path = match std::env::var_os(ATTEMPT_VARIABLE) {
        Some(_) => PathBuf::from(std::env::args_os().next()?),
        None => std::fs::read_link(SELF_EXE).ok()?,
    };
    path.parent().map(Path::to_path_buf)
}

/// Takes from a child's environment what only concerns the second exec of this program.
pub fn clean_environment(command: &mut std::process::Command) {
    command.env_remove(ATTEMPT_VARIABLE);
}

/// True if nobody, whatever their rights, can write the file that this process executes.
fn is_unwritable() -> Result<bool> {
    let filesystem = rustix::fs::statfs(SELF_EXE)?;
    match filesystem.f_type as u64 {
        SQUASHFS_MAGIC | EROFS_SUPER_MAGIC_V1 => return Ok(true),
        OVERLAYFS_SUPER_MAGIC => return is_detached_read_only(),
        TMPFS_MAGIC if is_sealed()? => return Ok(true),
        _ => (),
    }
    let stat = own_statx()?;
    Ok(stat.stx_attributes.contains(StatxAttributes::VERITY))
}

fn own_statx() -> rustix::io::Result<rustix::fs::Statx> {
    rustix::fs::statx(
        rustix::fs::CWD,
        SELF_EXE,
        AtFlags::empty(),
        StatxFlags::MNT_ID,
    )
}

/// An overlay is trusted only if it is one that we made: its superblock is read-only (a mount that merely is bound
/// read-only answers ETXTBSY, as the file is being executed), and it is attached nowhere, so its path leads elsewhere.
fn is_detached_read_only() -> Result<bool> {
    match rustix::fs::open(SELF_EXE, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        Err(Errno::ROFS) => (),
        _ => return Ok(false),
    }
    let path = std::fs::read_link(SELF_EXE)?;
    match rustix::fs::statx(rustix::fs::CWD, &path, AtFlags::empty(), StatxFlags::MNT_ID) {
        Ok(found) => Ok(found.stx_mnt_id != own_statx()?.stx_mnt_id),
        Err(Errno::NOENT) => Ok(true),
        Err(err) => Err(err.into()),
    }
}

fn is_sealed() -> Result<bool> {
    let file = rustix::fs::open(SELF_EXE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    match rustix::fs::fcntl_get_seals(&file) {
        Ok(seals) => Ok(seals.contains(all_seals())),
        Err(Errno::INVAL) => Ok(false),
        Err(err) => Err(err.into()),
    }
}

fn all_seals() -> SealFlags {
    SealFlags::SEAL | SealFlags::SHRINK | SealFlags::GROW | SealFlags::WRITE
}

fn arguments(args: &[OsString], path: &Path) -> Result<Vec<CString>> {
    let first = path.as_os_str();
    std::iter::once(first)
        .chain(args.iter().skip(1).map(OsString::as_os_str))
        .map(|arg| CString::new(arg.as_bytes()).context("argument with a NUL byte"))
        .collect()
}

fn environment() -> Result<Vec<CString>> {
    let attempt = (OsString::from(ATTEMPT_VARIABLE), OsString::from("1"));
    std::env::vars_os()
        .chain(std::iter::once(attempt))
        .map(|(mut name, value)| {
            name.push("=");
            name.push(value);
            CString::new(name.into_vec()).context("environment variable with a NUL byte")
        })
        .collect()
}

fn execute_from_overlay(path: &Path, args: &[CString], env: &[CString]) -> Result<Infallible> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        bail!("{} is no file", path.display());
    };
    let context =
        rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).context("fsopen")?;
    let mut layers = escape(dir.as_os_str());
    layers.push(":");
    layers.push(SECOND_LAYER);
    rustix::mount::fsconfig_set_string(&context, "lowerdir", layers).context("lowerdir")?;
    rustix::mount::fsconfig_create(&context).context("create")?;
    let mount = rustix::mount::fsmount(
        &context,
        FsMountFlags::FSMOUNT_CLOEXEC,
        MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV,
    )
    .context("fsmount")?;
    let name = CString::new(name.as_bytes())?;
    Ok(nix::unistd::execveat(
        &mount,
        &name,
        args,
        env,
        ExecFlags::empty(),
    )?)
}

/// Overlayfs separates layers by `:` and takes `\` as the escape.
fn escape(dir: &OsStr) -> OsString {
    let mut escaped = Vec::with_capacity(dir.len());
    for &byte in dir.as_bytes() {
        if byte == b':' || byte == b'\\' {
            escaped.push(b'\\');
        }
        escaped.push(byte);
    }
    OsString::from_vec(escaped)
}

fn execute_from_memory(args: &[CString], env: &[CString]) -> Result<Infallible> {
    let copy = sealed_copy()?;
    let flags = ExecFlags::AT_EMPTY_PATH;
    Ok(nix::unistd::execveat(&copy, c"", args, env, flags)?)
}

fn sealed_copy() -> Result<OwnedFd> {
    use rustix::fs::MemfdFlags;
    let source = rustix::fs::open(SELF_EXE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    // MFD_EXEC (kernel 6.3) keeps the file executable where vm.memfd_noexec is set; older kernels do not know the flag.
    let copy = match rustix::fs::memfd_create("trustme", flags | MemfdFlags::EXEC) {
        Err(Errno::INVAL) => rustix::fs::memfd_create("trustme", flags)?,
        other => other?,
    };
    let mut left = usize::try_from(rustix::fs::fstat(&source)?.st_size)?;
    while left > 0 {
        let sent = rustix::fs::sendfile(&copy, &source, None, left)?;
        if sent == 0 {
            bail!("the binary shrank while it was copied");
        }
        left -= sent;
    }
    rustix::fs::fcntl_add_seals(&copy, all_seals())?;
    Ok(copy)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_paths_are_escaped() {
        assert_eq!(escape(OsStr::new("/a:b\\c/d")), OsStr::new("/a\\:b\\\\c/d"));
        assert_eq!(escape(OsStr::new("/usr/bin")), OsStr::new("/usr/bin"));
    }

    #[test]
    fn a_memory_copy_is_sealed_and_equal() {
        let copy = sealed_copy().unwrap();
        assert!(
            rustix::fs::fcntl_get_seals(&copy)
                .unwrap()
                .contains(all_seals())
        );
        assert_eq!(
            rustix::fs::fstat(&copy).unwrap().st_size as u64,
            std::fs::metadata(SELF_EXE).unwrap().len()
        );
        assert!(rustix::io::write(&copy, b"x").is_err());
    }

    #[test]
    fn a_plain_binary_is_writable() {
        assert!(!is_unwritable().unwrap());
    }
}
