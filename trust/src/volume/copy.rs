//! Filling a new volume with what the image has at its mount point, as Docker does.

use std::collections::HashMap;
use std::ffi::{CStr, OsStr};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, Dir, FileType, Gid, Mode, OFlags, RawMode, ResolveFlags, Stat, Timespec, Timestamps,
    Uid, XattrFlags,
};
use rustix::io::Errno;

/// The directory at `path` (absolute) inside the root file system `root`, whose symlinks are followed within it; `None`
/// where there is none.
///
/// # Errors
/// `path` is no directory, or the kernel refuses.
pub(crate) fn directory_in(root: impl AsFd, path: &str) -> io::Result<Option<OwnedFd>> {
    let inside = Path::new("./").join(path.trim_start_matches('/'));
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, &inside, flags, Mode::empty(), resolve) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Copies what is in the directory `from`, and its own owner, mode, times and extended attributes, to the empty directory
/// `to`: files, directories, symlinks, hard links and FIFOs. Device nodes and sockets are left out.
///
/// # Errors
/// Something cannot be read or written; the path in the error is relative to the directory.
pub(super) fn tree(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> io::Result<()> {
    let mut copy = Copy {
        root: to,
        linked: HashMap::new(),
    };
    copy.directory(from, to, Path::new("."))
}

/// What is known while a tree is copied.
struct Copy<'c> {
    /// The directory that the tree is copied to.
    root: BorrowedFd<'c>,
    /// The first copy's path, by the source's inode, of files with more than one name.
    linked: HashMap<u64, PathBuf>,
}

/// Puts the path before what the kernel said.
fn at(path: &Path) -> impl Fn(Errno) -> io::Error {
    move |errno| io::Error::other(format!("{}: {errno}", path.display()))
}

impl Copy<'_> {
    /// Copies the content of a directory, then its metadata.
    fn directory(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        path: &Path,
    ) -> io::Result<()> {
        let fail = at(path);
        for entry in Dir::read_from(from).map_err(&fail)? {
            let entry = entry.map_err(&fail)?;
            let name = entry.file_name();
            if name != c"." && name != c".." {
                self.entry(
                    from,
                    to,
                    name,
                    &path.join(OsStr::from_bytes(name.to_bytes())),
                )?;
            }
        }
        let stat = rustix::fs::fstat(from).map_err(&fail)?;
        metadata(from, to, &stat).map_err(&fail)
    }

    fn entry(
        &mut self,
        from: BorrowedFd<'_>,
        to: BorrowedFd<'_>,
        name: &CStr,
        path: &Path,
    ) -> io::Result<()> {
        let fail = at(path);
        let stat = rustix::fs::statat(from, name, AtFlags::SYMLINK_NOFOLLOW).map_err(&fail)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::Directory && stat.st_nlink > 1 {
            if let Some(first) = self.linked.get(&stat.st_ino) {
                return rustix::fs::linkat(self.root, first, to, name, AtFlags::empty())
                    .map_err(&fail);
            }
            self.linked.insert(stat.st_ino, path.to_owned());
        }
        match kind {
            FileType::Directory => {
                rustix::fs::mkdirat(to, name, Mode::RWXU).map_err(&fail)?;
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let source = rustix::fs::openat(from, name, flags, Mode::empty()).map_err(&fail)?;
                let copy = rustix::fs::openat(to, name, flags, Mode::empty()).map_err(&fail)?;
                self.directory(source.as_fd(), copy.as_fd(), path)
            }
            FileType::RegularFile => {
                let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let write = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let mut source =
                    File::from(rustix::fs::openat(from, name, read, Mode::empty()).map_err(&fail)?);
                let mode = Mode::RUSR | Mode::WUSR;
                let mut copy =
                    File::from(rustix::fs::openat(to, name, write, mode).map_err(&fail)?);
                io::copy(&mut source, &mut copy).map_err(|error| {
                    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
                })?;
                metadata(source.as_fd(), copy.as_fd(), &stat).map_err(&fail)
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(from, name, Vec::new()).map_err(&fail)?;
                rustix::fs::symlinkat(&target, to, name).map_err(&fail)?;
                own(to, name, &stat).map_err(&fail)?;
                rustix::fs::utimensat(to, name, &times(&stat), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(&fail)
            }
            FileType::Fifo => {
                rustix::fs::mknodat(to, name, FileType::Fifo, Mode::RUSR, 0).map_err(&fail)?;
                own(to, name, &stat).map_err(&fail)?;
                rustix::fs::chmodat(to, name, mode(&stat), AtFlags::empty()).map_err(&fail)?;
                rustix::fs::utimensat(to, name, &times(&stat), AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(&fail)
            }
            _ => {
                tracing::warn!(
                    "{}: a device node or socket is not copied into a volume",
                    path.display()
                );
                Ok(())
            }
        }
    }
}

fn mode(stat: &Stat) -> Mode {
    Mode::from_raw_mode(stat.st_mode as RawMode & 0o7777)
}

fn ids(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (
        Some(Uid::from_raw(stat.st_uid)),
        Some(Gid::from_raw(stat.st_gid)),
    )
}

fn own(dir: BorrowedFd<'_>, name: &CStr, stat: &Stat) -> rustix::io::Result<()> {
    let (uid, gid) = ids(stat);
    rustix::fs::chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)
}

fn times(stat: &Stat) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: stat.st_atime,
            tv_nsec: stat.st_atime_nsec as _,
        },
        last_modification: Timespec {
            tv_sec: stat.st_mtime,
            tv_nsec: stat.st_mtime_nsec as _,
        },
    }
}

/// Owner, mode, extended attributes and times, in an order in which none undoes another.
fn metadata(from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> rustix::io::Result<()> {
    let (uid, gid) = ids(stat);
    rustix::fs::fchown(to, uid, gid)?;
    rustix::fs::fchmod(to, mode(stat))?;
    let mut names = vec![0_u8; 1 << 16];
    let length = match rustix::fs::flistxattr(from, names.as_mut_slice()) {
        // The image's file system, or the kernel's driver for it, knows no extended attributes.
        Err(Errno::OPNOTSUPP) => 0,
        outcome => outcome?,
    };
    let mut value = vec![0_u8; 1 << 16];
    for name in names[..length].split_inclusive(|byte| *byte == 0) {
        let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::INVAL)?;
        let length = rustix::fs::fgetxattr(from, name, value.as_mut_slice())?;
        rustix::fs::fsetxattr(to, name, &value[..length], XattrFlags::empty())?;
    }
    rustix::fs::futimens(to, &times(stat))
}
