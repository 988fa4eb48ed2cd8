//! `trustme-convert digest`

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::fs::{Mode, OFlags};
use serde_json::json;
use trustme_convert::digest::of_image;
use trustme_convert::progress::Progress;
use trustme_convert::source::{self, Platform, Source};
use trustme_guestos::tree_digest::{self, TreeDigest};

/// Prints the digest of an image's tree of files: what a launch measures, and what mkcomposefs prints.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// An image as for `convert`, or a directory.
    source: String,
    /// OS/ARCHITECTURE[/VARIANT] of the image; this machine's, where there is a choice.
    #[arg(long)]
    platform: Option<Platform>,
    /// The most bytes that the layers may have uncompressed, with K, M, G or T (powers of 1024).
    #[arg(long, value_name = "SIZE", default_value = "64G", value_parser = super::size)]
    max_size: u64,
    /// Print JSON, with the files that engines replace.
    #[arg(long)]
    json: bool,
}

/// Prints the digest.
pub fn run(arguments: &Arguments) -> Result<()> {
    let found = tree(
        &arguments.source,
        arguments.platform.as_ref(),
        arguments.max_size,
    )?;
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
pub(super) fn tree(text: &str, platform: Option<&Platform>, max_size: u64) -> Result<TreeDigest> {
    let path = Path::new(text);
    if path.is_dir() {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(path, flags, Mode::empty()).with_context(|| text.to_owned())?;
        return Ok(tree_digest::read(std::os::fd::AsFd::as_fd(&root), path)?);
    }
    let image = source::open(&text.parse::<Source>()?, platform)?;
    let dir: PathBuf = std::env::temp_dir();
    Ok(of_image(&image, &dir, max_size, Progress::new())?)
}
