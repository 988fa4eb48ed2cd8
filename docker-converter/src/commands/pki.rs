//! `trustme-convert pki`

use std::path::PathBuf;

use anyhow::Result;
use trustme_guestos::pki;

/// Keys and certificates for development.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Makes a root CA, a sub-CA and a signer, under GyroidOS's file names. The keys are not encrypted.
    Init {
        /// A directory that is empty or not there.
        dir: PathBuf,
    },
}

/// Makes what is asked for.
pub fn run(command: &Command) -> Result<()> {
    let Command::Init { dir } = command;
    pki::init(dir)?;
    println!("{}", dir.join("ssig_rootca.cert").display());
    Ok(())
}
