//! What engines put into a root file system before a container starts, so that one image gives one digest under every engine.
//!
//! Docker makes these files, empty, in place of the image's (moby, daemon/initlayer/setup_unix.go), and mounts its own over them;
//! Podman makes some of them; containerd makes none. So each is left out of the tree where it is exactly the stub. Where it
//! is a file with a content it is named beside the digest: a launch compares it unless something is mounted over it.

use std::collections::BTreeMap;

use super::{Entry, Node, verity};

/// Files that engines make or mount over.
const FILES: [&str; 7] = [
    ".dockerenv",
    "dev/console",
    "etc/hostname",
    "etc/hosts",
    "etc/mtab",
    "etc/resolv.conf",
    "run/.containerenv",
];

/// Directories that engines make, or that only held stubs: left out where they are empty. What is below comes first.
const DIRECTORIES: [&str; 8] = [
    "dev/pts",
    "dev/shm",
    "dev",
    "etc",
    "proc",
    "run/secrets",
    "run",
    "sys",
];

/// Where Docker's and Podman's /etc/mtab leads.
const MTAB: [&[u8]; 4] = [
    b"/proc/mounts",
    b"/proc/self/mounts",
    b"../proc/mounts",
    b"../proc/self/mounts",
];

/// The number of /dev/console.
const CONSOLE: (u32, u32) = (5, 1);

/// Takes the stubs out of a tree; returns the files among them that have a content of their own, and what is in them.
pub(super) fn take(entries: &mut BTreeMap<Vec<u8>, Entry>) -> BTreeMap<String, String> {
    let mut kept = BTreeMap::new();
    for path in FILES {
        let Some(entry) = entries.get(path.as_bytes()) else {
            continue;
        };
        let said = match said(path, entry) {
            Said::Nothing => None,
            Said::Content(text) => Some(text),
            Said::Other => continue,
        };
        entries.remove(path.as_bytes());
        kept.extend(said.map(|text| (format!("/{path}"), text)));
    }
    for path in DIRECTORIES {
        let is_directory =
            |entry: &Entry| entry.node == Node::Directory && entry.meta.xattrs.is_empty();
        let inside = [path.as_bytes(), b"/"].concat();
        let is_empty = entries
            .range(inside.clone()..)
            .next()
            .is_none_or(|(next, _)| !next.starts_with(&inside));
        if is_empty && entries.get(path.as_bytes()).is_some_and(is_directory) {
            entries.remove(path.as_bytes());
        }
    }
    kept
}

/// What a file at a path of [`FILES`] says.
enum Said {
    /// It is the stub.
    Nothing,
    /// It has a content: this.
    Content(String),
    /// It is nothing that an engine puts there or replaces: it stays in the tree.
    Other,
}

fn said(path: &str, entry: &Entry) -> Said {
    if !entry.meta.xattrs.is_empty() {
        return Said::Other;
    }
    let file = |digest: [u8; 32]| {
        let meta = &entry.meta;
        Said::Content(format!(
            "file {:04o} {}:{} {}",
            meta.mode,
            meta.uid,
            meta.gid,
            hex::encode(digest)
        ))
    };
    let console = rustix::fs::makedev(CONSOLE.0, CONSOLE.1);
    match &entry.node {
        Node::Small(bytes) if bytes.is_empty() => Said::Nothing,
        Node::Small(bytes) => file(verity::of_bytes(bytes)),
        Node::File { digest, .. } => file(*digest),
        Node::Symlink(target) if path == "etc/mtab" && MTAB.contains(&target.as_slice()) => {
            Said::Nothing
        }
        Node::Symlink(target) => Said::Content(format!("link {}", String::from_utf8_lossy(target))),
        Node::Character(device) if path == "dev/console" && *device == console => Said::Nothing,
        _ => Said::Other,
    }
}
