//! Bundles on disk: written whole or not at all, read without being led astray.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use tempfile::TempDir;
use trustme_guestos::bundle::{Bundle, BundleError};
use trustme_guestos::write::{BundleWriter, replace_file};

const IMAGE: &[u8] = b"what is in the image";

/// What an error and its causes say, as the programs print it.
fn chain(error: BundleError) -> String {
    format!("{:#}", anyhow::Error::from(error))
}

fn digest(program: &str, path: &Path) -> String {
    let output = Command::new(program).arg(path).output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .split(' ')
        .next()
        .unwrap()
        .to_owned()
}

fn conf(digests: &str) -> String {
    format!(
        "name: \"web\"\nhardware: \"x86\"\nversion: 3\nmounts {{\n  image_file: \"root\"\n  mount_point: \"/\"\n  \
         fs_type: \"squashfs\"\n  mount_type: SHARED\n  image_size: {}\n{digests}}}\ndescription {{\n  en: \"a test\"\n}}\n",
        IMAGE.len()
    )
}

fn write(out: &Path, force: bool) -> Result<PathBuf, String> {
    let writer = BundleWriter::create(out, "web", 3, force).map_err(chain)?;
    let image = writer.images().join("root.img");
    fs::write(&image, IMAGE).unwrap();
    let digests = format!("  image_sha2_256: \"{}\"\n", digest("sha256sum", &image));
    writer
        .finish(conf(&digests).as_bytes(), b"sig", b"cert", Some(b"{}"))
        .map_err(chain)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

const WHOLE: [&str; 5] = [
    "web-3",
    "web-3.cert",
    "web-3.conf",
    "web-3.sig",
    "web-3.sigstore.json",
];

#[test]
fn a_bundle_appears_whole_and_is_not_replaced_unasked() {
    let dir = TempDir::new().unwrap();
    let out = dir.path().join("new/out");
    let path = write(&out, false).unwrap();
    assert_eq!(path, out.join("web-3.conf"));
    assert_eq!(names(&out), WHOLE);
    let bundle = Bundle::open(&path).unwrap();
    let image = bundle.verify_image(&bundle.mounts()[0]).unwrap();
    assert_eq!(
        (image.size, hex::encode(image.sha256)),
        (20, digest("sha256sum", &out.join("web-3/root.img")))
    );

    let exists = write(&out, false).unwrap_err();
    assert_eq!(
        exists,
        format!("{}: exists already", out.join("web-3").display())
    );
    fs::write(out.join("web-3/other.img"), "old").unwrap();
    write(&out, true).unwrap();
    assert_eq!(names(&out), WHOLE);
    assert_eq!(names(&out.join("web-3")), ["root.img"]);

    drop(BundleWriter::create(&out, "web", 4, false).unwrap());
    assert_eq!(
        names(&out),
        WHOLE,
        "a bundle that was not finished leaves nothing"
    );
}

#[test]
fn what_a_killed_writer_left_is_removed_or_completed() {
    let dir = TempDir::new().unwrap();
    let out = dir.path();
    // Killed before it was finished.
    let writer = BundleWriter::create(out, "other", 1, false).unwrap();
    let kept = BundleWriter::create(out, "kept", 1, false).unwrap();
    assert_eq!(names(out).len(), 2, "the other writer lives");
    std::mem::forget(writer);
    drop(kept);
    // The lock of a forgotten writer stays with this process: take its place as a killed one's would be.
    let forgotten = out.join(&names(out)[0]);
    let copy = out.join(".other-1.0abcde");
    fs::rename(&forgotten, dir.path().join("aside")).unwrap();
    fs::create_dir_all(copy.join("images")).unwrap();
    fs::write(copy.join("images/root.img"), "half").unwrap();
    fs::remove_dir_all(dir.path().join("aside")).unwrap();
    // Killed while it moved what was complete: before the images, and between the files.
    write(out, false).unwrap();
    assert_eq!(names(out), WHOLE);
    let staged = out.join(".web-3.012345.complete");
    fs::create_dir(&staged).unwrap();
    fs::rename(out.join("web-3"), staged.join("images")).unwrap();
    for file in ["web-3.conf", "web-3.sigstore.json"] {
        fs::rename(out.join(file), staged.join(file)).unwrap();
    }
    assert!(write(out, false).unwrap_err().ends_with("exists already"));
    assert_eq!(names(out), WHOLE);
    let bundle = Bundle::open(&out.join("web-3.conf")).unwrap();
    bundle.verify_image(&bundle.mounts()[0]).unwrap();
    // Not ours.
    fs::create_dir(out.join(".web-3.backup")).unwrap();
    fs::create_dir(out.join(".git")).unwrap();
    write(out, true).unwrap();
    assert_eq!(names(out)[..2], [".git", ".web-3.backup"]);
}

#[test]
fn images_that_differ_are_named() {
    let dir = TempDir::new().unwrap();
    let out = dir.path();
    let path = write(out, false).unwrap();
    let image = out.join("web-3/root.img");
    let (sha1, sha256) = (digest("sha1sum", &image), digest("sha256sum", &image));
    let refusal = || {
        let bundle = Bundle::open(&path).unwrap();
        bundle
            .verify_image(&bundle.mounts()[0])
            .map(|image| image.size)
            .map_err(chain)
    };
    let of_sha1 = |text: &str| format!("  image_sha1: \"{text}\"\n");
    let of_sha256 = |text: &str| format!("  image_sha2_256: \"{text}\"\n");
    let zeros = "0".repeat(40);
    let at = |reason: &str| Err(format!("{}: {reason}", image.display()));
    for (digests, expected) in [
        (of_sha1(&sha1), Ok(20)),
        (
            of_sha1(&zeros),
            at(&format!("its SHA-1 is {sha1}, {zeros} is signed")),
        ),
        (of_sha1(&zeros) + &of_sha256(&sha256), Ok(20)),
        (
            String::new(),
            at("the configuration text says no digest of it"),
        ),
    ] {
        fs::write(&path, conf(&digests)).unwrap();
        assert_eq!(refusal(), expected);
    }
    fs::write(&path, conf(&of_sha256(&sha256))).unwrap();
    fs::write(&image, "what is in the imagE").unwrap();
    assert!(
        refusal()
            .unwrap_err()
            .ends_with(&format!(", {sha256} is signed"))
    );
    fs::write(&image, "short").unwrap();
    assert_eq!(refusal(), at("5 bytes, 20 are signed"));
    fs::remove_file(&image).unwrap();
    assert_eq!(refusal(), at("No such file or directory (os error 2)"));
    symlink("/etc/passwd", &image).unwrap();
    assert_eq!(refusal(), at("a symbolic link, expected a regular file"));
    fs::remove_file(&image).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &image,
        rustix::fs::FileType::Fifo,
        0o600.into(),
        0,
    )
    .unwrap();
    assert_eq!(refusal(), at("no regular file"));
    fs::rename(out.join("web-3"), out.join("aside")).unwrap();
    symlink("aside", out.join("web-3")).unwrap();
    let images = out.join("web-3");
    assert_eq!(
        refusal().unwrap_err(),
        format!("{}: Not a directory (os error 20)", images.display())
    );
}

#[test]
fn file_name_and_text_must_agree() {
    let dir = TempDir::new().unwrap();
    let path = write(dir.path(), false).unwrap();
    let other = dir.path().join("web-4.conf");
    fs::rename(&path, &other).unwrap();
    let error = chain(Bundle::open(&other).unwrap_err());
    let expected = "it says that it is \"web-3.conf\": file name, name and version must agree";
    assert_eq!(error, format!("{}: {expected}", other.display()));
    symlink(&other, &path).unwrap();
    let error = chain(Bundle::open(&path).unwrap_err());
    assert_eq!(
        error,
        format!(
            "{}: a symbolic link, expected a regular file",
            path.display()
        )
    );
    fs::remove_file(&path).unwrap();
    fs::write(&path, vec![b'\n'; (1 << 20) + 1]).unwrap();
    let error = chain(Bundle::open(&path).unwrap_err());
    assert_eq!(
        error,
        format!("{}: more than 1048576 bytes", path.display())
    );
    assert!(Bundle::open(Path::new("/")).is_err());
}

#[test]
fn a_file_is_replaced_at_once() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("web-3.sig");
    replace_file(&path, b"one").unwrap();
    replace_file(&path, b"two").unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"two");
    assert_eq!(names(dir.path()), ["web-3.sig"]);
    let error = chain(replace_file(&dir.path().join("missing/file"), b"").unwrap_err());
    assert!(
        error.ends_with("No such file or directory (os error 2)"),
        "{error}"
    );
}
