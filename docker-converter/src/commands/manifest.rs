//! `trustme-convert manifest`

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use openssl::pkey::{PKey, Private};
use trustme_convert::progress::Progress;
use trustme_convert::registry;
use trustme_convert::source::{Access, Platform};
use trustme_guestos::manifest::{self, Bounds, Manifest, Predicate};
use trustme_guestos::write::replace_file;
use zeroize::Zeroizing;

/// Larger files are no private key.
const MAX_KEY: u64 = 64 << 10;

/// Signs how an image, or a directory, may be started (docs/policy.md).
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// An image as for `convert`, or a directory.
    source: String,
    /// What policy knows the image by.
    #[arg(long)]
    name: String,
    /// A higher version replaces a lower one.
    #[arg(long, value_name = "N")]
    version: u64,
    /// The signer's private key, unencrypted PEM: ECDSA P-256 or P-384, Ed25519, RSA.
    #[arg(long, value_name = "PEM")]
    key: PathBuf,
    /// The launch manifest to write, NAME.json.
    #[arg(long, value_name = "FILE")]
    out: PathBuf,
    /// What a configuration has to keep to, as JSON.
    #[arg(long, value_name = "FILE", required_unless_present = "configuration")]
    bounds: Option<PathBuf>,
    /// The digest of the only configuration, as the log has it.
    #[arg(long, value_name = "HEX", conflicts_with = "bounds")]
    configuration: Option<String>,
    /// OS/ARCHITECTURE[/VARIANT] of the image; this machine's, where there is a choice.
    #[arg(long)]
    platform: Option<Platform>,
    #[command(flatten)]
    limits: super::LimitArguments,
    #[command(flatten, next_help_heading = "Registries")]
    registry: registry::Options,
}

/// Writes the manifest, and prints its path.
pub fn run(arguments: &Arguments) -> Result<()> {
    let key = key(&arguments.key).with_context(|| shown(&arguments.key))?;
    let bounds = match &arguments.bounds {
        Some(path) => Some(
            serde_json::from_slice::<Bounds>(&super::read(path)?).with_context(|| shown(path))?,
        ),
        None => None,
    };
    if let Some(digest) = &arguments.configuration {
        ensure!(
            digest.len() == 64 && hex::decode(digest).is_ok(),
            "--configuration {digest}: expected 64 hex digits"
        );
    }
    let access = Access {
        registry: arguments.registry.clone(),
        ..Access::new(arguments.limits.into(), Progress::new())
    };
    let found = super::digest::tree(&arguments.source, arguments.platform.as_ref(), &access)?;
    let manifest = Manifest {
        name: arguments.name.clone(),
        tree: found.digest,
        image_sha256: Some(found.image_sha256),
        predicate: Predicate {
            version: arguments.version,
            configuration: arguments
                .configuration
                .as_ref()
                .map(|text| text.to_lowercase()),
            bounds,
            engine_files: found.engine_files,
        },
    };
    replace_file(&arguments.out, &manifest.sign(&key)?)?;
    println!("{}", arguments.out.display());
    Ok(())
}

/// Reads a private key. Not with growing buffers, which would leave copies of it behind.
fn key(path: &Path) -> Result<PKey<Private>> {
    let mut pem = Zeroizing::new(Vec::with_capacity(MAX_KEY as usize + 1));
    File::open(path)?.take(MAX_KEY + 1).read_to_end(&mut pem)?;
    ensure!(pem.len() as u64 <= MAX_KEY, "more than {MAX_KEY} bytes");
    Ok(manifest::private_key(&pem)?)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}
