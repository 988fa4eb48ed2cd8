//! Archives and layouts, whole, broken and lying.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};

use crate::archive::{Archive, Entry};
use crate::image::{Layout, Packing, gzip};
use crate::program::{Place, convert, fails, layer, says, sha256};

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
            .entry(Entry {
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
        &mut convert("docker-archive:/none", &out),
        "error: /none: No such file or directory (os error 2)",
        &out,
    );
    fails(
        &mut convert(&format!("docker-archive:{}", dir.path().display()), &out),
        "no regular file",
        &out,
    );
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
    let long = "n".repeat(256);
    let evil = Archive::new().file(&long, "").end();
    place
        .layout
        .layer(&layer, Packing::Plain)
        .layer(&evil, Packing::Zstd)
        .finish();
    place.fails(&format!(
        "entry \"{long}\" at byte 0: a name of 256 bytes, at most 255"
    ));
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
    place.fails("it becomes more than 1100 times as large (--max-ratio)");
    fails(
        convert(&place.layout.source(), &place.out()).args([
            "--max-size",
            "100M",
            "--max-ratio",
            "1000000",
        ]),
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
