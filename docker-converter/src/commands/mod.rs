//! One file per command.

pub mod bundle;
pub mod convert;
pub mod inspect;
pub mod pki;
pub mod pull;
pub mod push;
pub mod sign;
pub mod verify;
pub mod verity;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use trustme_guestos::signature::SigningKey;
use zeroize::Zeroizing;

/// The largest private key, in bytes: RSA with 16384 bits has 13 KiB.
const MAX_KEY: u64 = 64 << 10;
/// The largest file of certificates, in bytes; GuestOS bundles hold no larger one.
const MAX_CERT: u64 = 256 << 10;

/// An error and its causes in one line. Some errors name their cause themselves: it is not repeated.
pub fn said(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// Reads a signer's key and certificates, and checks that they belong together.
fn signer(key: &Path, cert: &Path) -> Result<(SigningKey, Vec<u8>)> {
    let shown = |path: &Path| path.display().to_string();
    let signing_key = SigningKey::from_pem(&read(key, MAX_KEY)?).with_context(|| shown(key))?;
    let certificates = read(cert, MAX_CERT)?;
    signing_key
        .belongs_to(&certificates)
        .with_context(|| shown(cert))?;
    Ok((signing_key, certificates.to_vec()))
}

fn read(path: &Path, max: u64) -> Result<Zeroizing<Vec<u8>>> {
    let shown = || path.display().to_string();
    let file = File::open(path).with_context(shown)?;
    // Not read to the end with growing buffers, which would leave copies of a key behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(max as usize + 1));
    file.take(max + 1)
        .read_to_end(&mut bytes)
        .with_context(shown)?;
    ensure!(
        bytes.len() as u64 <= max,
        "{}: more than {max} bytes",
        shown()
    );
    Ok(bytes)
}

/// A number of bytes, perhaps with K, M, G or T.
fn size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.chars().last() {
        Some('K') => (&text[..text.len() - 1], 10),
        Some('M') => (&text[..text.len() - 1], 20),
        Some('G') => (&text[..text.len() - 1], 30),
        Some('T') => (&text[..text.len() - 1], 40),
        _ => (text, 0),
    };
    digits
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(1 << shift))
        .ok_or_else(|| "expected a number, perhaps with K, M, G or T".to_owned())
}
