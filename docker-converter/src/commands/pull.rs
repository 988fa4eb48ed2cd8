//! `trustme-convert pull`

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use trustme_convert::carrier;
use trustme_convert::progress::Progress;
use trustme_convert::registry;
use trustme_convert::source::{self, Access, Platform, Source};
use trustme_convert::verification::Demands;
use trustme_guestos::bundle::Bundle;
use trustme_guestos::write::BundleWriter;

/// Takes the bundle out of a carrier image, and checks its signature and images before it appears.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The carrier: a source as for convert.
    source: Source,
    /// The directory of bundles; made where it is missing.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Certificates that are trusted: a PEM file, or a directory of them.
    #[arg(long, value_name = "FILE|DIR")]
    anchors: PathBuf,
    /// OS/ARCHITECTURE[/VARIANT] of the carrier; this machine's, where there is a choice.
    #[arg(long)]
    platform: Option<Platform>,
    #[command(flatten)]
    limits: super::LimitArguments,
    /// Replace a bundle of the same name and version.
    #[arg(long)]
    force: bool,
    #[command(flatten, next_help_heading = "Registries")]
    registry: registry::Options,
    #[command(flatten, next_help_heading = "What is demanded of the image")]
    demands: Demands,
}

/// Takes the bundle, and prints the path of its configuration text.
pub fn run(arguments: &Arguments) -> Result<()> {
    let shown = |path: &Path| path.display().to_string();
    let progress = Progress::new();
    let access = Access {
        registry: arguments.registry.clone(),
        demands: arguments.demands.clone(),
        limits: arguments.limits.into(),
        progress,
    };
    let image = source::open(&arguments.source, arguments.platform.as_ref(), &access)?;
    // Only a place that is removed, also after a kill: what the bundle is called is found out in it.
    let staging = BundleWriter::create(&arguments.out, "pull", 0, true)?;
    let unpacked = carrier::unpack(&image, staging.images(), arguments.limits.into(), progress)?;
    let bundle = Bundle::open(&unpacked.conf)?;
    super::verify::check(&bundle, Some(&arguments.anchors))
        .with_context(|| format!("the bundle in {}", image.path.display()))?;
    let writer = BundleWriter::create(
        &arguments.out,
        &unpacked.name,
        unpacked.version,
        arguments.force,
    )?;
    let images = bundle.images_path();
    for entry in fs::read_dir(&images).with_context(|| shown(&images))? {
        let path = entry.with_context(|| shown(&images))?.path();
        let name = path.file_name().unwrap_or_default();
        fs::rename(&path, writer.images().join(name)).with_context(|| shown(&path))?;
    }
    let conf = writer.finish(
        bundle.conf_bytes(),
        &bundle.signature()?,
        &bundle.certificates()?,
        bundle.sigstore()?.as_deref(),
    )?;
    println!("{}", conf.display());
    Ok(())
}
