//! cosign, which Debian 12 does not have yet.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::archive::Archive;

/// The program, fetched from Debian's unstable suite once and kept in `cache`.
///
/// # Errors
/// It cannot be fetched.
pub fn program(cache: &Path) -> Result<PathBuf> {
    let dir = cache.join("cosign-sid");
    let program = dir.join("usr/bin/cosign");
    if program.is_file() {
        return Ok(program);
    }
    fs::create_dir_all(cache)?;
    let new = tempfile::Builder::new().prefix(".new-").tempdir_in(cache)?;
    let root = new.path().join("root");
    Archive::open(new.path(), "deb", "sid")?.unpack(&["cosign"], &root)?;
    match fs::rename(&root, &dir) {
        // Another test was quicker.
        Err(_) if program.is_file() => Ok(program),
        Err(error) => Err(error).with_context(|| format!("{}", dir.display())),
        Ok(()) => Ok(program),
    }
}
