//! Inodes and their extended attributes: `struct erofs_inode_extended`, `struct erofs_xattr_ibody_header` and
//! `struct erofs_xattr_entry` of Linux's fs/erofs/erofs_fs.h.

use std::io;

use super::BLOCK;
use crate::tarball::{Meta, Xattr};

/// Bytes of an extended inode.
pub(super) const INODE: u64 = 64;
/// Bytes of the header before inline extended attributes.
const XATTR_HEADER: usize = 12;
/// The most bytes of an inode's extended attributes: they are counted by four in 16 bits.
const MAX_XATTRS: usize = 4 * 0xfffe + XATTR_HEADER;

/// `EROFS_INODE_LAYOUT_EXTENDED`, and the layouts of content.
const EXTENDED: u16 = 1;
const FLAT_PLAIN: u16 = 0;
const FLAT_INLINE: u16 = 2;
const CHUNK_BASED: u16 = 4;

/// The kinds of extended attributes: number, and what their names begin with (or are, for the second and third).
const KINDS: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// What an inode says about its content.
pub(super) enum Data {
    None,
    Device(u32),
    /// From `block` on, the rest behind the inode.
    Flat {
        size: u64,
        block: u32,
    },
    /// `bits` more than a block's.
    Chunks {
        size: u64,
        bits: u8,
    },
}

/// An inode without its metadata.
pub(super) struct Encoded {
    pub(super) number: u32,
    pub(super) links: u32,
    pub(super) data: Data,
}

impl Encoded {
    /// The inode and its extended attributes; `mode` with the type.
    pub(super) fn to_bytes(&self, mode: u16, meta: &Meta) -> io::Result<Vec<u8>> {
        let (layout, size, union) = match self.data {
            Data::None => (FLAT_PLAIN, 0, 0),
            Data::Device(device) => (FLAT_PLAIN, 0, device),
            Data::Flat { size, block } if size % BLOCK == 0 => (FLAT_PLAIN, size, block),
            Data::Flat { size, block } => (FLAT_INLINE, size, block),
            Data::Chunks { size, bits } => (CHUNK_BASED, size, bits.into()),
        };
        let xattrs = xattrs(&meta.xattrs);
        let count = match xattrs.len() {
            0 => 0,
            length => (length - XATTR_HEADER) / 4 + 1,
        };
        let count = u16::try_from(count).map_err(io::Error::other)?;
        let mut bytes = Vec::with_capacity(INODE as usize + xattrs.len());
        bytes.extend((EXTENDED | layout << 1).to_le_bytes());
        bytes.extend(count.to_le_bytes());
        bytes.extend(mode.to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend(size.to_le_bytes());
        bytes.extend(union.to_le_bytes());
        bytes.extend(self.number.to_le_bytes());
        bytes.extend(meta.uid.to_le_bytes());
        bytes.extend(meta.gid.to_le_bytes());
        bytes.extend(meta.mtime.to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend(self.links.to_le_bytes());
        bytes.extend([0; 16]);
        bytes.extend(xattrs);
        Ok(bytes)
    }
}

/// Whether erofs can hold an extended attribute.
pub(super) fn holds(xattr: &Xattr) -> bool {
    split(&xattr.name).is_some() && u16::try_from(xattr.value.len()).is_ok()
}

/// Bytes that extended attributes take behind their inode; nothing where they are too many.
pub(super) fn xattrs_length(xattrs: &[Xattr]) -> Option<u64> {
    let length: usize = xattrs
        .iter()
        .filter(|xattr| holds(xattr))
        .map(|xattr| {
            let (_, name) = split(&xattr.name).unwrap_or_default();
            (4 + name.len() + xattr.value.len()).next_multiple_of(4)
        })
        .sum();
    match length {
        0 => Some(0),
        length => (length + XATTR_HEADER <= MAX_XATTRS).then_some((length + XATTR_HEADER) as u64),
    }
}

/// The kind's number, and the name behind its prefix.
fn split(name: &[u8]) -> Option<(u8, &[u8])> {
    KINDS.iter().find_map(|(kind, prefix)| {
        let rest = name.strip_prefix(*prefix)?;
        // A kind that is a whole name has nothing behind it, the others have.
        (prefix.ends_with(b".") != rest.is_empty()).then_some((*kind, rest))
    })
}

fn xattrs(xattrs: &[Xattr]) -> Vec<u8> {
    let mut bytes = vec![0; XATTR_HEADER];
    for xattr in xattrs.iter().filter(|xattr| holds(xattr)) {
        let (kind, name) = split(&xattr.name).unwrap_or_default();
        bytes.extend([name.len() as u8, kind]);
        bytes.extend((xattr.value.len() as u16).to_le_bytes());
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(&xattr.value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    match bytes.len() {
        XATTR_HEADER => Vec::new(),
        _ => bytes,
    }
}
