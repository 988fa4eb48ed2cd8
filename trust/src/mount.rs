//! Mounts: making them below one directory, finding them again, and taking them down.

use std::ffi::{CString, OsString};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

/// How long something that is just ending may keep a mount busy.
const BUSY: Duration = Duration::from_secs(2);

/// A mount of this mount namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mounted {
    /// Where.
    pub(crate) path: PathBuf,
    /// Of which type.
    pub(crate) fs_type: String,
    /// What: a device, for file systems that have one.
    pub(crate) source: PathBuf,
}

/// Every mount, in the order in which they were made.
///
/// # Errors
/// /proc is not mounted.
pub(crate) fn all() -> io::Result<Vec<Mounted>> {
    let table = std::fs::read("/proc/thread-self/mountinfo")?;
    Ok(table
        .split(|byte| *byte == b'\n')
        .filter_map(parse)
        .collect())
}

/// The mounts below `dir`, which has to be a path without symlinks, the last one first.
///
/// # Errors
/// As [`all`].
pub(crate) fn below(dir: &Path) -> io::Result<Vec<Mounted>> {
    let mut mounts = all()?;
    mounts.retain(|mount| mount.path.starts_with(dir) && mount.path != dir);
    mounts.reverse();
    Ok(mounts)
}

/// The path of an open directory.
///
/// # Errors
/// /proc is not mounted.
pub(crate) fn path_of(dir: &impl AsRawFd) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", dir.as_raw_fd()))
}

/// A line of mountinfo (proc(5)): …, mount point (field 5), options, optional fields, `-`, type, source, options.
fn parse(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|byte| *byte == b' ');
    let path = unescaped(fields.nth(4)?);
    let mut rest = fields.skip_while(|field| *field != b"-").skip(1);
    Some(Mounted {
        path,
        fs_type: String::from_utf8_lossy(rest.next()?).into_owned(),
        source: unescaped(rest.next()?),
    })
}

/// Undoes the kernel's escapes: a backslash and three octal digits for space, tab, line feed and backslash.
fn unescaped(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, tail)) = rest.split_first() {
        let code = (first == b'\\')
            .then(|| tail.get(..3))
            .flatten()
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[3..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    PathBuf::from(OsString::from_vec(bytes))
}

/// Mounts the file system of a device.
///
/// # Errors
/// The device holds no such file system, or the target is no directory.
pub(crate) fn device(
    source: &Path,
    fs_type: &str,
    target: &Path,
    flags: MountFlags,
) -> io::Result<()> {
    rustix::mount::mount(source, target, fs_type, flags, None)?;
    Ok(())
}

/// Mounts an empty tmpfs that only root can enter.
///
/// # Errors
/// The target is no directory.
pub(crate) fn tmpfs(target: &Path) -> io::Result<()> {
    let flags = MountFlags::NODEV | MountFlags::NOSUID;
    rustix::mount::mount("tmpfs", target, "tmpfs", flags, c"mode=0700")?;
    Ok(())
}

/// Mounts `lower` at `target` with everything that is written kept in `upper`; `work` is the kernel's.
///
/// # Errors
/// The kernel has no overlayfs, or it cannot use these directories.
pub(crate) fn overlay(lower: &Path, upper: &Path, work: &Path, target: &Path) -> io::Result<()> {
    let mut options = Vec::new();
    for (name, path) in [
        ("lowerdir=", lower),
        (",upperdir=", upper),
        (",workdir=", work),
    ] {
        options.extend_from_slice(name.as_bytes());
        for &byte in path.as_os_str().as_bytes() {
            if matches!(byte, b',' | b':' | b'\\') {
                options.push(b'\\');
            }
            options.push(byte);
        }
    }
    let options = CString::new(options)?;
    rustix::mount::mount(
        "overlay",
        target,
        "overlay",
        MountFlags::NODEV,
        options.as_c_str(),
    )?;
    Ok(())
}

/// Unmounts; a mount that something keeps busy for longer than a moment is detached and vanishes with its last user.
///
/// # Errors
/// Not a mount.
pub(crate) fn unmount(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + BUSY;
    loop {
        match rustix::mount::unmount(path, UnmountFlags::NOFOLLOW) {
            Err(Errno::BUSY) if Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(10))
            }
            Err(Errno::BUSY) => {
                tracing::warn!("{} is busy: detached", path.display());
                rustix::mount::unmount(path, UnmountFlags::NOFOLLOW | UnmountFlags::DETACH)?;
                return Ok(());
            }
            outcome => return Ok(outcome?),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_mountinfo_is_parsed() {
        let line = br"36 35 98:0 /mnt1 /a\040b\134c/\303\244 rw,noatime master:1 shared:2 - ext4 /dev/loop0 rw";
        let mounted = parse(line).unwrap();
        assert_eq!(mounted.path, Path::new("/a b\\c/ä"));
        assert_eq!(
            (mounted.fs_type.as_str(), mounted.source.as_path()),
            ("ext4", Path::new("/dev/loop0"))
        );
        assert_eq!(parse(b""), None);
        assert!(
            all()
                .unwrap()
                .iter()
                .any(|mount| mount.path == Path::new("/proc"))
        );
    }
}
