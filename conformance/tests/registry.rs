//! Images from registries: docker-registry with TLS and a password, one with every fault, and what cosign signed.

use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use trustme_conformance::command::{Ran, ok, run};
use trustme_conformance::cosign;
use trustme_conformance::fixtures::Fixtures;
use trustme_conformance::registry::{CREDENTIALS, Fault, Faulty, Registry, alone, nothing_is_left};
use trustme_conformance::suite::{self, Outcome};

fn main() -> ExitCode {
    suite::main(&[
        ("tls_and_password", tls_and_password),
        ("credentials_of_docker", credentials_of_docker),
        ("mirrors_and_blocked", mirrors_and_blocked),
        ("carriers", carriers),
        ("what_cosign_signed", what_cosign_signed),
        ("policies", policies),
        ("faults_that_pass", faults_that_pass),
        ("faults_that_do_not", faults_that_do_not),
        ("credentials_do_not_follow", credentials_do_not_follow),
    ])
}

/// `trustme-convert` in a home of its own: `TMPDIR` and `--out` are in `dir`.
fn convert(fixtures: &Fixtures, dir: &Path, source: &str) -> Result<Command> {
    let pki = fixtures.pki()?;
    for name in ["home", "tmp"] {
        fs::create_dir_all(dir.join(name))?;
    }
    let mut command = fixtures.programs.command("trustme-convert", "convert");
    command
        .args([
            source,
            "--name",
            "small",
            "--version",
            "1",
            "--force",
            "--out",
        ])
        .arg(dir.join("out"))
        .arg("--key")
        .arg(pki.join("ssig_cml.key"))
        .arg("--cert")
        .arg(pki.join("ssig_cml.cert"));
    alone(&mut command, dir);
    Ok(command)
}

/// Whether the bundle is the one that the archive gives.
fn is_small(fixtures: &Fixtures, dir: &Path) -> Result<()> {
    let (made, expected) = (dir.join("out"), fixtures.small_bundle()?);
    for file in [
        "small-1.conf",
        "small-1.sig",
        "small-1/root.img",
        "small-1/config.img",
    ] {
        ensure!(
            fs::read(made.join(file))? == fs::read(expected.join(file))?,
            "{file} is another than of the archive"
        );
    }
    let left: Vec<_> = fs::read_dir(dir.join("tmp"))?.flatten().collect();
    ensure!(left.is_empty(), "left in TMPDIR: {left:?}");
    Ok(())
}

fn registry(fixtures: &Fixtures, dir: &Path) -> Result<Registry> {
    let registry = Registry::start(&fixtures.programs.cache(), &dir.join("registry-files"))?;
    registry.put(&fixtures.small_image()?.layout, "a/small:v1")?;
    Ok(registry)
}

fn tls_and_password(fixtures: &Fixtures) -> Result<Outcome> {
    let dir = tempfile::tempdir()?;
    let registry = registry(fixtures, dir.path())?;
    let image = |name: &str| format!("docker://{}/{name}", registry.host);
    let attempt = |name: &str, options: &[&str]| -> Result<Ran> {
        run(convert(fixtures, dir.path(), &image(name))?.args(options))
    };
    let certs = registry.certs.display().to_string();
    for (name, options, error) in [
        (
            "a/small:v1",
            &["--creds", CREDENTIALS][..],
            "certificate verify failed",
        ),
        (
            "a/small:v1",
            &["--cert-dir", &certs],
            "wants a user and a password",
        ),
        (
            "a/small:v1",
            &["--cert-dir", &certs, "--creds", "u:no"],
            "401",
        ),
        (
            "a/small:v2",
            &["--cert-dir", &certs, "--creds", CREDENTIALS],
            "no manifest v2",
        ),
        (
            "a/small:v1",
            &["--cert-dir", "/nonexistent"],
            "/nonexistent",
        ),
        (
            "a/small:v1",
            &[
                "--cert-dir",
                &certs,
                "--creds",
                CREDENTIALS,
                "--platform",
                "linux/arm64",
            ],
            "linux/arm64",
        ),
    ] {
        attempt(name, options)?.fails_saying(&[error])?;
        nothing_is_left(dir.path())?;
    }
    attempt(
        "a/small:v1",
        &["--cert-dir", &certs, "--creds", CREDENTIALS],
    )?
    .ok()?;
    is_small(fixtures, dir.path())?;
    attempt(
        "a/small:v1",
        &["--tls-verify=false", "--creds", CREDENTIALS],
    )?
    .ok()?;
    Ok(Outcome::Passed)
}

fn credentials_of_docker(fixtures: &Fixtures) -> Result<Outcome> {
    let dir = tempfile::tempdir()?;
    let registry = registry(fixtures, dir.path())?;
    let image = format!("docker://{}/a/small:v1", registry.host);
    let with = |docker_config: &Path, path: Option<&Path>| -> Result<Ran> {
        let mut command = convert(fixtures, dir.path(), &image)?;
        if let Some(path) = path {
            command.env("PATH", format!("{}:/usr/bin:/bin", path.display()));
        }
        run(command
            .env("DOCKER_CONFIG", docker_config)
            .arg("--cert-dir")
            .arg(&registry.certs))
    };
    with(&registry.docker_config, None)?.ok()?;

    // A credential helper, and one that fails.
    let (bin, config) = (dir.path().join("bin"), dir.path().join("helped"));
    fs::create_dir_all(&bin)?;
    fs::create_dir_all(&config)?;
    let helper = |name: &str, text: &str| -> Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let path = bin.join(format!("docker-credential-{name}"));
        fs::write(&path, text)?;
        Ok(fs::set_permissions(
            &path,
            fs::Permissions::from_mode(0o755),
        )?)
    };
    helper(
        "good",
        "#!/bin/sh\nread server; test \"$1\" = get || exit 1\necho \"{\\\"ServerURL\\\":\\\"$server\\\",\\\"Username\\\":\\\"u\\\",\\\"Secret\\\":\\\"pw\\\"}\"\n",
    )?;
    helper("bad", "#!/bin/sh\necho 'the keyring is locked'; exit 1\n")?;
    let write = |value: serde_json::Value| fs::write(config.join("config.json"), value.to_string());
    write(json!({"credHelpers": {&registry.host: "good"}, "credsStore": "bad"}))?;
    with(&config, Some(&bin))?.ok()?;
    write(json!({"credsStore": "good"}))?;
    with(&config, Some(&bin))?.ok()?;
    write(json!({"credsStore": "bad"}))?;
    with(&config, Some(&bin))?.fails_saying(&["docker-credential-bad", "the keyring is locked"])?;
    write(json!({"credsStore": "none"}))?;
    with(&config, Some(&bin))?.fails_saying(&["docker-credential-none"])?;
    fs::write(config.join("config.json"), "{\"auths\": secret}")?;
    let said = with(&config, None)?.fails_saying(&["config.json", "line 1"])?;
    ensure!(!said.contains("secret"), "{said}");
    Ok(Outcome::Passed)
}

fn mirrors_and_blocked(fixtures: &Fixtures) -> Result<Outcome> {
    let dir = tempfile::tempdir()?;
    let registry = registry(fixtures, dir.path())?;
    let conf = dir.path().join("registries.conf");
    let with = |text: String| -> Result<Ran> {
        fs::write(&conf, text)?;
        run(
            convert(fixtures, dir.path(), "docker://images.invalid/small:v1")?
                .args(["--creds", CREDENTIALS, "--cert-dir"])
                .arg(&registry.certs)
                .arg("--registries-conf")
                .arg(&conf),
        )
    };
    let host = &registry.host;
    with(format!(
        "[[registry]]\nprefix = \"images.invalid\"\nlocation = \"{host}/a\"\n"
    ))?
    .ok()?;
    with(format!(
        "[[registry]]\nlocation = \"images.invalid\"\n[[registry.mirror]]\nlocation = \"{host}/none\"\n[[registry.mirror]]\nlocation = \"{host}/a\"\n"
    ))?
    .ok()?;
    with("[[registry]]\nlocation = \"images.invalid\"\nblocked = true\n".to_owned())?
        .fails_saying(&["blocked"])?;
    with("[[registry]".to_owned())?.fails_saying(&["registries.conf"])?;
    Ok(Outcome::Passed)
}

fn carriers(fixtures: &Fixtures) -> Result<Outcome> {
    let dir = tempfile::tempdir()?;
    let registry = registry(fixtures, dir.path())?;
    fs::create_dir_all(dir.path().join("tmp"))?;
    let bundle = fixtures.small_bundle()?;
    let conf = bundle.join("small-1.conf");
    let remote = format!("docker://{}/a/carrier:1", registry.host);
    let layout = format!("oci:{}/layout:1", dir.path().display());
    let archive = format!("oci-archive:{}/oci.tar", dir.path().display());
    let docker = format!("docker-archive:{}/docker.tar:small:1", dir.path().display());
    let with = |line: &str| {
        let mut command = fixtures.programs.command("trustme-convert", line);
        alone(&mut command, dir.path());
        command
    };
    let mut digests = Vec::new();
    for place in [&remote, &remote, &layout, &layout, &archive, &docker] {
        let mut push = with("push");
        push.arg(&conf).arg(place);
        push.args(["--creds", CREDENTIALS, "--cert-dir"])
            .arg(&registry.certs);
        digests.push(ok(&mut push)?);
    }
    digests.dedup();
    ensure!(digests.len() == 1, "{digests:?}");
    for place in [&remote, &layout, &archive, &docker] {
        let out = dir.path().join("pulled");
        let mut pull = with("pull");
        pull.arg(place)
            .arg("--out")
            .arg(&out)
            .arg("--anchors")
            .arg(fixtures.anchor()?);
        pull.args(["--creds", CREDENTIALS, "--cert-dir"])
            .arg(&registry.certs);
        ok(&mut pull)?;
        ok(Command::new("diff").arg("-r").arg(bundle).arg(&out))?;
        fs::remove_dir_all(&out)?;
    }
    // Not a carrier; and one of a signer that is not trusted.
    let other = dir.path().join("pki");
    ok(fixtures
        .programs
        .command("trustme-convert", "pki init")
        .arg(&other))?;
    let out = dir.path().join("out");
    let image = format!("oci:{}", fixtures.small_image()?.layout.display());
    for (place, anchor, error) in [
        (&image, fixtures.anchor()?, "no carrier"),
        (&layout, other.join("ssig_rootca.cert"), "not trusted"),
    ] {
        let mut pull = with("pull");
        pull.arg(place)
            .arg("--out")
            .arg(&out)
            .arg("--anchors")
            .arg(anchor);
        run(&mut pull)?.fails_saying(&[error])?;
        nothing_is_left(dir.path())?;
    }
    Ok(Outcome::Passed)
}

/// A program that signs in the registry.
fn cosign(fixtures: &Fixtures, registry: &Registry, dir: &Path) -> Result<Command> {
    let mut command = Command::new(cosign::program(&fixtures.programs.cache())?);
    alone(&mut command, dir);
    command
        .current_dir(dir)
        .env("COSIGN_PASSWORD", "x")
        .env("DOCKER_CONFIG", &registry.docker_config)
        .env("SSL_CERT_FILE", registry.certs.join("ca.crt"));
    Ok(command)
}

fn digest_of(registry: &Registry, name: &str) -> Result<String> {
    let mut inspect = Command::new("skopeo");
    inspect.args([
        "inspect",
        "--creds",
        CREDENTIALS,
        "--format",
        "{{.Digest}}",
        "--cert-dir",
    ]);
    inspect
        .arg(&registry.certs)
        .arg(format!("docker://{}/{name}", registry.host));
    Ok(ok(&mut inspect)?.trim().to_owned())
}

fn what_cosign_signed(fixtures: &Fixtures) -> Result<Outcome> {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    fs::create_dir_all(dir.join("tmp"))?;
    fs::create_dir_all(dir.join("home"))?;
    let registry = registry(fixtures, dir)?;
    let layout = fixtures.small_image()?.layout;
    for name in ["own", "other"] {
        ok(cosign(fixtures, &registry, dir)?.args([
            "generate-key-pair",
            "--output-key-prefix",
            name,
        ]))?;
    }
    let sign = |name: &str, key: &str, bundle: bool| -> Result<String> {
        registry.put(&layout, &format!("{name}:v1"))?;
        let digest = digest_of(&registry, &format!("{name}:v1"))?;
        ok(cosign(fixtures, &registry, dir)?
            .args([
                "sign",
                "--key",
                &format!("{key}.key"),
                "--use-signing-config=false",
                "--tlog-upload=false",
            ])
            .arg(format!("--new-bundle-format={bundle}"))
            .arg(format!("{}/{name}@{digest}", registry.host)))?;
        Ok(digest)
    };
    sign("tag", "own", false)?;
    sign("bundle", "own", true)?;
    sign("foreign", "other", false)?;
    sign("foreign", "other", true)?;
    let attempt = |name: &str| -> Result<Ran> {
        run(convert(
            fixtures,
            dir,
            &format!("docker://{}/{name}:v1", registry.host),
        )?
        .args(["--creds", CREDENTIALS, "--cert-dir"])
        .arg(&registry.certs)
        .arg("--verify-key")
        .arg(dir.join("own.pub")))
    };
    attempt("a/small")?.fails_saying(&["not signed"])?;
    attempt("foreign")?.fails_saying(&["not signed with the key", "another key"])?;
    nothing_is_left(dir)?;
    // A signature of another image, moved to this one's tag.
    let digest = digest_of(&registry, "a/small:v1")?.replace(':', "-");
    let busybox = fixtures.stateless_image()?.layout;
    registry.put(&busybox, "a/moved:v1")?;
    let moved = digest_of(&registry, "a/moved:v1")?.replace(':', "-");
    for (name, suffix) in [("tag", ".sig"), ("bundle", "")] {
        let mut copy = Command::new("skopeo");
        copy.args([
            "copy",
            "--quiet",
            "--insecure-policy",
            "--all",
            "--src-cert-dir",
        ]);
        copy.arg(&registry.certs)
            .arg("--dest-cert-dir")
            .arg(&registry.certs);
        copy.args(["--src-creds", CREDENTIALS, "--dest-creds", CREDENTIALS]);
        let from = format!("docker://{}/{name}:{digest}{suffix}", registry.host);
        copy.arg(from).arg(format!(
            "docker://{}/a/moved:{moved}{suffix}",
            registry.host
        ));
        ok(&mut copy)?;
    }
    attempt("a/moved")?.fails_saying(&["not signed with the key", "over sha256:"])?;
    nothing_is_left(dir)?;
    for name in ["tag", "bundle"] {
        attempt(name)?.ok()?;
        let config = fs::read_to_string(dir.join("out/small-1/config.img"))?;
        ensure!(config.contains("signed with the key"), "{config}");
        let text = fs::read_to_string(dir.join("out/small-1.conf"))?;
        ensure!(
            text.contains("description_long") && text.contains("signed with the key"),
            "{text}"
        );
    }
    Ok(Outcome::Passed)
}

fn policies(fixtures: &Fixtures) -> Result<Outcome> {
    let dir = tempfile::tempdir()?;
    let dir = dir.path();
    let registry = registry(fixtures, dir)?;
    let name = format!("{}/a/small", registry.host);
    let digest = digest_of(&registry, "a/small:v1")?;
    // A signature by GPG, as skopeo's simple signing has it.
    let home = tempfile::Builder::new().prefix("gpg-").tempdir_in("/tmp")?;
    let gpg = |arguments: &[&str]| {
        let mut command = Command::new("gpg");
        command.args([
            "--batch",
            "--quiet",
            "--pinentry-mode",
            "loopback",
            "--passphrase",
            "",
        ]);
        command.args(arguments).env("GNUPGHOME", home.path());
        command
    };
    ok(&mut gpg(&[
        "--quick-generate-key",
        "test@example",
        "rsa2048",
        "sign",
        "never",
    ]))?;
    ok(gpg(&["--export", "--armor", "--output"]).arg(dir.join("gpg.pub")))?;
    let payload = dir.join("payload");
    let signed = json!({"critical": {
        "type": "atomic container signature", "image": {"docker-manifest-digest": &digest},
        "identity": {"docker-reference": format!("{name}:v1")},
    }, "optional": {}});
    fs::write(&payload, signed.to_string())?;
    let lookaside = dir.join(format!("lookaside/a/small@{}", digest.replace(':', "=")));
    fs::create_dir_all(&lookaside)?;
    ok(gpg(&["--sign", "--output"])
        .arg(lookaside.join("signature-1"))
        .arg(&payload))?;
    ok(Command::new("gpgconf")
        .args(["--kill", "all"])
        .env("GNUPGHOME", home.path()))?;

    let policy = dir.join("policy.json");
    let attempt = |source: &str, value: serde_json::Value| -> Result<Ran> {
        fs::write(&policy, value.to_string())?;
        run(convert(fixtures, dir, source)?
            .args(["--creds", CREDENTIALS, "--cert-dir"])
            .arg(&registry.certs)
            .arg("--policy")
            .arg(&policy)
            .arg("--lookaside")
            .arg(dir.join("lookaside")))
    };
    let tagged = format!("docker://{name}:v1");
    let reject = json!([{"type": "reject"}]);
    let anything = json!([{"type": "insecureAcceptAnything"}]);
    let signed_by =
        json!([{"type": "signedBy", "keyType": "GPGKeys", "keyPath": dir.join("gpg.pub")}]);
    let exact = json!([{"type": "signedBy", "keyType": "GPGKeys", "keyPath": dir.join("gpg.pub"),
        "signedIdentity": {"type": "exactReference", "dockerReference": "other.example/x:1"}}]);
    let scoped = |scope: &str, requirements: &serde_json::Value| json!({"default": reject, "transports": {"docker": {scope: requirements}}});
    let archive = format!(
        "docker-archive:{}",
        fixtures.small_image()?.archive.display()
    );
    for (source, value, error) in [
        (&tagged, json!({"default": reject}), "reject"),
        (&tagged, scoped("other.example", &anything), "reject"),
        (&tagged, scoped(&name, &exact), "signature of the name"),
        (&archive, json!({"default": signed_by}), "registries only"),
        (&tagged, json!({"default": []}), "without requirements"),
        (
            &tagged,
            json!({"default": [{"type": "maybe"}]}),
            "policy.json",
        ),
    ] {
        attempt(source, value)?.fails_saying(&[error])?;
        nothing_is_left(dir)?;
    }
    attempt(&tagged, scoped(&name, &signed_by))?.ok()?;
    attempt(&tagged, scoped(&registry.host, &anything))?.ok()?;
    attempt(&archive, json!({"default": anything}))?.ok()?;
    fs::write(lookaside.join("signature-1"), fs::read(&payload)?)?;
    attempt(&tagged, scoped(&name, &signed_by))?.fails_saying(&["another key"])?;
    Ok(Outcome::Passed)
}

/// A conversion from a registry with a fault, and how long it took.
fn from_faulty(
    fixtures: &Fixtures,
    dir: &Path,
    faulty: &Faulty,
    by_digest: bool,
) -> Result<(Ran, Duration)> {
    let source = match by_digest {
        true => format!("docker://{}/x@{}", faulty.host, faulty.digest),
        false => format!("docker://{}/x:v1", faulty.host),
    };
    let begin = Instant::now();
    let ran = run(convert(fixtures, dir, &source)?.args([
        "--tls-verify=false",
        "--creds",
        CREDENTIALS,
        "--registry-timeout",
        "2",
    ]))?;
    Ok((ran, begin.elapsed()))
}

fn faults_that_pass(fixtures: &Fixtures) -> Result<Outcome> {
    let layout = fixtures.small_image()?.layout;
    for fault in [
        Fault::None,
        Fault::Token,
        Fault::Cuts,
        Fault::CutsWithoutRange,
        Fault::TooMany,
        Fault::FailsTwice,
    ] {
        let dir = tempfile::tempdir()?;
        let faulty = Faulty::start(&layout, fault)?;
        let (ran, _) = from_faulty(fixtures, dir.path(), &faulty, true)?;
        ran.ok().with_context(|| format!("{fault:?}"))?;
        is_small(fixtures, dir.path()).with_context(|| format!("{fault:?}"))?;
        let requests = faulty.requests.load(Ordering::Relaxed);
        ensure!(
            fault != Fault::Cuts || requests > 5,
            "{requests} requests: nothing was cut"
        );
    }
    Ok(Outcome::Passed)
}

fn faults_that_do_not(fixtures: &Fixtures) -> Result<Outcome> {
    let layout = fixtures.small_image()?.layout;
    for (fault, errors) in [
        (
            Fault::Fails,
            &["blob sha256:", "HTTP 500", "5 attempts"][..],
        ),
        (Fault::Tomorrow, &["429", "86400 s"]),
        (Fault::Longer, &["bytes", "are announced"]),
        (Fault::Shorter, &["bytes", "are announced"]),
        (Fault::OtherBlob, &["blob sha256:", "it has the digest"]),
        (
            Fault::OtherManifest,
            &["the manifest has the digest", "expected"],
        ),
        (Fault::Endless, &["more than the", "announced"]),
        (Fault::Slow, &["too slow"]),
        (Fault::Silent, &["timeout"]),
        (Fault::Circles, &["redirections"]),
    ] {
        let dir = tempfile::tempdir()?;
        let faulty = Faulty::start(&layout, fault)?;
        let (ran, time) = from_faulty(fixtures, dir.path(), &faulty, true)?;
        ran.fails_saying(errors)
            .with_context(|| format!("{fault:?}"))?;
        ensure!(time < Duration::from_secs(60), "{fault:?}: {time:?}");
        nothing_is_left(dir.path()).with_context(|| format!("{fault:?}"))?;
    }
    Ok(Outcome::Passed)
}

fn credentials_do_not_follow(fixtures: &Fixtures) -> Result<Outcome> {
    let dir = tempfile::tempdir()?;
    let faulty = Faulty::start(&fixtures.small_image()?.layout, Fault::Redirects)?;
    let (ran, _) = from_faulty(fixtures, dir.path(), &faulty, false)?;
    ran.ok()?;
    is_small(fixtures, dir.path())?;
    let leaked = faulty
        .leaked
        .lock()
        .expect("no thread panicked with it")
        .clone();
    ensure!(
        leaked.is_empty(),
        "credentials went to the other host: {leaked:?}"
    );
    Ok(Outcome::Passed)
}
