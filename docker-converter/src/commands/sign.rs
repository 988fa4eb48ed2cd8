//! `trustme-convert sign`

use std::path::PathBuf;

use anyhow::Result;
use trustme_guestos::bundle::{Bundle, SIGSTORE};
use trustme_guestos::sigstore;
use trustme_guestos::write::replace_file;

/// Signs the configuration text of a bundle anew.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The bundle's configuration text.
    conf: PathBuf,
    #[command(flatten)]
    signer: super::SignerArguments,
}

/// Replaces signature and certificates.
pub fn run(arguments: &Arguments) -> Result<()> {
    let (key, cert) = arguments.signer.open()?;
    let bundle = Bundle::open(&arguments.conf)?;
    let sig = key.sign(bundle.conf_bytes())?;
    let sigstore = sigstore::bundle(&key, bundle.conf_bytes())?;
    // Between the two the bundle is refused; it is never accepted for the wrong signer.
    replace_file(&bundle.conf_path().with_extension("cert"), &cert)?;
    replace_file(&bundle.conf_path().with_extension("sig"), &sig)?;
    replace_file(&bundle.conf_path().with_extension(SIGSTORE), &sigstore)?;
    println!("{}", bundle.conf_path().display());
    Ok(())
}
