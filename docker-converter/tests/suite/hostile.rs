//! Archives that are broken or lie, made of raw bytes.

use trustme_convert::tarball::{Kind, Piece, Reader};

use crate::archive::{Archive, Entry};

/// The first error, or nothing where the archive can be read to its end.
fn read(bytes: &[u8]) -> Result<Vec<trustme_convert::tarball::Entry>, String> {
    let mut reader = Reader::new(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry().map_err(|error| error.to_string())? {
        entries.push(entry);
    }
    Ok(entries)
}

#[track_caller]
fn refused(bytes: &[u8], expected: &str) {
    match read(bytes) {
        Err(error) => assert!(error.contains(expected), "{error:?}, expected {expected:?}"),
        Ok(entries) => panic!("{entries:?}, expected {expected:?}"),
    }
}

fn header(kind: u8, size: &[u8]) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    let fields = header.as_old_mut();
    fields.name[0] = b'a';
    fields.linkflag = [kind];
    fields.size[..size.len()].copy_from_slice(size);
    header
}

#[test]
fn every_truncation_is_noticed() {
    let whole = Archive::new()
        .directory("d")
        .entry(Entry {
            path: b"d/x",
            content: &[7; 700],
            xattrs: vec![("user.x", b"value")],
            ..Entry::default()
        })
        .file("d/y", "y");
    let boundaries = [
        0, 512,  // after d
        3072, // after d/x: extended header, its record, header, two blocks
        4096, // after d/y
    ];
    // The padding of the last entry may be missing: 700 bytes of d/x, 1 of d/y.
    let paddings = [2048 + 700..3072, 3584 + 1..4096];
    let bytes = whole.bytes();
    assert_eq!(bytes.len(), 4096);
    for length in 0..=bytes.len() {
        let complete = read(&bytes[..length]).is_ok();
        let expected = boundaries.contains(&length)
            || paddings.iter().any(|padding| padding.contains(&length));
        assert_eq!(complete, expected, "{length} bytes");
    }
    let archive = &bytes[..2600];
    refused(
        archive,
        "entry \"d/x\" at byte 512: the archive ends within it",
    );
    refused(
        &bytes[..1536],
        "at byte 512: the archive ends where an entry is announced",
    );
    // Behind the end, anything may follow; after one block of zeros, nothing.
    assert_eq!(
        read(&[&whole.clone().end(), &[9; 700][..]].concat())
            .unwrap()
            .len(),
        3
    );
    let hidden = [bytes, &[0; 512], bytes].concat();
    refused(&hidden, "an entry after a block of zeros");
}

#[test]
fn headers_that_are_none() {
    refused(&[b'x'; 512], "no tar header");
    let mut bytes = Archive::new().file("a", "x").end();
    bytes[0] ^= 1;
    refused(&bytes, "at byte 0: no tar header: its checksum is");
    for kind in [b'V', b'M', b'7', b'A', 0xff] {
        refused(
            &Archive::new().plain("a", kind).end(),
            "an entry of the unknown type",
        );
    }
}

#[test]
fn sizes_that_lie() {
    for (size, expected) in [
        (&b"77777777777"[..], "the archive ends within it"),
        (
            b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
            "the archive ends within it",
        ),
        (
            b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff",
            "a size of -1",
        ),
        (
            b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
            "size is no number",
        ),
        (b"0000000009\0", "size is no number"),
    ] {
        for kind in [b'0', b'S'] {
            let archive = Archive::new().header(header(kind, size)).end();
            match kind {
                b'0' => refused(&archive, expected),
                _ => assert!(read(&archive).is_err()),
            }
        }
        for kind in [b'x', b'L', b'g'] {
            let archive = Archive::new().header(header(kind, size)).end();
            assert!(read(&archive).is_err());
        }
    }
    // The size in the extended header counts, so that nothing hides behind the other one.
    let inner = Archive::new().file("evil", "").bytes().to_owned();
    let archive = Archive::new()
        .extended(&[("size", b"512")])
        .header(header(b'0', b"0"))
        .content(&inner)
        .end();
    let entries = read(&archive).unwrap();
    assert_eq!(entries.len(), 1);
    assert!(matches!(&entries[0].kind, Kind::File(content) if content.size == 512));
    // Directories and links have no content, whatever their size says.
    let archive = Archive::new()
        .header(header(b'5', b"512"))
        .file("b", "")
        .end();
    assert_eq!(read(&archive).unwrap().len(), 2);
    let archive = Archive::new()
        .extended(&[("size", b"99999999999999999999")])
        .file("a", "")
        .end();
    refused(&archive, "size is no number");
}

#[test]
fn extended_headers_that_readers_take_differently() {
    let twice = Archive::new()
        .extended(&[("path", b"a")])
        .extended(&[("path", b"b")])
        .file("c", "");
    refused(&twice.end(), "two extended headers before one entry");
    let long = |kind| Archive::new().header(header(kind, b"2")).content(b"n\0");
    refused(
        &long(b'L').content(long(b'L').bytes()).file("a", "").end(),
        "two long names",
    );
    refused(
        &long(b'K').content(long(b'K').bytes()).file("a", "").end(),
        "two long link names",
    );
    refused(
        &long(b'L').end(),
        "the archive ends where an entry is announced",
    );
    let mut many = Archive::new();
    for _ in 0..20 {
        many = many.header(header(b'g', b"0"));
    }
    refused(
        &many.file("a", "").end(),
        "more than 16 headers before one entry",
    );
    let global = Archive::new()
        .header(header(b'g', b"15"))
        .content(b"13 path=evil\n");
    refused(
        &global.file("a", "").end(),
        "a global extended header with \"path\"",
    );
    let git = Archive::new()
        .header(header(b'g', b"20"))
        .content(b"16 comment=abcd\n");
    assert_eq!(read(&git.file("a", "").end()).unwrap().len(), 1);
    let huge = Archive::new().header(header(b'x', b"7777777")).end();
    refused(&huge, "an extended header of 2097151 bytes");
}

#[test]
fn names_and_numbers_out_of_range() {
    let with = |records: &[(&str, &[u8])]| Archive::new().extended(records).file("a", "").end();
    refused(&with(&[("uid", b"4294967295")]), "uid 4294967295");
    refused(&with(&[("gid", b"4294967296")]), "gid 4294967296");
    refused(&with(&[("uid", b"-1")]), "uid is no number");
    refused(&with(&[("path", b"a\0b")]), "a path with a NUL");
    refused(
        &with(&[("SCHILY.xattr.", b"x")]),
        "an extended attribute called \"\"",
    );
    let name = format!("SCHILY.xattr.user.{}", "n".repeat(251));
    refused(&with(&[(&name, b"x")]), "an extended attribute called");
    let value = vec![b'v'; 65537];
    refused(
        &with(&[("SCHILY.xattr.user.v", &value)]),
        "has 65537 bytes, Linux allows 65536",
    );
    refused(
        &Archive::new().symlink("a", "").end(),
        "a symbolic link to nothing",
    );
    refused(
        &Archive::new().symlink("a", &"t/".repeat(2048)).end(),
        "a symbolic link to 4096 bytes",
    );
    let mut device = header(b'3', b"0");
    device.set_device_major(4096).unwrap();
    device.set_device_minor(0).unwrap();
    refused(
        &Archive::new().header(device).end(),
        "a device with the numbers 4096:0",
    );
    // GNU's header has times where ustar has the prefix: old Go wrote a prefix there.
    let mut gnu = tar::Header::new_gnu();
    gnu.as_old_mut().name[0] = b'a';
    gnu.set_size(0);
    gnu.as_mut_bytes()[345..348].copy_from_slice(b"dir");
    refused(
        &Archive::new().header(gnu).end(),
        "a GNU header with ustar's path prefix",
    );
}

#[test]
fn every_form_of_names() {
    let long = "directory/".repeat(20) + "file";
    let mut gnu = Archive::new()
        .header(header(b'L', format!("{:o}", long.len() + 1).as_bytes()))
        .content(format!("{long}\0").as_bytes())
        .header(header(b'K', format!("{:o}", long.len() + 1).as_bytes()))
        .content(format!("{long}\0").as_bytes());
    gnu = gnu.header(header(b'2', b"0"));
    let entries = read(&gnu.end()).unwrap();
    assert_eq!(&*entries[0].path, long.as_bytes());
    assert_eq!(entries[0].kind, Kind::Symlink(long.as_bytes().into()));

    let mut ustar = header(b'0', b"0");
    ustar.as_ustar_mut().unwrap().prefix[..3].copy_from_slice(b"p/q");
    let entries = read(&Archive::new().header(ustar).end()).unwrap();
    assert_eq!(&*entries[0].path, b"p/q/a");

    // Before POSIX, directories had no type.
    let mut old = header(0, b"0");
    old.as_old_mut().name[..4].copy_from_slice(b"dir/");
    let entries = read(&Archive::new().header(old).end()).unwrap();
    assert_eq!(
        (&*entries[0].path, &entries[0].kind),
        (&b"dir"[..], &Kind::Directory)
    );
}

/// A file of 5000 bytes: 10 at 0, 20 at 1000, 5 at 4995.
const PIECES: [(u64, u64); 3] = [(0, 10), (1000, 20), (4995, 5)];

#[track_caller]
fn is_sparse(archive: Archive, position: u64) {
    let entries = read(&archive.clone().file("next", "").end()).unwrap();
    assert_eq!(entries.len(), 2, "{entries:?}");
    assert_eq!(&*entries[0].path, b"sparse");
    let mut from = position;
    let pieces: Vec<Piece> = PIECES
        .iter()
        .map(|(offset, length)| {
            let piece = Piece {
                offset: *offset,
                position: from,
                length: *length,
            };
            from += length;
            piece
        })
        .collect();
    match &entries[0].kind {
        Kind::File(content) => assert_eq!((content.size, &*content.pieces), (5000, &*pieces)),
        other => panic!("{other:?}"),
    }
}

/// The four forms that GNU tar writes (its manual, "Storing Sparse Files"); `tar --sparse` itself is in umoci.rs.
#[test]
fn sparse_files() {
    let content = [1; 35];
    is_sparse(
        Archive::new()
            .extended(&[
                ("GNU.sparse.size", b"5000"),
                ("GNU.sparse.numblocks", b"3"),
                ("GNU.sparse.offset", b"0"),
                ("GNU.sparse.numbytes", b"10"),
                ("GNU.sparse.offset", b"1000"),
                ("GNU.sparse.numbytes", b"20"),
                ("GNU.sparse.offset", b"4995"),
                ("GNU.sparse.numbytes", b"5"),
                ("path", b"sparse"),
            ])
            .header(header(b'0', b"43"))
            .content(&content),
        1536,
    );
    let version_0_1: [(&str, &[u8]); 4] = [
        ("GNU.sparse.size", b"5000"),
        ("GNU.sparse.numblocks", b"3"),
        ("GNU.sparse.map", b"0,10,1000,20,4995,5"),
        ("GNU.sparse.name", b"sparse"),
    ];
    is_sparse(
        Archive::new()
            .extended(&version_0_1)
            .header(header(b'0', b"43"))
            .content(&content),
        1536,
    );
    let version_1_0: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", b"5000"),
    ];
    is_sparse(
        Archive::new()
            .extended(&version_1_0)
            // 512 of the map and 35 of content
            .header(header(b'0', b"1043"))
            .content(b"3\n0\n10\n1000\n20\n4995\n5\n")
            .content(&content),
        2048,
    );
    for (map, size) in [
        (&b"0,10,5,20"[..], &b"5000"[..]),
        (b"0,10,1000,20,4995,6", b"5000"),
        (b"0,10,1000,20,4995,5", b"4999"),
        (b"0,10,1000", b"5000"),
        (b"0,10", b"5000"),
        (b"9223372036854775807,9223372036854775807", b"5000"),
    ] {
        let mut records = version_0_1;
        records[0].1 = size;
        records[2].1 = map;
        let archive = Archive::new()
            .extended(&records)
            .header(header(b'0', b"43"))
            .content(&content);
        refused(&archive.end(), "a sparse map");
    }
    for map in [
        &b"3\n0\n10\n"[..],
        b"x\n",
        b"99999999999\n1\n",
        b"-1\n",
        b"1\n-5\n3\n",
        b"",
    ] {
        let archive = Archive::new()
            .extended(&version_1_0)
            .header(header(b'0', b"1000"))
            .content(map)
            .end();
        assert!(read(&archive).is_err(), "{map:?}");
    }
    refused(
        &Archive::new()
            .extended(&[("GNU.sparse.major", b"2"), ("GNU.sparse.minor", b"0")])
            .file("a", "")
            .end(),
        "a sparse file of version 2.0",
    );
}
