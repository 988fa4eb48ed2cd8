//! NV counters: numbers in the TPM that only ever grow, also for whoever boots another system or deletes and makes them again.

use tss_esapi::Context;
use tss_esapi::attributes::{NvIndexAttributes, NvIndexAttributesBuilder};
use tss_esapi::constants::{CapabilityType, NvIndexType};
use tss_esapi::handles::{NvIndexHandle, NvIndexTpmHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::{NvAuth, Provision};
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{CapabilityData, NvPublic};
use tss_esapi::{Error, Result, WrapperErrorKind};

use super::session::{self, Protect};
use super::{Tpm, TpmError};

/// The first index tried: in the range that the TCG leaves to the owner (Registry of Reserved TPM 2.0 Handles, section 2.2.2).
const FIRST: u32 = 0x0180_7400;

/// How many indices are tried.
const RANGE: u32 = 0x400;

/// The size of a counter (TPM 2.0 Library Part 2, section 13.4).
const SIZE: u16 = 8;

/// Written by the owner, read by everyone, never locked out.
fn attributes() -> Result<NvIndexAttributes> {
    NvIndexAttributesBuilder::new()
        .with_nv_index_type(NvIndexType::Counter)
        .with_owner_write(true)
        .with_owner_read(true)
        .with_auth_read(true)
        .with_no_da(true)
        .build()
}

/// Every index that is defined from `first` on.
fn defined(context: &mut Context, first: u32) -> Result<Vec<TpmHandle>> {
    let (capability, _) = context.get_capability(CapabilityType::Handles, first, RANGE)?;
    match capability {
        CapabilityData::Handles(handles) => Ok(handles.into_inner()),
        _ => Err(Error::WrapperError(WrapperErrorKind::WrongValueFromTpm)),
    }
}

fn handle(context: &mut Context, index: u32) -> Result<Option<NvIndexHandle>> {
    let wanted = TpmHandle::NvIndex(NvIndexTpmHandle::new(index)?);
    match defined(context, index)?.contains(&wanted) {
        true => Ok(Some(context.tr_from_tpm_public(wanted)?.into())),
        false => Ok(None),
    }
}

fn define(context: &mut Context) -> Result<Option<u32>> {
    let taken = defined(context, FIRST)?;
    let free = (FIRST..FIRST + RANGE).find(|index| {
        NvIndexTpmHandle::new(*index).is_ok_and(|index| !taken.contains(&TpmHandle::NvIndex(index)))
    });
    let Some(index) = free else {
        return Ok(None);
    };
    let public = NvPublic::builder()
        .with_nv_index(NvIndexTpmHandle::new(index)?)
        .with_index_name_algorithm(HashingAlgorithm::Sha256)
        .with_index_attributes(attributes()?)
        .with_data_area_size(usize::from(SIZE))
        .build()?;
    context.execute_with_session(Some(AuthSession::Password), |context| {
        let handle = context.nv_define_space(Provision::Owner, None, public)?;
        // A counter has a value from its first increment on: more than any counter of this TPM has had.
        context.nv_increment(NvAuth::Owner, handle)
    })?;
    Ok(Some(index))
}

impl Tpm {
    /// Makes a new counter; its NV index.
    ///
    /// # Errors
    /// The TPM does not answer or refuses: its NV memory is full, or its owner has a password.
    pub fn new_counter(&self) -> std::result::Result<u32, TpmError> {
        self.run("make an NV counter", define)?
            .ok_or_else(|| TpmError::Answer(format!("NV indices {FIRST:#x} and up are all taken")))
    }

    /// The value of the counter at `index`. The answer is authenticated by a session salted with the storage root key.
    ///
    /// # Errors
    /// There is no such index, or it is not a counter as [`Tpm::new_counter`] makes it (so that nobody can put a
    /// writable index in its place); or the TPM does not answer.
    pub fn read_counter(&self, index: u32) -> std::result::Result<u64, TpmError> {
        let (srk, _) = self.srk()?;
        let gone = |reason| TpmError::Counter { index, reason };
        let read = self.run("read an NV counter", move |context| {
            let Some(handle) = handle(context, index)? else {
                return Ok(Err("there is none: the TPM was cleared, or it was deleted"));
            };
            let (public, _) = context.nv_read_public(handle)?;
            let found = public.attributes();
            if found.index_type()? != NvIndexType::Counter
                || public.data_size() != usize::from(SIZE)
            {
                return Ok(Err("that index is no counter"));
            }
            session::salted(context, srk, Protect::Response, |context, session| {
                context.execute_with_session(Some(session), |context| {
                    context.nv_read(NvAuth::NvIndex(handle), handle, SIZE, 0)
                })
            })
            .map(Ok)
        })?;
        let bytes = read.map_err(gone)?;
        match <[u8; 8]>::try_from(bytes.as_bytes()) {
            Ok(value) => Ok(u64::from_be_bytes(value)),
            Err(_) => Err(gone("its value has not 8 bytes")),
        }
    }

    /// Adds one to the counter at `index`.
    ///
    /// # Errors
    /// There is no such counter, or the TPM does not answer or refuses.
    pub fn increment_counter(&self, index: u32) -> std::result::Result<(), TpmError> {
        self.run("increment an NV counter", move |context| {
            let Some(handle) = handle(context, index)? else {
                return Err(Error::WrapperError(WrapperErrorKind::InvalidHandleState));
            };
            context.execute_with_session(Some(AuthSession::Password), |context| {
                context.nv_increment(NvAuth::Owner, handle)
            })
        })
    }

    /// Deletes the counter at `index`; success where there is none.
    ///
    /// # Errors
    /// The TPM does not answer or refuses.
    pub fn delete_counter(&self, index: u32) -> std::result::Result<(), TpmError> {
        self.run("delete an NV counter", move |context| {
            let Some(handle) = handle(context, index)? else {
                return Ok(());
            };
            context.execute_with_session(Some(AuthSession::Password), |context| {
                context.nv_undefine_space(Provision::Owner, handle)
            })
        })
    }
}
