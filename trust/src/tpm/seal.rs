//! Secrets that only this TPM gives back, only in the boot state they were sealed in, and only while PCR 23 holds the
//! identity they were sealed for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use trustme_config::IDENTITY_PCR;
use tss_esapi::Context;
use tss_esapi::attributes::ObjectAttributesBuilder;
use tss_esapi::constants::SessionType;
use tss_esapi::handles::{KeyHandle, ObjectHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Digest, KeyedHashScheme, Private, Public, PublicBuffer, PublicBuilder,
    PublicKeyedHashParameters, SensitiveData,
};
use zeroize::Zeroizing;

use super::pcr::{extended, selection};
use super::session::{self, Protect};
use super::{Pcr, PcrValue, Tpm, TpmError};
use crate::encoding::{base64_bytes, hex_bytes};

/// TPM_CC_PolicyPCR (TPM 2.0 Library Part 2, section 6.5.2).
const POLICY_PCR_COMMAND: u32 = 0x0000_017F;

/// TPM_ALG_SHA256 (TPM 2.0 Library Part 2, section 6.3).
const ALG_SHA256: u16 = 0x000B;

/// Extended into PCR 23 after each use, so that it holds no container's identity.
const CAP: &[u8] = b"trustme: identity PCR capped";

/// A sealed secret as it is kept on disk. Without the TPM it tells nothing about the secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SealedSecret {
    /// The object's public area: a TPM2B_PUBLIC, base64.
    #[serde(with = "base64_bytes")]
    pub public: Vec<u8>,
    /// The object's encrypted private area: a TPM2B_PRIVATE, base64.
    #[serde(with = "base64_bytes")]
    pub private: Vec<u8>,
    /// Name of the storage root key that it is sealed under: TPM_ALG_ID, then SHA-256 of its public area, hex.
    #[serde(with = "hex_bytes")]
    pub srk_name: Vec<u8>,
    /// The boot PCRs and their values when the secret was sealed, hex.
    pub pcrs: BTreeMap<Pcr, HexDigest>,
    /// SHA-256 that PCR 23 is extended with, from zero, for the unseal, hex.
    pub identity: HexDigest,
    /// Digest of the policy of `pcrs` and PCR 23, hex; the public area holds it too.
    pub policy_digest: HexDigest,
}

/// A SHA-256 digest that is written in hex.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct HexDigest(#[serde(with = "hex_bytes")] pub [u8; 32]);

impl std::fmt::Display for HexDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl std::fmt::Debug for HexDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{self}")
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
    // TPML_PCR_SELECTION: count, then hash, size of select, and a bit for each PCR.
    let mut select = [0_u8; 3];
    for pcr in values.keys() {
        select[usize::from(pcr / 8)] |= 1 << (pcr % 8);
    }
    Sha256::new()
        .chain_update([0_u8; 32])
        .chain_update(POLICY_PCR_COMMAND.to_be_bytes())
        .chain_update(1_u32.to_be_bytes())
        .chain_update(ALG_SHA256.to_be_bytes())
        .chain_update([select.len() as u8])
        .chain_update(select)
        .chain_update(policy_pcr_digest(values))
        .finalize()
        .into()
}

/// `boot` and what PCR 23 holds while `identity` uses it.
fn with_identity(boot: &BTreeMap<Pcr, PcrValue>, identity: &[u8; 32]) -> BTreeMap<Pcr, PcrValue> {
    let mut values = boot.clone();
    values.insert(IDENTITY_PCR, extended(&[0; 32], identity));
    values
}

/// A digest as the TSS wants it.
fn digest(value: [u8; 32]) -> tss_esapi::Result<Digest> {
    Digest::try_from(value.to_vec())
}

/// The public area of a sealed object: it can leave neither this TPM nor the storage root key, has no password that
/// would do instead of the policy, and a wrong try does not count towards the TPM's lockout.
fn object_template(policy: [u8; 32]) -> tss_esapi::Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_no_da(true)
        .build()?;
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::KeyedHash)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_auth_policy(digest(policy)?)
        .with_keyed_hash_parameters(PublicKeyedHashParameters::new(KeyedHashScheme::Null))
        .with_keyed_hash_unique_identifier(Digest::default())
        .build()
}

/// `bytes` with their length before them, as a TPM2B structure is.
fn sized(bytes: &[u8]) -> Vec<u8> {
    let mut sized = (bytes.len() as u16).to_be_bytes().to_vec();
    sized.extend_from_slice(bytes);
    sized
}

/// What a TPM2B structure holds.
fn unsized_bytes<'b>(bytes: &'b [u8], name: &str) -> Result<&'b [u8], TpmError> {
    match bytes.split_first_chunk::<2>() {
        Some((length, rest)) if usize::from(u16::from_be_bytes(*length)) == rest.len() => Ok(rest),
        _ => Err(TpmError::Malformed(format!(
            "{name}: {} bytes do not begin with the length of the rest",
            bytes.len()
        ))),
    }
}

/// Loads a sealed object under `srk`.
fn load(
    context: &mut Context,
    srk: KeyHandle,
    public: Public,
    private: Private,
) -> tss_esapi::Result<ObjectHandle> {
    session::salted(context, srk, Protect::Command, |context, session| {
        context.execute_with_session(Some(session), |context| context.load(srk, private, public))
    })
    .map(ObjectHandle::from)
}

impl Tpm {
    /// Seals `secret` (at most 128 bytes) to the present values of `boot_pcrs` and to the identity digest that PCR 23
    /// will be extended with. PCR 23 is not touched.
    ///
    /// # Errors
    /// The TPM does not answer or refuses, or computes another policy digest than this library.
    pub fn seal(
        &self,
        secret: &[u8],
        boot_pcrs: &[Pcr],
        identity: &[u8; 32],
    ) -> Result<SealedSecret, TpmError> {
        let (srk, srk_name) = self.srk()?;
        let boot = self.read_pcrs(boot_pcrs)?;
        let values = with_identity(&boot, identity);
        let policy = policy_digest(&values);
        self.check_policy(&values, policy)?;
        let secret = SensitiveData::try_from(secret.to_vec()).map_err(|_| {
            TpmError::Malformed(format!("a secret of {} bytes is too long", secret.len()))
        })?;
        let (public, private) = self.run("seal", move |context| {
            let made = session::salted(context, srk, Protect::Command, |context, session| {
                context.execute_with_session(Some(session), |context| {
                    context.create(
                        srk,
                        object_template(policy)?,
                        None,
                        Some(secret),
                        None,
                        None,
                    )
                })
            })?;
            Ok((
                PublicBuffer::try_from(made.out_public)?.to_vec(),
                made.out_private.as_bytes().to_vec(),
            ))
        })?;
        Ok(SealedSecret {
            public: sized(&public),
            private: sized(&private),
            srk_name,
            pcrs: boot
                .into_iter()
                .map(|(pcr, value)| (pcr, HexDigest(value)))
                .collect(),
            identity: HexDigest(*identity),
            policy_digest: HexDigest(policy),
        })
    }

    /// Has the TPM compute the policy digest in a trial session: it must be the one computed here.
    fn check_policy(
        &self,
        values: &BTreeMap<Pcr, PcrValue>,
        expected: [u8; 32],
    ) -> Result<(), TpmError> {
        let pcrs: Vec<Pcr> = values.keys().copied().collect();
        let pcr_digest = policy_pcr_digest(values);
        let computed = self.run("compute the policy", move |context| {
            session::policy(context, SessionType::Trial, |context, trial| {
                context.policy_pcr(trial, digest(pcr_digest)?, selection(&pcrs)?)?;
                context.policy_get_digest(trial)
            })
        })?;
        if computed.as_bytes() == expected {
            return Ok(());
        }
        Err(TpmError::Answer(format!(
            "policy digest {} of a trial session, {} computed",
            hex::encode(computed.as_bytes()),
            hex::encode(expected)
        )))
    }

    /// The secret that was sealed for `identity`. PCR 23 holds the identity only meanwhile: it is extended with a
    /// constant afterwards, whatever the outcome.
    ///
    /// # Errors
    /// Sealed by another TPM, in another boot state or for another identity (each says what differs); or the TPM does not
    /// answer or refuses.
    pub fn unseal(
        &self,
        sealed: &SealedSecret,
        identity: &[u8; 32],
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let (srk, srk_name) = self.srk()?;
        if srk_name != sealed.srk_name {
            return Err(TpmError::OtherTpm {
                sealed: hex::encode(&sealed.srk_name),
                present: hex::encode(srk_name),
            });
        }
        if sealed.identity.0 != *identity {
            return Err(TpmError::OtherIdentity {
                sealed: sealed.identity.to_string(),
                present: hex::encode(identity),
            });
        }
        if let Some(pcr) = sealed.pcrs.keys().find(|pcr| **pcr >= IDENTITY_PCR) {
            return Err(TpmError::Malformed(format!(
                "pcrs: {pcr} is not a boot PCR"
            )));
        }
        let pcrs: Vec<Pcr> = sealed.pcrs.keys().copied().collect();
        let boot = self.read_pcrs(&pcrs)?;
        for (pcr, value) in &boot {
            let before = sealed.pcrs[pcr];
            if before.0 != *value {
                return Err(TpmError::PcrDiffers {
                    pcr: *pcr,
                    sealed: before.to_string(),
                    present: hex::encode(value),
                });
            }
        }
        let policy = policy_digest(&with_identity(&boot, identity));
        let (public, private) = parse(sealed, policy)?;
        let object = self.run("load the sealed secret", move |context| {
            load(context, srk, public, private)
        })?;
        let outcome = self.unseal_as(identity, pcrs, srk, object);
        let capped = self.extend(IDENTITY_PCR, &Sha256::digest(CAP).into());
        self.run("flush the sealed secret", move |context| {
            context.flush_context(object)
        })?;
        let secret = outcome?;
        capped?;
        Ok(secret)
    }

    /// Unseals `object` with `identity` in PCR 23, and leaves it there.
    fn unseal_as(
        &self,
        identity: &[u8; 32],
        mut pcrs: Vec<Pcr>,
        srk: KeyHandle,
        object: ObjectHandle,
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        self.reset(IDENTITY_PCR)?;
        self.extend(IDENTITY_PCR, identity)?;
        pcrs.push(IDENTITY_PCR);
        self.run("unseal", move |context| {
            session::policy(context, SessionType::Policy, |context, policy| {
                // An empty digest: the TPM takes the PCRs' present values.
                context.policy_pcr(policy, Digest::default(), selection(&pcrs)?)?;
                session::salted(context, srk, Protect::Response, |context, session| {
                    let sessions = (Some(AuthSession::from(policy)), Some(session), None);
                    let secret = context
                        .execute_with_sessions(sessions, |context| context.unseal(object))?;
                    Ok(Zeroizing::new(secret.as_bytes().to_vec()))
                })
            })
        })
    }
}

/// The TPM's objects in `sealed`, whose policy has to be `policy`.
fn parse(sealed: &SealedSecret, policy: [u8; 32]) -> Result<(Public, Private), TpmError> {
    let malformed =
        |name: &str, error: tss_esapi::Error| TpmError::Malformed(format!("{name}: {error}"));
    let public = unsized_bytes(&sealed.public, "public")?;
    let public = PublicBuffer::try_from(public.to_vec())
        .and_then(Public::try_from)
        .map_err(|error| malformed("public", error))?;
    let private = unsized_bytes(&sealed.private, "private")?;
    let private =
        Private::try_from(private.to_vec()).map_err(|error| malformed("private", error))?;
    for (name, found) in [
        ("policy_digest", sealed.policy_digest.0.as_slice()),
        ("public: policy digest", public.auth_policy().as_bytes()),
    ] {
        if found != policy {
            return Err(TpmError::Malformed(format!(
                "{name} {}, but the policy of pcrs and identity has {}",
                hex::encode(found),
                hex::encode(policy)
            )));
        }
    }
    Ok((public, private))
}
