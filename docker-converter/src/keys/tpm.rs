//! Keys of a TPM: wrapped by it in a PEM file, or persistent in it.
//!
//! The file is what the TSS engines and providers of OpenSSL write and `tpm2_encodeobject` makes: `TSS2 PRIVATE KEY`, a
//! SEQUENCE of type, [0] emptyAuth, …, parent, public and private part (draft-bottomley-tpm2-keys, section 3.1).

use std::cell::RefCell;
use std::str::FromStr;

use openssl::base64::decode_block;
use trustme_guestos::signature::{Hash, Scheme, Token};
use tss_esapi::attributes::{ObjectAttributesBuilder, SessionAttributesBuilder};
use tss_esapi::constants::SessionType;
use tss_esapi::handles::{KeyHandle, ObjectHandle, PersistentTpmHandle, SessionHandle, TpmHandle};
use tss_esapi::interface_types::algorithm::{HashingAlgorithm, PublicAlgorithm};
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Auth, Digest, EccPoint, EccScheme, HashScheme, KeyDerivationFunctionScheme, Private, Public,
    PublicBuilder, PublicEccParametersBuilder, Signature, SignatureScheme, SymmetricDefinition,
    SymmetricDefinitionObject,
};
use tss_esapi::traits::UnMarshall;
use tss_esapi::{Context, TctiNameConf};

use super::{Passphrase, TSS2, der};

/// The first byte of a persistent handle (TPM 2.0 Library Part 2, section 7.2).
pub(super) const PERSISTENT: u32 = 0x81;
/// `TPM_RH_OWNER`: the parent is the primary key of the owner's hierarchy.
const OWNER: u32 = 0x4000_0001;
const END: &str = "-----END TSS2 PRIVATE KEY-----";
/// 2.23.133.10.1.3, a loadable key.
const LOADABLE: [u8; 6] = [0x67, 0x81, 0x05, 0x0a, 0x01, 0x03];

/// A key that a TPM holds.
pub(super) struct Key {
    context: RefCell<Context>,
    key: KeyHandle,
    /// Sessions are salted to this key.
    salt: KeyHandle,
}

/// What a file with a wrapped key says.
struct Wrapped {
    parent: u32,
    has_auth: bool,
    public: Public,
    private: Private,
}

impl Wrapped {
    fn parse(pem: &str) -> Result<Self, String> {
        let wrong = |reason: &str| format!("no TSS2 PRIVATE KEY: {reason}");
        let (_, rest) = pem.split_once(TSS2).ok_or_else(|| wrong("its beginning"))?;
        let (text, _) = rest.split_once(END).ok_or_else(|| wrong("its end"))?;
        let text: String = text.split_whitespace().collect();
        let bytes = decode_block(&text).map_err(|_| wrong("its base64"))?;
        Self::parse_der(&bytes).map_err(|reason| wrong(&reason))
    }

    fn parse_der(bytes: &[u8]) -> Result<Self, String> {
        let mut whole = der::Reader(bytes);
        let mut fields = der::Reader(whole.expect(0x30, "sequence")?);
        if fields.expect(0x06, "type")? != LOADABLE {
            return Err("another type than that of a loadable key".to_owned());
        }
        let mut has_auth = true;
        let parent = loop {
            match fields.next()? {
                Some((0xa0, content)) => {
                    has_auth = der::Reader(content).expect(0x01, "emptyAuth")? == [0];
                }
                Some((0xa1 | 0xa3, _)) => {
                    return Err("a key with a policy, which is not supported".to_owned());
                }
                Some((0xa2, _)) => return Err("a key to be imported first".to_owned()),
                // Descriptions and the like.
                Some((0xa4..=0xaf, _)) => {}
                Some((0x02, number)) => break number,
                _ => return Err("no parent".to_owned()),
            }
        };
        let parent = parent
            .iter()
            .try_fold(0_u64, |parent, byte| {
                (parent >> 32 == 0).then_some(parent << 8 | u64::from(*byte))
            })
            .and_then(|parent| u32::try_from(parent).ok())
            .ok_or("a parent that is no handle")?;
        // Both parts begin with their sizes.
        let sized = |part: &[u8]| part.get(2..).map(<[u8]>::to_vec).unwrap_or_default();
        let public = sized(fields.expect(0x04, "public part")?);
        let private = sized(fields.expect(0x04, "private part")?);
        Ok(Self {
            parent,
            has_auth,
            public: Public::unmarshall(&public).map_err(|error| error.to_string())?,
            private: Private::try_from(private).map_err(|error| error.to_string())?,
        })
    }
}

/// Loads a key that the TPM has wrapped. A passphrase that is given is used, whatever the file says: tpm2_encodeobject (5.4) says
/// the opposite of what is so.
pub(super) fn wrapped(
    pem: &str,
    passphrase: &Passphrase,
    what: &str,
    tcti: &str,
) -> Result<Key, String> {
    let wrapped = Wrapped::parse(pem)?;
    let auth = match wrapped.has_auth || passphrase.is_given() {
        true => Some(passphrase.get_or_empty(what)?),
        false => None,
    };
    let mut context = connect(tcti)?;
    let load = |context: &mut Context| -> tss_esapi::Result<KeyHandle> {
        let parent = match wrapped.parent {
            OWNER => primary(context, Hierarchy::Owner)?,
            handle => persistent_key(context, handle)?,
        };
        let key = context.execute_with_session(Some(AuthSession::Password), |context| {
            context.load(parent, wrapped.private, wrapped.public)
        })?;
        if wrapped.parent == OWNER {
            context.flush_context(parent.into())?;
        }
        if let Some(auth) = auth {
            context.tr_set_auth(key.into(), Auth::try_from(auth.to_vec())?)?;
        }
        Ok(key)
    };
    let key = load(&mut context).map_err(|error| said("the TPM does not load it", &error))?;
    with_salt(context, key)
}

/// A key that is persistent in the TPM.
pub(super) fn persistent(handle: u32, tcti: &str) -> Result<Key, String> {
    let mut context = connect(tcti)?;
    let key = persistent_key(&mut context, handle)
        .map_err(|error| said("the TPM has no such key", &error))?;
    with_salt(context, key)
}

fn connect(tcti: &str) -> Result<Context, String> {
    TctiNameConf::from_str(tcti)
        .and_then(Context::new)
        .map_err(|error| said(&format!("no TPM at {tcti:?} (--tcti)"), &error))
}

fn with_salt(mut context: Context, key: KeyHandle) -> Result<Key, String> {
    let salt = primary(&mut context, Hierarchy::Null)
        .map_err(|error| said("the TPM makes no key for sessions", &error))?;
    Ok(Key {
        context: RefCell::new(context),
        key,
        salt,
    })
}

fn said(what: &str, error: &tss_esapi::Error) -> String {
    format!("{what}: {error}")
}

fn persistent_key(context: &mut Context, handle: u32) -> tss_esapi::Result<KeyHandle> {
    let handle = TpmHandle::Persistent(PersistentTpmHandle::new(handle)?);
    Ok(context.tr_from_tpm_public(handle)?.into())
}

/// A primary key as the TCG's template for ECC P-256 makes it (TCG TPM v2.0 Provisioning Guidance, section 7.5.1).
fn primary(context: &mut Context, hierarchy: Hierarchy) -> tss_esapi::Result<KeyHandle> {
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
    let template = PublicBuilder::new()
        .with_public_algorithm(PublicAlgorithm::Ecc)
        .with_name_hashing_algorithm(HashingAlgorithm::Sha256)
        .with_object_attributes(attributes)
        .with_ecc_parameters(parameters)
        .with_ecc_unique_identifier(EccPoint::default())
        .build()?;
    context.execute_with_session(Some(AuthSession::Password), |context| {
        Ok(context
            .create_primary(hierarchy, template, None, None, None, None)?
            .key_handle)
    })
}

impl Token for Key {
    fn sign(&self, scheme: Scheme, hash: Hash, digest: &[u8]) -> Result<Vec<u8>, String> {
        let scheme = {
            let hash = HashScheme::new(match hash {
                Hash::Sha256 => HashingAlgorithm::Sha256,
                Hash::Sha512 => HashingAlgorithm::Sha512,
            });
            match scheme {
                Scheme::Pss => SignatureScheme::RsaPss { scheme: hash },
                Scheme::Pkcs1 => SignatureScheme::RsaSsa { scheme: hash },
                Scheme::Ecdsa => SignatureScheme::EcDsa { scheme: hash },
            }
        };
        let context = &mut *self.context.borrow_mut();
        match self.signature(context, scheme, digest) {
            Ok(Signature::RsaPss(rsa) | Signature::RsaSsa(rsa)) => Ok(rsa.signature().to_vec()),
            Ok(Signature::EcDsa(ecc)) => Ok(der::ecdsa(ecc.signature_r(), ecc.signature_s())),
            Ok(_) => Err("the TPM answers with another kind of signature".to_owned()),
            Err(error) => Err(said("the TPM does not sign", &error)),
        }
    }
}

impl Key {
    /// In a salted session, so that what authorises the key is never seen on the way to the TPM.
    fn signature(
        &self,
        context: &mut Context,
        scheme: SignatureScheme,
        digest: &[u8],
    ) -> tss_esapi::Result<Signature> {
        let session = context.execute_without_session(|context| {
            context.start_auth_session(
                Some(self.salt),
                None,
                None,
                SessionType::Hmac,
                SymmetricDefinition::AES_128_CFB,
                HashingAlgorithm::Sha256,
            )
        })?;
        if let Some(session) = session {
            let (attributes, mask) = SessionAttributesBuilder::new()
                .with_continue_session(true)
                .with_decrypt(true)
                .build();
            context.tr_sess_set_attributes(session, attributes, mask)?;
        }
        let digest = Digest::try_from(digest.to_vec())?;
        let made = context.execute_with_session(session, |context| {
            context.sign(self.key, digest, scheme, None)
        });
        if let Some(session) = session {
            let handle: ObjectHandle = SessionHandle::from(session).into();
            context.execute_without_session(|context| context.flush_context(handle))?;
        }
        made
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        let context = self.context.get_mut();
        // Keys that are persistent cannot be flushed, and need not be.
        for handle in [self.key, self.salt] {
            let _ = context.flush_context(handle.into());
        }
    }
}
