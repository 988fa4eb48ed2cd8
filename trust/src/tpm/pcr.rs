//! Platform configuration registers of the SHA-256 bank.

use std::collections::BTreeMap;

use sha2::{Digest as _, Sha256};
use tss_esapi::handles::{KeyHandle, PcrHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Data, Digest, DigestValues, PcrSelectionList, PcrSelectionListBuilder, PcrSlot, SignatureScheme,
};

use super::{Tpm, TpmError};

/// The number of a PCR, 0 to 23.
pub type Pcr = u8;

/// The value of a PCR of the SHA-256 bank, or a SHA-256 digest that is extended into one.
pub type PcrValue = [u8; 32];

/// TPM2_PCR_Read answers with at most this many values (TPML_DIGEST, TPM 2.0 Library Part 2, section 10.9.5).
const VALUES_A_READ: usize = 8;

/// The value that a PCR has after `digest` is extended into `value`.
#[must_use]
pub fn extended(value: &PcrValue, digest: &PcrValue) -> PcrValue {
    Sha256::new()
        .chain_update(value)
        .chain_update(digest)
        .finalize()
        .into()
}

/// The TSS's form of a set of PCRs of the SHA-256 bank.
pub(super) fn selection(pcrs: &[Pcr]) -> tss_esapi::Result<PcrSelectionList> {
    let slots = pcrs
        .iter()
        .map(|pcr| PcrSlot::try_from(1_u32.checked_shl(u32::from(*pcr)).unwrap_or(0)))
        .collect::<tss_esapi::Result<Vec<_>>>()?;
    PcrSelectionListBuilder::new()
        .with_selection(HashingAlgorithm::Sha256, &slots)
        .build()
}

/// The TSS's name for a PCR: ESYS_TR_PCR0 is 0 (TSS 2.0 Enhanced System API).
fn handle(pcr: Pcr) -> PcrHandle {
    const HANDLES: [PcrHandle; 24] = [
        PcrHandle::Pcr0,
        PcrHandle::Pcr1,
        PcrHandle::Pcr2,
        PcrHandle::Pcr3,
        PcrHandle::Pcr4,
        PcrHandle::Pcr5,
        PcrHandle::Pcr6,
        PcrHandle::Pcr7,
        PcrHandle::Pcr8,
        PcrHandle::Pcr9,
        PcrHandle::Pcr10,
        PcrHandle::Pcr11,
        PcrHandle::Pcr12,
        PcrHandle::Pcr13,
        PcrHandle::Pcr14,
        PcrHandle::Pcr15,
        PcrHandle::Pcr16,
        PcrHandle::Pcr17,
        PcrHandle::Pcr18,
        PcrHandle::Pcr19,
        PcrHandle::Pcr20,
        PcrHandle::Pcr21,
        PcrHandle::Pcr22,
        PcrHandle::Pcr23,
    ];
    HANDLES[usize::from(pcr)]
}

impl Tpm {
    /// The values of `pcrs`.
    ///
    /// # Errors
    /// The TPM does not answer, or has no SHA-256 bank.
    pub fn read_pcrs(&self, pcrs: &[Pcr]) -> Result<BTreeMap<Pcr, PcrValue>, TpmError> {
        let mut sorted = pcrs.to_vec();
        sorted.sort_unstable();
        sorted.dedup();
        let mut values = BTreeMap::new();
        for some in sorted.chunks(VALUES_A_READ) {
            let asked = some.to_vec();
            let digests = self.run("read PCRs", move |context| {
                let (_, _, digests) = context.pcr_read(selection(&asked)?)?;
                Ok(digests)
            })?;
            if digests.value().len() != some.len() {
                return Err(TpmError::Answer(format!(
                    "asked for the SHA-256 values of PCRs {some:?}, got {}: is the SHA-256 bank enabled?",
                    digests.value().len()
                )));
            }
            for (pcr, digest) in some.iter().zip(digests.value()) {
                let value = digest.as_bytes().try_into().map_err(|_| {
                    TpmError::Answer(format!(
                        "PCR {pcr} has {} bytes, not 32",
                        digest.as_bytes().len()
                    ))
                })?;
                values.insert(*pcr, value);
            }
        }
        Ok(values)
    }

    /// Extends the SHA-256 digest `digest` into `pcr`.
    ///
    /// # Errors
    /// The TPM does not answer or refuses.
    pub fn extend(&self, pcr: Pcr, digest: &PcrValue) -> Result<(), TpmError> {
        let digest = *digest;
        self.run("extend a PCR", move |context| {
            let mut values = DigestValues::new();
            values.set(HashingAlgorithm::Sha256, Digest::try_from(digest.to_vec())?);
            context.execute_with_session(Some(AuthSession::Password), |context| {
                context.pcr_extend(handle(pcr), values)
            })
        })
    }

    /// Sets `pcr` to zero; of the PCRs of a PC only 16 and 23 allow it.
    ///
    /// # Errors
    /// The TPM does not answer or refuses.
    pub fn reset(&self, pcr: Pcr) -> Result<(), TpmError> {
        self.run("reset a PCR", move |context| {
            context.execute_with_session(Some(AuthSession::Password), |context| {
                context.pcr_reset(handle(pcr))
            })
        })
    }

    /// A number that grows by one with every reset of the TPM, so with every boot of the machine.
    ///
    /// It is taken from a certificate for the storage root key that no key signs, because the TSS's binding has no
    /// TPM2_ReadClock. The TPM adds a constant to it that changes only when the TPM is cleared
    /// (TPM 2.0 Library Part 1, section 36.7).
    ///
    /// # Errors
    /// The TPM does not answer or refuses.
    pub fn reset_count(&self) -> Result<u32, TpmError> {
        let (srk, _) = self.srk()?;
        self.run("read the reset count", move |context| {
            let password = Some(AuthSession::Password);
            let (attest, _) =
                context.execute_with_sessions((password, password, None), |context| {
                    context.certify(
                        srk.into(),
                        KeyHandle::Null,
                        Data::default(),
                        SignatureScheme::Null,
                    )
                })?;
            Ok(attest.clock_info().reset_count())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value that `tpm2_pcrextend 11:sha256=2222…` (tpm2-tools 5.4) leaves in a PCR that was zero.
    #[test]
    fn extending_agrees_with_tpm2_tools() {
        let value = extended(&[0; 32], &[0x22; 32]);
        assert_eq!(
            hex::encode(value),
            "ee4b0e933b56cdf12a42b1e3f3b9ed1aa70cf9f3cf37325693255c8bfbcb8ba8"
        );
    }
}
