//! `trustme-convert sign`

use std::path::PathBuf;

use anyhow::Result;
use trustme_guestos::bundle::Bundle;
use trustme_guestos::write::replace_file;

/// Signs the configuration text of a bundle anew.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The bundle's configuration text.
    conf: PathBuf,
    /// The signer's private key (PEM).
    #[arg(long, value_name = "PEM")]
    key: PathBuf,
    /// The signer's certificate and those that lead to an anchor (PEM).
    #[arg(long, value_name = "PEM")]
    cert: PathBuf,
}

/// Replaces signature and certificates.
pub fn run(arguments: &Arguments) -> Result<()> {
    let (key, cert) = super::signer(&arguments.key, &arguments.cert)?;
    let bundle = Bundle::open(&arguments.conf)?;
    let sig = key.sign(bundle.conf_bytes())?;
    // Between the two the bundle is refused; it is never accepted for the wrong signer.
    replace_file(&bundle.conf_path().with_extension("cert"), &cert)?;
    replace_file(&bundle.conf_path().with_extension("sig"), &sig)?;
    println!("{}", bundle.conf_path().display());
    Ok(())
}
