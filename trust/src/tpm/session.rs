//! Sessions with the TPM and its storage root key.

use tss_esapi::Context;
use tss_esapi::attributes::{ObjectAttributesBuilder, SessionAttributesBuilder};
use tss_esapi::constants::{CapabilityType, SessionType};
use tss_esapi::handles::{KeyHandle, PersistentTpmHandle, SessionHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::dynamic_handles::Persistent;
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::{Hierarchy, Provision};
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{
    CapabilityData, EccPoint, EccScheme, KeyDerivationFunctionScheme, Public, PublicBuilder,
    PublicEccParametersBuilder, SymmetricDefinition, SymmetricDefinitionObject,
};
use tss_esapi::{Error, Result, WrapperErrorKind};
use zeroize::Zeroizing;

use super::{Tpm, TpmError};

/// Where the storage root key is kept (TCG TPM v2.0 Provisioning Guidance, section 7.8).
const SRK_HANDLE: u32 = 0x8100_0001;

/// The first handles of the kinds that a program can leave behind (TPM 2.0 Library Part 2, section 7.2): HMAC
/// sessions, policy sessions, transient objects.
const LEFTOVERS: [u32; 3] = [0x0200_0000, 0x0300_0000, 0x8000_0000];

/// More than any TPM holds at a time.
const MAX_HANDLES: u32 = 64;

/// TPM2_GetRandom gives at most the size of the largest digest; every TPM has SHA-256.
const RANDOM_A_CALL: usize = 32;

/// What is encrypted between here and the TPM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protect {
    /// The command's first parameter.
    Command,
    /// The response's first parameter.
    Response,
}

/// Flushes sessions and keys that a program which was killed left in a TPM without resource manager.
pub(super) fn flush_leftovers(context: &mut Context) -> Result<()> {
    for first in LEFTOVERS {
        let (capability, _) =
            context.get_capability(CapabilityType::Handles, first, MAX_HANDLES)?;
        let CapabilityData::Handles(handles) = capability else {
            return Err(Error::WrapperError(WrapperErrorKind::WrongValueFromTpm));
        };
        for handle in handles.into_inner() {
            let object = context.tr_from_tpm_public(handle)?;
            match context.flush_context(object) {
                // The TPM has flushed it: the binding complains afterwards because it takes a policy session for
                // something that cannot be flushed.
                Err(Error::WrapperError(WrapperErrorKind::InvalidHandleState)) => {}
                outcome => outcome?,
            }
        }
    }
    Ok(())
}

/// What `f` gives in a salted HMAC session (the salt encrypted to `srk`) that encrypts as `protect` says with
/// AES-128-CFB. The session ends whatever the outcome.
pub(super) fn salted<T>(
    context: &mut Context,
    srk: KeyHandle,
    protect: Protect,
    f: impl FnOnce(&mut Context, AuthSession) -> Result<T>,
) -> Result<T> {
    let session = start(context, Some(srk), SessionType::Hmac)?;
    let (attributes, mask) = SessionAttributesBuilder::new()
        .with_continue_session(true)
        .with_decrypt(protect == Protect::Command)
        .with_encrypt(protect == Protect::Response)
        .build();
    let outcome = context
        .tr_sess_set_attributes(session, attributes, mask)
        .and_then(|()| f(context, session));
    end(context, session, outcome)
}

/// What `f` gives with a policy session, or with a trial session that only computes a policy's digest. With `srk` the session
/// is salted, and encrypts the first parameter of responses. The session ends whatever the outcome.
pub(super) fn policy<T>(
    context: &mut Context,
    session_type: SessionType,
    srk: Option<KeyHandle>,
    f: impl FnOnce(&mut Context, PolicySession) -> Result<T>,
) -> Result<T> {
    let session = start(context, srk, session_type)?;
    let (attributes, mask) = SessionAttributesBuilder::new()
        .with_continue_session(true)
        .with_encrypt(srk.is_some())
        .build();
    let outcome = context
        .tr_sess_set_attributes(session, attributes, mask)
        .and_then(|()| PolicySession::try_from(session))
        .and_then(|session| f(context, session));
    end(context, session, outcome)
}

/// Ends a session in which `outcome` came about.
fn end<T>(context: &mut Context, session: AuthSession, outcome: Result<T>) -> Result<T> {
    let handle = SessionHandle::from(session).into();
    let ended = context.execute_without_session(|context| context.flush_context(handle));
    let value = outcome?;
    ended?;
    Ok(value)
}

fn start(
    context: &mut Context,
    srk: Option<KeyHandle>,
    session_type: SessionType,
) -> Result<AuthSession> {
    context
        .execute_without_session(|context| {
            context.start_auth_session(
                srk,
                None,
                None,
                session_type,
                SymmetricDefinition::AES_128_CFB,
                HashingAlgorithm::Sha256,
            )
        })?
        .ok_or(Error::WrapperError(WrapperErrorKind::WrongValueFromTpm))
}

/// The template of the storage root key: the TCG's for ECC P-256 (TCG TPM v2.0 Provisioning Guidance, section 7.5.1;
/// EK Credential Profile, template L-2, with userWithAuth and noDA instead of the policy).
fn srk_template() -> Result<Public> {
    let attributes = ObjectAttributesBuilder::new()
        .with_fixed_tpm(true)
        .with_fixed_parent(true)
        .with_sensitive_data_origin(true)
        .with_user_with_auth(true)
        .with_no_da(true)
        .with_restricted(true)
        .with_decrypt(true)
        .build()?;
    let parameters = PublicEccParametersBuilder::new()
        .with_symmetric(SymmetricDefinitionObject::AES_128_CFB)
        .with_ecc_scheme(EccScheme::Null)
        .with_curve(EccCurve::NistP256)
        .with_key_derivation_function_scheme(KeyDerivationFunctionScheme::Null)
        .with_is_decryption_key(true)
        .with_restricted(true)
        .build()?;
    PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()
}

/// Whether `public` is a key of the template.
fn is_srk(public: &Public) -> Result<bool> {
    let template = srk_template()?;
    let (
        Public::Ecc {
            parameters: found, ..
        },
        Public::Ecc {
            parameters: wanted, ..
        },
    ) = (public, &template)
    else {
        return Ok(false);
    };
    Ok(found == wanted
        && public.object_attributes() == template.object_attributes()
        && public.name_hashing_algorithm() == template.name_hashing_algorithm()
        && public.auth_policy() == template.auth_policy())
}

/// The storage root key, made and persisted where there is none; `None` where the handle holds another kind of key.
fn srk(context: &mut Context) -> Result<Option<(KeyHandle, Vec<u8>)>> {
    let (capability, _) = context.get_capability(CapabilityType::Handles, SRK_HANDLE, 1)?;
    let persistent = PersistentTpmHandle::new(SRK_HANDLE)?;
    let exists = matches!(capability, CapabilityData::Handles(handles)
        if handles.as_ref().contains(&TpmHandle::Persistent(persistent)));
    let key = if exists {
        context.tr_from_tpm_public(TpmHandle::Persistent(persistent))?
    } else {
        context.execute_with_session(Some(AuthSession::Password), |context| {
            let made = context.create_primary(
                Hierarchy::Owner,
                srk_template()?,
                None,
                None,
                None,
                None,
            )?;
            let kept = context.evict_control(
                Provision::Owner,
                made.key_handle.into(),
                Persistent::Persistent(persistent),
            )?;
            context
                .execute_without_session(|context| context.flush_context(made.key_handle.into()))?;
            Ok(kept)
        })?
    };
    let key = KeyHandle::from(key);
    let (public, name, _) = context.read_public(key)?;
    Ok(is_srk(&public)?.then(|| (key, name.value().to_vec())))
}

impl Tpm {
    /// The storage root key and its name (algorithm, then SHA-256 of the public area), made where there is none.
    pub(super) fn srk(&self) -> std::result::Result<(KeyHandle, Vec<u8>), TpmError> {
        self.run("get the storage root key", srk)?.ok_or_else(|| {
            TpmError::Answer(format!(
                "the key at {SRK_HANDLE:#x} is not a storage root key of the TCG's ECC P-256 template"
            ))
        })
    }

    /// `length` random bytes from the TPM's generator, encrypted on the way.
    ///
    /// # Errors
    /// The TPM does not answer or refuses.
    pub fn random(&self, length: usize) -> std::result::Result<Zeroizing<Vec<u8>>, TpmError> {
        let (srk, _) = self.srk()?;
        self.run("get random bytes", move |context| {
            salted(context, srk, Protect::Response, |context, session| {
                let mut bytes = Zeroizing::new(Vec::with_capacity(length));
                while bytes.len() < length {
                    let wanted = RANDOM_A_CALL.min(length - bytes.len());
                    let some = context.execute_with_session(Some(session), |context| {
                        context.get_random(wanted)
                    })?;
                    bytes.extend_from_slice(some.as_bytes());
                }
                Ok(bytes)
            })
        })
    }
}
