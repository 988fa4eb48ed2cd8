//! Layers of an image, applied to a tree and written as one archive, as `trustme-convert` does.
//!
//! An input is layers, each but the first behind [`NEXT`]. Checksums of tar headers are put right first: no change would get
//! beyond them else.
#![no_main]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use indicatif::ProgressBar;
use libfuzzer_sys::fuzz_target;
use rustix::fs::{MemfdFlags, memfd_create};
use sha2::{Digest, Sha256};
use trustme_convert::blob::Blob;
use trustme_convert::flatten;
use trustme_convert::layer::{Budget, Compression, Limits, PackedLayer};
use trustme_convert::tarball::MAX_PATH;
use trustme_convert::tree::Tree;

/// What separates the layers of an input.
const NEXT: &[u8] = b"\0LAYER\0";

/// What all files may have: more would only be slow.
const MAX_SIZE: u64 = 1 << 17;

fuzz_target!(|bytes: &[u8]| {
    let layers = split(bytes);
    let Some((tree, contents)) = apply(&layers) else {
        return;
    };
    let visited: Result<(), ()> = tree.walk(|path, _| {
        assert!(path.len() <= MAX_PATH && !path.starts_with(b"/"));
        let leads_out = |name: &[u8]| matches!(name, b"" | b"." | b"..");
        assert!(path.is_empty() || !path.split(|byte| *byte == b'/').any(leads_out));
        Ok(())
    });
    visited.expect("the visit finds nothing wrong");
    if tree.size() > MAX_SIZE {
        return;
    }
    let mut flat = Vec::new();
    let losses = flatten::write(&tree, &contents, &mut flat).expect("memory can be written");
    // The archive is a layer, and makes the same tree.
    let (again, contents) = apply(&[flat.clone()]).expect("it was written here");
    let mut second = Vec::new();
    let no_losses = flatten::write(&again, &contents, &mut second).expect("memory can be written");
    assert!(no_losses.is_empty(), "{no_losses:?} after {losses:?}");
    assert_eq!(flat, second);
});

fn split(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut layers = Vec::new();
    let mut rest = bytes;
    while let Some(end) = rest.windows(NEXT.len()).position(|window| window == NEXT) {
        layers.push(with_checksums(&rest[..end]));
        rest = &rest[end + NEXT.len()..];
    }
    layers.push(with_checksums(rest));
    layers
}

/// The tree that the layers make, if they make one.
fn apply(layers: &[Vec<u8>]) -> Option<(Tree, Vec<Blob>)> {
    let budget = Budget::new(Limits {
        size: MAX_SIZE * 4,
        ratio: 1000,
    });
    let mut tree = Tree::new();
    let mut contents = Vec::new();
    for (number, bytes) in layers.iter().enumerate() {
        let packed = PackedLayer {
            name: "layer".to_owned(),
            blob: Blob::new(Arc::new(in_memory(bytes)), 0, bytes.len() as u64),
            compression: Compression::of(bytes),
            digest: None,
            // A compressed layer is read to its end, and then refused for this.
            diff_id: Sha256::digest(bytes).into(),
        };
        let layer = packed
            .read(Path::new("/dev/shm"), &budget, &ProgressBar::hidden())
            .ok()?;
        for entry in layer.entries {
            tree.apply(number as u32, entry).ok()?;
        }
        contents.push(layer.content);
    }
    Some((tree, contents))
}

fn in_memory(bytes: &[u8]) -> File {
    let mut file = File::from(memfd_create("layer", MemfdFlags::CLOEXEC).expect("a memfd"));
    file.write_all(bytes).expect("memory can be written");
    file
}

/// The layer with the right checksum in each block that looks like a header (POSIX.1-2017, pax, "ustar Interchange Format").
fn with_checksums(layer: &[u8]) -> Vec<u8> {
    let mut layer = layer.to_vec();
    for block in layer.chunks_exact_mut(512) {
        if &block[257..262] == b"ustar" {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    layer
}
