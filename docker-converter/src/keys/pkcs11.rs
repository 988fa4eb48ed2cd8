//! Keys in PKCS#11 tokens, named by URIs (RFC 7512).

use std::path::{Path, PathBuf};

use cryptoki::context::{CInitializeArgs, CInitializeFlags, Pkcs11};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsPssParams};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, ObjectClass, ObjectHandle};
use cryptoki::session::{Session, UserType};
use cryptoki::slot::{Slot, TokenInfo};
use cryptoki::types::AuthPin;
use trustme_guestos::signature::{Hash, Scheme, Token};

use super::der;
use super::passphrase::{self, Passphrase};

/// Where the module is that knows all others of a machine (Debian: libp11-kit0).
const P11_KIT: &str = "p11-kit-proxy.so";

/// A URI's parts that are looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Uri {
    token: Option<String>,
    serial: Option<String>,
    manufacturer: Option<String>,
    model: Option<String>,
    object: Option<Vec<u8>>,
    id: Option<Vec<u8>>,
    module_path: Option<PathBuf>,
    pin_source: Option<PathBuf>,
}

impl Uri {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let rest = text.strip_prefix("pkcs11:").unwrap_or(text);
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let parts = path.split(';').chain(query.split('&'));
        let mut uri = Self::default();
        for part in parts.filter(|part| !part.is_empty()) {
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| format!("{part:?} in a PKCS#11 URI, expected NAME=VALUE"))?;
            let bytes = unescape(value)?;
            let text = || {
                String::from_utf8(bytes.clone())
                    .map_err(|_| format!("{name} in a PKCS#11 URI is not UTF-8"))
            };
            let twice = match name {
                "token" => uri.token.replace(text()?).is_some(),
                "serial" => uri.serial.replace(text()?).is_some(),
                "manufacturer" => uri.manufacturer.replace(text()?).is_some(),
                "model" => uri.model.replace(text()?).is_some(),
                "object" => uri.object.replace(bytes.clone()).is_some(),
                "id" => uri.id.replace(bytes.clone()).is_some(),
                "module-path" => uri.module_path.replace(text()?.into()).is_some(),
                "pin-source" => {
                    let path = text()?;
                    let path = path.strip_prefix("file:").unwrap_or(&path);
                    let path = path.strip_prefix("//").unwrap_or(path);
                    uri.pin_source.replace(path.into()).is_some()
                }
                "type" if value == "private" => false,
                "type" => return Err(format!("type={value} in a PKCS#11 URI, expected private")),
                "pin-value" => {
                    return Err(
                        "pin-value in a PKCS#11 URI, which everyone on the machine can read: pin-source=file:PATH"
                            .to_owned(),
                    );
                }
                _ => return Err(format!("{name:?} in a PKCS#11 URI is not known")),
            };
            if twice {
                return Err(format!("{name} twice in a PKCS#11 URI"));
            }
        }
        match (&uri.object, &uri.id) {
            (None, None) => {
                Err("a PKCS#11 URI that names no key: object=LABEL or id=%..".to_owned())
            }
            _ => Ok(uri),
        }
    }

    fn is(&self, token: &TokenInfo) -> bool {
        let same = |wanted: &Option<String>, found: &str| {
            wanted
                .as_ref()
                .is_none_or(|wanted| wanted == found.trim_end())
        };
        same(&self.token, token.label())
            && same(&self.serial, token.serial_number())
            && same(&self.manufacturer, token.manufacturer_id())
            && same(&self.model, token.model())
    }
}

fn unescape(text: &str) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, others)) = rest.split_first() {
        rest = others;
        bytes.push(match first {
            b'%' => {
                let (digits, after) = others
                    .split_at_checked(2)
                    .ok_or_else(|| format!("{text:?}: half an escape"))?;
                rest = after;
                let mut byte = [0];
                hex::decode_to_slice(digits, &mut byte)
                    .map_err(|_| format!("{text:?}: an escape that is none"))?;
                byte[0]
            }
            byte => *byte,
        });
    }
    Ok(bytes)
}

/// A private key in a token, with the session that is logged in.
#[derive(Debug)]
pub(super) struct Key {
    session: Session,
    key: ObjectHandle,
}

/// Finds the key that a URI names and logs in.
pub(super) fn open(uri: &str, passphrase: &Passphrase) -> Result<Key, String> {
    let uri = Uri::parse(uri)?;
    let module = uri.module_path.as_deref().unwrap_or(Path::new(P11_KIT));
    let shown = |error: cryptoki::error::Error| format!("{}: {error}", module.display());
    let pkcs11 = Pkcs11::new(module).map_err(shown)?;
    pkcs11
        .initialize(CInitializeArgs::new(CInitializeFlags::OS_LOCKING_OK))
        .map_err(shown)?;
    let mut found: Vec<(Slot, TokenInfo)> = Vec::new();
    for slot in pkcs11.get_slots_with_token().map_err(shown)? {
        let token = pkcs11.get_token_info(slot).map_err(shown)?;
        if token.token_initialized() && uri.is(&token) {
            found.push((slot, token));
        }
    }
    let [(slot, token)] = &found[..] else {
        let labels: Vec<&str> = found.iter().map(|(_, token)| token.label()).collect();
        return Err(format!(
            "{} tokens are meant by it, expected one: {labels:?}",
            found.len()
        ));
    };
    let session = pkcs11.open_ro_session(*slot).map_err(shown)?;
    if token.login_required() {
        let pin = match &uri.pin_source {
            Some(path) => passphrase::of_file(path)?,
            None => passphrase.get(&format!("PIN of the token {:?}", token.label()))?,
        };
        let text = std::str::from_utf8(&pin).map_err(|_| "a PIN that is not UTF-8".to_owned())?;
        session
            .login(UserType::User, Some(&AuthPin::from(text)))
            .map_err(|error| format!("the token {:?} refuses the PIN: {error}", token.label()))?;
    }
    let mut template = vec![Attribute::Class(ObjectClass::PRIVATE_KEY)];
    template.extend(uri.object.map(Attribute::Label));
    template.extend(uri.id.map(Attribute::Id));
    let keys = session.find_objects(&template).map_err(shown)?;
    match keys[..] {
        [key] => Ok(Key { session, key }),
        _ => Err(format!(
            "{} private keys in the token {:?} are meant by it, expected one",
            keys.len(),
            token.label()
        )),
    }
}

impl Token for Key {
    fn sign(&self, scheme: Scheme, hash: Hash, digest: &[u8]) -> Result<Vec<u8>, String> {
        let sign = |mechanism: Mechanism, message: &[u8]| {
            self.session
                .sign(&mechanism, self.key, message)
                .map_err(|error| format!("the token does not sign: {error}"))
        };
        match scheme {
            Scheme::Pkcs1 => sign(Mechanism::RsaPkcs, &hash.digest_info(digest)),
            Scheme::Pss => {
                let (hash_alg, mgf) = match hash {
                    Hash::Sha256 => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
                    Hash::Sha512 => (MechanismType::SHA512, PkcsMgfType::MGF1_SHA512),
                };
                let parameters = PkcsPssParams {
                    hash_alg,
                    mgf,
                    s_len: (digest.len() as u64).into(),
                };
                sign(Mechanism::RsaPkcsPss(parameters), digest)
            }
            Scheme::Ecdsa => {
                let pair = sign(Mechanism::Ecdsa, digest)?;
                let (r, s) = pair.split_at(pair.len() / 2);
                Ok(der::ecdsa(r, s))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris() {
        let uri = Uri::parse(
            "pkcs11:token=my%20token;object=signer;id=%01%ff?module-path=/usr/lib/m.so&pin-source=file:/run/pin",
        )
        .unwrap();
        assert_eq!(uri.token.as_deref(), Some("my token"));
        assert_eq!(uri.id.as_deref(), Some(&[1, 0xff][..]));
        assert_eq!(uri.pin_source.as_deref(), Some(Path::new("/run/pin")));
        for (text, expected) in [
            ("pkcs11:token=x", "names no key"),
            ("pkcs11:object=x?pin-value=1234", "pin-source"),
            ("pkcs11:object=x;object=y", "twice"),
            ("pkcs11:object=%1", "half an escape"),
            ("pkcs11:object=%xy", "an escape that is none"),
            ("pkcs11:object", "expected NAME=VALUE"),
            ("pkcs11:object=x;color=y", "is not known"),
            ("pkcs11:object=x;type=cert", "expected private"),
        ] {
            let error = Uri::parse(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
