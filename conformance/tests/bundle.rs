//! What trustme-convert makes, looked at with the programs of others: openssl, veritysetup, unsquashfs, umoci.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use trustme_conformance::command::{line, ok, run};
use trustme_conformance::fixtures::{Fixtures, NAME};
use trustme_conformance::image::Image;
use trustme_conformance::suite::{self, Outcome};

fn main() -> ExitCode {
    suite::main(&[
        (
            "openssl_verifies_signature_and_chain",
            openssl_verifies_signature_and_chain,
        ),
        (
            "veritysetup_verifies_the_hash_tree",
            veritysetup_verifies_the_hash_tree,
        ),
        ("small_tree_is_that_of_umoci", small_tree_is_that_of_umoci),
        ("demo_tree_is_that_of_umoci", demo_tree_is_that_of_umoci),
        (
            "conversions_are_byte_identical",
            conversions_are_byte_identical,
        ),
        (
            "the_text_keeps_to_the_dialect",
            the_text_keeps_to_the_dialect,
        ),
        (
            "image_digests_are_in_the_text",
            image_digests_are_in_the_text,
        ),
        ("verify_and_inspect", verify_and_inspect),
        (
            "a_failed_conversion_leaves_nothing",
            a_failed_conversion_leaves_nothing,
        ),
    ])
}

/// A file of the fixtures' small bundle.
fn bundle_file(fixtures: &Fixtures, suffix: &str) -> Result<PathBuf> {
    Ok(fixtures.small_bundle()?.join(format!("{NAME}-1{suffix}")))
}

/// The first value of a field in the configuration text.
fn field(text: &str, name: &str) -> Result<String> {
    let begin = format!("{name}: ");
    let value = text
        .lines()
        .find_map(|line| line.trim().strip_prefix(&begin));
    let value = value.with_context(|| format!("no {name} in {text}"))?;
    Ok(value.trim_matches('"').to_owned())
}

fn openssl_verifies_signature_and_chain(fixtures: &Fixtures) -> Result<Outcome> {
    let dir = tempfile::tempdir()?;
    let cert = bundle_file(fixtures, ".cert")?;
    let key = dir.path().join("leaf.pub");
    // x509 reads the first certificate, which has to be the leaf.
    ok(line("openssl x509 -pubkey -noout -in")
        .arg(&cert)
        .arg("-out")
        .arg(&key))?;
    let dgst =
        "openssl dgst -sha512 -sigopt rsa_padding_mode:pss -sigopt rsa_pss_saltlen:64 -verify";
    let verify = |conf: &Path| {
        run(line(dgst)
            .arg(&key)
            .arg("-signature")
            .arg(bundle_file(fixtures, ".sig")?)
            .arg(conf))
    };
    let conf = bundle_file(fixtures, ".conf")?;
    ensure!(verify(&conf)?.ok()?.contains("Verified OK"));
    let other = dir.path().join("other");
    fs::write(&other, [&fs::read(&conf)?[..], b" "].concat())?;
    verify(&other)?.fails()?;

    let chain = line("openssl verify -purpose any -CAfile")
        .arg(fixtures.anchor()?)
        .arg("-untrusted")
        .arg(&cert)
        .arg(&cert)
        .output()?;
    ensure!(chain.status.success(), "{chain:?}");
    let text = ok(line("openssl x509 -noout -text -in").arg(&cert))?;
    ensure!(
        text.contains("rsassaPss") && text.contains("4096 bit"),
        "{text}"
    );
    ensure!(text.contains("Digital Signature"), "{text}");
    Ok(Outcome::Passed)
}

fn veritysetup_verifies_the_hash_tree(fixtures: &Fixtures) -> Result<Outcome> {
    let image = bundle_file(fixtures, "/root.img")?;
    let tree = bundle_file(fixtures, "/root.hash.img")?;
    let text = fs::read_to_string(bundle_file(fixtures, ".conf")?)?;
    let root = field(&text, "image_verity_sha256")?;
    let verify = |root: &str| run(line("veritysetup verify").arg(&image).arg(&tree).arg(root));
    verify(&root)?.ok()?;
    verify(&"0".repeat(64))?.fails()?;
    let dump = ok(line("veritysetup dump").arg(&tree))?;
    let has = |name: &str, value: &str| {
        dump.lines()
            .any(|line| line.starts_with(name) && line.ends_with(value))
    };
    ensure!(
        has("Hash type:", "1") && has("Hash algorithm:", "sha256"),
        "{dump}"
    );
    ensure!(
        has("Data block size:", "4096 [bytes]") || has("Data block size:", "4096"),
        "{dump}"
    );
    Ok(Outcome::Passed)
}

fn small_tree_is_that_of_umoci(fixtures: &Fixtures) -> Result<Outcome> {
    let root = bundle_file(fixtures, "/root.img")?;
    same_tree(&root, &fixtures.small_image()?, &[])?;
    Ok(Outcome::Passed)
}

fn demo_tree_is_that_of_umoci(fixtures: &Fixtures) -> Result<Outcome> {
    let dir = tempfile::tempdir()?;
    let image = fixtures.demo_image()?;
    ok(&mut fixtures.convert(&image, dir.path(), 1)?)?;
    let root = dir.path().join(format!("{NAME}-1/root.img"));
    same_tree(&root, &image, &["extended attributes"])?;
    Ok(Outcome::Passed)
}

/// Compares a root image with what umoci unpacks of the image that it was made from. `none` names what neither has.
fn same_tree(root_image: &Path, image: &Image, none: &[&str]) -> Result<()> {
    let dir = tempfile::tempdir()?;
    let unpacked = dir.path().join("umoci");
    ok(line("umoci unpack --image")
        .arg(format!("{}:image", image.layout.display()))
        .arg(&unpacked))?;
    let expected = unpacked.join("rootfs");
    let listed = ok(line("unsquashfs -lls").arg(root_image))?;
    equal(
        "unsquashfs -lls",
        &listing(&listed)?,
        &found(&expected, "%M %u/%g %TY-%Tm-%Td %TH:%TM %P%l\\n")?,
    )?;

    // And unpacked, for what the listing does not show: contents, devices, hard links, extended attributes.
    let extracted = dir.path().join("extracted");
    ok(line("unsquashfs -quiet -no-progress -dest")
        .arg(&extracted)
        .arg(root_image))?;
    let extracted = extracted.as_path();
    let links = "%y %n %P\\n";
    equal(
        "hard links",
        &files(extracted, links)?,
        &files(&expected, links)?,
    )?;
    for (what, script) in [
        ("contents", "find . -type f -print0 | xargs -0 sha256sum"),
        (
            "devices",
            "find . -type b -printf '%p ' -exec stat -c '%t:%T' {} ';' ; find . -type c -printf '%p ' -exec stat -c '%t:%T' {} ';'",
        ),
        (
            "extended attributes",
            "getfattr -R -h -m - -d -e hex . | awk '/^# file/ {file=$0; next} NF {print file, $0}'",
        ),
    ] {
        let lines = |dir: &Path| -> Result<BTreeSet<String>> {
            let printed = ok(Command::new("sh").args(["-ec", script]).current_dir(dir))?;
            Ok(printed.lines().map(str::to_owned).collect())
        };
        let (ours, theirs) = (lines(extracted)?, lines(&expected)?);
        ensure!(
            theirs.is_empty() == none.contains(&what),
            "{what}: {theirs:?}"
        );
        equal(what, &ours, &theirs)?;
    }
    Ok(())
}

/// The lines of `unsquashfs -lls`: mode, owner, time, path and symlink target.
fn listing(printed: &str) -> Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    for line in printed
        .lines()
        .filter(|line| line.contains("squashfs-root"))
    {
        let (facts, path) = line.split_once("squashfs-root").context("a path")?;
        let facts: Vec<&str> = facts.split_whitespace().collect();
        let [mode, owner, .., date, time] = facts[..] else {
            anyhow::bail!("unsquashfs prints {line:?}");
        };
        let path = path.trim_start_matches('/').replace(" -> ", "");
        lines.insert(format!("{mode} {owner} {date} {time} {path}"));
    }
    Ok(lines)
}

fn found(dir: &Path, format: &str) -> Result<BTreeSet<String>> {
    // unsquashfs prints local time, as find does.
    let printed = ok(line("find . -printf").arg(format).current_dir(dir))?;
    Ok(printed.lines().map(str::to_owned).collect())
}

fn files(dir: &Path, format: &str) -> Result<BTreeSet<String>> {
    let printed = ok(line("find . -type f -printf").arg(format).current_dir(dir))?;
    Ok(printed.lines().map(str::to_owned).collect())
}

fn equal(what: &str, ours: &BTreeSet<String>, theirs: &BTreeSet<String>) -> Result<()> {
    let shown = |lines: BTreeSet<&String>| {
        lines
            .into_iter()
            .take(10)
            .cloned()
            .collect::<Vec<_>>()
            .join("\n    ")
    };
    let (more, less) = (
        ours.difference(theirs).collect(),
        theirs.difference(ours).collect(),
    );
    ensure!(
        ours == theirs,
        "{what}: only in root.img:\n    {}\n  only in umoci's tree:\n    {}",
        shown(more),
        shown(less)
    );
    Ok(())
}

fn conversions_are_byte_identical(fixtures: &Fixtures) -> Result<Outcome> {
    let dir = tempfile::tempdir()?;
    // Two seconds later, from the layout instead of the archive, in another directory: none of it may show.
    let image = fixtures.small_image()?;
    let (first, second) = (dir.path().join("first"), dir.path().join("second"));
    ok(&mut fixtures.convert(&image, &first, 1)?)?;
    std::thread::sleep(std::time::Duration::from_secs(2));
    ok(&mut fixtures.convert(&image, &second, 1)?)?;
    ok(line("diff --recursive --brief").arg(&first).arg(&second))?;

    let third = dir.path().join("third");
    let mut convert = fixtures.convert(&image, &third, 1)?;
    ok(convert.env("SOURCE_DATE_EPOCH", "1000000000"))?;
    let fourth = dir.path().join("fourth");
    let mut convert = fixtures.convert(&image, &fourth, 1)?;
    ok(convert.env("SOURCE_DATE_EPOCH", "1000000000"))?;
    ok(line("diff --recursive --brief").arg(&third).arg(&fourth))?;
    Ok(Outcome::Passed)
}

/// GYROIDOS.md, "The text dialect": checked line by line, without a parser of ours.
fn the_text_keeps_to_the_dialect(fixtures: &Fixtures) -> Result<Outcome> {
    let text = fs::read_to_string(bundle_file(fixtures, ".conf")?)?;
    ensure!(text.ends_with('\n') && !text.contains('\r'), "line ends");
    let word = |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
    for text in text.lines() {
        let statement = text.trim();
        let fine = match statement.split_once(": ") {
            None => statement == "}" || statement.strip_suffix(" {").is_some_and(word),
            Some((field, value)) => word(field) && scalar(value),
        };
        ensure!(fine, "not in the dialect: {text:?}");
    }
    ensure!(field(&text, "init_path")? == "/sbin/cservice");
    ensure!(field(&text, "init_param")? == "/bin/service");
    ensure!(
        text.contains("init_env: \"COLOUR=blue \\\"quoted\\\" \\\\ back\""),
        "{text}"
    );
    for kind in ["SHARED_RW", "EMPTY", "STORE_ONLY"] {
        ensure!(
            text.contains(&format!("mount_type: {kind}\n")),
            "{kind}: {text}"
        );
    }
    Ok(Outcome::Passed)
}

fn scalar(value: &str) -> bool {
    let Some(inner) = value
        .strip_prefix('"')
        .and_then(|value| value.strip_suffix('"'))
    else {
        return value.chars().all(|c| c.is_ascii_digit())
            || ["true", "false"].contains(&value)
            || value.chars().all(|c| c.is_ascii_uppercase() || c == '_');
    };
    // No quote or control character is left bare.
    let unescaped = inner.replace("\\\\", "").replace("\\\"", "");
    !unescaped.contains('"') && !inner.chars().any(char::is_control) && !unescaped.ends_with('\\')
}

fn image_digests_are_in_the_text(fixtures: &Fixtures) -> Result<Outcome> {
    let text = fs::read_to_string(bundle_file(fixtures, ".conf")?)?;
    for image in ["root", "config"] {
        let path = bundle_file(fixtures, &format!("/{image}.img"))?;
        let digest = |program: &str| -> Result<String> {
            let printed = ok(Command::new(program).arg(&path))?;
            Ok(printed.split(' ').next().unwrap_or_default().to_owned())
        };
        let (_, mount) = text
            .split_once(&format!("image_file: \"{image}\""))
            .context(image)?;
        ensure!(field(mount, "image_size")? == fs::metadata(&path)?.len().to_string());
        ensure!(field(mount, "image_sha1")? == digest("sha1sum")?);
        ensure!(field(mount, "image_sha2_256")? == digest("sha256sum")?);
    }
    Ok(Outcome::Passed)
}

fn verify_and_inspect(fixtures: &Fixtures) -> Result<Outcome> {
    let conf = bundle_file(fixtures, ".conf")?;
    let convert = |words: &str| {
        let mut command = fixtures.programs.command("trustme-convert", words);
        command.arg(&conf);
        command
    };
    ok(convert("verify").arg("--anchors").arg(fixtures.anchor()?))?;
    ok(convert("verify --json")
        .arg("--anchors")
        .arg(fixtures.anchor()?))
    .and_then(|text| Ok(serde_json::from_str::<serde_json::Value>(&text)?))?;
    let inspected: serde_json::Value = serde_json::from_str(&ok(&mut convert("inspect --json"))?)?;
    ensure!(
        inspected.to_string().contains("/bin/service"),
        "{inspected}"
    );
    // A sub-CA alone is no anchor.
    let sub = fixtures.pki()?.join("ssig_subca.cert");
    run(convert("verify").arg("--anchors").arg(sub))?.fails()?;
    Ok(Outcome::Passed)
}

fn a_failed_conversion_leaves_nothing(fixtures: &Fixtures) -> Result<Outcome> {
    let dir = tempfile::tempdir()?;
    let image = fixtures.small_image()?;
    let bytes = fs::read(&image.archive)?;
    let out = dir.path().join("out");
    fs::create_dir(&out)?;
    for (number, length) in [0, 1, 511, 512, 1000, bytes.len() / 2, bytes.len() - 20_000]
        .into_iter()
        .enumerate()
    {
        let broken = Image {
            layout: image.layout.clone(),
            archive: dir.path().join(format!("truncated-{number}.tar")),
        };
        fs::write(&broken.archive, &bytes[..length])?;
        run(&mut fixtures.convert(&broken, &out, 1)?)?.fails_saying(&["truncated-"])?;
        let left: Vec<_> = fs::read_dir(&out)?.collect();
        ensure!(left.is_empty(), "{length} bytes: left behind: {left:?}");
    }
    Ok(Outcome::Passed)
}
