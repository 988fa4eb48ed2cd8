use super::*;

fn directory(mode: u32) -> (Meta, Node) {
    let meta = Meta {
        mode,
        ..Meta::default()
    };
    (meta, Node::Directory)
}

fn file(bytes: &[u8]) -> (Meta, Node) {
    let meta = Meta {
        mode: 0o644,
        ..Meta::default()
    };
    let node = match bytes.len() as u64 {
        ..=INLINE => Node::Small(bytes.to_vec()),
        size => Node::File {
            digest: verity::of_bytes(bytes),
            size,
        },
    };
    (meta, node)
}

fn digest(entries: &[(&str, (Meta, Node))]) -> TreeDigest {
    let mut builder = Builder::default();
    builder.add(vec![], directory(0o755).0, Node::Directory);
    for (path, (meta, node)) in entries {
        builder.add(path.as_bytes().to_vec(), meta.clone(), node.clone());
    }
    builder.finish().unwrap()
}

#[test]
fn stubs_are_left_out_and_contents_are_named() {
    let usr = ("usr", directory(0o755));
    let bare = digest(std::slice::from_ref(&usr));
    assert!(bare.engine_files.is_empty());
    let docker = [
        usr.clone(),
        (".dockerenv", file(b"")),
        ("dev", directory(0o755)),
        ("dev/console", file(b"")),
        ("dev/pts", directory(0o755)),
        ("dev/shm", directory(0o755)),
        ("etc", directory(0o755)),
        ("etc/hosts", file(b"")),
        ("etc/hostname", file(b"")),
        ("etc/resolv.conf", file(b"")),
        (
            "etc/mtab",
            (Meta::default(), Node::Symlink(b"/proc/mounts".to_vec())),
        ),
        ("proc", directory(0o755)),
        ("sys", directory(0o755)),
    ];
    assert_eq!(digest(&docker), bare);

    let named = digest(&[
        usr.clone(),
        ("etc", directory(0o755)),
        ("etc/hosts", file(b"evil")),
    ]);
    assert_eq!(named.digest, bare.digest);
    assert_eq!(
        named.engine_files,
        [(
            "/etc/hosts".to_owned(),
            format!("file 0644 0:0 {}", hex::encode(verity::of_bytes(b"evil")))
        )]
        .into()
    );

    for other in [
        ("etc/hosts", directory(0o755)),
        ("etc/passwd", file(b"")),
        ("proc/x", file(b"")),
        (
            "dev/console",
            (Meta::default(), Node::Block(rustix::fs::makedev(5, 1))),
        ),
        ("sysx", directory(0o755)),
    ] {
        let (parent, _) = other.0.split_once('/').unwrap_or(("usr", ""));
        let found = digest(&[usr.clone(), (parent, directory(0o755)), other.clone()]);
        assert_ne!(found.digest, bare.digest, "{}", other.0);
    }
}

#[test]
fn everything_that_counts_changes_the_digest() {
    let with = |meta: Meta, node: Node| digest(&[("f", (meta, node))]).digest;
    let (meta, node) = file(&[7; 100]);
    let base = with(meta.clone(), node.clone());
    let user = |name: &str| Meta {
        xattrs: [(name.as_bytes().to_vec(), b"v".to_vec())].into(),
        ..meta.clone()
    };
    for (what, changed) in [
        (
            "mode",
            Meta {
                mode: 0o4644,
                ..meta.clone()
            },
        ),
        (
            "uid",
            Meta {
                uid: 1,
                ..meta.clone()
            },
        ),
        (
            "gid",
            Meta {
                gid: 1,
                ..meta.clone()
            },
        ),
        ("user", user("user.x")),
        ("capability", user("security.capability")),
    ] {
        assert_ne!(with(changed, node.clone()), base, "{what}");
    }
    for name in [
        "security.selinux",
        "trusted.overlay.opaque",
        "user.overlay.origin",
        "user.containers.override_stat",
    ] {
        assert_eq!(with(user(name), node.clone()), base, "{name}");
    }
    for other in [
        file(&[8; 100]).1,
        file(&[7; 101]).1,
        Node::Symlink(b"f".to_vec()),
        Node::Fifo,
        Node::Socket,
        Node::Directory,
        Node::Character(1),
        Node::Block(1),
    ] {
        assert_ne!(with(meta.clone(), other.clone()), base, "{other:?}");
    }
}

#[test]
fn a_tree_has_a_root_and_directories() {
    let (meta, node) = file(b"x");
    let empty = Builder::default().finish().unwrap_err();
    assert_eq!(empty.to_string(), "/: not a directory");
    let mut builder = Builder::default();
    builder.add(vec![], meta.clone(), Node::Directory);
    builder.add(b"a".to_vec(), meta.clone(), node.clone());
    builder.add(b"a/b".to_vec(), meta, node);
    assert!(
        builder
            .finish()
            .unwrap_err()
            .to_string()
            .starts_with("/a/b: ")
    );
}
