//! The socket that containerd connects to: where it is, and whether a shim listens there.

use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Where sockets are unless containerd names another directory: paths of sockets are at most 107 bytes long.
const DIR: &str = "/run/containerd/s";

/// The file in the bundle that containerd 1.6 finds the shim by after a restart.
pub const ADDRESS_FILE: &str = "address";

/// The path of the socket of a group of containers: a hash, as containerd's own shims have it.
pub fn path(dir: Option<&str>, containerd: &str, namespace: &str, group: &str) -> PathBuf {
    let name = Path::new(containerd).join(namespace).join(group);
    let digest = Sha256::digest(name.as_os_str().as_encoded_bytes());
    let hash: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    Path::new(dir.unwrap_or(DIR)).join(hash)
}

/// The address of a socket's path.
pub fn address(path: &Path) -> String {
    format!("unix://{}", path.display())
}

/// Makes the socket; none if a shim listens there already. What a killed shim has left is replaced.
///
/// # Errors
/// It cannot be made.
pub fn listen(path: &Path) -> Result<Option<UnixListener>> {
    let place = || path.display().to_string();
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(place)?;
    }
    let listener = match UnixListener::bind(path) {
        Err(error) if error.kind() == ErrorKind::AddrInUse => {
            if UnixStream::connect(path).is_ok() {
                return Ok(None);
            }
            remove(path);
            UnixListener::bind(path)
        }
        other => other,
    };
    let listener = listener.with_context(place)?;
    std::fs::set_permissions(path, PermissionsExt::from_mode(0o600)).with_context(place)?;
    Ok(Some(listener))
}

/// Removes a socket that nobody listens at any more.
pub fn remove(path: &Path) {
    // It may be gone already.
    let _ = std::fs::remove_file(path);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_is_that_of_containerds_shims() {
        // containerd-shim 0.12, test_socket_address
        assert_eq!(
            path(None, "/run/containerd/containerd.sock", "default", "123"),
            Path::new(
                "/run/containerd/s/0ddfbd72d02b3551e75f3a0ed90b9965b533401be618f43a568bc522764e0ad0"
            )
        );
    }

    #[test]
    fn one_shim_listens_and_remains_are_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("dir/socket");
        let listener = listen(&path).unwrap().unwrap();
        assert!(listen(&path).unwrap().is_none());
        drop(listener);
        assert!(listen(&path).unwrap().is_some());
    }
}
