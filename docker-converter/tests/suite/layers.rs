//! What layers make of a tree, case by case.

use trustme_convert::apply_layers;
use trustme_convert::tree::{Node, Tree};

use crate::archive::{Archive, Entry};

/// Every path with what it is: `a/ b=layer:content c->target d c1:3`.
fn listing(tree: &Tree) -> String {
    let mut lines = Vec::new();
    tree.walk(|path, id| -> Result<(), ()> {
        let path = String::from_utf8_lossy(path);
        lines.push(match &tree.inode(id).node {
            Node::Directory(_) => format!("{path}/"),
            Node::File { layer, content } => format!("{path}={layer}:{}", content.size),
            Node::Symlink(target) => format!("{path}->{}", String::from_utf8_lossy(target)),
            Node::Character(device) => format!("{path}c{}:{}", device.major, device.minor),
            Node::Block(device) => format!("{path}b{}:{}", device.major, device.minor),
            Node::Fifo => format!("{path}|"),
        });
        Ok(())
    })
    .unwrap();
    lines[1..].join(" ")
}

#[track_caller]
fn makes(layers: &[Archive], expected: &str) {
    let ended: Vec<Vec<u8>> = layers.iter().map(|layer| layer.clone().end()).collect();
    let borrowed: Vec<&[u8]> = ended.iter().map(Vec::as_slice).collect();
    match apply_layers(&borrowed) {
        Ok(tree) => assert_eq!(listing(&tree), expected),
        Err(error) => panic!("{error}, expected {expected}"),
    }
}

fn base() -> Archive {
    Archive::new()
        .directory("d/")
        .file("d/x", "x")
        .directory("d/e")
        .file("d/e/y", "yy")
        .file("f", "fff")
}

#[test]
fn whiteouts_delete_what_lower_layers_have() {
    makes(
        &[base(), Archive::new().file("d/.wh.x", "")],
        "d/ d/e/ d/e/y=0:2 f=0:3",
    );
    makes(&[base(), Archive::new().file(".wh.d", "")], "f=0:3");
    // Any kind of entry deletes.
    makes(&[base(), Archive::new().plain(".wh.d", b'3')], "f=0:3");
    // What is not there is no error; no directory is made for it.
    makes(
        &[
            base(),
            Archive::new()
                .file("none/.wh.x", "")
                .file(".wh.none", "")
                .file("f/.wh.x", ""),
        ],
        "d/ d/e/ d/e/y=0:2 d/x=0:1 f=0:3",
    );
    // Deletions stay: a later layer brings nothing back.
    makes(
        &[
            base(),
            Archive::new().file(".wh.d", ""),
            Archive::new().directory("d").file("d/n", ""),
        ],
        "d/ d/n=2:0 f=0:3",
    );
}

#[test]
fn whiteouts_spare_their_own_layer_whatever_the_order() {
    let expected = "d/ d/n=1:1 f=0:3";
    let new = |archive: Archive| archive.directory("d").file("d/n", "n");
    let opaque = |archive: Archive| archive.file("d/.wh..wh..opq", "");
    makes(&[base(), opaque(new(Archive::new()))], expected);
    makes(&[base(), new(opaque(Archive::new()))], expected);
    makes(&[base(), opaque(Archive::new().file("d/n", "n"))], expected);
    makes(
        &[base(), Archive::new().file("d/n", "n").file(".wh.d", "")],
        expected,
    );
    makes(
        &[base(), Archive::new().file(".wh.d", "").file("d/n", "n")],
        expected,
    );
    makes(
        &[base(), Archive::new().file("f", "new").file(".wh.f", "")],
        "d/ d/e/ d/e/y=0:2 d/x=0:1 f=1:3",
    );
    // Only directories on the way to something new are spared.
    makes(
        &[
            base(),
            Archive::new().file("d/e/n", "").file("d/.wh..wh..opq", ""),
        ],
        "d/ d/e/ d/e/n=1:0 f=0:3",
    );
    // The opaque root.
    makes(
        &[
            base(),
            Archive::new().file(".wh..wh..opq", "").file("n", ""),
        ],
        "n=1:0",
    );
}

#[test]
fn whiteouts_that_name_nothing_are_refused() {
    for name in [".wh.", "d/.wh.", ".wh..", "d/.wh...", "none/.wh."] {
        refused(
            Archive::new().directory("d").file(name, ""),
            "a whiteout that deletes nothing",
        );
    }
    refused(
        Archive::new().file(".wh.d/x", ""),
        "a directory called \".wh.d\"",
    );
    // AUFS's own files are ignored, as by Docker.
    makes(
        &[
            base(),
            Archive::new()
                .directory(".wh..wh.plnk")
                .file(".wh..wh.plnk/1.2", "x")
                .file(".wh..wh.aufs", ""),
        ],
        "d/ d/e/ d/e/y=0:2 d/x=0:1 f=0:3",
    );
}

#[test]
fn kinds_replace_each_other() {
    makes(&[base(), Archive::new().file("d", "now")], "d=1:3 f=0:3");
    makes(
        &[base(), Archive::new().directory("f")],
        "d/ d/e/ d/e/y=0:2 d/x=0:1 f/",
    );
    makes(&[base(), Archive::new().symlink("d", "f")], "d->f f=0:3");
    // A directory in the place of a symbolic link to one: the link goes.
    makes(
        &[
            base().symlink("l", "d"),
            Archive::new().directory("l").file("l/n", ""),
        ],
        "d/ d/e/ d/e/y=0:2 d/x=0:1 f=0:3 l/ l/n=1:0",
    );
    // The last of several entries of a layer counts.
    makes(
        &[Archive::new()
            .file("a", "1")
            .symlink("a", "b")
            .file("a", "333")],
        "a=0:3",
    );
    makes(&[Archive::new().file("a/b", "1").file("a", "22")], "a=0:2");
}

#[test]
fn directories_keep_what_is_in_them() {
    let directory = Entry {
        path: b"d",
        kind: b'5',
        mode: 0o1700,
        uid: 5,
        mtime: 9,
        ..Entry::default()
    };
    let (lower, upper) = (base().end(), Archive::new().entry(directory).end());
    let tree = apply_layers(&[&lower, &upper]).unwrap();
    assert_eq!(listing(&tree), "d/ d/e/ d/e/y=0:2 d/x=0:1 f=0:3");
    let (_, id) = tree.children(trustme_convert::tree::ROOT).next().unwrap();
    let meta = &tree.inode(id).meta;
    assert_eq!((meta.mode, meta.uid, meta.mtime), (0o1700, 5, 9));
}

#[test]
fn paths_stay_in_the_image() {
    // Absolute names are relative to the root; `.` and empty names count for nothing.
    makes(
        &[Archive::new().file("/a", "").file("./b//./c", "")],
        "a=0:0 b/ b/c=0:0",
    );
    // So are `..`, which lead no higher than the root.
    makes(
        &[Archive::new()
            .file("../a", "")
            .file("a/../b", "")
            .link("c", "../../a")],
        "a=0:0 b=0:0 c=0:0",
    );
    // Symbolic links are followed within the image.
    makes(
        &[Archive::new().symlink("l", "/etc").file("l/passwd", "x")],
        "etc/ etc/passwd=0:1 l->/etc",
    );
    makes(
        &[Archive::new()
            .symlink("l", "../../../..")
            .file("l/x", "")
            .link("y", "l/x")],
        "l->../../../.. x=0:0 y=0:0",
    );
    makes(
        &[Archive::new()
            .directory("d")
            .symlink("d/l", "../e/./../n/")
            .file("d/l/x", "")],
        "d/ d/l->../e/./../n/ n/ n/x=0:0",
    );
    refused(
        Archive::new().symlink("l", "l").file("l/x", ""),
        "more than 255 symbolic links",
    );
    refused(
        Archive::new()
            .symlink("a", "b")
            .symlink("b", "a")
            .link("c", "a/x"),
        "more than 255 symbolic links",
    );
    refused(
        Archive::new().file("a", "").file("a/b", ""),
        "\"a\" on the way to it is no directory",
    );
    refused(Archive::new().plain("./", b'2'), "to nothing");
    refused(
        Archive::new().file(".", "x"),
        "the root must be a directory",
    );
    refused(
        Archive::new().symlink("/", "x"),
        "the root must be a directory",
    );
}

#[test]
fn long_paths_are_refused_also_through_links() {
    let name = "n".repeat(255);
    refused(
        Archive::new().file(&"n".repeat(256), ""),
        "a name of 256 bytes",
    );
    refused(
        Archive::new().file(&[name.as_str(); 17].join("/"), ""),
        "a path of",
    );
    let deep = [name.as_str(); 10].join("/");
    refused(
        Archive::new()
            .directory(&deep)
            .symlink("l", &deep)
            .directory(&format!("l/{deep}")),
        "a path of more than 4095 bytes, links resolved",
    );
    let long = "x/".repeat(2000);
    let mut archive = Archive::new().symlink("a", &long);
    for _ in 0..3 {
        archive = archive.symlink("b", "a/a");
    }
    makes(&[archive], &format!("a->{long} b->a/a"));
}

#[test]
fn hard_links_share_an_inode_until_one_is_replaced() {
    let same = |tree: &Tree, a: &[u8], b: &[u8]| {
        let mut ids = Vec::new();
        tree.walk(|path, id| -> Result<(), ()> {
            if path == a || path == b {
                ids.push(id);
            }
            Ok(())
        })
        .unwrap();
        assert_eq!(ids.len(), 2);
        ids[0] == ids[1]
    };
    let lower = base().end();
    let upper = Archive::new().link("g", "d/x").link("h", "/f").end();
    let tree = apply_layers(&[&lower, &upper]).unwrap();
    assert!(same(&tree, b"d/x", b"g") && same(&tree, b"f", b"h"));
    let replaced = Archive::new().file("f", "new").end();
    let tree = apply_layers(&[&lower, &upper, &replaced]).unwrap();
    assert!(!same(&tree, b"f", b"h"));
    assert_eq!(
        listing(&tree),
        "d/ d/e/ d/e/y=0:2 d/x=0:1 f=2:3 g=0:1 h=0:3"
    );
    // The other name stays when one is deleted.
    makes(
        &[
            base(),
            Archive::new().link("g", "f"),
            Archive::new().file(".wh.f", ""),
        ],
        "d/ d/e/ d/e/y=0:2 d/x=0:1 g=0:3",
    );
    // A link to a symbolic link is one to the link itself.
    makes(
        &[Archive::new().symlink("l", "x").link("k", "l")],
        "k->x l->x",
    );
}

#[test]
fn hard_links_to_what_is_not_there_are_refused() {
    refused(
        Archive::new().link("a", "b"),
        "a hard link to \"b\", which is not there",
    );
    refused(
        Archive::new().link("a", "/etc/passwd"),
        "which is not there",
    );
    refused(
        Archive::new().file("a", "").link("a", "a"),
        "which is not there",
    );
    refused(
        Archive::new().directory("d").link("a", "d"),
        "a hard link to the directory \"d\"",
    );
    refused(
        Archive::new().link("a", "/"),
        "a hard link to the directory",
    );
    refused(Archive::new().link("a", ""), "a hard link to the directory");
}

#[test]
fn devices_and_fifos() {
    let device = |path: &'static [u8], kind, device| Entry {
        path,
        kind,
        device,
        ..Entry::default()
    };
    makes(
        &[Archive::new()
            .entry(device(b"c", b'3', (1, 3)))
            .entry(device(b"b", b'4', (4095, 0o3777777)))
            .plain("f", b'6')],
        "bb4095:1048575 cc1:3 f|",
    );
}

#[track_caller]
fn refused(layer: Archive, expected: &str) {
    let error = apply_layers(&[&layer.end()]).map(|tree| listing(&tree));
    match error {
        Err(error) => assert!(error.contains(expected), "{error:?}, expected {expected:?}"),
        Ok(listing) => panic!("{listing}, expected {expected:?}"),
    }
}
