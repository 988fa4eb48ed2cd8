//! `trustme-convert push`

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Result, ensure};
use trustme_convert::carrier::{self, Carrier, digest_text};
use trustme_convert::progress::Progress;
use trustme_guestos::bundle::Bundle;

/// Makes a carrier image of a bundle, which engines and registries take as any other image.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The bundle's configuration text. Its images are checked.
    conf: PathBuf,
    /// oci:DIR[:REF], oci-archive:FILE[:REF] or docker-archive:FILE[:REF].
    destination: Destination,
    /// Certificates that are trusted, to check the signature now too: a PEM file, or a directory of them.
    #[arg(long, value_name = "FILE|DIR")]
    anchors: Option<PathBuf>,
}

/// Where the carrier goes.
#[derive(Debug, Clone)]
enum Destination {
    Oci(PathBuf, Option<String>),
    OciArchive(PathBuf, Option<String>),
    DockerArchive(PathBuf, Option<String>),
}

impl FromStr for Destination {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (transport, rest) = text.split_once(':').unwrap_or_default();
        let (path, reference) = match rest.split_once(':') {
            Some((path, reference)) => (path, Some(reference.to_owned())),
            None => (rest, None),
        };
        ensure!(
            !path.is_empty() && reference.as_deref() != Some(""),
            "{text:?}: expected oci:DIR[:REF], oci-archive:FILE[:REF] or docker-archive:FILE[:REF]"
        );
        let path = PathBuf::from(path);
        match transport {
            "oci" => Ok(Self::Oci(path, reference)),
            "oci-archive" => Ok(Self::OciArchive(path, reference)),
            "docker-archive" => Ok(Self::DockerArchive(path, reference)),
            _ => anyhow::bail!("{text:?}: expected oci:, oci-archive: or docker-archive:"),
        }
    }
}

/// Checks the bundle, writes its carrier, and prints the carrier's digest.
pub fn run(arguments: &Arguments) -> Result<()> {
    let bundle = Bundle::open(&arguments.conf)?;
    super::verify::check(&bundle, arguments.anchors.as_deref())?;
    let carrier = Carrier::of(&bundle)?;
    let bar = Progress::new().step("writing the carrier".to_owned(), carrier.layer.size());
    match &arguments.destination {
        Destination::Oci(path, reference) => {
            carrier::add_to_layout(&carrier, path, reference.as_deref(), &bar)?;
        }
        Destination::OciArchive(path, reference) => {
            carrier::write_oci_archive(&carrier, path, reference.as_deref(), &bar)?;
        }
        Destination::DockerArchive(path, reference) => {
            carrier::write_docker_archive(&carrier, path, reference.as_deref(), &bar)?;
        }
    }
    bar.finish_and_clear();
    println!("{}", digest_text(&carrier.digest()));
    Ok(())
}
