//! Where a signer's private key is: a PEM file, a PKCS#11 token, a TPM. And where what opens it comes from: never from the command
//! line or the environment.

mod der;
mod passphrase;
mod pkcs11;
mod tpm;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use trustme_guestos::signature::SigningKey;
use zeroize::Zeroizing;

pub use passphrase::Passphrase;

/// The largest private key, in bytes: RSA with 16384 bits has 13 KiB.
const MAX_KEY: u64 = 64 << 10;

/// Begins a key that is wrapped by a TPM.
const TSS2: &str = "-----BEGIN TSS2 PRIVATE KEY-----";

/// Why a key cannot be used. The message begins with where it is.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {reason}")]
pub struct KeyError {
    place: String,
    reason: String,
}

/// Where a private key is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyPlace {
    /// A PEM file, encrypted or not, or wrapped by a TPM (`TSS2 PRIVATE KEY`).
    File(PathBuf),
    /// `pkcs11:…` (RFC 7512).
    Token(String),
    /// `tpm2:0x81…`: a persistent handle.
    Tpm(u32),
}

impl std::str::FromStr for KeyPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("pkcs11:") {
            // What is wrong with it is said before anything is asked for.
            pkcs11::Uri::parse(text)?;
            return Ok(Self::Token(text.to_owned()));
        }
        let Some(handle) = text.strip_prefix("tpm2:") else {
            return Ok(Self::File(text.into()));
        };
        let digits = handle.strip_prefix("0x").unwrap_or(handle);
        match u32::from_str_radix(digits, 16) {
            Ok(handle) if handle >> 24 == tpm::PERSISTENT => Ok(Self::Tpm(handle)),
            _ => Err("expected tpm2:0x81…, the handle of a persistent key".to_owned()),
        }
    }
}

/// Opens a key. `cert` holds the signer's certificate (PEM): for keys in tokens it says how they sign.
///
/// # Errors
/// The key cannot be found, opened or used.
pub fn open(
    place: &KeyPlace,
    cert: &[u8],
    passphrase: &Passphrase,
    tcti: &str,
) -> Result<SigningKey, KeyError> {
    let (shown, opened) = match place {
        KeyPlace::File(path) => {
            let shown = path.display().to_string();
            let opened = file(path, &shown, cert, passphrase, tcti);
            (shown, opened)
        }
        KeyPlace::Token(uri) => {
            let opened = pkcs11::open(uri, passphrase).and_then(|token| in_token(cert, token));
            (uri.clone(), opened)
        }
        KeyPlace::Tpm(handle) => {
            let shown = format!("tpm2:{handle:#x}");
            let opened = tpm::persistent(*handle, tcti).and_then(|token| in_token(cert, token));
            (shown, opened)
        }
    };
    opened.map_err(|reason| KeyError {
        place: shown,
        reason,
    })
}

fn file(
    path: &Path,
    shown: &str,
    cert: &[u8],
    passphrase: &Passphrase,
    tcti: &str,
) -> Result<SigningKey, String> {
    let pem = read(path)?;
    let text = std::str::from_utf8(&pem).unwrap_or_default();
    let what = format!("passphrase of {shown}");
    if text.contains(TSS2) {
        let token = tpm::wrapped(text, passphrase, &what, tcti)?;
        return in_token(cert, token);
    }
    SigningKey::from_encrypted_pem(&pem, || passphrase.get(&what))
        .map_err(|error| error.to_string())
}

fn in_token<T: trustme_guestos::signature::Token + 'static>(
    cert: &[u8],
    token: T,
) -> Result<SigningKey, String> {
    SigningKey::in_token(cert, Box::new(token)).map_err(|error| error.to_string())
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let file = File::open(path).map_err(|error| error.to_string())?;
    // Not read to the end with growing buffers, which would leave copies of a key behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_KEY as usize + 1));
    file.take(MAX_KEY + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    match bytes.len() as u64 > MAX_KEY {
        true => Err(format!("more than {MAX_KEY} bytes")),
        false => Ok(bytes),
    }
}
