//! Copies a directory tree by handles, within one file system on each side.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use anyhow::{Context, Result};
use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps, Uid,
};
use rustix::io::Errno;

/// Copies what is in `source` into `target`: directories, files, symbolic links, devices, with owner, mode and times.
/// What exists in the target is kept, and another file system that is mounted in there is not entered.
///
/// # Errors
/// If something can neither be read nor written; it is named.
pub fn copy(source: &OwnedFd, target: &OwnedFd) -> Result<()> {
    for entry in Dir::read_from(source)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        copy_entry(source, target, name).with_context(|| name.to_string_lossy().into_owned())?;
    }
    Ok(())
}

fn copy_entry(source: &OwnedFd, target: &OwnedFd, name: &CStr) -> Result<()> {
    let stat = rustix::fs::statat(source, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let made = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => return copy_directory(source, target, name, &stat),
        FileType::RegularFile => copy_file(source, target, name, &stat),
        FileType::Symlink => {
            let link = rustix::fs::readlinkat(source, name, Vec::new())?;
            rustix::fs::symlinkat(link, target, name)
        }
        kind => rustix::fs::mknodat(target, name, kind, mode_of(&stat), stat.st_rdev),
    };
    match made {
        // It was there before: a mount point, or made by whoever mounted the target.
        Err(Errno::EXIST) => Ok(()),
        other => {
            other?;
            keep_attributes(target, name, &stat)
        }
    }
}

fn copy_directory(source: &OwnedFd, target: &OwnedFd, name: &CStr, stat: &Stat) -> Result<()> {
    let made = match rustix::fs::mkdirat(target, name, Mode::RWXU) {
        Err(Errno::EXIST) => false,
        other => {
            other?;
            true
        }
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
    let below = match rustix::fs::openat2(target, name, flags, Mode::empty(), resolve) {
        // Something else is mounted there, or it is no directory there.
        Err(Errno::XDEV | Errno::NOTDIR | Errno::LOOP) => return Ok(()),
        other => other?,
    };
    copy(
        &rustix::fs::openat(source, name, flags, Mode::empty())?,
        &below,
    )?;
    if made {
        keep_attributes(target, name, stat)
    } else {
        Ok(())
    }
}

fn copy_file(
    source: &OwnedFd,
    target: &OwnedFd,
    name: &CStr,
    stat: &Stat,
) -> rustix::io::Result<()> {
    let create = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    let to = rustix::fs::openat(target, name, create, Mode::RUSR | Mode::WUSR)?;
    let from = rustix::fs::openat(
        source,
        name,
        OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    let mut left = stat.st_size.max(0) as usize;
    while left > 0 {
        match rustix::fs::sendfile(&to, &from, None, left)? {
            0 => break,
            sent => left -= sent,
        }
    }
    Ok(())
}

fn keep_attributes(dir: &OwnedFd, name: &CStr, stat: &Stat) -> Result<()> {
    let (owner, group) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    match rustix::fs::chownat(
        dir,
        name,
        Some(owner),
        Some(group),
        AtFlags::SYMLINK_NOFOLLOW,
    ) {
        // An owner that has no name in this user namespace: it stays ours.
        Err(Errno::INVAL | Errno::PERM) => (),
        other => other?,
    }
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        rustix::fs::chmodat(dir, name, mode_of(stat), AtFlags::empty())?;
    }
    let time = |seconds, nanoseconds| Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec as _),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec as _),
    };
    rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(())
}

fn mode_of(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode & 0o7777)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn trees_are_copied_with_their_attributes() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(from.path().join("d")).unwrap();
        std::fs::write(from.path().join("d/f"), "content").unwrap();
        std::fs::set_permissions(from.path().join("d/f"), PermissionsExt::from_mode(0o4711))
            .unwrap();
        symlink("/nowhere", from.path().join("l")).unwrap();
        std::fs::write(from.path().join("kept"), "new").unwrap();
        std::fs::write(to.path().join("kept"), "old").unwrap();
        let open = |path: &std::path::Path| {
            rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap()
        };
        copy(&open(from.path()), &open(to.path())).unwrap();
        let copied = std::fs::metadata(to.path().join("d/f")).unwrap();
        assert_eq!(copied.mode() & 0o7777, 0o4711);
        assert_eq!(
            copied.mtime(),
            std::fs::metadata(from.path().join("d/f")).unwrap().mtime()
        );
        assert_eq!(std::fs::read(to.path().join("d/f")).unwrap(), b"content");
        assert_eq!(
            std::fs::read_link(to.path().join("l")).unwrap(),
            std::path::Path::new("/nowhere")
        );
        assert_eq!(std::fs::read(to.path().join("kept")).unwrap(), b"old");
    }
}
