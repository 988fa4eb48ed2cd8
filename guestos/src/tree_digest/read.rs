//! A tree in a directory, such as an engine hands to a runtime. Everything is opened beneath the root, no symbolic link is
//! followed, and what changes while it is read is an error.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use composefs::fsverity::{Sha256HashValue, measure_verity_opt};
use rayon::prelude::*;
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::{Builder, INLINE, Meta, Node, TreeDigest, TreeError, verity};

/// More entries than any image has: names and metadata are kept in memory.
const MAX_ENTRIES: usize = 5_000_000;

/// Longest value of an extended attribute, and longest list of their names (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const MAX_XATTR: usize = 65536;

/// Why a directory has no digest.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Something cannot be read.
    #[error("cannot {step} {}", path.display())]
    Io {
        /// What was being done.
        step: &'static str,
        /// To what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Something was changed while it was read.
    #[error("{}: changed while it was read", .0.display())]
    Changed(PathBuf),
    /// There is too much of it.
    #[error("{}: more than {MAX_ENTRIES} files", .0.display())]
    TooMany(PathBuf),
    /// It is no tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
}

/// The digest of the tree in the open directory `root`; `shown` is its path for messages. A file's own fs-verity digest is
/// taken where the kernel keeps one, else the file is read.
///
/// # Errors
/// Something in it cannot be read, or changes meanwhile.
pub fn read(root: BorrowedFd<'_>, shown: &Path) -> Result<TreeDigest, ReadError> {
    let tree = Tree { root, shown };
    let found = tree.list()?;
    let nodes: Vec<(Vec<u8>, Meta, Node)> = found
        .into_par_iter()
        .map(|found| tree.entry(found))
        .collect::<Result<_, _>>()?;
    let mut builder = Builder::default();
    for (path, meta, node) in nodes {
        builder.add(path, meta, node);
    }
    Ok(builder.finish()?)
}

struct Tree<'t> {
    root: BorrowedFd<'t>,
    shown: &'t Path,
}

/// A name that was found, and what it was then.
struct Found {
    path: Vec<u8>,
    stat: Stat,
}

impl Tree<'_> {
    fn failed(&self, step: &'static str, path: &[u8]) -> impl Fn(Errno) -> ReadError {
        let path = self.path(path);
        move |errno| ReadError::Io {
            step,
            path: path.clone(),
            source: errno.into(),
        }
    }

    fn path(&self, path: &[u8]) -> PathBuf {
        match path {
            [] => self.shown.to_owned(),
            path => self.shown.join(OsStr::from_bytes(path)),
        }
    }

    /// Opens what is at a path beneath the root.
    fn open(&self, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.is_empty() { b"." } else { path };
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::openat2(
            self.root,
            OsStr::from_bytes(path),
            flags,
            Mode::empty(),
            resolve,
        )
    }

    /// Every name in the tree, and the root.
    fn list(&self) -> Result<Vec<Found>, ReadError> {
        let stat = rustix::fs::fstat(self.root).map_err(self.failed("look at", b""))?;
        let mut found = vec![Found { path: vec![], stat }];
        let mut at = 0;
        while at < found.len() {
            let is_directory =
                FileType::from_raw_mode(found[at].stat.st_mode) == FileType::Directory;
            if is_directory {
                let path = found[at].path.clone();
                self.directory(&path, &mut found)?;
            }
            at += 1;
        }
        Ok(found)
    }

    /// Adds the names in a directory.
    fn directory(&self, path: &[u8], found: &mut Vec<Found>) -> Result<(), ReadError> {
        let failed = self.failed("read the directory", path);
        let dir = self
            .open(path, OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(&failed)?;
        for entry in Dir::read_from(&dir).map_err(&failed)? {
            let entry = entry.map_err(&failed)?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if found.len() >= MAX_ENTRIES {
                return Err(ReadError::TooMany(self.shown.to_owned()));
            }
            let full = match path {
                [] => name.to_vec(),
                path => [path, b"/", name].concat(),
            };
            let stat = rustix::fs::statat(&dir, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(self.failed("look at", &full))?;
            found.push(Found { path: full, stat });
        }
        Ok(())
    }

    /// What is at a name.
    fn entry(&self, found: Found) -> Result<(Vec<u8>, Meta, Node), ReadError> {
        let Found { path, stat } = found;
        let mut meta = Meta {
            mode: stat.st_mode & 0o7777,
            uid: stat.st_uid,
            gid: stat.st_gid,
            ..Meta::default()
        };
        let node = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                let dir = self
                    .open(&path, OFlags::RDONLY | OFlags::DIRECTORY)
                    .map_err(self.failed("open", &path))?;
                self.check(&dir, &path, &stat)?;
                meta.xattrs = xattrs(&dir).map_err(self.failed("read attributes of", &path))?;
                Node::Directory
            }
            FileType::RegularFile => {
                let file = self
                    .open(&path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)
                    .map_err(self.failed("open", &path))?;
                self.check(&file, &path, &stat)?;
                meta.xattrs = xattrs(&file).map_err(self.failed("read attributes of", &path))?;
                let file = File::from(file);
                let size = stat.st_size.cast_unsigned();
                let node = content(&file, size).map_err(|source| match source.kind() {
                    // It was as long as `size` says when it was opened.
                    io::ErrorKind::UnexpectedEof => ReadError::Changed(self.path(&path)),
                    _ => ReadError::Io {
                        step: "read",
                        path: self.path(&path),
                        source,
                    },
                })?;
                self.check(&file, &path, &stat)?;
                node
            }
            FileType::Symlink => {
                let link = self
                    .open(&path, OFlags::PATH)
                    .map_err(self.failed("open", &path))?;
                self.check(&link, &path, &stat)?;
                let target = rustix::fs::readlinkat(&link, c"", Vec::new())
                    .map_err(self.failed("read the link", &path))?;
                Node::Symlink(target.into_bytes())
            }
            FileType::CharacterDevice => Node::Character(stat.st_rdev),
            FileType::BlockDevice => Node::Block(stat.st_rdev),
            FileType::Fifo => Node::Fifo,
            FileType::Socket => Node::Socket,
            FileType::Unknown => {
                return Err(self.failed("tell the type of", &path)(Errno::INVAL));
            }
        };
        Ok((path, meta, node))
    }

    /// That an open file is still what was listed.
    fn check(&self, file: impl AsFd, path: &[u8], listed: &Stat) -> Result<(), ReadError> {
        let now = rustix::fs::fstat(file).map_err(self.failed("look at", path))?;
        let what = |stat: &Stat| {
            (
                (
                    stat.st_dev,
                    stat.st_ino,
                    stat.st_mode,
                    stat.st_uid,
                    stat.st_gid,
                ),
                (stat.st_size, stat.st_mtime, stat.st_mtime_nsec),
                (stat.st_ctime, stat.st_ctime_nsec),
            )
        };
        match what(&now) == what(listed) {
            true => Ok(()),
            false => Err(ReadError::Changed(self.path(path))),
        }
    }
}

fn content(file: &File, size: u64) -> io::Result<Node> {
    if size <= INLINE {
        let mut bytes = vec![0; size as usize];
        file.read_exact_at(&mut bytes, 0)?;
        return Ok(Node::Small(bytes));
    }
    // Any other answer than a SHA-256 digest: the file is read.
    if let Ok(Some(digest)) = measure_verity_opt::<Sha256HashValue>(file) {
        return Ok(Node::File {
            digest: super::bytes(&digest),
            size,
        });
    }
    let digest = verity::of_file(file, size)?;
    Ok(Node::File { digest, size })
}

/// The extended attributes of an open file that count.
fn xattrs(file: &OwnedFd) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, Errno> {
    let names = match grown(|buffer| rustix::fs::flistxattr(file, buffer)) {
        Err(Errno::NOTSUP) => return Ok(BTreeMap::new()),
        names => names?,
    };
    let mut found = BTreeMap::new();
    for name in names.split(|byte| *byte == 0) {
        if super::counts(name) {
            let value = grown(|buffer| rustix::fs::fgetxattr(file, name, buffer))?;
            found.insert(name.to_vec(), value);
        }
    }
    Ok(found)
}

/// What `call` puts into a buffer, which is made larger where it is too small.
fn grown(call: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 256];
    loop {
        match call(&mut buffer) {
            Err(Errno::RANGE) if buffer.len() < MAX_XATTR => buffer.resize(MAX_XATTR, 0),
            outcome => {
                buffer.truncate(outcome?);
                return Ok(buffer);
            }
        }
    }
}
