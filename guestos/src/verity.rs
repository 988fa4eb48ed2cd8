//! dm-verity hash images in the format of `veritysetup format`: superblock version 1, hash type 1, SHA-256, blocks of 4096 bytes.
//!
//! Layout (Linux, Documentation/admin-guide/device-mapper/verity.rst; cryptsetup, DMVerity wiki page "On-disk format"): the
//! superblock in the first block, then the levels of the tree from the topmost, which is one block, down to the one over
//! the data. A block of the tree holds 128 digests; each digest is SHA-256 over salt and block.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use rayon::prelude::*;
use sha2::{Digest, Sha256};

pub use crate::superblock::Superblock;
use crate::superblock::uuid_for;

/// Bytes of a block of data, and of the tree.
pub const BLOCK: usize = 4096;

/// Digests in a block of the tree.
const DIGESTS: u64 = (BLOCK / 32) as u64;

/// Blocks of the tree that one thread makes or checks at a time: 4 MiB of what lies below them.
const BATCH: u64 = 8;

/// Why a tree cannot be made, or does not belong to its data.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VerityError {
    /// A file cannot be read or written.
    #[error("hash tree: {0}")]
    Io(#[from] io::Error),
    /// The data is empty, or no whole number of blocks.
    #[error("hash tree: data of {0} bytes: expected a positive multiple of 4096")]
    DataSize(u64),
    /// The superblock is not what is expected.
    #[error("hash tree: superblock: {0}")]
    Superblock(String),
    /// The hash image has another size than its superblock says.
    #[error("hash tree: {found} bytes, expected {expected}")]
    HashSize {
        /// Bytes that the tree takes.
        expected: u64,
        /// Bytes of the file.
        found: u64,
    },
    /// The topmost block does not hash to the root hash.
    #[error("hash tree: its root hash is not the signed one")]
    Root,
    /// A block of the tree differs from its digest.
    #[error("hash tree: block {block} of level {level} differs from its digest")]
    Tree {
        /// Counted from 0, which is the level over the data.
        level: usize,
        /// Counted from 0 within its level.
        block: u64,
    },
    /// A block of data differs from its digest.
    #[error("data block {0} differs from its digest in the hash tree")]
    Data(u64),
}

/// Where a level of the tree lies, and what is below it.
struct Level {
    /// The first block of the level in the hash image.
    start: u64,
    blocks: u64,
}

/// The levels over so many blocks of data, the lowest first. One block of data needs none: its digest is the root hash.
fn levels(data_blocks: u64) -> Vec<Level> {
    let mut levels = Vec::new();
    let mut blocks = data_blocks;
    while blocks > 1 {
        blocks = blocks.div_ceil(DIGESTS);
        levels.push(Level { start: 0, blocks });
    }
    let mut start = 1;
    for level in levels.iter_mut().rev() {
        level.start = start;
        start += level.blocks;
    }
    levels
}

/// Blocks of the whole hash image.
fn image_blocks(levels: &[Level]) -> u64 {
    1 + levels.iter().map(|level| level.blocks).sum::<u64>()
}

/// Blocks of one file, one after the other.
#[derive(Clone, Copy)]
struct Blocks<'f> {
    file: &'f File,
    start: u64,
    number: u64,
}

impl Blocks<'_> {
    fn read(&self, blocks: Range<u64>) -> io::Result<Vec<u8>> {
        let mut bytes =
            vec![0; usize::try_from(blocks.end - blocks.start).map_err(io::Error::other)? * BLOCK];
        let from = (self.start + blocks.start) * BLOCK as u64;
        self.file.read_exact_at(&mut bytes, from)?;
        Ok(bytes)
    }
}

fn digest(salt: &[u8], block: &[u8]) -> [u8; 32] {
    Sha256::new()
        .chain_update(salt)
        .chain_update(block)
        .finalize()
        .into()
}

/// Calls `each` for the blocks of a level, in batches on all cores: their numbers, and what they must hold over the blocks
/// below them.
fn over_level<E>(below: Blocks<'_>, salt: &[u8], each: E) -> Result<(), VerityError>
where
    E: Fn(Range<u64>, Vec<u8>) -> Result<(), VerityError> + Sync,
{
    let blocks = below.number.div_ceil(DIGESTS);
    (0..blocks.div_ceil(BATCH))
        .into_par_iter()
        .try_for_each(|batch| {
            let range = batch * BATCH..((batch + 1) * BATCH).min(blocks);
            let children = range.start * DIGESTS..(range.end * DIGESTS).min(below.number);
            let read = below.read(children)?;
            let mut expected = Vec::with_capacity(BLOCK * BATCH as usize);
            for child in read.chunks(BLOCK) {
                expected.extend(digest(salt, child));
            }
            expected.resize(expected.len().next_multiple_of(BLOCK), 0);
            each(range, expected)
        })
}

fn data_blocks(data: &File) -> Result<u64, VerityError> {
    let size = data.metadata()?.len();
    match size {
        size if size > 0 && size.is_multiple_of(BLOCK as u64) => Ok(size / BLOCK as u64),
        size => Err(VerityError::DataSize(size)),
    }
}

/// Writes the hash image of `data` into `hash`, which must be empty; the root hash.
///
/// `salt` has at most 256 bytes. The image names a UUID that is derived from the root hash, so that no byte of it can be
/// changed unnoticed: the same data and salt give the same image.
///
/// # Errors
/// The data is empty or no multiple of 4096 bytes, the salt too long, or a file cannot be read or written.
pub fn format(data: &File, hash: &File, salt: &[u8]) -> Result<[u8; 32], VerityError> {
    let data_blocks = data_blocks(data)?;
    let levels = levels(data_blocks);
    hash.set_len(image_blocks(&levels) * BLOCK as u64)?;
    let mut below = Blocks {
        file: data,
        start: 0,
        number: data_blocks,
    };
    for level in &levels {
        over_level(below, salt, |range, expected| {
            Ok(hash.write_all_at(&expected, (level.start + range.start) * BLOCK as u64)?)
        })?;
        below = Blocks {
            file: hash,
            start: level.start,
            number: level.blocks,
        };
    }
    let root = digest(salt, &below.read(0..1)?);
    let superblock = Superblock {
        uuid: uuid_for(&root),
        data_blocks,
        salt: salt.to_vec(),
    };
    hash.write_all_at(&superblock.to_bytes()?, 0)?;
    Ok(root)
}

/// Checks the superblock, the size, and that the topmost block (or the only block of data) hashes to `root`: what the kernel does not check
/// before the first read.
///
/// # Errors
/// One of them is not as it should be.
pub fn check_root(data: &File, hash: &File, root: &[u8; 32]) -> Result<Superblock, VerityError> {
    let mut bytes = [0; BLOCK];
    let found = hash.metadata()?.len();
    if found < BLOCK as u64 {
        let expected = BLOCK as u64;
        return Err(VerityError::HashSize { expected, found });
    }
    hash.read_exact_at(&mut bytes, 0)?;
    let superblock = Superblock::parse(&bytes)?;
    superblock.check_uuid(root)?;
    let blocks = data_blocks(data)?;
    if superblock.data_blocks != blocks {
        let said = superblock.data_blocks;
        let reason = format!("for {said} blocks of data, there are {blocks}");
        return Err(VerityError::Superblock(reason));
    }
    let levels = levels(blocks);
    let expected = image_blocks(&levels) * BLOCK as u64;
    if found != expected {
        return Err(VerityError::HashSize { expected, found });
    }
    let file = if levels.is_empty() { data } else { hash };
    let top = Blocks {
        file,
        start: u64::from(!levels.is_empty()),
        number: 1,
    };
    match digest(&superblock.salt, &top.read(0..1)?) == *root {
        true => Ok(superblock),
        false => Err(VerityError::Root),
    }
}

/// Checks the whole tree and all data against the root hash, on all cores.
///
/// # Errors
/// See [`VerityError`]; the first difference that is found.
pub fn check(data: &File, hash: &File, root: &[u8; 32]) -> Result<(), VerityError> {
    let superblock = check_root(data, hash, root)?;
    let levels = levels(superblock.data_blocks);
    for (number, level) in levels.iter().enumerate().rev() {
        let this = Blocks {
            file: hash,
            start: level.start,
            number: level.blocks,
        };
        let below = match number.checked_sub(1).map(|below| &levels[below]) {
            Some(below) => Blocks {
                file: hash,
                start: below.start,
                number: below.blocks,
            },
            None => Blocks {
                file: data,
                start: 0,
                number: superblock.data_blocks,
            },
        };
        over_level(below, &superblock.salt, |range, expected| {
            let first = range.start * DIGESTS;
            let found = this.read(range)?;
            let Some(place) = found
                .iter()
                .zip(&expected)
                .position(|(found, expected)| found != expected)
            else {
                return Ok(());
            };
            let block = first + place as u64 / 32;
            Err(match number {
                _ if block >= below.number => VerityError::Tree {
                    level: number,
                    block: block / DIGESTS,
                },
                0 => VerityError::Data(block),
                _ => VerityError::Tree {
                    level: number - 1,
                    block,
                },
            })
        })?;
    }
    Ok(())
}
