//! Whether a namespace that a configuration names is the host's.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// The host's network namespaces: of init, and of this program, which an engine may have started in another.
const HOST: [&str; 2] = ["/proc/1/ns/net", "/proc/self/ns/net"];

/// Whether the file at `path` is the host's network namespace.
///
/// # Errors
/// There is no such file, or /proc is not mounted.
pub(crate) fn is_host_network(path: &Path) -> io::Result<bool> {
    let named = std::fs::metadata(path)?;
    for host in HOST {
        let host = match std::fs::metadata(host) {
            // Where trustme itself is confined it may not look at init, and neither can its containers.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => continue,
            outcome => outcome?,
        };
        if (host.dev(), host.ino()) == (named.dev(), named.ino()) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_namespace_is_known_by_any_path() {
        for path in ["/proc/self/ns/net", "/proc/thread-self/ns/net"] {
            assert!(is_host_network(Path::new(path)).unwrap(), "{path}");
        }
        assert!(!is_host_network(Path::new("/proc/self/ns/mnt")).unwrap());
        assert!(is_host_network(Path::new("/nonexistent")).is_err());
    }
}
