//! `trustme-convert push`

use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, bail, ensure};
use trustme_convert::carrier::{self, Carrier, digest_text};
use trustme_convert::progress::Progress;
use trustme_convert::registry::{self, Endpoint, Reference, RegistriesConf, Repository, Wanted};
use trustme_guestos::bundle::Bundle;

/// Makes a carrier image of a bundle, which engines and registries take as any other image.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The bundle's configuration text. Its images are checked.
    conf: PathBuf,
    /// docker://HOST/REPOSITORY[:TAG], oci:DIR[:REF], oci-archive:FILE[:REF] or docker-archive:FILE[:REF].
    destination: Destination,
    /// Certificates that are trusted, to check the signature now too: a PEM file, or a directory of them.
    #[arg(long, value_name = "FILE|DIR")]
    anchors: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Registries")]
    registry: registry::Options,
}

/// Where the carrier goes.
#[derive(Debug, Clone)]
enum Destination {
    Docker(Reference, String),
    Oci(PathBuf, Option<String>),
    OciArchive(PathBuf, Option<String>),
    DockerArchive(PathBuf, Option<String>),
}

impl FromStr for Destination {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (transport, rest) = text.split_once(':').unwrap_or_default();
        if let ("docker", Some(name)) = (transport, rest.strip_prefix("//")) {
            let reference: Reference = name.parse()?;
            return match reference.wanted.clone() {
                Wanted::Tag(tag) => Ok(Self::Docker(reference, tag)),
                Wanted::Digest(_) => bail!("{text:?}: expected a tag"),
            };
        }
        let (path, reference) = match rest.split_once(':') {
            Some((path, reference)) => (path, Some(reference.to_owned())),
            None => (rest, None),
        };
        ensure!(
            !path.is_empty() && reference.as_deref() != Some(""),
            "{text:?}: expected docker://HOST/REPOSITORY[:TAG], oci:DIR[:REF], oci-archive:FILE[:REF] or docker-archive:FILE[:REF]"
        );
        let path = PathBuf::from(path);
        match transport {
            "oci" => Ok(Self::Oci(path, reference)),
            "oci-archive" => Ok(Self::OciArchive(path, reference)),
            "docker-archive" => Ok(Self::DockerArchive(path, reference)),
            _ => bail!("{text:?}: expected docker://, oci:, oci-archive: or docker-archive:"),
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
        Destination::Docker(reference, tag) => {
            let conf = RegistriesConf::load(&arguments.registry)?;
            // What is pushed goes to the registry itself, which is behind its mirrors.
            let endpoint: Option<Endpoint> = conf.endpoints(reference)?.pop();
            let endpoint = endpoint.context("registries.conf names no place for it")?;
            let repository = Repository::open(&arguments.registry, reference, &endpoint, true)?;
            repository.push(&carrier, tag, &bar)?;
        }
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
