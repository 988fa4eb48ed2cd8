//! Where everything stands in an erofs image: known before a byte of content is read.

use std::collections::BTreeSet;
use std::convert::Infallible;
use std::io;

use super::inode::{self, INODE};
use super::{BLOCK, BLOCK_BITS, SLOT};
use crate::flatten::Losses;
use crate::tarball::Content;
use crate::tree::{Id, Node, ROOT, Tree};

/// The most chunks of a sparse file: its table stands behind its inode.
const MAX_CHUNKS: u64 = 1 << 16;
/// Bytes of `struct erofs_dirent`.
const ENTRY: usize = 12;

/// Where the content of an inode is.
#[derive(Debug, Clone)]
pub(super) enum Body {
    /// It has none.
    None,
    /// Whole blocks from `block` on, the rest behind the inode.
    Inline { size: u64, block: u64 },
    /// Chunks of `1 << bits` bytes; those that are `used` stand one after the other from `block` on.
    Chunks {
        size: u64,
        bits: u8,
        block: u64,
        used: Box<[u32]>,
    },
}

/// Where an inode is.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// In bytes from the image's beginning.
    pub(super) offset: u64,
    pub(super) links: u32,
    pub(super) body: Body,
}

/// Where everything is.
#[derive(Debug)]
pub(super) struct Layout {
    /// By [`Id::index`]; nothing for inodes without a name.
    places: Vec<Option<Place>>,
    parents: Vec<Id>,
    order: Vec<Id>,
    /// The first block behind the inodes.
    pub(super) data: u64,
    /// Blocks of the image.
    pub(super) end: u64,
}

impl Layout {
    /// Places a tree. What erofs cannot hold is added to `losses`.
    pub(super) fn of(tree: &Tree, losses: &mut Losses) -> Result<Self, String> {
        let mut layout = Self {
            places: vec![None; tree.inodes()],
            parents: vec![ROOT; tree.inodes()],
            order: Vec::new(),
            data: 0,
            end: 0,
        };
        // Behind the superblock.
        let mut offset = BLOCK;
        tree.walk(|path, id| -> Result<(), String> {
            if let Some(place) = &mut layout.places[id.index()] {
                place.links += 1;
                return Ok(());
            }
            let shown = || format!("/{}", String::from_utf8_lossy(path));
            let inode = tree.inode(id);
            for xattr in inode
                .meta
                .xattrs
                .iter()
                .filter(|xattr| !inode::holds(xattr))
            {
                let name = String::from_utf8_lossy(&xattr.name);
                losses.push(format!(
                    "{}: erofs has no extended attribute {name:?}",
                    shown()
                ));
            }
            let xattrs = inode::xattrs_length(&inode.meta.xattrs)
                .ok_or_else(|| format!("{}: more extended attributes than erofs holds", shown()))?;
            let mut links = 1;
            if let Node::Directory(_) = inode.node {
                links = 2;
                for (_, child) in tree.children(id) {
                    if let Node::Directory(_) = tree.inode(child).node {
                        layout.parents[child.index()] = id;
                        links += 1;
                    }
                }
            }
            let body = body(tree, id);
            let length = INODE + xattrs;
            let tail = match &body {
                Body::None => 0,
                Body::Inline { size, .. } => size % BLOCK,
                Body::Chunks { size, bits, .. } => size.div_ceil(1 << bits) * 4,
            };
            // What stands behind an inode in the place of a block must not cross the end of one.
            if matches!(body, Body::Inline { .. }) {
                while (offset + length) % BLOCK + tail > BLOCK {
                    offset += SLOT;
                }
            }
            layout.places[id.index()] = Some(Place {
                offset,
                links,
                body,
            });
            layout.order.push(id);
            offset = (offset + length + tail).next_multiple_of(SLOT);
            Ok(())
        })?;
        layout.data = offset.div_ceil(BLOCK);
        let mut next = layout.data;
        for id in &layout.order {
            match layout.places[id.index()]
                .as_mut()
                .map(|place| &mut place.body)
            {
                Some(Body::Inline { size, block }) => {
                    *block = next;
                    next += *size / BLOCK;
                }
                Some(Body::Chunks {
                    size,
                    bits,
                    block,
                    used,
                }) => {
                    *block = next;
                    let blocks = |chunk: &u32| {
                        let start = u64::from(*chunk) << *bits;
                        (*size - start).min(1 << *bits).div_ceil(BLOCK)
                    };
                    next += used.iter().map(blocks).sum::<u64>();
                }
                _ => {}
            }
        }
        layout.end = next;
        if u32::try_from(next).is_err() || layout.number(ROOT) > u16::MAX.into() {
            return Err("more than an erofs image can hold".to_owned());
        }
        Ok(layout)
    }

    /// The inodes in the order of their numbers.
    pub(super) fn order(&self) -> &[Id] {
        &self.order
    }

    /// Where an inode that has a name is.
    pub(super) fn place(&self, id: Id) -> &Place {
        self.places[id.index()]
            .as_ref()
            .expect("every inode that the tree names was placed")
    }

    /// The number of the root directory.
    pub(super) fn root(&self) -> u64 {
        self.number(ROOT)
    }

    fn number(&self, id: Id) -> u64 {
        self.place(id).offset / SLOT
    }
}

fn body(tree: &Tree, id: Id) -> Body {
    match &tree.inode(id).node {
        Node::Directory(_) => {
            let mut size = 0;
            let ignored: Result<(), Infallible> = blocks_of(tree, id, ROOT, |_, length| {
                size += length as u64;
                Ok(())
            });
            match ignored {
                Ok(()) => {}
            }
            Body::Inline { size, block: 0 }
        }
        Node::Symlink(target) => Body::Inline {
            size: target.len() as u64,
            block: 0,
        },
        Node::File { content, .. } => file_body(content),
        Node::Character(_) | Node::Block(_) | Node::Fifo => Body::None,
    }
}

/// Files with holes are made of chunks.
fn file_body(content: &Content) -> Body {
    let size = content.size;
    let stored: u64 = content.pieces.iter().map(|piece| piece.length).sum();
    if stored == size {
        return Body::Inline { size, block: 0 };
    }
    let mut bits = BLOCK_BITS;
    while size.div_ceil(1 << bits) > MAX_CHUNKS {
        bits += 1;
    }
    let mut used = BTreeSet::new();
    for piece in content.pieces.iter().filter(|piece| piece.length > 0) {
        let last = (piece.offset + piece.length - 1) >> bits;
        used.extend((piece.offset >> bits..=last).map(|chunk| chunk as u32));
    }
    Body::Chunks {
        size,
        bits,
        block: 0,
        used: used.into_iter().collect(),
    }
}

/// Calls `visit` with the entries of each block of a directory, sorted, and the bytes that they take: all of a block but for the
/// last.
fn blocks_of<E>(
    tree: &Tree,
    id: Id,
    parent: Id,
    mut visit: impl FnMut(&[(&[u8], Id)], usize) -> Result<(), E>,
) -> Result<(), E> {
    let mut entries: Vec<(&[u8], Id)> = tree.children(id).collect();
    let dots: [(&[u8], Id); 2] = [(b".", id), (b"..", parent)];
    for dot in dots {
        let place = entries.partition_point(|(name, _)| *name < dot.0);
        entries.insert(place, dot);
    }
    let (mut start, mut length) = (0, 0);
    for (end, (name, _)) in entries.iter().enumerate() {
        if length + ENTRY + name.len() > BLOCK as usize {
            visit(&entries[start..end], BLOCK as usize)?;
            (start, length) = (end, 0);
        }
        length += ENTRY + name.len();
    }
    visit(&entries[start..], length)
}

/// The content of a directory: in each block entries (`struct erofs_dirent`), then their names.
pub(super) fn directory(tree: &Tree, id: Id, layout: &Layout) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    blocks_of(
        tree,
        id,
        layout.parents[id.index()],
        |entries, length| -> io::Result<()> {
            let start = bytes.len();
            let mut name_offset = entries.len() * ENTRY;
            for (name, id) in entries {
                bytes.extend(layout.number(*id).to_le_bytes());
                bytes.extend((name_offset as u16).to_le_bytes());
                bytes.extend([kind(&tree.inode(*id).node), 0]);
                name_offset += name.len();
            }
            for (name, _) in entries {
                bytes.extend_from_slice(name);
            }
            bytes.resize(start + length, 0);
            Ok(())
        },
    )?;
    Ok(bytes)
}

/// `EROFS_FT_*`
fn kind(node: &Node) -> u8 {
    match node {
        Node::File { .. } => 1,
        Node::Directory(_) => 2,
        Node::Character(_) => 3,
        Node::Block(_) => 4,
        Node::Fifo => 5,
        Node::Symlink(_) => 7,
    }
}
