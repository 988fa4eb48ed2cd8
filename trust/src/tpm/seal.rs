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

use super::firmware::{FirmwareEvent, FirmwareLog, differences};
use super::pcr::{extended, selection};
use super::pin::{self, Pin};
use super::policy::PolicyDigest;
use super::session::{self, Protect};
use super::signed::{self, Approved, PcrSignatures, SignedPcrs};
use super::{Pcr, PcrValue, Tpm, TpmError};
use crate::encoding::{base64_bytes, hex_bytes};

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
    /// What the firmware's log said of the boot PCRs then; for messages only.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub events: BTreeMap<Pcr, Vec<FirmwareEvent>>,
    /// PCRs whose values somebody signs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signed: Option<SignedPcrs>,
    /// Whether a PIN is needed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pin: bool,
    /// Digest of the policy of all this, hex; the public area holds it too.
    pub policy_digest: HexDigest,
}

/// What a secret is sealed to.
#[derive(Debug, Clone, Copy)]
pub struct Sealing<'s> {
    /// PCRs whose present values are needed.
    pub boot_pcrs: &'s [Pcr],
    /// The digest that PCR 23 will be extended with.
    pub identity: &'s [u8; 32],
    /// PCRs whose values somebody signs.
    pub signed: Option<&'s SignedPcrs>,
    /// The PIN that will be needed.
    pub pin: Option<&'s Pin>,
    /// The firmware's log of this boot, to tell later what has changed.
    pub log: &'s FirmwareLog,
}

/// What whoever wants a secret has to show.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'c> {
    /// The digest that PCR 23 is extended with.
    pub identity: &'c [u8; 32],
    /// The PIN, where one is needed.
    pub pin: Option<&'c Pin>,
    /// Signatures of PCR policies, where one is needed.
    pub signatures: &'c PcrSignatures,
    /// The firmware's log of this boot.
    pub log: &'c FirmwareLog,
}

/// The digest of the policy: the signed PCR policy, then the boot PCRs with PCR 23, then the PIN.
fn policy(
    signed: Option<&SignedPcrs>,
    values: &BTreeMap<Pcr, PcrValue>,
    pin: bool,
) -> Result<[u8; 32], TpmError> {
    let start = match signed {
        Some(signed) => signed.digest()?,
        None => PolicyDigest::START,
    };
    let digest = start.pcr(values);
    Ok(match pin {
        true => digest.auth_value().0,
        false => digest.0,
    })
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
/// would do instead of the policy; with a PIN a wrong try counts towards the TPM's lockout.
fn object_template(policy: [u8; 32], pin: bool) -> tss_esapi::Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_no_da(!pin)
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
    /// Seals `secret` (at most 128 bytes). PCR 23 is not touched.
    ///
    /// # Errors
    /// The TPM does not answer or refuses, or computes another policy digest than this library; the key of signed PCRs is
    /// none.
    pub fn seal(&self, secret: &[u8], sealing: &Sealing<'_>) -> Result<SealedSecret, TpmError> {
        let (srk, srk_name) = self.srk()?;
        let boot = self.read_pcrs(sealing.boot_pcrs)?;
        let values = with_identity(&boot, sealing.identity);
        let pin = sealing.pin.cloned();
        self.check_policy(&values, pin.is_some())?;
        let policy = policy(sealing.signed, &values, pin.is_some())?;
        let secret = SensitiveData::try_from(secret.to_vec()).map_err(|_| {
            TpmError::Malformed(format!("a secret of {} bytes is too long", secret.len()))
        })?;
        let with_pin = pin.is_some();
        let (public, private) = self.run("seal", move |context| {
            let auth = pin.map(|pin| pin.auth()).transpose()?;
            let made = session::salted(context, srk, Protect::Command, |context, session| {
                context.execute_with_session(Some(session), |context| {
                    context.create(
                        srk,
                        object_template(policy, with_pin)?,
                        auth,
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
        let log = sealing.log;
        let events = boot
            .iter()
            .map(|(pcr, value)| (*pcr, log.events_of(*pcr, value)));
        Ok(SealedSecret {
            public: sized(&public),
            private: sized(&private),
            srk_name,
            events: events.filter(|(_, events)| !events.is_empty()).collect(),
            pcrs: boot
                .into_iter()
                .map(|(pcr, value)| (pcr, HexDigest(value)))
                .collect(),
            identity: HexDigest(*sealing.identity),
            signed: sealing.signed.cloned(),
            pin: with_pin,
            policy_digest: HexDigest(policy),
        })
    }

    /// Has the TPM compute the part of the policy digest that a trial session can: it must be the one computed here.
    fn check_policy(&self, values: &BTreeMap<Pcr, PcrValue>, pin: bool) -> Result<(), TpmError> {
        let expected = policy(None, values, pin)?;
        let values = values.clone();
        let computed = self.run("compute the policy", move |context| {
            signed::trial(context, &values, pin)
        })?;
        if computed == expected {
            return Ok(());
        }
        Err(TpmError::Answer(format!(
            "policy digest {} of a trial session, {} computed",
            hex::encode(computed),
            hex::encode(expected)
        )))
    }

    /// The secret that was sealed for the claim's identity. PCR 23 holds the identity only meanwhile: it is extended with a
    /// constant afterwards, whatever the outcome.
    ///
    /// # Errors
    /// Sealed by another TPM, in another boot state or for another identity (each says what differs); no signature for the
    /// present state; no PIN or a wrong one; or the TPM does not answer or refuses.
    pub fn unseal(
        &self,
        sealed: &SealedSecret,
        claim: &Claim<'_>,
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let (srk, srk_name) = self.srk()?;
        if srk_name != sealed.srk_name {
            return Err(TpmError::OtherTpm {
                sealed: hex::encode(&sealed.srk_name),
                present: hex::encode(srk_name),
            });
        }
        if sealed.identity.0 != *claim.identity {
            return Err(TpmError::OtherIdentity {
                sealed: sealed.identity.to_string(),
                present: hex::encode(claim.identity),
            });
        }
        if let Some(pcr) = sealed.pcrs.keys().find(|pcr| **pcr >= IDENTITY_PCR) {
            return Err(TpmError::Malformed(format!(
                "pcrs: {pcr} is not a boot PCR"
            )));
        }
        let pin = match (sealed.pin, claim.pin) {
            (true, None) => return Err(TpmError::PinNeeded),
            (true, Some(pin)) => Some(pin.clone()),
            (false, _) => None,
        };
        let boot = self.read_boot(sealed, claim)?;
        let approved = match &sealed.signed {
            Some(signed) => {
                let present = self.read_pcrs(&signed.pcrs)?;
                Some(signed.approved(claim.signatures, &present)?)
            }
            None => None,
        };
        let values = with_identity(&boot, claim.identity);
        let policy = policy(sealed.signed.as_ref(), &values, sealed.pin)?;
        let (public, private) = parse(sealed, policy)?;
        let object = self.run("load the sealed secret", move |context| {
            let object = load(context, srk, public, private)?;
            if let Some(pin) = pin {
                context.tr_set_auth(object, pin.auth()?)?;
            }
            Ok(object)
        })?;
        let pcrs = values.into_keys().collect();
        let outcome = self.unseal_as(claim.identity, pcrs, approved, sealed.pin, srk, object);
        let capped = self.extend(IDENTITY_PCR, &Sha256::digest(CAP).into());
        self.run("flush the sealed secret", move |context| {
            context.flush_context(object)
        })?;
        let secret = outcome?;
        capped?;
        Ok(secret)
    }

    /// The present values of the boot PCRs, which have to be those of when the secret was sealed.
    fn read_boot(
        &self,
        sealed: &SealedSecret,
        claim: &Claim<'_>,
    ) -> Result<BTreeMap<Pcr, PcrValue>, TpmError> {
        let pcrs: Vec<Pcr> = sealed.pcrs.keys().copied().collect();
        let boot = self.read_pcrs(&pcrs)?;
        for (pcr, value) in &boot {
            let before = sealed.pcrs[pcr];
            if before.0 != *value {
                let events = sealed.events.get(pcr).map_or(&[][..], Vec::as_slice);
                return Err(TpmError::PcrDiffers {
                    pcr: *pcr,
                    sealed: before.to_string(),
                    present: hex::encode(value),
                    events: differences(events, &claim.log.events_of(*pcr, value)),
                });
            }
        }
        Ok(boot)
    }

    /// Unseals `object` with `identity` in PCR 23, and leaves it there.
    fn unseal_as(
        &self,
        identity: &[u8; 32],
        pcrs: Vec<Pcr>,
        approved: Option<Approved>,
        pin: bool,
        srk: KeyHandle,
        object: ObjectHandle,
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        self.reset(IDENTITY_PCR)?;
        self.extend(IDENTITY_PCR, identity)?;
        let answer = self.answer("unseal", move |context| {
            session::policy(
                context,
                SessionType::Policy,
                Some(srk),
                |context, policy| {
                    if let Some(approved) = approved {
                        approved.apply(context, policy)?;
                    }
                    // An empty digest: the TPM takes the PCRs' present values.
                    context.policy_pcr(policy, Digest::default(), selection(&pcrs)?)?;
                    if pin {
                        context.policy_auth_value(policy)?;
                    }
                    let session = Some(AuthSession::from(policy));
                    let secret =
                        context.execute_with_session(session, |context| context.unseal(object))?;
                    Ok(Zeroizing::new(secret.as_bytes().to_vec()))
                },
            )
        })?;
        answer.map_err(|error| match pin::refusal(&error) {
            Some(refusal) => self.pin_error(refusal),
            None => self.refused("unseal", &error),
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
