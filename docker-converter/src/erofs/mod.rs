//! Writes erofs images, uncompressed, straight from the layers.
//!
//! mkfs.erofs reads archives from 1.7 on, Debian 12 has 1.5, which wants an unpacked tree and root for its owners; composefs'
//! writer keeps no content of files. So the format is written here (Linux, Documentation/filesystems/erofs.rst and
//! fs/erofs/erofs_fs.h): what is flat in it is small. Inodes come first, in the order of their paths, then the whole blocks of
//! files; what is left of a file behind its last whole block stands behind its inode. Sparse files are made of chunks, and
//! those without content take no place.

mod inode;
mod layout;

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::Path;

use indicatif::ProgressBar;

use crate::blob::Blob;
use crate::error::Error;
use crate::flatten::{self, Losses};
use crate::tarball::{Content, Device};
use crate::tree::{Id, Inode, Node, Tree};
use inode::{Data, Encoded};
use layout::{Body, Layout};

/// Bytes of a block.
const BLOCK: u64 = 4096;
/// `log2(BLOCK)`
const BLOCK_BITS: u8 = 12;
/// Inodes begin at multiples of this; their numbers count them.
const SLOT: u64 = 32;
/// Where the superblock is.
const SUPERBLOCK: usize = 1024;
/// `EROFS_SUPER_MAGIC_V1`
const MAGIC: u32 = 0xe0f5_e1e2;
/// `EROFS_FEATURE_INCOMPAT_CHUNKED_FILE`: Linux 5.15.
const CHUNKED_FILE: u32 = 4;
/// How much is written at a time.
const BUFFER: usize = 1 << 20;

/// Makes the image `path` of a tree. `layers` are the uncompressed layers that it was made of; `time` stands for when it was
/// made, in seconds since 1970. Returns what erofs cannot keep.
///
/// # Errors
/// A layer cannot be read, the image cannot be written, or the tree is more than erofs can hold.
pub fn make(
    path: &Path,
    time: u32,
    tree: &Tree,
    layers: &[Blob],
    progress: &ProgressBar,
) -> Result<Losses, Error> {
    let mut losses = Losses::new();
    let layout = Layout::of(tree, &mut losses).map_err(|reason| Error::image(path, reason))?;
    write(path, time, tree, layers, &layout, progress).map_err(Error::io(path))?;
    Ok(losses)
}

fn write(
    path: &Path,
    time: u32,
    tree: &Tree,
    layers: &[Blob],
    layout: &Layout,
    progress: &ProgressBar,
) -> io::Result<()> {
    let file = File::create_new(path)?;
    file.set_len(layout.end * BLOCK)?;
    let at = |block: u64| -> io::Result<BufWriter<File>> {
        let mut file = File::options().write(true).open(path)?;
        file.seek(SeekFrom::Start(block * BLOCK))?;
        Ok(BufWriter::with_capacity(BUFFER, file))
    };
    let mut inodes = Counted {
        to: at(0)?,
        position: 0,
    };
    let mut blocks = progress.wrap_write(at(layout.data)?);
    inodes.write_all(&superblock(layout, time))?;
    for (number, id) in (1..).zip(layout.order()) {
        let place = layout.place(*id);
        inodes.zeros_to(place.offset)?;
        let (data, tail) = body(tree, *id, layout)?;
        let encoded = Encoded {
            number,
            links: place.links,
            data,
        };
        let inode = tree.inode(*id);
        inodes.write_all(&encoded.to_bytes(mode(inode), &inode.meta)?)?;
        inodes.write_all(&tail)?;
        match (&inode.node, &place.body) {
            (Node::File { layer, content }, Body::Inline { size, .. }) => {
                let mut content = flatten::Stream::new(&layers[*layer as usize], content);
                let whole = size / BLOCK * BLOCK;
                let copied = io::copy(&mut (&mut content).take(whole), &mut blocks)?;
                if copied != whole {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                io::copy(&mut content, &mut inodes)?;
            }
            (Node::File { layer, content }, Body::Chunks { bits, used, .. }) => {
                let layer = &layers[*layer as usize];
                for chunk in used {
                    chunk_to(
                        layer,
                        content,
                        u64::from(*chunk) << bits,
                        1 << bits,
                        &mut blocks,
                    )?;
                }
            }
            (Node::Directory(_), Body::Inline { size, .. }) => {
                let bytes = layout::directory(tree, *id, layout)?;
                let whole = (size / BLOCK * BLOCK) as usize;
                blocks.write_all(&bytes[..whole])?;
                inodes.write_all(&bytes[whole..])?;
            }
            (Node::Symlink(target), Body::Inline { .. }) => inodes.write_all(target)?,
            _ => {}
        }
    }
    inodes.to.flush()?;
    blocks.flush()
}

/// What stands in an inode for its content, and the table of chunks behind it.
fn body(tree: &Tree, id: Id, layout: &Layout) -> io::Result<(Data, Vec<u8>)> {
    let place = layout.place(id);
    Ok(match (&tree.inode(id).node, &place.body) {
        (_, Body::Inline { size, block }) => (
            Data::Flat {
                size: *size,
                block: narrow(*block)?,
            },
            Vec::new(),
        ),
        (
            _,
            Body::Chunks {
                size,
                bits,
                block,
                used,
            },
        ) => {
            let count = size.div_ceil(1 << bits) as usize;
            // EROFS_NULL_ADDR: a hole
            let mut table = vec![0xff; count * 4];
            for (number, chunk) in (0..).zip(used) {
                let start = narrow(block + (number << (bits - BLOCK_BITS)))?;
                let place = *chunk as usize * 4;
                table[place..place + 4].copy_from_slice(&start.to_le_bytes());
            }
            let data = Data::Chunks {
                size: *size,
                bits: bits - BLOCK_BITS,
            };
            (data, table)
        }
        (Node::Character(device) | Node::Block(device), Body::None) => {
            (Data::Device(encode(*device)), Vec::new())
        }
        (_, Body::None) => (Data::None, Vec::new()),
    })
}

/// Writes one chunk; the last one ends with zeros.
fn chunk_to(
    layer: &Blob,
    content: &Content,
    start: u64,
    length: u64,
    to: &mut impl Write,
) -> io::Result<()> {
    let end = (start + length).min(content.size.next_multiple_of(BLOCK));
    let mut position = start;
    for piece in &content.pieces {
        let from = piece.offset.max(position);
        let until = (piece.offset + piece.length).min(end);
        if from >= until {
            continue;
        }
        flatten::zeros(to, from - position)?;
        let part = layer.piece(piece.position + from - piece.offset, until - from);
        io::copy(&mut part.reader(), to)?;
        position = until;
    }
    flatten::zeros(to, end - position)
}

/// The mode of an inode with its type (`S_IF*`). Linux gives symbolic links all permissions.
fn mode(inode: &Inode) -> u16 {
    let mode = inode.meta.mode;
    match inode.node {
        Node::Fifo => 0o010_000 | mode,
        Node::Character(_) => 0o020_000 | mode,
        Node::Directory(_) => 0o040_000 | mode,
        Node::Block(_) => 0o060_000 | mode,
        Node::File { .. } => 0o100_000 | mode,
        Node::Symlink(_) => 0o120_777,
    }
}

/// `new_encode_dev` of Linux (include/linux/kdev_t.h).
fn encode(device: Device) -> u32 {
    (device.minor & 0xff) | (device.major << 8) | ((device.minor & !0xff) << 12)
}

fn narrow(block: u64) -> io::Result<u32> {
    u32::try_from(block).map_err(|_| io::Error::other("more blocks than erofs can number"))
}

/// The first block: `struct erofs_super_block`.
fn superblock(layout: &Layout, time: u32) -> Vec<u8> {
    let mut block = vec![0; BLOCK as usize];
    let mut put = |offset: usize, bytes: &[u8]| {
        block[SUPERBLOCK + offset..][..bytes.len()].copy_from_slice(bytes);
    };
    put(0, &MAGIC.to_le_bytes());
    put(12, &[BLOCK_BITS]);
    put(14, &(layout.root() as u16).to_le_bytes());
    put(16, &(layout.order().len() as u64).to_le_bytes());
    put(24, &u64::from(time).to_le_bytes());
    put(36, &(layout.end as u32).to_le_bytes());
    put(80, &CHUNKED_FILE.to_le_bytes());
    block
}

/// Counts what is written, for the gaps between inodes.
struct Counted {
    to: BufWriter<File>,
    position: u64,
}

impl Counted {
    fn zeros_to(&mut self, position: u64) -> io::Result<()> {
        let gap = position - self.position;
        flatten::zeros(self, gap)
    }
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.to.write(bytes)?;
        self.position += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}
