//! The commands, and what is left of a conversion that is killed.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::archive::{Archive, Entry};
use crate::image::Packing;
use crate::program::{PROGRAM, Place, convert, convert_as, fails, layer, pki, says, sha256};

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
    assert_eq!(names.len(), 5, "{names:?}");
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
    files = files
        .entry(Entry {
            path: b"null",
            kind: b'3',
            device: (1, 3),
            uid: 77,
            ..Entry::default()
        })
        .entry(Entry {
            path: b"ping",
            mode: 0o4755,
            xattrs: vec![(
                "security.capability",
                b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0",
            )],
            ..Entry::default()
        });
    place
        .layout
        .layer(&layer(), Packing::Gzip)
        .layer(&files.end(), Packing::Zstd)
        .finish();
    const FILES: [&str; 7] = [
        "test-1.conf",
        "test-1.sig",
        "test-1.sigstore.json",
        "test-1.cert",
        "test-1/root.img",
        "test-1/root.hash.img",
        "test-1/config.img",
    ];
    let digest = |name: &str, change: &dyn Fn(&mut Command)| {
        let out = place.dir.path().join(name);
        let mut convert = convert(&place.layout.source(), &out);
        change(&mut convert);
        says(&mut convert);
        let mut contents = Vec::new();
        for file in FILES {
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
    assert!(first[4] != third[4]);
    assert!(third == digest("fourth", &epoch));

    // Another user, without rights, and another umask: owners and devices need none.
    let own = place.dir.path().join("own");
    fs::create_dir(&own).unwrap();
    let program = own.join("trustme-convert");
    fs::copy(PROGRAM, &program).unwrap();
    for name in ["ssig_cml.key", "ssig_cml.cert"] {
        fs::copy(pki().join(name), own.join(name)).unwrap();
    }
    let mut chown = Command::new("chown");
    says(chown.args(["-R", "1000:1000"]).arg(&own));
    fs::set_permissions(place.dir.path(), Permissions::from_mode(0o755)).unwrap();
    says(
        Command::new("sh")
            .args([
                "-ec",
                "umask 077; exec setpriv --reuid 1000 --regid 1000 --clear-groups \"$@\"",
                "sh",
            ])
            .arg(&program)
            .args([
                "convert",
                &place.layout.source(),
                "--name",
                "test",
                "--version",
                "1",
                "--out",
            ])
            .arg(own.join("out"))
            .arg("--key")
            .arg(own.join("ssig_cml.key"))
            .arg("--cert")
            .arg(own.join("ssig_cml.cert"))
            .env("TMPDIR", &own)
            .env_remove("SOURCE_DATE_EPOCH"),
    );
    for (file, bytes) in FILES.iter().zip(&first) {
        assert!(
            fs::read(own.join("out").join(file)).unwrap() == *bytes,
            "{file}"
        );
    }
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
        .entry(Entry {
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
        assert_eq!(
            left,
            [
                "test-1",
                "test-1.cert",
                "test-1.conf",
                "test-1.sig",
                "test-1.sigstore.json"
            ]
        );
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

#[test]
fn what_goes_wrong_around_tar2sqfs() {
    use std::os::unix::fs::PermissionsExt;

    let mut place = Place::new();
    place.layout.layer(&layer(), Packing::Plain).finish();
    let blob = place.layout.dir.join("blobs/sha256").join(sha256(&layer()));
    let programs = place.dir.path().join("programs");
    fs::create_dir(&programs).unwrap();
    let stand_in = programs.join("tar2sqfs");
    let path = format!("{}:/usr/bin:/bin", programs.display());
    for (script, expected) in [
        (
            format!("touch {}; exec /usr/bin/tar2sqfs \"$@\"", blob.display()),
            "was written to while it was read",
        ),
        (
            "cat > /dev/null; echo no space left >&2; exit 1".to_owned(),
            "tar2sqfs: exit status: 1: no space left",
        ),
        ("kill -9 $$".to_owned(), "tar2sqfs: signal: 9"),
    ] {
        fs::write(&stand_in, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&stand_in, fs::Permissions::from_mode(0o755)).unwrap();
        let mut convert = convert(&place.layout.source(), &place.out());
        fails(convert.env("PATH", &path), expected, &place.out());
    }
    fs::remove_file(&stand_in).unwrap();
    let mut convert = convert(&place.layout.source(), &place.out());
    fails(
        convert.env("PATH", &programs),
        "tar2sqfs: not installed (Debian: squashfs-tools-ng)",
        &place.out(),
    );
}

#[test]
fn what_differs_between_two_bundles() {
    let bundle = |version: &str, change: &dyn Fn(Archive) -> Archive| {
        let mut place = Place::new();
        place.layout.config = json!({"Cmd": ["/bin/true", version]});
        let files = Archive::new()
            .file("same", "same")
            .file("gone", "gone")
            .file("odd\n", "1");
        place
            .layout
            .layer(&layer(), Packing::Gzip)
            .layer(&change(files).end(), Packing::Gzip)
            .finish();
        says(&mut convert(&place.layout.source(), &place.out()));
        place
    };
    let old = bundle("1", &|files| files);
    let new = bundle("2", &|_| {
        Archive::new()
            .file("same", "same")
            .file("odd\n", "22")
            .entry(Entry {
                path: b"etc/group",
                mode: 0o600,
                content: b"more:x:55:web\n",
                ..Entry::default()
            })
            .link("new", "same")
    });
    let conf = |place: &Place| place.out().join("test-1.conf");
    let diff = |old, new, more: &[&str]| {
        let mut command = Command::new(PROGRAM);
        says(command.arg("diff").arg(conf(old)).arg(conf(new)).args(more))
    };
    assert_eq!(diff(&old, &old, &[]), "no differences\n");
    let text = diff(&old, &new, &[]);
    for expected in [
        "guestos.init_param: [\"/bin/true\",\"1\"] -> [\"/bin/true\",\"2\"]\n",
        "guestos.mounts.root.image_sha2_256: ",
        "\n- /gone\n",
        "\n+ /new\n",
        "\nM /same (hard links)\n",
        "\nM /odd\\n (content)\n",
        "\nM /etc/group (mode)\n",
    ] {
        assert!(text.contains(expected), "{expected:?}: {text}");
    }
    let files: Value = serde_json::from_str(&diff(&old, &new, &["--json"])).unwrap();
    assert_eq!(files["files"].as_array().unwrap().len(), 5, "{files:#}");

    let verify = |more: [&str; 2]| {
        let mut command = Command::new(PROGRAM);
        command.arg("verify").arg(conf(&old)).arg("--anchors");
        command.arg(pki().join("ssig_rootca.cert")).args(more);
        command
    };
    says(&mut verify(["--hardware", "x86"]));
    let elsewhere = old.dir.path().join("nothing");
    fails(
        &mut verify(["--hardware", "arm"]),
        "it is for x86, expected arm",
        &elsewhere,
    );
    fails(
        &mut verify(["--at", "2001-01-01"]),
        "not yet valid",
        &elsewhere,
    );
    fails(
        &mut verify(["--at", "2101-01-01T00:00:00Z"]),
        "expired",
        &elsewhere,
    );
}

#[test]
fn completions_and_man_pages() {
    let dir = tempfile::tempdir().unwrap();
    says(Command::new(PROGRAM).arg("generate").arg(dir.path()));
    for (file, expected) in [
        ("trustme-convert.bash", "--max-ratio"),
        ("_trustme-convert", "cosign-key"),
        ("trustme-convert.fish", "passphrase-fd"),
        ("trustme-convert.1", "convert"),
        ("trustme-convert-convert.1", "max"),
    ] {
        let text = fs::read_to_string(dir.path().join(file)).unwrap();
        assert!(text.contains(expected), "{file}");
    }
}
