//! What is in a root image, read back: for comparisons of bundles.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::blob::Blob;
use crate::error::Error;
use crate::flatten;
use crate::tarball::{Device, Meta, Reader};
use crate::tree::{Id, Node, Tree};

/// squashfs-tools-ng's other half.
const PROGRAM: &str = "sqfs2tar";

/// Everything about a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// Mode, owner, time, extended attributes.
    pub meta: Meta,
    /// What it is.
    pub kind: ItemKind,
    /// Its other names, where it has some: all, sorted.
    pub names: Vec<Vec<u8>>,
}

/// What a file is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ItemKind {
    /// A directory.
    Directory,
    /// A regular file: its size and the SHA-256 of its content.
    File(u64, [u8; 32]),
    /// A symbolic link.
    Symlink(Box<[u8]>),
    /// A character device.
    Character(Device),
    /// A block device.
    Block(Device),
    /// A FIFO.
    Fifo,
}

/// The files of a squashfs image by their paths; the root's is empty. The image's content is written to a file without a name in
/// the directory for temporary files.
///
/// # Errors
/// sqfs2tar cannot be run or fails, or a file cannot be read.
pub fn of_squashfs(image: &Path) -> Result<BTreeMap<Vec<u8>, Item>, Error> {
    let failed = |reason: String| Error::Program {
        program: PROGRAM,
        reason,
    };
    let unpacked = tempfile::tempfile().map_err(|error| failed(error.to_string()))?;
    let stdout = unpacked
        .try_clone()
        .map_err(|error| failed(error.to_string()))?;
    let output = Command::new(PROGRAM)
        .arg(image)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .output()
        .map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                failed("not installed (Debian: squashfs-tools-ng)".to_owned())
            }
            _ => failed(error.to_string()),
        })?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(failed(format!("{}: {}", output.status, said.trim())));
    }
    read(unpacked).map_err(|reason| Error::image(image, reason))
}

fn read(unpacked: File) -> Result<BTreeMap<Vec<u8>, Item>, String> {
    let said = |error: io::Error| error.to_string();
    let size = unpacked.metadata().map_err(said)?.len();
    let blob = Blob::new(Arc::new(unpacked), 0, size);
    let mut reader = Reader::new(blob.reader());
    let mut tree = Tree::new();
    while let Some(entry) = reader.next_entry().map_err(|error| error.to_string())? {
        tree.apply(0, entry)?;
    }
    let mut names: BTreeMap<Id, Vec<Vec<u8>>> = BTreeMap::new();
    tree.walk(|path, id| -> Result<(), String> {
        names.entry(id).or_default().push(path.to_vec());
        Ok(())
    })?;
    let mut items = BTreeMap::new();
    for (id, mut names) in names {
        names.sort();
        let inode = tree.inode(id);
        let kind = match &inode.node {
            Node::Directory(_) => ItemKind::Directory,
            Node::File { content, .. } => {
                let mut hash = Sha256::new();
                flatten::content(&blob, content, &mut hash).map_err(said)?;
                ItemKind::File(content.size, hash.finalize().into())
            }
            Node::Symlink(target) => ItemKind::Symlink(target.clone()),
            Node::Character(device) => ItemKind::Character(*device),
            Node::Block(device) => ItemKind::Block(*device),
            Node::Fifo => ItemKind::Fifo,
        };
        let mut meta = inode.meta.clone();
        meta.xattrs.sort_by(|one, other| one.name.cmp(&other.name));
        for name in &names {
            let item = Item {
                meta: meta.clone(),
                kind: kind.clone(),
                names: if names.len() > 1 {
                    names.clone()
                } else {
                    Vec::new()
                },
            };
            items.insert(name.clone(), item);
        }
    }
    Ok(items)
}
