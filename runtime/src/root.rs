//! The root directory: one directory a container, named by its id.

use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

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

/// As runc: where there is a directory for the user's files, it is taken by an ordinary user, also by one who is root of a
/// user namespace (Podman's), unless it calls itself root.
fn default_path(global: &Global) -> PathBuf {
    let system = PathBuf::from("/run/trustme");
    let Some(dir) = std::env::var_os("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) else {
        return system;
    };
    let own = match global.rootless.as_str() {
        "true" => true,
        "false" => false,
        _ if !rustix::process::geteuid().is_root() => true,
        _ => is_ordinary() && std::env::var_os("USER").is_none_or(|user| user != "root"),
    };
    match own {
        true => PathBuf::from(dir).join("trustme"),
        false => system,
    }
}

/// True without root's privileges on the host: for an ordinary user, and for root of a user namespace. It is the caller who
/// counts: the answer stays the same in processes that enter a user namespace later.
pub fn is_ordinary() -> bool {
    static ORDINARY: OnceLock<bool> = OnceLock::new();
    *ORDINARY.get_or_init(|| {
        !rustix::process::geteuid().is_root()
            || std::fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| !maps_everybody(&map))
    })
}

/// True for the map of the first user namespace (user_namespaces(7)).
fn maps_everybody(map: &str) -> bool {
    let fields: Vec<_> = map.split_whitespace().collect();
    fields == ["0", "0", "4294967295"]
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
    fn the_first_user_namespace_is_known() {
        assert!(maps_everybody("         0          0 4294967295\n"));
        assert!(!maps_everybody(
            "         0       1000          1\n         1     100000      65536\n"
        ));
    }

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
