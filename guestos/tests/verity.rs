//! dm-verity hash images against `veritysetup` of cryptsetup.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;
use trustme_guestos::verity::{self, BLOCK, VerityError};

struct Files(TempDir);

impl Files {
    fn new(blocks: usize) -> Self {
        let files = Self(TempDir::new().unwrap());
        let noise = |place: usize| (place.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 41) as u8;
        fs::write(
            files.path("data"),
            (0..blocks * BLOCK).map(noise).collect::<Vec<_>>(),
        )
        .unwrap();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn open(&self, name: &str) -> File {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.path(name))
            .unwrap()
    }

    fn veritysetup(&self, action: &[&str], hash: &str, options: &[&str]) -> Result<String, String> {
        let output = Command::new("veritysetup")
            .args(&action[..1])
            .args(options)
            .args([self.path("data"), self.path(hash)])
            .args(&action[1..])
            .output()
            .unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap()),
            false => Err(String::from_utf8(output.stderr).unwrap()),
        }
    }
}

/// One block, one level, a full level, two levels, a full second level and three levels.
const SIZES: [usize; 7] = [1, 2, 128, 129, 1000, 128 * 128, 128 * 128 + 1];

#[test]
fn veritysetup_verifies_our_tree() {
    for blocks in SIZES {
        for salt in [&b""[..], &[7; 32], &[9; 256]] {
            let files = Files::new(blocks);
            let root = verity::format(&files.open("data"), &files.open("hash"), salt).unwrap();
            files
                .veritysetup(&["verify", &hex::encode(root)], "hash", &[])
                .unwrap();
            verity::check(&files.open("data"), &files.open("hash"), &root).unwrap();
            let mut other = root;
            other[31] ^= 1;
            assert!(
                files
                    .veritysetup(&["verify", &hex::encode(other)], "hash", &[])
                    .is_err()
            );
            let error =
                verity::check(&files.open("data"), &files.open("hash"), &other).unwrap_err();
            assert!(
                matches!(error, VerityError::Root | VerityError::Superblock(_)),
                "{error}"
            );
        }
    }
}

#[test]
fn we_verify_the_tree_of_veritysetup() {
    for blocks in SIZES {
        let files = Files::new(blocks);
        let printed = files
            .veritysetup(&["format"], "hash", &["--salt", &"ab".repeat(32)])
            .unwrap();
        let root = printed
            .lines()
            .find_map(|line| line.strip_prefix("Root hash:"))
            .unwrap()
            .trim();
        let mut digest = [0; 32];
        hex::decode_to_slice(root, &mut digest).unwrap();
        verity::check(&files.open("data"), &files.open("hash"), &digest).unwrap();
        let ours = verity::format(&files.open("data"), &files.open("ours"), &[0xab; 32]).unwrap();
        assert_eq!(hex::encode(ours), root);
        let (ours, theirs) = (
            fs::read(files.path("ours")).unwrap(),
            fs::read(files.path("hash")).unwrap(),
        );
        assert!(
            ours[..16] == theirs[..16] && ours[32..] == theirs[32..],
            "{blocks} blocks: only the UUID differs"
        );
    }
}

#[test]
fn no_changed_byte_is_accepted() {
    let files = Files::new(300);
    let root = verity::format(&files.open("data"), &files.open("hash"), &[1; 32]).unwrap();
    let check = || verity::check(&files.open("data"), &files.open("hash"), &root);
    let superblock = 0..BLOCK as u64;
    let tree = (BLOCK as u64..5 * BLOCK as u64).step_by(31);
    let data = (0..300 * BLOCK as u64).step_by(5 * BLOCK + 1);
    for (name, place) in superblock
        .chain(tree)
        .map(|place| ("hash", place))
        .chain(data.map(|place| ("data", place)))
    {
        let file = files.open(name);
        let mut byte = [0];
        file.read_exact_at(&mut byte, place).unwrap();
        for mask in [0x01, 0x80, 0xff] {
            file.write_all_at(&[byte[0] ^ mask], place).unwrap();
            let error = check().expect_err(&format!("byte {place} of {name}"));
            if name == "data" {
                let block = place / BLOCK as u64;
                assert_eq!(
                    error.to_string(),
                    format!("data block {block} differs from its digest in the hash tree")
                );
            }
        }
        file.write_all_at(&byte, place).unwrap();
    }
    check().unwrap();
}

#[test]
fn sizes_that_do_not_fit_are_named() {
    let files = Files::new(3);
    let root = verity::format(&files.open("data"), &files.open("hash"), &[]).unwrap();
    let check = || {
        verity::check(&files.open("data"), &files.open("hash"), &root)
            .unwrap_err()
            .to_string()
    };
    files.open("hash").set_len(3 * BLOCK as u64).unwrap();
    assert_eq!(check(), "hash tree: 12288 bytes, expected 8192");
    files.open("hash").set_len(10).unwrap();
    assert_eq!(check(), "hash tree: 10 bytes, expected 4096");
    let hash = files.open("new");
    verity::format(&files.open("data"), &hash, &[]).unwrap();
    files.open("data").set_len(4 * BLOCK as u64).unwrap();
    let error = verity::check(&files.open("data"), &hash, &root)
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "hash tree: superblock: for 3 blocks of data, there are 4"
    );
    files.open("data").set_len(5).unwrap();
    let error = verity::format(&files.open("data"), &hash, &[])
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "hash tree: data of 5 bytes: expected a positive multiple of 4096"
    );
    files.open("data").set_len(BLOCK as u64).unwrap();
    assert!(verity::format(&files.open("data"), &hash, &[0; 257]).is_err());
}
