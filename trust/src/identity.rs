//! Who a container is: the owner of volumes.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::tpm::HexDigest;

/// Whose volumes a container may open: those of every version of one GuestOS by one signer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// The GuestOS's name.
    pub name: String,
    /// SHA-256 (hex) of the SubjectPublicKeyInfo of the signing certificate.
    pub signer: HexDigest,
}

impl Owner {
    /// What PCR 23 is extended with while a volume's key is unsealed: SHA-256 of this in canonical JSON (RFC 8785),
    /// `{"name":"…","signer":"…"}`.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let canonical =
            serde_json_canonicalizer::to_vec(self).expect("two strings are canonical JSON");
        Sha256::digest(canonical).into()
    }
}
