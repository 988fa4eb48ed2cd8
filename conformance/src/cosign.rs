//! Programs that are not installed: cosign, which Debian 12 does not have yet, and docker-registry, which would start a daemon.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::archive::Archive;

/// cosign, fetched from Debian's unstable suite once and kept in `cache`.
///
/// # Errors
/// It cannot be fetched.
pub fn program(cache: &Path) -> Result<PathBuf> {
    fetched(cache, "cosign", "sid")
}

/// docker-registry, fetched once and kept in `cache`.
///
/// # Errors
/// It cannot be fetched.
pub fn docker_registry(cache: &Path) -> Result<PathBuf> {
    fetched(cache, "docker-registry", "bookworm")
}

fn fetched(cache: &Path, package: &str, suite: &str) -> Result<PathBuf> {
    let dir = cache.join(format!("{package}-{suite}"));
    let program = dir.join("usr/bin").join(package);
    if program.is_file() {
        return Ok(program);
    }
    fs::create_dir_all(cache)?;
    let new = tempfile::Builder::new().prefix(".new-").tempdir_in(cache)?;
    let root = new.path().join("root");
    Archive::open(new.path(), "deb", suite)?.unpack(&[package], &root)?;
    match fs::rename(&root, &dir) {
        // Another test was quicker.
        Err(_) if program.is_file() => Ok(program),
        Err(error) => Err(error).with_context(|| format!("{}", dir.display())),
        Ok(()) => Ok(program),
    }
}
