//! `trustme-convert convert`

use std::path::PathBuf;

use anyhow::{Context, Result};
use indicatif::HumanBytes;
use trustme_convert::convert::{Conversion, RootFormat};
use trustme_convert::guestos::Naming;
use trustme_convert::progress::Progress;
use trustme_convert::registry;
use trustme_convert::source::{Platform, Source};
use trustme_convert::squashfs::ImageCompression;
use trustme_convert::verification::Demands;

/// Converts an image into a signed bundle.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// docker://HOST/REPOSITORY[:TAG|@DIGEST], docker-archive:FILE[:REF], oci:DIR[:REF], oci-archive:FILE[:REF], docker-daemon:REF or
    /// containers-storage:REF.
    source: Source,
    /// The directory of bundles; made where it is missing.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The name of the GuestOS.
    #[arg(long)]
    name: String,
    /// The version of the GuestOS; a higher one replaces a lower one.
    #[arg(long, value_name = "N")]
    version: u64,
    #[command(flatten)]
    signer: super::SignerArguments,
    /// The file system of the root image.
    #[arg(long, value_enum, default_value_t)]
    fs: FileSystem,
    /// How a squashfs root image is compressed; erofs ones are not.
    #[arg(long, value_enum, default_value_t)]
    compression: ImageCompression,
    /// OS/ARCHITECTURE[/VARIANT] of the image; this machine's, where there is a choice.
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

/// File systems of root images.
#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum FileSystem {
    /// Compressed, small; what GyroidOS mounts.
    #[default]
    Squashfs,
    /// Not compressed, quick to make and to read; keeps ACLs and all times. Linux 5.15.
    Erofs,
}

/// Converts, and prints the path of the configuration text.
pub fn run(arguments: Arguments) -> Result<()> {
    let format = match arguments.fs {
        FileSystem::Squashfs => RootFormat::Squashfs(arguments.compression),
        FileSystem::Erofs => RootFormat::Erofs,
    };
    let (key, cert) = arguments.signer.open()?;
    let conversion = Conversion {
        source: arguments.source,
        registry: arguments.registry,
        demands: arguments.demands,
        platform: arguments.platform,
        out: arguments.out,
        naming: Naming {
            name: arguments.name,
            version: arguments.version,
        },
        key,
        cert,
        format,
        limits: arguments.limits.into(),
        force: arguments.force,
        time: source_date_epoch()?,
    };
    let made = conversion.run(Progress::new())?;
    eprintln!(
        "root.img: {}, sha256:{}",
        HumanBytes(made.size),
        hex::encode(made.sha256)
    );
    println!("{}", made.conf.display());
    Ok(())
}

/// <https://reproducible-builds.org/specs/source-date-epoch/>
fn source_date_epoch() -> Result<Option<u32>> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH") else {
        return Ok(None);
    };
    let number = text.to_str().and_then(|text| text.parse().ok());
    number.map(Some).with_context(|| {
        format!("SOURCE_DATE_EPOCH={text:?}: expected seconds from 1970 in 32 bits")
    })
}
