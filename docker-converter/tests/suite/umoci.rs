//! Whether we make of layers what umoci makes of them: random layers, GNU tar's archives, a mounted image.
//!
//! umoci unpacks into a directory of this machine, which needs root.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::Command;

use indicatif::ProgressBar;
use trustme_convert::blob::Blob;
use trustme_convert::convert::read_layers;
use trustme_convert::erofs;
use trustme_convert::flatten;
use trustme_convert::layer::Limits;
use trustme_convert::progress::Progress;
use trustme_convert::source::{self, Access, Source};
use trustme_convert::squashfs::{self, ImageCompression};
use trustme_convert::tarball::Device;
use trustme_convert::tree::{Node, Tree};

use crate::archive::{Archive, Entry};
use crate::image::{Layout, Packing};

/// How many random images are compared in one run; `TRUSTME_IMAGES` names another number.
const IMAGES: u64 = 40;

/// Before this, in seconds from 1970, are the times of all entries; after it is now.
const LATEST: u64 = 1_600_000_000;

/// What is known of a file, as text that shows differences.
type Listing = BTreeMap<Vec<u8>, String>;

/// What we make of an image.
fn ours(layout: &Layout) -> Result<(Tree, Vec<Blob>), String> {
    let source: Source = layout.source().parse().unwrap();
    let limits = Limits {
        size: 1 << 30,
        ratio: 1100,
    };
    let access = Access::new(limits, Progress::hidden());
    let image = source::open(&source, None, &access).map_err(|error| error.to_string())?;
    let dir = std::env::temp_dir();
    read_layers(&image, &dir, limits, Progress::hidden()).map_err(|error| error.to_string())
}

/// What umoci makes of it, in `DIR/rootfs`.
fn theirs(layout: &Layout, dir: &Path) -> Result<(), String> {
    let output = Command::new("umoci")
        .args(["unpack", "--image"])
        .arg(format!("{}:image", layout.dir.display()))
        .arg(dir)
        .output()
        .unwrap();
    match output.status.success() {
        true => Ok(()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn tree_listing(tree: &Tree, layers: &[Blob]) -> Listing {
    let mut listing = Listing::new();
    let mut names: BTreeMap<_, Vec<Vec<u8>>> = BTreeMap::new();
    tree.walk(|path, id| -> Result<(), ()> {
        names.entry(id).or_default().push(path.to_owned());
        Ok(())
    })
    .unwrap();
    tree.walk(|path, id| -> Result<(), ()> {
        let inode = tree.inode(id);
        let device = |kind, device: &Device| format!("{kind} {}:{}", device.major, device.minor);
        let what = match &inode.node {
            Node::Directory(_) => "directory".to_owned(),
            Node::File { layer, content } => {
                let mut bytes = Vec::new();
                flatten::content(&layers[*layer as usize], content, &mut bytes).unwrap();
                format!("file {:?}", String::from_utf8_lossy(&bytes))
            }
            Node::Symlink(target) => format!("symlink {:?}", OsStr::from_bytes(target)),
            Node::Character(numbers) => device("character", numbers),
            Node::Block(numbers) => device("block", numbers),
            Node::Fifo => "fifo".to_owned(),
        };
        let mode = match inode.node {
            Node::Symlink(_) => 0o777,
            _ => inode.meta.mode,
        };
        let mut xattrs: Vec<_> = inode
            .meta
            .xattrs
            .iter()
            .map(|xattr| {
                (
                    OsStr::from_bytes(&xattr.name).to_owned(),
                    xattr.value.to_vec(),
                )
            })
            .collect();
        xattrs.sort();
        listing.insert(
            path.to_owned(),
            format!(
                "{what} {mode:o} {}:{} @{} {xattrs:?} {:?}",
                inode.meta.uid, inode.meta.gid, inode.meta.mtime, names[&id]
            ),
        );
        Ok(())
    })
    .unwrap();
    listing
}

fn directory_listing(root: &Path) -> Listing {
    let mut paths = vec![root.to_owned()];
    let mut found = Vec::new();
    let mut names: BTreeMap<u64, Vec<Vec<u8>>> = BTreeMap::new();
    while let Some(path) = paths.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            paths.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        }
        let relative = path
            .strip_prefix(root)
            .unwrap()
            .as_os_str()
            .as_bytes()
            .to_owned();
        names
            .entry(metadata.ino())
            .or_default()
            .push(relative.clone());
        found.push((relative, path, metadata));
    }
    for names in names.values_mut() {
        // In the order of a walk: names compare before the paths below them.
        names.sort_by(|a, b| {
            a.split(|byte| *byte == b'/')
                .cmp(b.split(|byte| *byte == b'/'))
        });
    }
    let mut listing = Listing::new();
    for (relative, path, metadata) in found {
        let kind = metadata.file_type();
        let numbers = (
            rustix::fs::major(metadata.rdev()),
            rustix::fs::minor(metadata.rdev()),
        );
        let what = match () {
            () if kind.is_dir() => "directory".to_owned(),
            () if kind.is_file() => {
                format!(
                    "file {:?}",
                    String::from_utf8_lossy(&fs::read(&path).unwrap())
                )
            }
            () if kind.is_symlink() => {
                format!("symlink {:?}", fs::read_link(&path).unwrap().as_os_str())
            }
            () if kind.is_char_device() => format!("character {}:{}", numbers.0, numbers.1),
            () if kind.is_block_device() => format!("block {}:{}", numbers.0, numbers.1),
            () => "fifo".to_owned(),
        };
        listing.insert(
            relative,
            format!(
                "{what} {:o} {}:{} @{} {:?} {:?}",
                metadata.mode() & 0o7777,
                metadata.uid(),
                metadata.gid(),
                metadata.mtime(),
                xattrs(&path),
                names[&metadata.ino()]
            ),
        );
    }
    listing
}

fn xattrs(path: &Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
    let mut names = vec![0; 65536];
    let length = rustix::fs::llistxattr(path, &mut names[..]).unwrap();
    let mut xattrs = Vec::new();
    for name in names[..length]
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let name = OsStr::from_bytes(name);
        let mut value = vec![0; 65536];
        let length = rustix::fs::lgetxattr(path, name, &mut value[..]).unwrap();
        value.truncate(length);
        xattrs.push((name.to_owned(), value));
    }
    xattrs.sort();
    xattrs
}

/// A small generator of numbers (Marsaglia, xorshift64): the same images in every run.
struct Random {
    state: u64,
    /// Regular files so far, for hard links that mostly lead somewhere.
    files: Vec<String>,
}

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 8) % limit
    }

    fn pick<'a>(&mut self, from: &[&'a str]) -> &'a str {
        from[self.below(from.len() as u64) as usize]
    }

    fn path(&mut self) -> String {
        let depth = 1 + self.below(3);
        let names: Vec<&str> = (0..depth).map(|_| self.pick(&["a", "b", "c"])).collect();
        names.join("/")
    }

    /// A layer of a few entries, many of which meet those of lower layers.
    fn layer(&mut self) -> Archive {
        let mut archive = Archive::new();
        if self.below(3) == 0 {
            archive = archive.entry(self.meta(b"./", b'5'));
        }
        for _ in 0..1 + self.below(8) {
            let path = self.path();
            let plain = |kind| Entry {
                kind,
                ..Entry::default()
            };
            let mut target = String::new();
            let mut name = path.clone();
            let kind = match (path.contains('/'), self.below(4)) {
                // Directories at the top, lest most paths lead through a file.
                (false, 0..3) => 4,
                _ => self.below(16),
            };
            let mut entry = match kind {
                0..4 => {
                    self.files.push(path.clone());
                    plain(b'0')
                }
                4..8 => plain(b'5'),
                8..10 => {
                    let up = self.pick(&["", "/", "../", "./../../"]);
                    target = format!("{up}{}", self.path());
                    plain(b'2')
                }
                10 => {
                    target = match self.below(self.files.len() as u64 + 1) as usize {
                        0 => self.path(),
                        number => self.files[number - 1].clone(),
                    };
                    plain(b'1')
                }
                11 => plain(b'6'),
                12 => plain(b'3'),
                13 => {
                    let (directory, _) = path.rsplit_once('/').unwrap_or_default();
                    name = format!("{directory}/.wh..wh..opq");
                    plain(b'0')
                }
                _ => {
                    let (directory, last) = path.rsplit_once('/').unwrap_or(("", &path));
                    name = format!("{directory}/.wh.{last}");
                    plain(b'0')
                }
            };
            let content = format!("{}", self.below(1000));
            entry = Entry {
                kind: entry.kind,
                content: match entry.kind {
                    b'0' => content.as_bytes(),
                    _ => b"",
                },
                link: target.as_bytes(),
                ..self.meta(name.as_bytes(), entry.kind)
            };
            archive = archive.entry(entry);
        }
        archive
    }

    fn meta<'a>(&mut self, path: &'a [u8], kind: u8) -> Entry<'a> {
        let modes = [0o644, 0o4755, 0o1777, 0o2750, 0];
        Entry {
            path,
            kind,
            mode: modes[self.below(modes.len() as u64) as usize],
            uid: self.below(3) * 40000,
            gid: self.below(3),
            mtime: self.below(LATEST),
            device: (self.below(300) as u32, self.below(70000) as u32),
            xattrs: match (self.below(4), kind) {
                (0, b'0' | b'5') => vec![("user.x", &b"one\ntwo\0"[..])],
                (1, b'0' | b'5' | b'2') => vec![("trusted.t", &b"\xff"[..])],
                _ => Vec::new(),
            },
            ..Entry::default()
        }
    }
}

#[test]
fn random_layers() {
    let images = std::env::var("TRUSTME_IMAGES").map_or(IMAGES, |number| number.parse().unwrap());
    let (mut taken, mut refused) = (0, 0);
    for seed in 1..=images {
        let mut random = Random {
            state: seed.wrapping_mul(0x9e37_79b9_7f4a_7c15),
            files: Vec::new(),
        };
        let dir = tempfile::tempdir().unwrap();
        let mut layout = Layout::new(&dir.path().join("layout"));
        for _ in 0..1 + random.below(4) {
            let packing = match random.below(2) {
                0 => Packing::Plain,
                _ => Packing::Gzip,
            };
            layout.layer(&random.layer().end(), packing);
        }
        layout.finish();
        let unpacked = dir.path().join("unpacked");
        let (ours, theirs) = (ours(&layout), theirs(&layout, &unpacked));
        match (ours, theirs) {
            (Ok((tree, layers)), Ok(())) => {
                taken += 1;
                let ours = tree_listing(&tree, &layers);
                let mut theirs = directory_listing(&unpacked.join("rootfs"));
                same_but_for_times_of_implied_directories(&ours, &mut theirs);
                let differing = |(path, text): &(&Vec<u8>, &String)| ours.get(*path) != Some(text);
                if ours != theirs {
                    let theirs: Vec<_> = theirs.iter().filter(differing).collect();
                    panic!("seed {seed}: umoci has {theirs:#?}, we have {ours:#?}");
                }
            }
            (Err(_), Err(_)) => refused += 1,
            (ours, theirs) => panic!("seed {seed}: {:?} {theirs:?}", ours.map(|_| ())),
        }
    }
    println!("{taken} images are the same, {refused} are refused by both");
    assert!(taken > images / 4);
}

/// What hostile images hold, each against umoci: what it takes must be the same, what we alone refuse is listed.
#[test]
fn hostile_layers_are_what_umoci_makes_of_them() {
    let lower = || {
        Archive::new()
            .directory("a")
            .directory("a/b")
            .file("a/b/c", "lower")
            .file("a/d", "lower")
            .file("e", "lower")
    };
    let device = |path, kind, device| Entry {
        path,
        kind,
        device,
        mode: 0o666,
        ..Entry::default()
    };
    let cases: Vec<(&str, Archive, Option<&str>)> = vec![
        (
            "dots",
            Archive::new()
                .file("../../x", "1")
                .file("a/../y", "2")
                .file("a/b/../../../../z", "3"),
            None,
        ),
        (
            "dots in links",
            Archive::new()
                .file("x", "")
                .link("y", "../x")
                .link("a/z", "/a/./b/../d"),
            None,
        ),
        (
            "absolute",
            Archive::new().file("/x", "1").file("//a///y", "2"),
            None,
        ),
        (
            "through a symbolic link",
            Archive::new()
                .symlink("l", "/a/b")
                .file("l/x", "1")
                .symlink("m", "../../..")
                .file("m/y", "2"),
            None,
        ),
        (
            "through a symbolic link of a lower layer",
            Archive::new().symlink("a/b/up", "..").file("a/b/up/x", "1"),
            None,
        ),
        (
            "a loop of symbolic links",
            Archive::new()
                .symlink("l", "m")
                .symlink("m", "l")
                .file("l/x", ""),
            Some("255 symbolic links"),
        ),
        (
            "a loop that nothing goes through",
            Archive::new().symlink("l", "m").symlink("m", "l"),
            None,
        ),
        (
            "a hard link to itself",
            Archive::new().link("l", "l"),
            Some("which is not there"),
        ),
        (
            "a loop of hard links",
            Archive::new().link("l", "m").link("m", "l"),
            Some("which is not there"),
        ),
        (
            "a hard link to a directory",
            Archive::new().link("l", "a"),
            Some("to the directory"),
        ),
        (
            "a hard link through a symbolic link",
            Archive::new().symlink("l", "a").link("x", "l/d"),
            None,
        ),
        (
            "duplicate entries",
            Archive::new()
                .file("x", "1")
                .file("x", "2")
                .directory("y")
                .file("y/z", "")
                .directory("y"),
            None,
        ),
        (
            "duplicates of other kinds",
            Archive::new()
                .file("x", "1")
                .symlink("x", "e")
                .directory("a/d")
                .file("a/d/y", "2"),
            None,
        ),
        (
            "a file in the place of a directory",
            Archive::new().file("a", "now a file"),
            None,
        ),
        (
            "not UTF-8",
            Archive::new().entry(Entry {
                path: b"\xff\xfe/\x80",
                content: b"1",
                ..Entry::default()
            }),
            None,
        ),
        (
            "devices",
            Archive::new()
                .entry(device(b"null", b'3', (1, 3)))
                .entry(device(b"disk", b'4', (8, 1)))
                .entry(device(b"fifo", b'6', (0, 0))),
            None,
        ),
        (
            "set-user-ID",
            Archive::new().entry(Entry {
                path: b"sh",
                mode: 0o6755,
                uid: 0,
                gid: 42,
                content: b"#!",
                ..Entry::default()
            }),
            None,
        ),
        (
            "a whiteout of the directory it stands in",
            Archive::new().file("a/b/.wh.", ""),
            Some("a whiteout that deletes nothing"),
        ),
        (
            "the same, with a dot",
            Archive::new().file("a/b/.wh..", ""),
            Some("a whiteout that deletes nothing"),
        ),
        (
            "a whiteout of the parent",
            Archive::new().file("a/b/.wh...", ""),
            Some("a whiteout that deletes nothing"),
        ),
        (
            "a whiteout through dots",
            Archive::new().file("a/../a/b/../.wh.d", ""),
            None,
        ),
        (
            "a whiteout of a directory, and something in it",
            Archive::new().file(".wh.a", "").file("a/x", "1"),
            None,
        ),
        (
            "an opaque root",
            Archive::new().file(".wh..wh..opq", "").file("x", "1"),
            None,
        ),
        (
            "a whiteout of itself",
            Archive::new().file("x", "1").file(".wh.x", ""),
            None,
        ),
    ];
    for (name, upper, refused) in cases {
        let dir = tempfile::tempdir().unwrap();
        let mut layout = Layout::new(&dir.path().join("layout"));
        layout
            .layer(&lower().end(), Packing::Gzip)
            .layer(&upper.end(), Packing::Gzip)
            .finish();
        let unpacked = dir.path().join("unpacked");
        let ours = ours(&layout);
        if let Some(expected) = refused {
            let error = ours.map(|_| ()).unwrap_err();
            assert!(error.contains(expected), "{name}: {error}");
            theirs(&layout, &unpacked).expect_err(name);
            continue;
        }
        let (tree, layers) = ours.unwrap_or_else(|error| panic!("{name}: {error}"));
        theirs(&layout, &unpacked).unwrap_or_else(|error| panic!("{name}: umoci: {error}"));
        let ours = tree_listing(&tree, &layers);
        let mut theirs = directory_listing(&unpacked.join("rootfs"));
        same_but_for_times_of_implied_directories(&ours, &mut theirs);
        assert_eq!(ours, theirs, "{name}");
    }
}

/// umoci gives a directory that no entry describes, and the directory that it makes it in, the time when it unpacks; to us the
/// first is of 1970, the second as it was.
fn same_but_for_times_of_implied_directories(ours: &Listing, theirs: &mut Listing) {
    let time = |text: &str| -> (usize, usize, u64) {
        let start = text.find(" @").unwrap() + 2;
        let end = start + text[start..].find(' ').unwrap();
        (start, end, text[start..end].parse().unwrap())
    };
    for (path, their) in theirs {
        let (start, end, seconds) = time(their);
        if let Some(our) = ours.get(path)
            && their.starts_with("directory")
            && seconds > LATEST
        {
            their.replace_range(start..end, &time(our).2.to_string());
        }
    }
}

/// Everything in one image, as squashfs and Linux show it when it is mounted.
#[test]
fn a_mounted_image_is_what_umoci_unpacks() {
    let dir = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(&dir.path().join("layout"));
    let long = "directory-with-a-long-name/".repeat(9) + "file";
    let entry = |path: &'static [u8], kind| Entry {
        path,
        kind,
        mtime: 1_234_567_890,
        ..Entry::default()
    };
    // VFS_CAP_REVISION_2 with cap_net_bind_service, and a line end in it.
    let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\x0a\0\0\0\0\0\0\0";
    layout.layer(
        &Archive::new()
            .entry(Entry {
                mode: 0o1751,
                uid: 12,
                gid: 34,
                xattrs: vec![("user.root", b"yes"), ("trusted.root", b"\0\n=")],
                ..entry(b"./", b'5')
            })
            .entry(Entry {
                mode: 0o4755,
                content: b"program",
                xattrs: vec![("security.capability", capability)],
                ..entry(b"program", b'0')
            })
            .entry(Entry {
                uid: 3_000_000_000,
                gid: 4_294_967_294,
                mode: 0o2777,
                ..entry(b"far", b'5')
            })
            .entry(Entry {
                content: b"not UTF-8",
                ..entry(b"far/\xff\xfe\x0a", b'0')
            })
            .entry(Entry {
                link: b"\xff/../x",
                xattrs: vec![("trusted.link", b"t")],
                uid: 7,
                ..entry(b"far/link", b'2')
            })
            .entry(Entry {
                device: (4095, 1_048_575),
                ..entry(b"far/device", b'3')
            })
            .entry(Entry {
                device: (8, 1),
                ..entry(b"far/disk", b'4')
            })
            .link("far/device-too", "far/device")
            .link("far/link-too", "far/link")
            .entry(entry(b"far/fifo", b'6'))
            .directory("directory-with-a-long-name")
            .file(&long, "long")
            .file("empty", "")
            // As systemd calls its units.
            .file("system-systemd\\x2dfsck.slice", "")
            .file("back\\slash/..\\x", "")
            .file(" spaces ", "")
            .end(),
        Packing::Gzip,
    );
    layout.layer(
        &Archive::new()
            .link("again", "program")
            .link(&format!("{long}-too"), &long)
            .end(),
        Packing::Gzip,
    );
    // What tar --sparse and GNU's and POSIX's long names look like.
    let files = dir.path().join("files");
    fs::create_dir(&files).unwrap();
    let mut sparse = fs::File::create(files.join("sparse")).unwrap();
    sparse.set_len(20 << 20).unwrap();
    sparse.write_all(b"begin").unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"middle", 9_999_999).unwrap();
    drop(sparse);
    let many = fs::File::create(files.join("many-pieces")).unwrap();
    for piece in 0..40 {
        std::os::unix::fs::FileExt::write_all_at(&many, b"piece", piece << 16).unwrap();
    }
    drop(many);
    fs::write(files.join("n".repeat(200)), "long name").unwrap();
    for format in [
        &["--format=posix", "--sparse-version=1.0"][..],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=0.0"],
    ] {
        let mut tar = Command::new("tar");
        let output = tar
            .args(["--sparse", "-C"])
            .arg(&files)
            .args(format)
            .args(["-c", "."])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        layout.layer(&output.stdout, Packing::Gzip);
    }
    layout.finish();
    let unpacked = dir.path().join("unpacked");
    theirs(&layout, &unpacked).unwrap();
    let (tree, layers) = ours(&layout).unwrap();
    let expected = directory_listing(&unpacked.join("rootfs"));
    for compression in [
        Some(ImageCompression::Zstd),
        Some(ImageCompression::Gzip),
        None,
    ] {
        let image = dir.path().join(format!("{compression:?}.img"));
        let losses = match compression {
            Some(compression) => squashfs::make(&image, compression, 0, |to| {
                flatten::write(&tree, &layers, to)
            }),
            None => erofs::make(&image, 0, &tree, &layers, &ProgressBar::hidden()),
        }
        .unwrap();
        assert_eq!(losses, [""; 0]);
        assert_eq!(fs::metadata(&image).unwrap().len() % 4096, 0);
        let kind = compression.map_or("erofs", |_| "squashfs");
        let mounted = Mounted::new(&image, &dir.path().join("mounted"), kind);
        let found = directory_listing(&mounted.0);
        let mut expected = expected.clone();
        same_but_for_times_of_implied_directories(&found, &mut expected);
        let differing = |path: &&Vec<u8>| found.get(*path) != expected.get(*path);
        if let Some(path) = found.keys().chain(expected.keys()).find(differing) {
            let shown = |listing: &Listing| listing.get(path).map(|text| format!("{text:.200}"));
            panic!(
                "{kind}, {:?}: {:?}, expected {:?}",
                String::from_utf8_lossy(path),
                shown(&found),
                shown(&expected)
            );
        }
    }
    // GNU's own old form, which umoci refuses, gives the same as the newer ones.
    let output = Command::new("tar")
        .args(["--sparse", "--format=gnu", "-C"])
        .arg(&files)
        .args(["-c", "."])
        .output()
        .unwrap();
    layout.layer(&output.stdout, Packing::Gzip).finish();
    let (gnu, gnu_layers) = ours(&layout).unwrap();
    let before = tree_listing(&tree, &layers);
    let after = tree_listing(&gnu, &gnu_layers);
    assert_eq!(
        before.keys().collect::<Vec<_>>(),
        after.keys().collect::<Vec<_>>()
    );
    for path in [&b"sparse"[..], b"many-pieces"] {
        assert!(before[path] == after[path]);
    }
}

/// A mounted image, until it is dropped.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn new(image: &Path, place: &Path, kind: &str) -> Self {
        fs::create_dir_all(place).unwrap();
        let status = Command::new("mount")
            .args(["-o", "loop,ro", "-t", kind])
            .arg(image)
            .arg(place)
            .status()
            .unwrap();
        assert!(status.success());
        Self(place.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
