//! Digests of TPM policies, computed as the TPM computes them (TPM 2.0 Library Part 3, section 23).

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};

use super::{Pcr, PcrValue};

/// TPM_CC_PolicyAuthorize (TPM 2.0 Library Part 2, section 6.5.2).
const AUTHORIZE: u32 = 0x0000_016A;
/// TPM_CC_PolicyAuthValue.
const AUTH_VALUE: u32 = 0x0000_016B;
/// TPM_CC_PolicyPCR.
const PCR: u32 = 0x0000_017F;

/// TPM_ALG_SHA256 (TPM 2.0 Library Part 2, section 6.3).
pub(super) const ALG_SHA256: u16 = 0x000B;

/// The digest of a policy session, which each policy command changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PolicyDigest(pub(super) [u8; 32]);

impl PolicyDigest {
    /// The digest of a session that has just begun.
    pub(super) const START: Self = Self([0; 32]);

    /// After TPM2_PolicyPCR with PCRs of the SHA-256 bank that have `values`.
    pub(super) fn pcr(self, values: &BTreeMap<Pcr, PcrValue>) -> Self {
        // TPML_PCR_SELECTION: count, then hash, size of select, and a bit for each PCR.
        let mut select = [0_u8; 3];
        for pcr in values.keys() {
            select[usize::from(pcr / 8)] |= 1 << (pcr % 8);
        }
        let digest = Sha256::new()
            .chain_update(self.0)
            .chain_update(PCR.to_be_bytes())
            .chain_update(1_u32.to_be_bytes())
            .chain_update(ALG_SHA256.to_be_bytes())
            .chain_update([select.len() as u8])
            .chain_update(select)
            .chain_update(policy_pcr_digest(values));
        Self(digest.finalize().into())
    }

    /// After TPM2_PolicyAuthorize, whatever came before, with the key of this name and an empty policyRef.
    pub(super) fn authorize(key_name: &[u8]) -> Self {
        let first = Sha256::new()
            .chain_update(Self::START.0)
            .chain_update(AUTHORIZE.to_be_bytes())
            .chain_update(key_name)
            .finalize();
        Self(Sha256::digest(first).into())
    }

    /// After TPM2_PolicyAuthValue.
    pub(super) fn auth_value(self) -> Self {
        let digest = Sha256::new()
            .chain_update(self.0)
            .chain_update(AUTH_VALUE.to_be_bytes());
        Self(digest.finalize().into())
    }
}

/// SHA-256 over the values of PCRs in ascending order of their numbers: what TPM2_PolicyPCR and quotes call pcrDigest.
#[must_use]
pub fn policy_pcr_digest(values: &BTreeMap<Pcr, PcrValue>) -> [u8; 32] {
    let mut digest = Sha256::new();
    values.values().for_each(|value| digest.update(value));
    digest.finalize().into()
}

/// The digest of a policy that is one TPM2_PolicyPCR of the SHA-256 bank with `values`
/// (TPM 2.0 Library Part 3, section 23.7.1).
#[must_use]
pub fn policy_digest(values: &BTreeMap<Pcr, PcrValue>) -> [u8; 32] {
    PolicyDigest::START.pcr(values).0
}
