//! The digest of a tree of files: what composefs calls the image, as mkcomposefs prints it.
//!
//! The same tree gives the same digest, whether it comes from layers ([`Builder`]) or lies in a directory ([`read`](fn@read)).
//! docs/launch-identity.md says what counts: names, types, modes, owners, contents, devices, and the extended attributes
//! `security.capability` and `user.*`. Times and hard links do not: engines differ in both.

mod read;
mod stubs;
pub mod verity;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use composefs::erofs::format::FormatVersion;
use composefs::fsverity::{FsVerityHashValue, Sha256HashValue};
use composefs::generic_tree::{Inode, LeafContent, Stat};
use composefs::tree::{Directory, FileSystem, RegularFile};
use sha2::{Digest as _, Sha256};

pub use read::{ReadError, read};

/// Files of at most so many bytes are in the image itself (mkcomposefs, `LCFS_BUILD_INLINE_FILE_SIZE_LIMIT`).
pub const INLINE: u64 = 64;

/// Everything about an inode that counts, but what it is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// Permissions with set-user-ID, set-group-ID and sticky bit.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Extended attributes; those that do not count are dropped by [`Builder::add`].
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// A regular file of at most [`INLINE`] bytes.
    Small(Vec<u8>),
    /// A larger regular file.
    File {
        /// Its fs-verity digest.
        digest: [u8; 32],
        /// Its size in bytes.
        size: u64,
    },
    /// A symbolic link to this.
    Symlink(Vec<u8>),
    /// A character device, by its number (`makedev`).
    Character(u64),
    /// A block device, by its number.
    Block(u64),
    /// A FIFO.
    Fifo,
    /// A socket.
    Socket,
}

#[derive(Debug)]
struct Entry {
    meta: Meta,
    node: Node,
}

/// A tree's digest, and what is not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TreeDigest {
    /// The fs-verity digest of the composefs image.
    pub digest: [u8; 32],
    /// SHA-256 of that image.
    pub image_sha256: [u8; 32],
    /// Files with a content of their own at paths that engines put files at, or mount files over: path from `/`, and what is there.
    pub engine_files: BTreeMap<String, String>,
}

/// What is wrong with a tree.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("/{path}: {reason}")]
pub struct TreeError {
    /// From the root, without a leading slash.
    pub path: String,
    /// What was found or expected.
    pub reason: String,
}

/// Collects a tree, entry by entry, in any order.
#[derive(Debug, Default)]
pub struct Builder {
    entries: BTreeMap<Vec<u8>, Entry>,
}

impl Builder {
    /// Adds an inode at a path from the root (no leading slash, no `.` or `..`; empty for the root itself). A hard link's
    /// every name is added as a file of its own.
    pub fn add(&mut self, path: Vec<u8>, mut meta: Meta, node: Node) {
        meta.xattrs.retain(|name, _| counts(name));
        if !matches!(node, Node::Directory | Node::Small(_) | Node::File { .. }) {
            // The kernel lets nobody set `user.*` there, and looks at no capability.
            meta.xattrs.clear();
        }
        if matches!(node, Node::Symlink(_)) {
            meta.mode = 0o777;
        }
        self.entries.insert(path, Entry { meta, node });
    }

    /// The digest.
    ///
    /// # Errors
    /// There is no root directory, or something lies in what is no directory.
    pub fn finish(mut self) -> Result<TreeDigest, TreeError> {
        let engine_files = stubs::take(&mut self.entries);
        let mut entries = self.entries.into_iter();
        let root = match entries.next() {
            Some((path, root)) if path.is_empty() && root.node == Node::Directory => root,
            _ => return Err(wrong(b"", "not a directory".to_owned())),
        };
        let mut tree = FileSystem::<Sha256HashValue>::new(stat(root.meta));
        for (path, entry) in entries {
            insert(&mut tree, &path, entry).map_err(|reason| wrong(&path, reason))?;
        }
        // Not `fsck`: every leaf was just made for its one name.
        let (image, id) = tree.compute_image_bytes(FormatVersion::V1);
        Ok(TreeDigest {
            digest: bytes(&id),
            image_sha256: Sha256::digest(&image).into(),
            engine_files,
        })
    }
}

fn wrong(path: &[u8], reason: String) -> TreeError {
    TreeError {
        path: String::from_utf8_lossy(path).into_owned(),
        reason,
    }
}

fn bytes(value: &Sha256HashValue) -> [u8; 32] {
    let mut bytes = [0; 32];
    hex::decode_to_slice(value.to_hex(), &mut bytes).expect("32 bytes in hex");
    bytes
}

/// Whether an extended attribute is the image's own: others are labels of the host, or of a file system that an engine uses.
fn counts(name: &[u8]) -> bool {
    const ENGINES: [&[u8]; 2] = [b"user.overlay.", b"user.containers."];
    name == b"security.capability"
        || (name.starts_with(b"user.") && !ENGINES.iter().any(|prefix| name.starts_with(prefix)))
}

fn stat(meta: Meta) -> Stat {
    let boxed = |(name, value): (Vec<u8>, Vec<u8>)| (OsStr::from_bytes(&name).into(), value.into());
    Stat {
        st_mode: meta.mode & 0o7777,
        st_uid: meta.uid,
        st_gid: meta.gid,
        st_mtim_sec: 0,
        st_mtim_nsec: 0,
        xattrs: meta.xattrs.into_iter().map(boxed).collect(),
    }
}

fn insert(tree: &mut FileSystem<Sha256HashValue>, path: &[u8], entry: Entry) -> Result<(), String> {
    let stat = stat(entry.meta);
    let content = match entry.node {
        Node::Directory => None,
        Node::Small(bytes) => Some(LeafContent::Regular(RegularFile::Inline(bytes.into()))),
        Node::File { digest, size } => Some(LeafContent::Regular(RegularFile::External(
            digest.into(),
            size,
        ))),
        Node::Symlink(target) => Some(LeafContent::Symlink(OsStr::from_bytes(&target).into())),
        Node::Character(device) => Some(LeafContent::CharacterDevice(device)),
        Node::Block(device) => Some(LeafContent::BlockDevice(device)),
        Node::Fifo => Some(LeafContent::Fifo),
        Node::Socket => Some(LeafContent::Socket),
    };
    let inode = match content {
        None => Inode::Directory(Box::new(Directory::new(stat))),
        Some(content) => Inode::leaf(tree.push_leaf(stat, content)),
    };
    let (parent, name) = tree
        .root
        .split_mut(OsStr::from_bytes(path))
        .map_err(|error| error.to_string())?;
    match parent.insert(name, inode) {
        true => Ok(()),
        false => Err("a second entry of this name".to_owned()),
    }
}

#[cfg(test)]
mod tests;
