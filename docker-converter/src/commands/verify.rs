//! `trustme-convert verify`

use std::io::{Read, Seek};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, Utc};
use serde::Serialize;
use sha1::{Digest, Sha1};
use trustme_guestos::bundle::Bundle;
use trustme_guestos::config::{Mount, MountType};
use trustme_guestos::image_config::ImageConfig;
use trustme_guestos::signature::{Anchors, Signer};
use trustme_guestos::verity;

/// Checks a bundle: signature, certificates and their dates, every image and its hash tree.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The bundle's configuration text.
    conf: PathBuf,
    /// Certificates that are trusted: a PEM file, or a directory of them.
    #[arg(long, value_name = "FILE|DIR")]
    anchors: PathBuf,
    /// The time at which the certificates must be valid, instead of now: 2026-01-31 or 2026-01-31T12:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = time)]
    at: Option<SystemTime>,
    /// The hardware that the bundle must be for.
    #[arg(long, value_parser = ["x86", "arm", "riscv"])]
    hardware: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn time(text: &str) -> Result<SystemTime, String> {
    let midnight = format!("{text}T00:00:00Z");
    DateTime::parse_from_rfc3339(text)
        .or_else(|_| DateTime::parse_from_rfc3339(&midnight))
        .map(SystemTime::from)
        .map_err(|_| "expected 2026-01-31 or 2026-01-31T12:00:00Z".to_owned())
}

/// What was checked.
#[derive(Debug, Serialize)]
pub struct Verified {
    conf: PathBuf,
    name: String,
    version: u64,
    hardware: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    signer: Option<VerifiedSigner>,
    images: Vec<VerifiedImage>,
}

#[derive(Debug, Serialize)]
struct VerifiedSigner {
    subject: String,
    spki_sha256: String,
    anchor: PathBuf,
    locally_signed: bool,
    not_after: String,
}

#[derive(Debug, Serialize)]
struct VerifiedImage {
    path: PathBuf,
    size: u64,
    sha256: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    sha1: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    verity: Option<String>,
}

/// Checks everything, and prints what was checked.
pub fn run(arguments: &Arguments) -> Result<()> {
    let checked = Bundle::open(&arguments.conf)
        .map_err(Into::into)
        .and_then(|bundle| {
            let hardware = &bundle.conf().hardware;
            if let Some(wanted) = &arguments.hardware {
                let shown = bundle.conf_path().display();
                ensure!(
                    hardware == wanted,
                    "{shown}: it is for {hardware}, expected {wanted}"
                );
            }
            let at = arguments.at.unwrap_or_else(SystemTime::now);
            check_at(&bundle, Some(&arguments.anchors), at)
        });
    if arguments.json {
        let json = match &checked {
            Ok(verified) => serde_json::json!({"verified": true, "bundle": verified}),
            Err(error) => serde_json::json!({"verified": false, "reason": super::said(error)}),
        };
        println!("{json:#}");
        checked?;
    } else {
        print(&checked?);
    }
    Ok(())
}

/// Checks the images of a bundle, and its signature where there are anchors.
pub fn check(bundle: &Bundle, anchors: Option<&Path>) -> Result<Verified> {
    check_at(bundle, anchors, SystemTime::now())
}

fn check_at(bundle: &Bundle, anchors: Option<&Path>, at: SystemTime) -> Result<Verified> {
    let signer = match anchors {
        Some(anchors) => {
            let anchors = Anchors::load(anchors)?;
            Some(bundle.verify_signature(&anchors, at)?.into())
        }
        None => None,
    };
    let conf = bundle.conf();
    let mut images = Vec::new();
    for mount in bundle
        .mounts()
        .iter()
        .filter(|mount| mount.mount_type.has_image())
    {
        images.push(check_image(bundle, mount)?);
    }
    Ok(Verified {
        conf: bundle.conf_path().to_owned(),
        name: conf.name.clone(),
        version: conf.version,
        hardware: conf.hardware.clone(),
        signer,
        images,
    })
}

fn check_image(bundle: &Bundle, mount: &Mount) -> Result<VerifiedImage> {
    let path = bundle.image_path(mount);
    let shown = || path.display().to_string();
    let mut image = bundle.verify_image(mount)?;
    if let Some(expected) = &mount.image_sha1 {
        let found = sha1(&mut image.file).with_context(shown)?;
        ensure!(
            expected.eq_ignore_ascii_case(&found),
            "{}: its SHA-1 is {found}, {expected} is signed",
            shown()
        );
    }
    if let Some(root) = &mount.image_verity_sha256 {
        let hash_path = bundle.hash_image_path(mount);
        let mut digest = [0; 32];
        hex::decode_to_slice(root, &mut digest).with_context(shown)?;
        let hash = bundle.open_hash_image(mount)?;
        verity::check(&image.file, &hash, &digest)
            .with_context(|| hash_path.display().to_string())?;
    }
    if mount.mount_type == MountType::StoreOnly && mount.image_file == ImageConfig::IMAGE_FILE {
        bundle.image_config()?;
    }
    Ok(VerifiedImage {
        size: image.size,
        sha256: hex::encode(image.sha256),
        sha1: mount.image_sha1.clone(),
        verity: mount.image_verity_sha256.clone(),
        path,
    })
}

fn sha1(file: &mut std::fs::File) -> std::io::Result<String> {
    file.rewind()?;
    let mut hash = Sha1::new();
    let mut chunk = vec![0; 1 << 20];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hex::encode(hash.finalize())),
            read => hash.update(&chunk[..read]),
        }
    }
}

impl From<Signer> for VerifiedSigner {
    fn from(signer: Signer) -> Self {
        Self {
            subject: signer.subject,
            spki_sha256: hex::encode(signer.spki_sha256),
            anchor: signer.anchor,
            locally_signed: signer.locally_signed,
            not_after: DateTime::<Utc>::from(signer.not_after)
                .format("%Y-%m-%d")
                .to_string(),
        }
    }
}

fn print(verified: &Verified) {
    println!(
        "{}: {} version {} for {}",
        verified.conf.display(),
        verified.name,
        verified.version,
        verified.hardware
    );
    if let Some(signer) = &verified.signer {
        println!(
            "signature: {}, trusted by {}, valid until {}",
            signer.subject,
            signer.anchor.display(),
            signer.not_after
        );
    }
    for image in &verified.images {
        let sha1 = image.sha1.as_ref().map_or("", |_| ", SHA-1");
        let verity = image
            .verity
            .as_ref()
            .map_or("", |_| ", every block by its hash tree");
        println!(
            "{}: {} bytes, sha256:{}{sha1}{verity}",
            image.path.display(),
            image.size,
            image.sha256
        );
    }
}
