//! `trustme-convert pki`

use std::io::Write;
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow};
use serde_json::json;
use trustme_guestos::pki;
use trustme_guestos::signature::cosign_key_of;

/// Keys and certificates for development.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Makes a root CA, a sub-CA and a signer, under GyroidOS's file names. The keys are not encrypted.
    Init {
        /// A directory that is empty or not there.
        dir: PathBuf,
    },
    /// Issues a new signer, with a new key, by the sub-CA of a directory that `init` made. What was signed before stays valid.
    Renew {
        /// The directory.
        dir: PathBuf,
    },
    /// Shows the certificates of files.
    Show {
        /// PEM files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prints the public key of a signer as `cosign verify-blob --key` reads it.
    CosignKey {
        /// The signer's certificate (PEM).
        cert: PathBuf,
    },
}

/// Makes or shows what is asked for.
pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::Init { dir } => {
            pki::init(dir)?;
            println!("{}", dir.join("ssig_rootca.cert").display());
        }
        Command::Renew { dir } => {
            pki::renew(dir)?;
            println!("{}", dir.join("ssig_cml.cert").display());
        }
        Command::Show { files, json } => show(files, *json)?,
        Command::CosignKey { cert } => {
            let key =
                cosign_key_of(&super::read(cert)?).with_context(|| cert.display().to_string())?;
            std::io::stdout().write_all(&key)?;
        }
    }
    Ok(())
}

fn show(files: &[PathBuf], as_json: bool) -> Result<()> {
    let mut all = Vec::new();
    for path in files {
        let certificates = pki::read(&super::read(path)?)
            .map_err(|reason| anyhow!("{}: {reason}", path.display()))?;
        for certificate in certificates {
            all.push(json!({
                "file": path, "subject": certificate.subject, "issuer": certificate.issuer, "serial": certificate.serial,
                "notBefore": certificate.not_before, "notAfter": certificate.not_after, "key": certificate.key,
                "bits": certificate.bits, "ca": certificate.ca, "sha256": certificate.sha256,
            }));
            if !as_json {
                println!("{}", path.display());
                println!("  subject  {}", certificate.subject);
                println!("  issuer   {}", certificate.issuer);
                println!("  serial   {}", certificate.serial);
                println!(
                    "  valid    {} to {}",
                    certificate.not_before, certificate.not_after
                );
                println!("  key      {}, {} bits", certificate.key, certificate.bits);
                println!(
                    "  kind     {}",
                    if certificate.ca { "CA" } else { "signer" }
                );
                println!("  sha256   {}", certificate.sha256);
            }
        }
    }
    if as_json {
        println!("{:#}", serde_json::Value::Array(all));
    }
    Ok(())
}
