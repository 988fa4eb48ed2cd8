//! `trustme-convert verity`

use std::fs::File;
use std::path::PathBuf;

use anyhow::{Context, Result};
use trustme_guestos::verity;

/// Makes the dm-verity hash tree of an image, and prints its root hash: what `veritysetup format` does, on all processors.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The image: blocks of 4096 bytes.
    image: PathBuf,
    /// The hash image, a new file.
    hash: PathBuf,
    /// The salt in hex, at most 256 bytes.
    #[arg(long, value_name = "HEX", default_value = "", value_parser = salt)]
    salt: Salt,
}

/// A salt.
#[derive(Debug, Clone)]
struct Salt(Vec<u8>);

/// Makes the tree.
pub fn run(arguments: &Arguments) -> Result<()> {
    let (image, hash) = (&arguments.image, &arguments.hash);
    let data = File::open(image).with_context(|| image.display().to_string())?;
    let tree = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(hash)
        .with_context(|| hash.display().to_string())?;
    match verity::format(&data, &tree, &arguments.salt.0) {
        Ok(root) => println!("{}", hex::encode(root)),
        Err(error) => {
            // The first error is the one to report.
            let _ = std::fs::remove_file(hash);
            return Err(error).with_context(|| image.display().to_string());
        }
    }
    Ok(())
}

fn salt(text: &str) -> Result<Salt, String> {
    match hex::decode(text) {
        Ok(salt) if salt.len() <= 256 => Ok(Salt(salt)),
        Ok(_) => Err("more than 256 bytes".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
