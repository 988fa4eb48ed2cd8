//! The superblock of a dm-verity hash image (cryptsetup, lib/verity/verity.c, `struct verity_sb`, described in its wiki).

use sha2::{Digest, Sha256};

use crate::verity::{BLOCK, VerityError};

const MAGIC: &[u8; 8] = b"verity\0\0";
const VERSION: u32 = 1;
/// 0 was Chrome OS's, with the salt behind the block.
const HASH_TYPE: u32 = 1;
const ALGORITHM: &[u8] = b"sha256";

const MAX_SALT: usize = 256;

// Where the fields lie; numbers are little-endian.
const UUID: usize = 16;
const ALGORITHM_AT: usize = 32;
const DATA_BLOCK_SIZE: usize = 64;
const HASH_BLOCK_SIZE: usize = 68;
const DATA_BLOCKS: usize = 72;
const SALT_SIZE: usize = 80;
const SALT: usize = 88;

/// What the superblock of a hash image says, where it is one that GyroidOS opens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    /// Names the image; 16 bytes.
    pub uuid: [u8; 16],
    /// How many blocks of 4096 bytes the tree covers.
    pub data_blocks: u64,
    /// What is hashed before each block; at most 256 bytes.
    pub salt: Vec<u8>,
}

impl Superblock {
    /// Reads the first block of a hash image.
    ///
    /// # Errors
    /// [`VerityError::Superblock`]: another version, algorithm or size of blocks than trustme's, or something where zeros belong.
    pub fn parse(block: &[u8; BLOCK]) -> Result<Self, VerityError> {
        let field = |at: usize| {
            u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]])
        };
        let wrong = |reason: String| Err(VerityError::Superblock(reason));
        if !block.starts_with(MAGIC) {
            return wrong("no dm-verity signature".to_owned());
        }
        for (what, at, expected) in [
            ("version", 8, VERSION),
            ("hash type", 12, HASH_TYPE),
            ("data block size", DATA_BLOCK_SIZE, BLOCK as u32),
            ("hash block size", HASH_BLOCK_SIZE, BLOCK as u32),
        ] {
            if field(at) != expected {
                return wrong(format!("{what} {}, expected {expected}", field(at)));
            }
        }
        let salt_size = usize::from(u16::from_le_bytes([block[SALT_SIZE], block[SALT_SIZE + 1]]));
        if salt_size > MAX_SALT {
            return wrong(format!("a salt of {salt_size} bytes, at most {MAX_SALT}"));
        }
        let mut data_blocks = [0; 8];
        data_blocks.copy_from_slice(&block[DATA_BLOCKS..][..8]);
        let mut uuid = [0; 16];
        uuid.copy_from_slice(&block[UUID..][..16]);
        let superblock = Self {
            uuid,
            data_blocks: u64::from_le_bytes(data_blocks),
            salt: block[SALT..][..salt_size].to_vec(),
        };
        if superblock.to_bytes()? != *block {
            return wrong(format!(
                "the algorithm is not sha256, or there is something between byte {} and {BLOCK} where zeros belong",
                SALT_SIZE + 2
            ));
        }
        Ok(superblock)
    }

    /// The first block of a hash image.
    ///
    /// # Errors
    /// [`VerityError::Superblock`]: the salt has more than 256 bytes.
    pub fn to_bytes(&self) -> Result<[u8; BLOCK], VerityError> {
        let size = self.salt.len();
        if size > MAX_SALT {
            return Err(VerityError::Superblock(format!(
                "a salt of {size} bytes, at most {MAX_SALT}"
            )));
        }
        let mut block = [0; BLOCK];
        let mut put = |at: usize, bytes: &[u8]| block[at..][..bytes.len()].copy_from_slice(bytes);
        put(0, MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &HASH_TYPE.to_le_bytes());
        put(UUID, &self.uuid);
        put(ALGORITHM_AT, ALGORITHM);
        put(DATA_BLOCK_SIZE, &(BLOCK as u32).to_le_bytes());
        put(HASH_BLOCK_SIZE, &(BLOCK as u32).to_le_bytes());
        put(DATA_BLOCKS, &self.data_blocks.to_le_bytes());
        put(SALT_SIZE, &(size as u16).to_le_bytes());
        put(SALT, &self.salt);
        Ok(block)
    }

    /// The root hash does not cover the UUID, so it is derived from the root hash ([`uuid_for`]); an image of another
    /// program has a random one (version 4, as veritysetup makes) or none.
    pub(crate) fn check_uuid(&self, root: &[u8; 32]) -> Result<(), VerityError> {
        let (version, variant) = (self.uuid[6] >> 4, self.uuid[8] >> 6);
        let random = (version, variant) == (4, 2);
        if random || self.uuid == [0; 16] || self.uuid == uuid_for(root) {
            return Ok(());
        }
        Err(VerityError::Superblock(
            "the UUID is neither the one that belongs to the root hash nor a random one (version 4)".to_owned(),
        ))
    }
}

/// The UUID (version 8: RFC 9562, section 5.8) of the hash image with this root hash.
pub(crate) fn uuid_for(root: &[u8; 32]) -> [u8; 16] {
    let digest = Sha256::new()
        .chain_update("trustme dm-verity")
        .chain_update(root)
        .finalize();
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}
