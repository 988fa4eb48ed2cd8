//! The root directory: one directory a container, named by its id.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::cli::Global;

/// The directory that holds the state of all containers.
#[derive(Clone, Debug)]
pub struct Root {
    path: PathBuf,
}

impl Root {
    /// The directory of `--root`; else `/run/trustme`, or `$XDG_RUNTIME_DIR/trustme` for an ordinary user.
    ///
    /// # Errors
    /// If the current directory is needed but gone.
    pub fn new(global: &Global) -> Result<Self> {
        let path = match &global.oci.root {
            Some(path) => std::path::absolute(path)?,
            None => default_path(global),
        };
        Ok(Self { path })
    }

    /// Makes the directory if it is missing.
    ///
    /// # Errors
    /// As mkdir(2).
    pub fn ensure(&self) -> Result<()> {
        if self.path.is_dir() {
            return Ok(());
        }
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.path)
            .with_context(|| format!("cannot create the root directory {}", self.path.display()))
    }

    /// The root directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The state directory of a container.
    ///
    /// # Errors
    /// If `id` is no valid container id, so that no path outside of the root can come out.
    pub fn container(&self, id: &str) -> Result<PathBuf> {
        validate_id(id)?;
        Ok(self.path.join(id))
    }

    /// The launch directory of a container (docs/architecture.md); `@` cannot occur in an id.
    pub fn launch(&self, id: &str) -> PathBuf {
        self.path.join("@launch").join(id)
    }
}

fn default_path(global: &Global) -> PathBuf {
    let rootless = match global.rootless.as_str() {
        "true" => true,
        "false" => false,
        _ => !rustix::process::geteuid().is_root(),
    };
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if rootless && !dir.is_empty() => PathBuf::from(dir).join("trustme"),
        _ => PathBuf::from("/run/trustme"),
    }
}

/// Checks a container id: letters, digits, `_`, `+`, `-` and `.`, at most 1024 bytes as runc, not `.` or `..`.
///
/// # Errors
/// If the id is anything else.
pub fn validate_id(id: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+-.".contains(&byte);
    if id.is_empty() {
        bail!("container id cannot be empty");
    }
    if id.len() > 1024 || id == "." || id == ".." || !id.bytes().all(allowed) {
        bail!("invalid container ID format: {id:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_checked() {
        for good in ["a", "A.b_c+d-9", "...", "-x"] {
            assert!(validate_id(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a@b", "a b", "ä", &"x".repeat(1025)] {
            assert!(validate_id(bad).is_err(), "{bad}");
        }
    }
}
