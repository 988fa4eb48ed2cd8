//! `trustme-convert digest`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use serde_json::json;
use trustme_convert::digest::of_image;
use trustme_convert::progress::Progress;
use trustme_convert::registry;
use trustme_convert::source::{self, Access, Platform, Source};
use trustme_guestos::tree_digest::{self, TreeDigest};

/// Prints the digest of an image's tree of files: what a launch measures, and what mkcomposefs prints.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// An image as for `convert`, or a directory.
    source: String,
    /// OS/ARCHITECTURE[/VARIANT] of the image; this machine's, where there is a choice.
    #[arg(long)]
    platform: Option<Platform>,
    #[command(flatten)]
    limits: super::LimitArguments,
    /// Print JSON, with the files that engines replace.
    #[arg(long)]
    json: bool,
    #[command(flatten, next_help_heading = "Registries")]
    registry: registry::Options,
}

/// Prints the digest.
pub fn run(arguments: &Arguments) -> Result<()> {
    let access = Access {
        registry: arguments.registry.clone(),
        ..Access::new(arguments.limits.into(), Progress::new())
    };
    let found = tree(&arguments.source, arguments.platform.as_ref(), &access)?;
    let digest = hex::encode(found.digest);
    match arguments.json {
        true => println!(
            "{:#}",
            json!({"treeDigest": digest, "engineFiles": found.engine_files})
        ),
        false => println!("{digest}"),
    }
    Ok(())
}

/// The digest of an image or a directory.
pub(super) fn tree(text: &str, platform: Option<&Platform>, access: &Access) -> Result<TreeDigest> {
    let path = Path::new(text);
    if path.is_dir() {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).with_context(|| text.to_owned())?;
        return Ok(tree_digest::read(std::os::fd::AsFd::as_fd(&root), path)?);
    }
    let image = source::open(&text.parse::<Source>()?, platform, access)?;
    let dir: PathBuf = std::env::temp_dir();
    Ok(of_image(&image, &dir, access.limits, access.progress)?)
}
