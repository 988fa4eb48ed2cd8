#![doc = include_str!("../README.md")]

pub mod blob;
pub mod carrier;
pub mod contents;
pub mod convert;
pub mod digest;
pub mod erofs;
pub mod error;
pub mod flatten;
pub mod guestos;
pub mod keys;
pub mod layer;
pub mod progress;
pub mod registry;
pub mod source;
pub mod squashfs;
pub mod tarball;
pub mod tree;
pub mod users;
pub mod verification;

use tarball::Reader;
use tree::Tree;

/// The tree that uncompressed layers make, the lowest first: what a conversion does without files and digests.
///
/// # Errors
/// A layer is no archive, or has an entry that cannot be applied.
pub fn apply_layers(layers: &[&[u8]]) -> Result<Tree, String> {
    let mut tree = Tree::new();
    for (number, layer) in (0..).zip(layers) {
        let mut reader = Reader::new(*layer);
        while let Some(entry) = reader.next_entry().map_err(|error| error.to_string())? {
            tree.apply(number, entry)?;
        }
    }
    Ok(tree)
}
