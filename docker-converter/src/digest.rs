//! The tree digest of an image, from its layers: nothing is unpacked.

use std::io::{self, Read};
use std::path::Path;

use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use trustme_guestos::tree_digest::{self, Builder, INLINE, TreeDigest, verity};

use crate::blob::Blob;
use crate::convert::read_layers;
use crate::error::Error;
use crate::layer::Limits;
use crate::progress::Progress;
use crate::source::Image;
use crate::tarball::{Content, Meta};
use crate::tree::{Id, Node, Tree};

/// The digest of the root file system that an engine makes of the image. Files without names are made in `dir`.
///
/// # Errors
/// A layer is not as it should be, cannot be read, or they have more than `limits` allow.
pub fn of_image(
    image: &Image,
    dir: &Path,
    limits: Limits,
    progress: Progress,
) -> Result<TreeDigest, Error> {
    let (tree, layers) = read_layers(image, dir, limits, progress)?;
    let found = of_tree(&tree, &layers).map_err(Error::io(&image.path))?;
    image.check_unchanged()?;
    Ok(found)
}

/// The digest of the tree that `layers`, uncompressed, make.
///
/// # Errors
/// A layer cannot be read.
pub fn of_tree(tree: &Tree, layers: &[Blob]) -> io::Result<TreeDigest> {
    let mut names: Vec<(Vec<u8>, Id)> = Vec::new();
    tree.walk(|path, id| -> io::Result<()> {
        names.push((path.to_owned(), id));
        Ok(())
    })?;
    let nodes: Vec<tree_digest::Node> = names
        .par_iter()
        .map(|(_, id)| node(&tree.inode(*id).node, layers))
        .collect::<io::Result<_>>()?;
    let mut builder = Builder::default();
    for ((path, id), node) in names.into_iter().zip(nodes) {
        builder.add(path, meta(&tree.inode(id).meta), node);
    }
    builder.finish().map_err(io::Error::other)
}

fn meta(meta: &Meta) -> tree_digest::Meta {
    tree_digest::Meta {
        mode: meta.mode.into(),
        uid: meta.uid,
        gid: meta.gid,
        xattrs: meta
            .xattrs
            .iter()
            .map(|xattr| (xattr.name.to_vec(), xattr.value.to_vec()))
            .collect(),
    }
}

fn node(node: &Node, layers: &[Blob]) -> io::Result<tree_digest::Node> {
    Ok(match node {
        Node::Directory(_) => tree_digest::Node::Directory,
        Node::File { layer, content } => {
            let layer = &layers[*layer as usize];
            let size = content.size;
            if size <= INLINE {
                let mut bytes = vec![0; size as usize];
                read_at(layer, content, &mut bytes, 0)?;
                tree_digest::Node::Small(bytes)
            } else {
                let read = |buffer: &mut [u8], offset| read_at(layer, content, buffer, offset);
                let digest = verity::of_reader(size, &read)?;
                tree_digest::Node::File { digest, size }
            }
        }
        Node::Symlink(target) => tree_digest::Node::Symlink(target.to_vec()),
        Node::Character(device) => {
            tree_digest::Node::Character(rustix::fs::makedev(device.major, device.minor))
        }
        Node::Block(device) => {
            tree_digest::Node::Block(rustix::fs::makedev(device.major, device.minor))
        }
        Node::Fifo => tree_digest::Node::Fifo,
    })
}

/// Reads a part of a file whose pieces are in a layer.
fn read_at(layer: &Blob, content: &Content, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    buffer.fill(0);
    let end = offset + buffer.len() as u64;
    for piece in &content.pieces {
        let from = piece.offset.max(offset);
        let to = (piece.offset + piece.length).min(end);
        if from < to {
            let target = &mut buffer[(from - offset) as usize..(to - offset) as usize];
            layer
                .piece(piece.position + (from - piece.offset), to - from)
                .reader()
                .read_exact(target)?;
        }
    }
    Ok(())
}
