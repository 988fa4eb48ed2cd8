//! One file per command.

pub mod bundle;
pub mod convert;
pub mod diff;
pub mod digest;
pub mod generate;
pub mod inspect;
pub mod manifest;
pub mod pki;
pub mod pull;
pub mod push;
pub mod sign;
pub mod verify;
pub mod verity;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use trustme_convert::keys::{self, KeyPlace, Passphrase};
use trustme_convert::layer::Limits;
use trustme_guestos::signature::SigningKey;

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

/// What an image may take.
#[derive(Debug, Clone, Copy, clap::Args)]
pub struct LimitArguments {
    /// The most bytes that the layers may have uncompressed, and the image's files, with K, M, G or T (powers of 1024).
    #[arg(long, value_name = "SIZE", default_value = "64G", value_parser = size)]
    max_size: u64,
    /// How many times as large a compressed layer may become, beyond its first 64 MiB. gzip reaches 1032.
    #[arg(long, value_name = "N", default_value_t = 1100)]
    max_ratio: u64,
}

impl From<LimitArguments> for Limits {
    fn from(arguments: LimitArguments) -> Self {
        Self {
            size: arguments.max_size,
            ratio: arguments.max_ratio,
        }
    }
}

/// Who signs.
#[derive(Debug, clap::Args)]
pub struct SignerArguments {
    /// The signer's private key: a PEM file (encrypted ones ask for their passphrase; `TSS2 PRIVATE KEY` is a TPM's), pkcs11:… (a
    /// token's key, RFC 7512) or tpm2:0x81… (a persistent key of the TPM).
    #[arg(long, value_name = "PEM|URI")]
    key: KeyPlace,
    /// The signer's certificate and those that lead to an anchor (PEM).
    #[arg(long, value_name = "PEM")]
    cert: PathBuf,
    /// The passphrase of the key, or the PIN of the token, is the first line of this file; else the terminal is asked.
    #[arg(long, value_name = "FILE")]
    passphrase_file: Option<PathBuf>,
    /// The same of an open descriptor.
    #[arg(long, value_name = "N", conflicts_with = "passphrase_file")]
    passphrase_fd: Option<u32>,
    /// The TPM, as the TSS names it.
    #[arg(long, default_value = "device:/dev/tpmrm0")]
    tcti: String,
    /// Sign also with a kind of key that GyroidOS refuses (EC).
    #[arg(long)]
    no_gyroidos: bool,
}

impl SignerArguments {
    /// Opens the signer's key, reads the certificates, and checks that they belong together.
    fn open(&self) -> Result<(SigningKey, Vec<u8>)> {
        let shown = || self.cert.display().to_string();
        let certificates = read(&self.cert)?;
        let passphrase = match (&self.passphrase_file, self.passphrase_fd) {
            (Some(path), _) => Passphrase::File(path.clone()),
            (None, Some(number)) => Passphrase::Descriptor(number),
            (None, None) => Passphrase::Terminal,
        };
        let key = keys::open(&self.key, &certificates, &passphrase, &self.tcti)?;
        key.belongs_to(&certificates).with_context(shown)?;
        if !self.no_gyroidos {
            key.check_gyroidos().context("--no-gyroidos is not given")?;
        }
        Ok((key, certificates))
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let shown = || path.display().to_string();
    let file = File::open(path).with_context(shown)?;
    let mut bytes = Vec::new();
    file.take(MAX_CERT + 1)
        .read_to_end(&mut bytes)
        .with_context(shown)?;
    ensure!(
        bytes.len() as u64 <= MAX_CERT,
        "{}: more than {MAX_CERT} bytes",
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
