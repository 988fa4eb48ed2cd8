//! The program from outside.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::archive::Archive;
use crate::image::{Layout, Packing, gzip};

const PROGRAM: &str = env!("CARGO_BIN_EXE_trustme-convert");

/// A PKI for all tests: keys take seconds to make.
fn pki() -> &'static Path {
    static PKI: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = PKI.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pki");
        says(Command::new(PROGRAM).args(["pki", "init"]).arg(&path));
        (dir, path)
    });
    path
}

fn convert(source: &str, out: &Path) -> Command {
    convert_as("test", source, out)
}

fn convert_as(name: &str, source: &str, out: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(["convert", source, "--name", name, "--version", "1", "--out"])
        .arg(out)
        .arg("--key")
        .arg(pki().join("ssig_cml.key"))
        .arg("--cert")
        .arg(pki().join("ssig_cml.cert"))
        .env_remove("SOURCE_DATE_EPOCH");
    command
}

/// What a command prints; it must succeed.
#[track_caller]
fn says(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// The command must fail with one line that has this in it, and leave nothing in `out`.
#[track_caller]
fn fails(command: &mut Command, expected: &str, out: &Path) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default();
    assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
    assert!(
        last.starts_with("error: ") && last.contains(expected),
        "{said}, expected {expected:?}"
    );
    if let Ok(entries) = fs::read_dir(out) {
        assert_eq!(entries.count(), 0, "{out:?}");
    }
}

fn layer() -> Vec<u8> {
    Archive::new()
        .directory("bin")
        .file("bin/true", "#!/bin/sh\n")
        .directory("etc")
        .file("etc/passwd", "web:x:33:34::/:\n")
        .file("etc/group", "more:x:55:web\n")
        .end()
}

struct Place {
    dir: tempfile::TempDir,
    layout: Layout,
}

impl Place {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(&dir.path().join("layout"));
        Self { dir, layout }
    }

    fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    #[track_caller]
    fn fails(&self, expected: &str) {
        fails(
            &mut convert(&self.layout.source(), &self.out()),
            expected,
            &self.out(),
        );
    }
}

#[test]
fn a_bundle_from_conversion_to_an_oci_bundle() {
    let mut place = Place::new();
    place.layout.config =
        json!({"Entrypoint": ["/bin/true"], "User": "web", "Volumes": {"/data": {}}});
    place.layout.layer(&layer(), Packing::Gzip).finish();
    let printed = says(&mut convert(&place.layout.source(), &place.out()));
    let conf = place.out().join("test-1.conf");
    assert_eq!(printed.trim(), conf.to_str().unwrap());

    let anchor = pki().join("ssig_rootca.cert");
    let mut verify = Command::new(PROGRAM);
    verify
        .arg("verify")
        .arg(&conf)
        .arg("--json")
        .arg("--anchors")
        .arg(&anchor);
    let verified: Value = serde_json::from_str(&says(&mut verify)).unwrap();
    assert_eq!(verified["verified"], true);
    assert_eq!(verified["bundle"]["images"].as_array().unwrap().len(), 2);

    let inspected = says(Command::new(PROGRAM).args(["inspect", "--json"]).arg(&conf));
    let inspected: Value = serde_json::from_str(&inspected).unwrap();
    assert_eq!(inspected["image"]["uid"], 33);
    assert_eq!(inspected["image"]["additional_gids"], json!([34, 55]));
    assert!(says(Command::new(PROGRAM).arg("inspect").arg(&conf)).contains("uid 33, gid 34"));

    let oci = place.dir.path().join("oci");
    let mut bundle = Command::new(PROGRAM);
    bundle
        .arg("bundle")
        .arg(&conf)
        .arg(&oci)
        .arg("--anchors")
        .arg(&anchor);
    says(&mut bundle);
    let config: Value =
        serde_json::from_slice(&fs::read(oci.join("config.json")).unwrap()).unwrap();
    assert_eq!(
        config["annotations"]["org.trustme.guestos"],
        conf.to_str().unwrap()
    );
    assert_eq!(config["process"]["args"], json!(["/bin/true"]));
    assert_eq!(config["process"]["user"]["uid"], 33);
    assert!(oci.join("rootfs").is_dir());
    let again = bundle.output().unwrap();
    assert!(String::from_utf8_lossy(&again.stderr).contains("not empty"));

    // Another signer: refused with the first root, accepted with its own.
    let other = place.dir.path().join("other");
    says(Command::new(PROGRAM).args(["pki", "init"]).arg(&other));
    let mut sign = Command::new(PROGRAM);
    sign.arg("sign")
        .arg(&conf)
        .arg("--key")
        .arg(other.join("ssig_cml.key"));
    sign.arg("--cert").arg(other.join("ssig_cml.cert"));
    says(&mut sign);
    let output = verify.output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("test-1.cert"),
        "{output:?}"
    );
    let refused: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(refused["verified"], false);
    let mut verify = Command::new(PROGRAM);
    verify
        .arg("verify")
        .arg(&conf)
        .arg("--anchors")
        .arg(other.join("ssig_rootca.cert"));
    says(&mut verify);

    // One changed byte anywhere.
    for name in [
        "test-1/root.img",
        "test-1/root.hash.img",
        "test-1/config.img",
        "test-1.conf",
        "test-1.sig",
        "test-1.cert",
    ] {
        let path = place.out().join(name);
        let bytes = fs::read(&path).unwrap();
        let mut changed = bytes.clone();
        changed[bytes.len() / 2] ^= 1;
        fs::write(&path, &changed).unwrap();
        let output = verify.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains("test-1"),
            "{name}: {said}"
        );
        fs::write(&path, &bytes).unwrap();
    }
    says(&mut verify);
}

#[test]
fn a_bundle_that_is_there_is_only_replaced_when_asked_for() {
    let mut place = Place::new();
    place.layout.layer(&layer(), Packing::Plain).finish();
    let mut convert = convert(&place.layout.source(), &place.out());
    says(&mut convert);
    let output = convert.output().unwrap();
    assert!(
        String::from_utf8_lossy(&output.stderr).contains("exists already"),
        "{output:?}"
    );
    says(convert.arg("--force"));
    let names: Vec<_> = fs::read_dir(place.out())
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names.len(), 4, "{names:?}");
}

#[test]
fn conversions_are_byte_identical() {
    let mut place = Place::new();
    let mut files = Archive::new();
    for number in 0..300_u32 {
        let content: String = (0..number * 10)
            .map(|word| format!("{}\n", word * number))
            .collect();
        files = files.file(&format!("file-{number}"), &content);
    }
    place
        .layout
        .layer(&layer(), Packing::Gzip)
        .layer(&files.end(), Packing::Zstd)
        .finish();
    let digest = |name: &str, change: &dyn Fn(&mut Command)| {
        let out = place.dir.path().join(name);
        let mut convert = convert(&place.layout.source(), &out);
        change(&mut convert);
        says(&mut convert);
        let mut contents = Vec::new();
        for file in [
            "test-1.conf",
            "test-1.sig",
            "test-1.cert",
            "test-1/root.img",
            "test-1/root.hash.img",
            "test-1/config.img",
        ] {
            contents.push(fs::read(out.join(file)).unwrap());
        }
        contents
    };
    let first = digest("first", &|_| {});
    std::thread::sleep(std::time::Duration::from_millis(1100));
    // Another time, one processor, another place for temporary files.
    let tmp = place.dir.path().join("tmp");
    fs::create_dir(&tmp).unwrap();
    let second = digest("second", &|convert| {
        let program = convert.get_program().to_owned();
        let arguments: Vec<_> = convert.get_args().map(ToOwned::to_owned).collect();
        *convert = Command::new("taskset");
        convert
            .args(["-c", "0"])
            .arg(program)
            .args(arguments)
            .env("TMPDIR", &tmp);
    });
    assert!(first == second);
    let epoch = |convert: &mut Command| {
        convert.env("SOURCE_DATE_EPOCH", "1000000000");
    };
    let third = digest("third", &epoch);
    assert!(first[3] != third[3]);
    assert!(third == digest("fourth", &epoch));
}

#[test]
fn docker_archives() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("out");
    let path = dir.path().join("image.tar");
    let source = |suffix: &str| format!("docker-archive:{}{suffix}", path.display());
    let write = |archive: Archive| fs::write(&path, archive.end()).unwrap();
    let layer = layer();
    let diff_id = format!("sha256:{}", sha256(&layer));
    let config = json!({
        "architecture": "arm64", "os": "linux", "config": {"Cmd": ["x"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id, diff_id]},
    })
    .to_string();
    let config_name = format!("{}.json", sha256(config.as_bytes()));
    let manifest = json!([
        {"Config": config_name, "RepoTags": ["example.org/a:1", "busybox:latest"], "Layers": ["a/layer.tar", "b/layer.tar"]},
    ]);
    let whole = |manifest: &Value| {
        Archive::new()
            .file(&config_name, &config)
            .entry(crate::archive::Entry {
                path: b"a/layer.tar",
                content: &layer,
                ..Default::default()
            })
            // As docker save writes a layer that it has written already.
            .symlink("b/layer.tar", "../a/layer.tar")
            .file("manifest.json", &manifest.to_string())
    };
    write(whole(&manifest));
    for (suffix, number) in [
        "",
        ":example.org/a:1",
        ":busybox",
        ":docker.io/library/busybox:latest",
        ":@0",
    ]
    .iter()
    .zip(1..)
    {
        let out = dir.path().join(format!("out-{number}"));
        says(&mut convert(&source(suffix), &out));
        let text = fs::read_to_string(out.join("test-1.conf")).unwrap();
        assert!(text.contains("hardware: \"arm\""), "{text}");
    }
    for (suffix, expected) in [
        (
            ":other",
            "no image \"other\" in it, there are: example.org/a:1, busybox:latest",
        ),
        (":@1", "no image @1, there are 1"),
        (":@x", "expected @ and a number"),
    ] {
        fails(&mut convert(&source(suffix), &out), expected, &out);
    }
    fails(
        convert(&source(""), &out).args(["--platform", "linux/amd64"]),
        "it is for linux/arm64, linux/amd64 is asked for",
        &out,
    );
    fails(
        convert(&source(""), &out).args(["--max-size", "3K"]),
        "more than 3072 bytes (--max-size)",
        &out,
    );

    let two = json!([manifest[0], manifest[0]]);
    write(whole(&two));
    fails(
        &mut convert(&source(""), &out),
        "2 images in it, choose one by name or @index",
        &out,
    );
    for (archive, expected) in [
        (Archive::new().file("x", ""), "no \"manifest.json\" in it"),
        (
            Archive::new().file("manifest.json", "["),
            "manifest.json: EOF while parsing",
        ),
        (Archive::new().file("manifest.json", "[]"), "no image in it"),
        (
            whole(&json!([{"Config": "../x", "Layers": []}])),
            "\"../x\" is no path within it",
        ),
        (
            whole(&json!([{"Config": "none", "Layers": []}])),
            "no \"none\" in it",
        ),
        (
            whole(&json!([{"Config": config_name, "Layers": []}])),
            "2 diff_ids for 0 layers",
        ),
        (
            whole(&json!([{"Config": config_name, "Layers": ["a/layer.tar", "manifest.json"]}])),
            "layer 2 (manifest.json): its diff_id is",
        ),
        (
            whole(&manifest).file("manifest.json", "[]"),
            "two members called \"manifest.json\"",
        ),
        (
            Archive::new()
                .file(&config_name, &format!("{config} "))
                .file("manifest.json", &manifest.to_string()),
            "has the digest sha256:",
        ),
        (
            Archive::new().symlink("manifest.json", "/etc/passwd"),
            "no \"manifest.json\" in it",
        ),
        (
            Archive::new()
                .symlink("manifest.json", "a")
                .symlink("a", "manifest.json"),
            "no \"manifest.json\" in it",
        ),
    ] {
        write(archive);
        fails(&mut convert(&source(""), &out), expected, &out);
    }
    let whole = whole(&manifest).end();
    for length in [0, 1, 511, 512, 1000, whole.len() / 2, whole.len() - 3000] {
        fs::write(&path, &whole[..length]).unwrap();
        fails(&mut convert(&source(""), &out), "image.tar", &out);
    }
    fs::write(&path, gzip(&whole)).unwrap();
    fails(
        &mut convert(&source(""), &out),
        "a compressed archive",
        &out,
    );
    fails(
        &mut convert(&format!("docker-archive:{}", dir.path().display()), &out),
        "no regular file",
        &out,
    );
}

fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}

#[test]
fn layouts_that_lie() {
    let layer = layer();
    let good = format!("sha256:{}", sha256(&layer));
    let gzip_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    let mut bad_crc = gzip(&layer);
    let end = bad_crc.len();
    bad_crc[end - 6] ^= 1;
    let other = format!("sha256:{}", sha256(b""));
    let trailing = [gzip(&layer), b"junk".to_vec()].concat();
    for (media_type, bytes, diff_id, expected) in [
        (gzip_type, gzip(&layer), &other, "its diff_id is sha256:"),
        (gzip_type, bad_crc, &good, "layer 1 (sha256:"),
        (
            gzip_type,
            gzip(&layer)[..end / 2].to_vec(),
            &good,
            "layer 1 (sha256:",
        ),
        (gzip_type, layer.clone(), &good, "invalid gzip header"),
        (gzip_type, trailing, &good, "layer 1 (sha256:"),
        (
            "application/vnd.oci.image.layer.v1.tar+zstd",
            gzip(&layer),
            &good,
            "layer 1 (sha256:",
        ),
        (
            "application/vnd.oci.image.layer.v1.tar",
            gzip(&layer),
            &good,
            "its diff_id in the",
        ),
        (
            "application/vnd.oci.image.layer.v1.tar",
            layer.clone(),
            &other,
            "its diff_id in the",
        ),
        (
            "application/x-tar",
            layer.clone(),
            &good,
            "has the media type \"application/x-tar\", which is no layer's",
        ),
        (
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            gzip(&layer),
            &good,
            "whose content is kept elsewhere",
        ),
        (
            gzip_type,
            gzip(&layer),
            &"sha512:00".to_owned(),
            "digest \"sha512:00\", expected sha256:HEX",
        ),
    ] {
        let mut place = Place::new();
        place
            .layout
            .packed_layer(media_type, &bytes, diff_id.clone())
            .finish();
        place.fails(expected);
    }
    // A blob that was changed on its way.
    let mut place = Place::new();
    place.layout.layer(&layer, Packing::Gzip).finish();
    let blob = place
        .layout
        .dir
        .join("blobs/sha256")
        .join(sha256(&gzip(&layer)));
    for (change, expected) in [
        (
            &(|bytes: &mut Vec<u8>| bytes[30] ^= 1) as &dyn Fn(&mut Vec<u8>),
            "its digest is sha256:",
        ),
        (&|bytes| bytes.push(0), "bytes, "),
        (&|bytes| bytes.truncate(10), "10 bytes, "),
    ] {
        let mut bytes = gzip(&layer);
        change(&mut bytes);
        fs::write(&blob, bytes).unwrap();
        place.fails(expected);
    }
    fs::remove_file(&blob).unwrap();
    place.fails("No such file");
    // A device or FIFO does not make the program wait.
    assert!(
        Command::new("mkfifo")
            .arg(&blob)
            .status()
            .unwrap()
            .success()
    );
    place.fails("no regular file");
    // A hostile entry: named with its layer and place.
    let mut place = Place::new();
    let evil = Archive::new().file("../../etc/passwd", "").end();
    place
        .layout
        .layer(&layer, Packing::Plain)
        .layer(&evil, Packing::Zstd)
        .finish();
    place.fails("entry \"../../etc/passwd\" at byte 0: a path with ..");
    // A bomb: a gigabyte of zeros in a megabyte.
    let mut place = Place::new();
    let mut encoder = zstd::Encoder::new(Vec::new(), 3).unwrap();
    std::io::copy(
        &mut std::io::Read::take(std::io::repeat(0), 1 << 28),
        &mut encoder,
    )
    .unwrap();
    let bomb = encoder.finish().unwrap();
    place
        .layout
        .packed_layer(
            "application/vnd.oci.image.layer.v1.tar+zstd",
            &bomb,
            good.clone(),
        )
        .finish();
    fails(
        convert(&place.layout.source(), &place.out()).args(["--max-size", "100M"]),
        "the layers have more than 104857600 bytes (--max-size)",
        &place.out(),
    );
}

#[test]
fn layouts_and_platforms() {
    let place = Place::new();
    let architectures = ["amd64", "arm64", "riscv64"];
    let mut manifests = Vec::new();
    for architecture in architectures {
        let mut layout = Layout::new(&place.layout.dir);
        layout.architecture = architecture;
        layout.layer(&layer(), Packing::Gzip);
        let mut manifest = layout.manifest();
        manifest["platform"] = json!({"os": "linux", "architecture": architecture});
        manifests.push(manifest);
    }
    // What buildx adds.
    manifests.push(json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": format!("sha256:{}", sha256(b"")), "size": 0,
        "platform": {"os": "unknown", "architecture": "unknown"},
    }));
    let index = json!({"schemaVersion": 2, "manifests": manifests});
    let mut index = place.layout.blob(
        "application/vnd.oci.image.index.v1+json",
        index.to_string().as_bytes(),
    );
    index["annotations"] = json!({"org.opencontainers.image.ref.name": "image"});
    place.layout.index(&[index.clone()]);
    for (architecture, hardware) in architectures.iter().zip(["x86", "arm", "riscv"]) {
        let out = place.dir.path().join(architecture);
        says(
            convert(&place.layout.source(), &out)
                .arg("--platform")
                .arg(format!("linux/{architecture}")),
        );
        let text = fs::read_to_string(out.join("test-1.conf")).unwrap();
        assert!(
            text.contains(&format!("hardware: \"{hardware}\"")),
            "{text}"
        );
    }
    says(&mut convert(
        &place.layout.source(),
        &place.dir.path().join("here"),
    ));
    let out = place.out();
    let source = place.layout.source();
    fails(
        convert(&source, &out).args(["--platform", "linux/s390x"]),
        "no image for linux/s390x in it, there are: linux/amd64, linux/arm64, linux/riscv64",
        &out,
    );
    let path = place.layout.dir.display();
    fails(
        &mut convert(&format!("oci:{path}:other"), &out),
        "no image \"other\" in it, there are: image",
        &out,
    );
    place.layout.index(&[index.clone(), index]);
    fails(
        &mut convert(&source, &out),
        "2 images in it, choose one by name: image, image",
        &out,
    );
    place.layout.index(&[]);
    fails(
        &mut convert(&format!("oci:{path}"), &out),
        "no image in it",
        &out,
    );
    fs::write(
        place.layout.dir.join("oci-layout"),
        r#"{"imageLayoutVersion": "2.0.0"}"#,
    )
    .unwrap();
    fails(
        &mut convert(&source, &out),
        "imageLayoutVersion \"2.0.0\", expected \"1.0.0\"",
        &out,
    );
    fails(
        &mut convert(&format!("oci-archive:{path}/index.json"), &out),
        "index.json: at byte 0",
        &out,
    );
}

#[test]
fn archives_of_layouts() {
    let mut place = Place::new();
    place.layout.layer(&layer(), Packing::Zstd).finish();
    let archive = place.dir.path().join("layout.tar");
    let mut tar = Command::new("tar");
    says(
        tar.arg("-C")
            .arg(&place.layout.dir)
            .arg("-cf")
            .arg(&archive)
            .arg("."),
    );
    says(&mut convert(
        &format!("oci-archive:{}:image", archive.display()),
        &place.out(),
    ));
    let out = place.dir.path().join("from-directory");
    says(&mut convert(&place.layout.source(), &out));
    let same = Command::new("diff")
        .arg("--recursive")
        .arg(place.out())
        .arg(&out)
        .status()
        .unwrap();
    assert!(same.success());
}

#[test]
fn what_a_guestos_cannot_say() {
    for (config, expected) in [
        (json!({}), "no ENTRYPOINT and no CMD"),
        (json!({"Cmd": ["a\\"]}), "a\\"),
        (json!({"Cmd": ["a\u{0}"]}), "NUL"),
        (json!({"Cmd": ["a"], "Env": ["NAME"]}), "NAME=VALUE"),
        (
            json!({"Cmd": ["a"], "User": "nobody"}),
            "User \"nobody\": no user \"nobody\" in the image's /etc/passwd",
        ),
        (
            json!({"Cmd": ["a"], "StopSignal": "no signal"}),
            "stop_signal",
        ),
        (
            json!({"Cmd": ["a"], "Volumes": {"relative": {}}}),
            "volume \"relative\"",
        ),
    ] {
        let mut place = Place::new();
        place.layout.config = config;
        place.layout.layer(&layer(), Packing::Gzip).finish();
        place.fails(expected);
    }
    let mut place = Place::new();
    place.layout.layer(&layer(), Packing::Gzip).finish();
    for (name, expected) in [("a/b", "name"), ("..", "name"), ("", "name")] {
        let mut convert = convert_as(name, &place.layout.source(), &place.out());
        fails(&mut convert, expected, &place.out());
    }
}

#[test]
fn killed_conversions_leave_nothing_under_final_names() {
    let mut place = Place::new();
    let mut random = vec![0; 8 << 20];
    let mut state = 1_u32;
    for byte in &mut random {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *byte = (state >> 24) as u8;
    }
    let large = Archive::new()
        .entry(crate::archive::Entry {
            path: b"random",
            content: &random,
            ..Default::default()
        })
        .end();
    place
        .layout
        .layer(&layer(), Packing::Gzip)
        .layer(&large, Packing::Zstd)
        .finish();
    let names = |out: &Path| -> Vec<String> {
        let entries = fs::read_dir(out).into_iter().flatten();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    let start = std::time::Instant::now();
    says(&mut convert(
        &place.layout.source(),
        &place.dir.path().join("timed"),
    ));
    let whole = start.elapsed();
    for part in 0..10 {
        let out = place.dir.path().join(format!("killed-{part}"));
        let mut child = convert(&place.layout.source(), &out)
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole * part / 10);
        child.kill().unwrap();
        child.wait().unwrap();
        let left = names(&out);
        let finished = left.iter().any(|name| name == "test-1.conf");
        assert!(
            finished || left.iter().all(|name| name.starts_with(".test-1.")),
            "{left:?}"
        );
        if !finished {
            says(&mut convert(&place.layout.source(), &out));
        }
        let mut left = names(&out);
        left.sort();
        assert_eq!(left, ["test-1", "test-1.cert", "test-1.conf", "test-1.sig"]);
    }
}

#[test]
fn a_sparse_file_of_a_terabyte() {
    let mut place = Place::new();
    let sparse = Archive::new()
        .extended(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"sparse"),
            ("GNU.sparse.realsize", b"1099511627776"),
        ])
        .file("sparse", &format!("1\n0\n1\n{}x", "\0".repeat(506)));
    place.layout.layer(&sparse.end(), Packing::Gzip).finish();
    place.fails("its files have 1099511627776 bytes, at most 68719476736 (--max-size)");
}
