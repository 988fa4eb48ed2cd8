//! GPG signatures, by the program gpg with a keyring of its own.

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::error::Error;

/// The largest signature, in bytes (containers/image's limit).
const MAX_SIGNATURE: u64 = 4 << 20;
/// The most signatures of an image that are looked at.
const MAX_SIGNATURES: usize = 100;

/// A keyring that holds the given keys and no others.
#[derive(Debug)]
pub(super) struct Keyring(tempfile::TempDir);

impl Keyring {
    /// Makes one of exported keys, each as GPG writes them.
    pub(super) fn of(keys: &[Vec<u8>]) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("gpg: {error}");
        // gpg's sockets have short names.
        let home = tempfile::Builder::new()
            .prefix("trustme-gpg-")
            .tempdir_in("/tmp")
            .map_err(failed)?;
        let ring = Self(home);
        for key in keys {
            let path = ring.0.path().join("key");
            fs::write(&path, key).map_err(failed)?;
            let output = ring.gpg(&["--import"], &path)?;
            if !output.status.success() {
                return Err("no keys of GPG".to_owned());
            }
        }
        Ok(ring)
    }

    fn gpg(&self, arguments: &[&str], file: &Path) -> Result<Output, String> {
        Command::new("gpg")
            .args([
                "--batch",
                "--no-tty",
                "--quiet",
                "--no-autostart",
                "--status-fd",
                "2",
            ])
            .args([
                "--no-auto-key-retrieve",
                "--trust-model",
                "always",
                "--homedir",
            ])
            .arg(self.0.path())
            .args(arguments)
            .arg(file)
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .output()
            .map_err(|error| format!("gpg: {error}"))
    }

    /// What a signature is over, if one of the keys made it.
    pub(super) fn open(&self, signature: &Path) -> Result<Vec<u8>, String> {
        let output = self.gpg(&["--decrypt"], signature)?;
        let status = String::from_utf8_lossy(&output.stderr);
        let said = |word: &str| {
            let line = format!("[GNUPG:] {word} ");
            status.lines().any(|said| said.starts_with(&line))
        };
        match output.status.success() && said("GOODSIG") && said("VALIDSIG") && !said("BADSIG") {
            true => Ok(output.stdout),
            false => Err("a signature of another key".to_owned()),
        }
    }
}

/// The signatures of a manifest in a directory (containers-registries.d(5), "lookaside").
pub(super) fn signatures(
    lookaside: &Path,
    repository: &str,
    digest: &str,
) -> Result<Vec<std::path::PathBuf>, Error> {
    let dir = lookaside.join(format!("{repository}@{}", digest.replace(':', "=")));
    let mut found = Vec::new();
    for number in 1..=MAX_SIGNATURES {
        let path = dir.join(format!("signature-{number}"));
        match fs::metadata(&path) {
            Ok(metadata) if metadata.len() > MAX_SIGNATURE => {
                return Err(Error::image(
                    &path,
                    format!("more than {MAX_SIGNATURE} bytes"),
                ));
            }
            Ok(_) => found.push(path),
            Err(_) => break,
        }
    }
    Ok(found)
}
