//! PINs: passwords that the TPM itself checks, and stops checking after too many wrong ones.

use sha2::{Digest as _, Sha256};
use tss_esapi::Context;
use tss_esapi::constants::return_code::{TpmFormatOneError, TpmFormatZeroWarning};
use tss_esapi::constants::{CapabilityType, PropertyTag};
use tss_esapi::error::{ReturnCode, TpmFormatZeroResponseCode, TpmResponseCode};
use tss_esapi::structures::{Auth, CapabilityData};
use tss_esapi::{Error, Result, WrapperErrorKind};
use zeroize::Zeroizing;

use super::{Tpm, TpmError};

/// How many properties are asked for at once.
const PROPERTIES: u32 = 8;

/// A PIN in the form that the TPM compares; zeroed when dropped.
#[derive(Clone)]
pub struct Pin(Zeroizing<Vec<u8>>);

impl std::fmt::Debug for Pin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Pin(…)")
    }
}

impl Pin {
    /// The PIN that somebody has typed: of any length, because the TPM gets its SHA-256. Zero bytes at the end are left
    /// out, as the TPM does with every authValue (TPM 2.0 Library Part 1, section 19.6.4.3).
    #[must_use]
    pub fn new(typed: &[u8]) -> Self {
        let mut digest = Zeroizing::new(Sha256::digest(typed).to_vec());
        while digest.last() == Some(&0) {
            digest.pop();
        }
        Self(digest)
    }

    pub(super) fn auth(&self) -> Result<Auth> {
        Auth::try_from(self.0.to_vec())
    }
}

/// What a refusal of the TPM says about a PIN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is wrong, and the try was counted.
    Wrong,
    /// No PIN is looked at now.
    Locked,
}

/// Whether `error` is about a PIN.
pub(super) fn refusal(error: &Error) -> Option<Refusal> {
    let Error::TssError(ReturnCode::Tpm(code)) = error else {
        return None;
    };
    match code {
        TpmResponseCode::FormatOne(code) if code.error_number() == TpmFormatOneError::AuthFail => {
            Some(Refusal::Wrong)
        }
        TpmResponseCode::FormatZero(TpmFormatZeroResponseCode::Warning(warning))
            if warning.error_number() == TpmFormatZeroWarning::Lockout =>
        {
            Some(Refusal::Locked)
        }
        _ => None,
    }
}

/// The TPM's dictionary attack parameters (TPM 2.0 Library Part 1, section 19.8).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lockout {
    /// Wrong tries that the TPM remembers.
    pub counter: u32,
    /// At so many it looks at no PIN.
    pub limit: u32,
    /// It forgets one wrong try in this many seconds.
    pub interval: u32,
}

fn property(context: &mut Context, tag: PropertyTag) -> Result<u32> {
    let (capability, _) =
        context.get_capability(CapabilityType::TpmProperties, tag.into(), PROPERTIES)?;
    let CapabilityData::TpmProperties(properties) = capability else {
        return Err(Error::WrapperError(WrapperErrorKind::WrongValueFromTpm));
    };
    properties
        .find(tag)
        .map(|property| property.value())
        .ok_or(Error::WrapperError(WrapperErrorKind::WrongValueFromTpm))
}

impl Tpm {
    /// How many wrong PINs the TPM has seen, and when it stops.
    ///
    /// # Errors
    /// The TPM does not answer.
    pub fn lockout(&self) -> std::result::Result<Lockout, TpmError> {
        self.run("read the lockout parameters", |context| {
            Ok(Lockout {
                counter: property(context, PropertyTag::LockoutCounter)?,
                limit: property(context, PropertyTag::MaxAuthFail)?,
                interval: property(context, PropertyTag::LockoutInterval)?,
            })
        })
    }

    /// The error that a refused PIN is.
    pub(super) fn pin_error(&self, refusal: Refusal) -> TpmError {
        match (self.lockout(), refusal) {
            (Err(error), _) => error,
            (Ok(lockout), Refusal::Wrong) if lockout.counter < lockout.limit => {
                TpmError::WrongPin {
                    left: lockout.limit - lockout.counter,
                    interval: lockout.interval,
                }
            }
            (Ok(lockout), _) => TpmError::LockedOut {
                wrong: lockout.counter,
                interval: lockout.interval,
            },
        }
    }
}
