//! The files of a source: of a directory, or of a tar archive, which is not unpacked but read where it is.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use super::Remote;
use crate::blob::Blob;
use crate::error::Error;
use crate::layer::Compression;
use crate::tarball::{Kind, Reader};

/// The most members of an archive.
const MAX_MEMBERS: usize = 100_000;

/// The files of a source.
#[derive(Debug)]
pub(super) struct Files {
    path: PathBuf,
    place: Place,
}

#[derive(Debug)]
enum Place {
    Directory,
    Archive(BTreeMap<Vec<u8>, Member>),
    Remote(Box<Remote>),
}

/// A member of an archive.
#[derive(Debug)]
enum Member {
    File(Blob),
    /// `docker save` links layers that are the same.
    Link(Vec<u8>),
}

impl Files {
    /// The files below a directory.
    pub(super) fn directory(path: &Path) -> Result<Self, Error> {
        match std::fs::metadata(path).map_err(Error::io(path))?.is_dir() {
            true => Ok(Self {
                path: path.to_owned(),
                place: Place::Directory,
            }),
            false => Err(Error::image(path, "no directory, expected an OCI layout")),
        }
    }

    /// The members of an archive.
    pub(super) fn archive(path: &Path) -> Result<Self, Error> {
        Self::open_archive(open(path)?, path)
    }

    /// The members of an archive that is open already; `path` is for messages.
    pub(super) fn open_archive(file: File, path: &Path) -> Result<Self, Error> {
        let wrong = |reason: String| Error::image(path, reason);
        let whole = Blob::whole(file).map_err(Error::io(path))?;
        let mut start = [0; 4];
        let begun = whole.reader().read(&mut start).unwrap_or_default();
        if Compression::of(&start[..begun]) != Compression::None {
            return Err(wrong(
                "a compressed archive: uncompress it first".to_owned(),
            ));
        }
        let mut reader = Reader::new(whole.reader());
        let mut members = BTreeMap::new();
        while let Some(entry) = reader
            .next_entry()
            .map_err(|error| wrong(error.to_string()))?
        {
            let member = match entry.kind {
                Kind::File(content) => match &content.pieces[..] {
                    [] if content.size == 0 => Member::File(whole.piece(0, 0)),
                    [piece] if piece.length == content.size => {
                        Member::File(whole.piece(piece.position, piece.length))
                    }
                    _ => return Err(wrong("an archive with sparse files".to_owned())),
                },
                Kind::Symlink(target) => {
                    let parent = entry.path.iter().rposition(|byte| *byte == b'/');
                    match join(&entry.path[..parent.unwrap_or_default()], &target) {
                        Some(target) => Member::Link(target),
                        None => continue,
                    }
                }
                Kind::Link(target) => Member::Link(target.into()),
                _ => continue,
            };
            let path: Vec<u8> = entry.path.into();
            let shown = String::from_utf8_lossy(&path).into_owned();
            if members.insert(path, member).is_some() {
                return Err(wrong(format!("two members called {shown:?}")));
            }
            if members.len() > MAX_MEMBERS {
                return Err(wrong(format!("more than {MAX_MEMBERS} members")));
            }
        }
        Ok(Self {
            path: path.to_owned(),
            place: Place::Archive(members),
        })
    }

    /// A repository of a registry; its files are found by what leads to them.
    pub(super) fn remote(remote: Remote) -> Self {
        Self {
            path: remote.path(),
            place: Place::Remote(Box::new(remote)),
        }
    }

    /// The repository, if these are its files.
    pub(super) fn as_remote(&self) -> Option<&Remote> {
        match &self.place {
            Place::Remote(remote) => Some(remote),
            _ => None,
        }
    }

    /// The same, for good.
    pub(super) fn into_remote(self) -> Option<Remote> {
        match self.place {
            Place::Remote(remote) => Some(*remote),
            _ => None,
        }
    }

    /// The archive or directory.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// A file by its path within the source.
    pub(super) fn get(&self, name: &str) -> Result<Blob, Error> {
        let missing = || Error::image(&self.path, format!("no {name:?} in it"));
        let plain = Path::new(name)
            .components()
            .all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !plain {
            let reason = format!("{name:?} is no path within it");
            return Err(Error::image(&self.path, reason));
        }
        match &self.place {
            Place::Directory => {
                let file = open(&self.path.join(name))?;
                Blob::whole(file).map_err(Error::io(&self.path))
            }
            Place::Remote(_) => Err(missing()),
            Place::Archive(members) => {
                let name = join(b"", name.as_bytes()).ok_or_else(missing)?;
                match members.get(&name) {
                    Some(Member::File(blob)) => Ok(blob.clone()),
                    Some(Member::Link(target)) => match members.get(target) {
                        Some(Member::File(blob)) => Ok(blob.clone()),
                        _ => Err(missing()),
                    },
                    None => Err(missing()),
                }
            }
        }
    }
}

/// Opens a regular file.
fn open(path: &Path) -> Result<File, Error> {
    // NONBLOCK: a FIFO would otherwise make the program wait.
    let file = File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32)
        .open(path)
        .map_err(Error::io(path))?;
    match file.metadata().map_err(Error::io(path))?.is_file() {
        true => Ok(file),
        false => Err(Error::image(path, "no regular file")),
    }
}

/// A relative path within the archive, seen from a directory in it; `None` where it leads out.
fn join(directory: &[u8], path: &[u8]) -> Option<Vec<u8>> {
    if path.starts_with(b"/") {
        return None;
    }
    let slash = |byte: &u8| *byte == b'/';
    let mut names: Vec<&[u8]> = Vec::new();
    for name in directory.split(slash).chain(path.split(slash)) {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop()?;
            }
            name => names.push(name),
        }
    }
    Some(names.join(&b'/'))
}
