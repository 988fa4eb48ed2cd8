//! PCR policies that somebody signs ahead of an update, in the form of systemd and ukify: `tpm2-pcr-signature.json`, and the
//! signer's public key as PEM. Secrets are sealed to the key; whoever has it decides which PCR values open them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use openssl::pkey::{PKey, Public as PublicHalf};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use tss_esapi::Context;
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::constants::SessionType;
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::PolicySession;
use tss_esapi::structures::{
    Digest, Name, Nonce, Public, PublicBuffer, PublicBuilder, PublicKeyRsa,
    PublicRsaParametersBuilder, RsaExponent, RsaScheme, RsaSignature, Signature,
};

use super::pcr::selection;
use super::policy::{ALG_SHA256, PolicyDigest};
use super::{Pcr, PcrValue, TpmError, session};

/// PCRs whose values somebody signs, and whose key that is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedPcrs {
    /// The signer's RSA public key: PEM, SubjectPublicKeyInfo.
    pub public_key: String,
    /// The PCRs that are signed, of the SHA-256 bank.
    pub pcrs: Vec<Pcr>,
}

/// What `tpm2-pcr-signature.json` holds of the SHA-256 bank.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct PcrSignatures {
    #[serde(default)]
    sha256: Vec<SignedPolicy>,
}

/// One signed policy.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
struct SignedPolicy {
    /// The PCRs of the policy.
    pcrs: Vec<Pcr>,
    /// SHA-256 (hex) of the signer's SubjectPublicKeyInfo.
    pkfp: String,
    /// The digest of a policy that is one TPM2_PolicyPCR, hex.
    pol: String,
    /// RSASSA PKCS#1 v1.5 with SHA-256 over `pol`'s bytes, base64.
    sig: String,
}

impl PcrSignatures {
    /// The signatures in the JSON text `bytes`; members that are not known are left alone, as systemd does.
    ///
    /// # Errors
    /// Not JSON of this form.
    pub fn parse(bytes: &[u8]) -> Result<Self, TpmError> {
        serde_json::from_slice(bytes)
            .map_err(|error| TpmError::Malformed(format!("PCR signatures: {error}")))
    }
}

/// A policy that the signer has approved, ready for the TPM.
#[derive(Debug, Clone)]
pub(super) struct Approved {
    pcrs: Vec<Pcr>,
    policy: [u8; 32],
    signature: Vec<u8>,
    key: Public,
    key_name: Vec<u8>,
}

impl SignedPcrs {
    /// The PCRs in ascending order, each once.
    fn sorted(&self) -> Vec<Pcr> {
        let mut pcrs = self.pcrs.clone();
        pcrs.sort_unstable();
        pcrs.dedup();
        pcrs
    }

    fn key(&self) -> Result<PKey<PublicHalf>, TpmError> {
        PKey::public_key_from_pem(self.public_key.as_bytes())
            .map_err(|error| TpmError::Malformed(format!("public key of signed PCRs: {error}")))
    }

    /// The key as the TPM loads it: as systemd and `tpm2_loadexternal` do, a key for signing and decrypting without a
    /// scheme of its own.
    fn tpm_key(&self) -> Result<Public, TpmError> {
        let malformed =
            |reason: String| TpmError::Malformed(format!("public key of signed PCRs: {reason}"));
        let rsa = self
            .key()?
            .rsa()
            .map_err(|_| malformed("not an RSA key".to_owned()))?;
        let bits = u16::try_from(rsa.size() * 8).unwrap_or(u16::MAX);
        let exponent = match rsa.e().to_dec_str().map(|text| text.parse::<u32>()) {
            Ok(Ok(exponent)) => exponent,
            _ => return Err(malformed("an exponent of more than 32 bits".to_owned())),
        };
        let public = || {
            let attributes = ObjectAttributesBuilder::new()
                .with_user_with_auth(true)
                .with_sign_encrypt(true)
                .with_decrypt(true)
                .build()?;
            let parameters = PublicRsaParametersBuilder::new()
                .with_scheme(RsaScheme::Null)
                .with_key_bits(RsaKeyBits::try_from(bits)?)
                .with_exponent(RsaExponent::create(exponent)?)
                .with_is_signing_key(true)
                .with_is_decryption_key(true)
                .build()?;
            PublicBuilder::new()
                .with_public_algorithm(PublicAlgorithm::Rsa)
                .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
                .with_object_attributes(attributes)
                .with_rsa_parameters(parameters)
                .with_rsa_unique_identifier(PublicKeyRsa::try_from(rsa.n().to_vec())?)
                .build()
        };
        public().map_err(|error: tss_esapi::Error| malformed(error.to_string()))
    }

    /// The name of the key in the TPM: TPM_ALG_SHA256, then SHA-256 of its public area.
    fn key_name(&self, key: &Public) -> Result<Vec<u8>, TpmError> {
        let public = PublicBuffer::try_from(key.clone())
            .map_err(|error| TpmError::Malformed(format!("public key of signed PCRs: {error}")))?;
        let mut name = ALG_SHA256.to_be_bytes().to_vec();
        name.extend_from_slice(&Sha256::digest(public.to_vec()));
        Ok(name)
    }

    /// The policy digest after the signed part of a policy, which does not depend on the values of the PCRs.
    ///
    /// # Errors
    /// The public key is no RSA key in PEM, or there are no PCRs.
    pub(super) fn digest(&self) -> Result<PolicyDigest, TpmError> {
        if self.pcrs.is_empty() || self.pcrs.iter().any(|pcr| *pcr > 22) {
            return Err(TpmError::Malformed(format!(
                "signed PCRs {:?}: at least one of 0 to 22 expected",
                self.pcrs
            )));
        }
        Ok(PolicyDigest::authorize(&self.key_name(&self.tpm_key()?)?))
    }

    /// The signed policy that the PCRs fulfil now.
    ///
    /// # Errors
    /// Nobody has signed the present values.
    pub(super) fn approved(
        &self,
        signatures: &PcrSignatures,
        present: &BTreeMap<Pcr, PcrValue>,
    ) -> Result<Approved, TpmError> {
        let pcrs = self.sorted();
        let spki = self
            .key()?
            .public_key_to_der()
            .map_err(|error| TpmError::Malformed(format!("public key of signed PCRs: {error}")))?;
        let fingerprint = hex::encode(Sha256::digest(spki));
        let mut values = present.clone();
        values.retain(|pcr, _| pcrs.contains(pcr));
        let policy = PolicyDigest::START.pcr(&values).0;
        let hex_policy = hex::encode(policy);
        let by_key: Vec<_> = signatures
            .sha256
            .iter()
            .filter(|signed| signed.pkfp.eq_ignore_ascii_case(&fingerprint))
            .collect();
        let matching = by_key.iter().find(|signed| {
            let mut theirs = signed.pcrs.clone();
            theirs.sort_unstable();
            theirs == pcrs && signed.pol.eq_ignore_ascii_case(&hex_policy)
        });
        let Some(signed) = matching else {
            let values: Vec<_> = values
                .iter()
                .map(|(pcr, value)| format!("PCR {pcr} {}", hex::encode(value)))
                .collect();
            return Err(TpmError::NotSigned {
                present: values.join(", "),
                signed: by_key.len(),
                key: fingerprint,
            });
        };
        let signature = STANDARD.decode(&signed.sig).map_err(|error| {
            TpmError::Malformed(format!("PCR signatures: sig is not base64: {error}"))
        })?;
        let key = self.tpm_key()?;
        let key_name = self.key_name(&key)?;
        Ok(Approved {
            pcrs,
            policy,
            signature,
            key,
            key_name,
        })
    }
}

impl Approved {
    /// Has the TPM check the signature and brings a policy session to [`SignedPcrs::digest`].
    pub(super) fn apply(
        self,
        context: &mut Context,
        session: PolicySession,
    ) -> tss_esapi::Result<()> {
        let key = context.load_external_public(self.key, Hierarchy::Owner)?;
        let signature = PublicKeyRsa::try_from(self.signature)
            .and_then(|bytes| RsaSignature::create(HashingAlgorithm::Sha256, bytes))
            .map(Signature::RsaSsa);
        // aHash is SHA-256 of approvedPolicy and the empty policyRef (Part 3, section 23.16).
        let hash = Digest::try_from(Sha256::digest(self.policy).to_vec());
        let ticket =
            signature.and_then(|signature| context.verify_signature(key, hash?, signature));
        context.flush_context(key.into())?;
        let ticket = ticket?;
        context.policy_pcr(session, Digest::default(), selection(&self.pcrs)?)?;
        context.policy_authorize(
            session,
            Digest::try_from(self.policy.to_vec())?,
            Nonce::default(),
            &Name::try_from(self.key_name)?,
            ticket,
        )
    }
}

/// Has a trial session compute the digest of a policy: `signed` stands for what [`Approved::apply`] leads to.
pub(super) fn trial(
    context: &mut Context,
    values: &BTreeMap<Pcr, PcrValue>,
    pin: bool,
) -> tss_esapi::Result<Vec<u8>> {
    let pcrs: Vec<Pcr> = values.keys().copied().collect();
    let pcr_digest = super::policy::policy_pcr_digest(values);
    session::policy(context, SessionType::Trial, None, |context, trial| {
        context.policy_pcr(
            trial,
            Digest::try_from(pcr_digest.to_vec())?,
            selection(&pcrs)?,
        )?;
        if pin {
            context.policy_auth_value(trial)?;
        }
        Ok(context.policy_get_digest(trial)?.as_bytes().to_vec())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures_of_systemd_are_read() {
        // The form that systemd-measure(1) prints, shortened.
        let text = br#"{"sha1":[{"pcrs":[11],"pkfp":"00","pol":"00","sig":"AA=="}],
            "sha256":[{"pcrs":[11],"pkfp":"ab","pol":"cd","sig":"AA==","new":1}]}"#;
        let signatures = PcrSignatures::parse(text).unwrap();
        assert_eq!(signatures.sha256.len(), 1);
        assert_eq!(PcrSignatures::parse(b"{}").unwrap().sha256, []);
        for bad in [
            "",
            "[",
            r#"{"sha256":{}}"#,
            r#"{"sha256":[{"pcrs":[300]}]}"#,
        ] {
            assert!(PcrSignatures::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }
}
