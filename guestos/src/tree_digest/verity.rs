//! fs-verity digests: SHA-256, blocks of 4096 bytes, no salt (Linux, Documentation/filesystems/fsverity.rst).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

/// Bytes of a block.
const BLOCK: usize = 4096;

/// What one core hashes at a time: large enough for a read to be cheap, small enough for the caches.
const CHUNK: usize = 256 << 10;

/// The digest of `size` bytes of a file, read on all cores.
///
/// # Errors
/// The file cannot be read, or is shorter.
pub fn of_file(file: &File, size: u64) -> io::Result<[u8; 32]> {
    of_reader(size, &|buffer, offset| file.read_exact_at(buffer, offset))
}

/// The digest of `size` bytes that `read` puts into a buffer, from an offset; called on all cores.
///
/// # Errors
/// Those of `read`.
pub fn of_reader<R>(size: u64, read: &R) -> io::Result<[u8; 32]>
where
    R: Fn(&mut [u8], u64) -> io::Result<()> + Sync,
{
    let leaves = match size {
        0..=0x4_0000 => chunk(0, size, read)?,
        _ => {
            let chunks = size.div_ceil(CHUNK as u64);
            let hashed: Vec<Vec<u8>> = (0..chunks)
                .into_par_iter()
                .map(|number| chunk(number, size, read))
                .collect::<io::Result<_>>()?;
            hashed.concat()
        }
    };
    Ok(descriptor(size, root(leaves)))
}

/// The digest of bytes in memory.
#[must_use]
pub fn of_bytes(bytes: &[u8]) -> [u8; 32] {
    descriptor(bytes.len() as u64, root(level(bytes)))
}

/// The digests of one chunk's blocks.
fn chunk<R>(number: u64, size: u64, read: &R) -> io::Result<Vec<u8>>
where
    R: Fn(&mut [u8], u64) -> io::Result<()> + Sync,
{
    let offset = number * CHUNK as u64;
    let length = (size - offset).min(CHUNK as u64) as usize;
    let mut buffer = vec![0; length];
    read(&mut buffer, offset)?;
    Ok(level(&buffer))
}

/// The digests of the blocks of some bytes, the last of them filled with zeros.
fn level(bytes: &[u8]) -> Vec<u8> {
    let mut digests = Vec::with_capacity(bytes.len().div_ceil(BLOCK) * 32);
    for block in bytes.chunks(BLOCK) {
        let mut hash = Sha256::new();
        hash.update(block);
        if block.len() < BLOCK {
            hash.update(&[0; BLOCK][block.len()..]);
        }
        digests.extend_from_slice(&hash.finalize());
    }
    digests
}

/// The root of the tree over the lowest level; zeros where there is nothing.
fn root(mut digests: Vec<u8>) -> [u8; 32] {
    while digests.len() > 32 {
        digests = level(&digests);
    }
    let mut root = [0; 32];
    root[..digests.len()].copy_from_slice(&digests);
    root
}

/// SHA-256 of `struct fsverity_descriptor`.
fn descriptor(size: u64, root: [u8; 32]) -> [u8; 32] {
    /// FS_VERITY_HASH_ALG_SHA256.
    const SHA256: u8 = 1;
    let mut bytes = [0; 256];
    bytes[..4].copy_from_slice(&[1, SHA256, BLOCK.ilog2() as u8, 0]);
    bytes[8..16].copy_from_slice(&size.to_le_bytes());
    bytes[16..48].copy_from_slice(&root);
    Sha256::digest(bytes).into()
}

#[cfg(test)]
mod tests {
    use composefs::fsverity::{FsVerityHashValue, Sha256HashValue, compute_verity};

    use super::*;

    #[test]
    fn digests_are_those_of_composefs() {
        let bytes: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
        for size in [
            0,
            1,
            64,
            65,
            4095,
            4096,
            4097,
            128 * 4096,
            128 * 4096 + 1,
            CHUNK - 1,
            CHUNK,
            CHUNK + 1,
            3_000_000,
        ] {
            let bytes = &bytes[..size];
            let read = |buffer: &mut [u8], offset: u64| {
                let offset = offset as usize;
                buffer.copy_from_slice(&bytes[offset..offset + buffer.len()]);
                Ok(())
            };
            let expected: Sha256HashValue = compute_verity(bytes);
            let found = of_reader(size as u64, &read).unwrap();
            assert_eq!(hex::encode(found), expected.to_hex(), "{size}");
            assert_eq!(of_bytes(bytes), found, "{size}");
        }
    }
}
