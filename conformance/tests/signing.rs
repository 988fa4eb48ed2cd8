//! Signers' keys wherever they are: encrypted, in a PKCS#11 token (SoftHSM), in a TPM (swtpm); and what cosign says of the
//! sigstore bundle.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use trustme_conformance::command::{Ran, line, ok, run};
use trustme_conformance::cosign;
use trustme_conformance::fixtures::{Fixtures, NAME};
use trustme_conformance::suite::{self, Outcome};
use trustme_conformance::swtpm::Swtpm;

const SOFTHSM: &str = "/usr/lib/softhsm/libsofthsm2.so";

/// The DER of rsaEncryption with its NULL, and of id-RSASSA-PSS without parameters.
const RSA_ENCRYPTION: &str = "300d06092a864886f70d0101010500";
const RSASSA_PSS: &str = "300b06092a864886f70d01010a";

fn main() -> ExitCode {
    suite::main(&[
        ("an_encrypted_key", an_encrypted_key),
        ("a_key_in_a_token", a_key_in_a_token),
        ("a_key_of_a_tpm", a_key_of_a_tpm),
        ("keys_that_gyroidos_refuses", keys_that_gyroidos_refuses),
        ("cosign_verifies_the_bundle", cosign_verifies_the_bundle),
    ])
}

/// A copy of the small bundle, which is signed anew.
struct Bundle<'a> {
    fixtures: &'a Fixtures,
    dir: tempfile::TempDir,
}

impl<'a> Bundle<'a> {
    fn new(fixtures: &'a Fixtures) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        ok(line("cp --archive --link")
            .arg(fixtures.small_bundle()?.join("."))
            .arg(dir.path()))?;
        for extension in ["sig", "cert", "sigstore.json"] {
            fs::remove_file(dir.path().join(format!("{NAME}-1.{extension}")))?;
        }
        Ok(Self { fixtures, dir })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn conf(&self) -> PathBuf {
        self.path(&format!("{NAME}-1.conf"))
    }

    fn sign(&self, key: impl AsRef<std::ffi::OsStr>, cert: &Path) -> Command {
        let mut command = self.fixtures.programs.command("trustme-convert", "sign");
        command.arg(self.conf()).arg("--key").arg(key);
        command.arg("--cert").arg(cert);
        command
    }

    /// Signs, and has the signature checked.
    fn signs(&self, command: &mut Command) -> Result<()> {
        ok(command)?;
        let mut verify = self.fixtures.programs.command("trustme-convert", "verify");
        verify.arg(self.conf());
        ok(verify.arg("--anchors").arg(self.fixtures.anchor()?))?;
        Ok(())
    }

    /// A certificate of the development PKI's root for a public key.
    fn certificate(&self, public: &Path) -> Result<PathBuf> {
        let cert = self.path("leaf.cert");
        let extensions = self.path("extensions");
        fs::write(&extensions, "keyUsage=critical,digitalSignature\n")?;
        let pki = self.fixtures.pki()?;
        ok(
            line("openssl x509 -new -subj /CN=leaf -days 30 -sha256 -force_pubkey")
                .arg(public)
                .arg("-CA")
                .arg(pki.join("ssig_rootca.cert"))
                .arg("-CAkey")
                .arg(pki.join("ssig_rootca.key"))
                .arg("-extfile")
                .arg(&extensions)
                .arg("-out")
                .arg(&cert),
        )?;
        Ok(cert)
    }
}

/// Runs a command without a terminal to ask at.
fn detached(command: &Command) -> Result<Ran> {
    let mut setsid = line("setsid --wait");
    setsid.arg(command.get_program()).args(command.get_args());
    run(&mut setsid)
}

fn an_encrypted_key(fixtures: &Fixtures) -> Result<Outcome> {
    let bundle = Bundle::new(fixtures)?;
    let pki = fixtures.pki()?;
    let cert = pki.join("ssig_cml.cert");
    let (key, passphrase) = (bundle.path("encrypted.key"), bundle.path("passphrase"));
    fs::write(&passphrase, "correct horse\nignored\n")?;
    ok(line("openssl pkey -aes256 -passout")
        .arg(format!("file:{}", passphrase.display()))
        .arg("-in")
        .arg(pki.join("ssig_cml.key"))
        .arg("-out")
        .arg(&key))?;
    bundle.signs(
        bundle
            .sign(&key, &cert)
            .arg("--passphrase-file")
            .arg(&passphrase),
    )?;
    // The same signature as with the key in the clear.
    let sig = fs::read(bundle.path(&format!("{NAME}-1.sig")))?;
    ensure!(sig == fs::read(fixtures.small_bundle()?.join(format!("{NAME}-1.sig")))?);

    let open = fs::File::open(&passphrase)?;
    let number = rustix::io::dup(&open)?;
    rustix::io::fcntl_setfd(&number, rustix::io::FdFlags::empty())?;
    let number_text = number.as_raw_fd().to_string();
    bundle.signs(
        bundle
            .sign(&key, &cert)
            .args(["--passphrase-fd", &number_text]),
    )?;
    drop(number);

    detached(&bundle.sign(&key, &cert))?.fails_saying(&["passphrase", "no terminal"])?;
    fs::write(&passphrase, "wrong\n")?;
    let mut wrong = bundle.sign(&key, &cert);
    run(wrong.arg("--passphrase-file").arg(&passphrase))?
        .fails_saying(&["encrypted.key", "the passphrase is not the one"])?;

    // At a terminal: typed, and not shown.
    fs::write(&passphrase, "correct horse\n")?;
    let typed = format!(
        "{} sign {} --key {} --cert {}",
        fixtures.programs.path("trustme-convert").display(),
        bundle.conf().display(),
        key.display(),
        cert.display()
    );
    let shown = ok(line("sh -ec").arg(format!(
        "(sleep 3; cat {}; sleep 2) | script --quiet --return --command '{typed}' /dev/null",
        passphrase.display()
    )))?;
    ensure!(
        shown.contains("passphrase of") && !shown.contains("correct horse"),
        "{shown}"
    );
    Ok(Outcome::Passed)
}

/// The development PKI's signer, which is restricted to PSS, in SoftHSM.
fn a_key_in_a_token(fixtures: &Fixtures) -> Result<Outcome> {
    let bundle = Bundle::new(fixtures)?;
    let pki = fixtures.pki()?;
    let conf = bundle.path("softhsm2.conf");
    fs::create_dir(bundle.path("tokens"))?;
    fs::write(
        &conf,
        format!(
            "directories.tokendir = {}\n",
            bundle.path("tokens").display()
        ),
    )?;
    let softhsm = |words: &str| {
        let mut command = line("softhsm2-util");
        command.args(words.split(' ')).env("SOFTHSM2_CONF", &conf);
        command
    };
    ok(&mut softhsm(
        "--init-token --free --label signers --pin 1234 --so-pin 12345678",
    ))?;
    // PKCS#11 knows RSA keys without a scheme: the key inside of PKCS#8's envelope.
    let parsed = ok(line("openssl asn1parse -in").arg(pki.join("ssig_cml.key")))?;
    let offset = parsed
        .lines()
        .find(|line| line.contains("OCTET STRING"))
        .and_then(|line| line.split(':').next())
        .context("no key in it")?;
    let (der, pem) = (bundle.path("key.der"), bundle.path("key.pem"));
    ok(line("openssl asn1parse -noout -in")
        .arg(pki.join("ssig_cml.key"))
        .args(["-strparse", offset.trim(), "-out"])
        .arg(&der))?;
    ok(line("openssl pkcs8 -topk8 -nocrypt -inform DER -in")
        .arg(&der)
        .arg("-out")
        .arg(&pem))?;
    ok(softhsm("--import")
        .arg(&pem)
        .args("--token signers --label signer --id 01 --pin 1234".split(' ')))?;
    let pin = bundle.path("pin");
    fs::write(&pin, "1234\n")?;
    let cert = pki.join("ssig_cml.cert");
    let sign = |rest: &str| {
        let uri = format!("pkcs11:token=signers;{rest}module-path={SOFTHSM}");
        let mut command = bundle.sign(uri, &cert);
        command.env("SOFTHSM2_CONF", &conf);
        command
    };
    let source = format!("object=signer?pin-source=file:{}&", pin.display());
    bundle.signs(&mut sign(&source))?;
    bundle.signs(sign("id=%01?").arg("--passphrase-file").arg(&pin))?;
    run(sign("object=other?").arg("--passphrase-file").arg(&pin))?
        .fails_saying(&["0 private keys in the token \"signers\""])?;
    run(&mut sign("object=signer?pin-value=1234&"))?.fails_saying(&["pin-value"])?;
    fs::write(&pin, "4321\n")?;
    run(&mut sign(&source))?.fails_saying(&["refuses the PIN"])?;
    fs::write(&pin, "1234\n")?;
    // Another key than the certificate's: nothing that it signed is written.
    let sub_ca = pki.join("ssig_subca.cert");
    let mut other = bundle.sign(
        format!("pkcs11:token=signers;{source}module-path={SOFTHSM}"),
        &sub_ca,
    );
    run(other.env("SOFTHSM2_CONF", &conf))?.fails_saying(&["does not belong to"])?;
    Ok(Outcome::Passed)
}

/// Keys that a TPM has wrapped, with and without a password, and a persistent one, with each kind of certificate.
fn a_key_of_a_tpm(fixtures: &Fixtures) -> Result<Outcome> {
    let bundle = Bundle::new(fixtures)?;
    let tpm = Swtpm::start()?;
    let file = |name: &str| bundle.path(name).display().to_string();
    // Without a resource manager, what a tool loads stays loaded.
    let tool = |words: &str| -> Result<()> {
        tpm.tool(words)?;
        tpm.tool("tpm2_flushcontext -t")?;
        Ok(())
    };
    tool(&format!(
        "tpm2_createprimary -Q -C o -G ecc -c {}",
        file("parent")
    ))?;
    tool(&format!(
        "tpm2_evictcontrol -Q -c {} 0x81000010",
        file("parent")
    ))?;
    let attributes = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|sign";
    let create = |name: &str, auth: &str| -> Result<()> {
        let (public, private) = (file(&format!("{name}.pub")), file(&format!("{name}.priv")));
        tool(&format!(
            "tpm2_create -Q -C 0x81000010 -G rsa2048 -a {attributes} -u {public} -r {private}{auth}"
        ))?;
        let flag = if auth.is_empty() { "" } else { " -p" };
        tool(&format!(
            "tpm2_encodeobject -Q -C 0x81000010 -u {public} -r {private} -o {}{flag}",
            file(&format!("{name}.pem"))
        ))?;
        tool(&format!(
            "tpm2_load -Q -C 0x81000010 -u {public} -r {private} -c {}",
            file("loaded")
        ))?;
        tool(&format!(
            "tpm2_readpublic -Q -c {} -f pem -o {}",
            file("loaded"),
            file(&format!("{name}.spki"))
        ))?;
        Ok(())
    };
    let tcti = tpm.tcti();
    let sign = |key: &Path, cert: &Path| {
        let mut command = bundle.sign(key, cert);
        command.args(["--tcti", &tcti]);
        command
    };
    create("plain", "")?;
    for spki in [bundle.path("plain.spki"), pss(&bundle, "plain.spki")?] {
        let cert = bundle.certificate(&spki)?;
        // tpm2_encodeobject says of a key without a password that it has one.
        let mut signed = sign(&bundle.path("plain.pem"), &cert);
        bundle.signs(signed.args(["--passphrase-file", "/dev/null"]))?;
    }
    tool(&format!(
        "tpm2_evictcontrol -Q -c {} 0x81000020",
        file("loaded")
    ))?;
    let cert = bundle.certificate(&bundle.path("plain.spki"))?;
    bundle.signs(&mut sign(Path::new("tpm2:0x81000020"), &cert))?;
    run(&mut sign(Path::new("tpm2:0x81000021"), &cert))?.fails_saying(&["no such key"])?;
    run(&mut sign(Path::new("tpm2:0x01c00002"), &cert))?.fails_saying(&["persistent key"])?;

    create("locked", " -p secret")?;
    let cert = bundle.certificate(&bundle.path("locked.spki"))?;
    let passphrase = bundle.path("passphrase");
    let locked = || {
        let mut command = sign(&bundle.path("locked.pem"), &cert);
        command.arg("--passphrase-file").arg(&passphrase);
        command
    };
    fs::write(&passphrase, "secret\n")?;
    bundle.signs(&mut locked())?;
    fs::write(&passphrase, "wrong\n")?;
    run(&mut locked())?.fails_saying(&["the TPM does not sign"])?;
    fs::write(
        bundle.path("broken.pem"),
        "-----BEGIN TSS2 PRIVATE KEY-----\nMAA=\n-----END TSS2 PRIVATE KEY-----\n",
    )?;
    run(&mut sign(&bundle.path("broken.pem"), &cert))?.fails_saying(&["no TSS2 PRIVATE KEY"])?;
    Ok(Outcome::Passed)
}

/// The same RSA key as one that is restricted to PSS.
fn pss(bundle: &Bundle, name: &str) -> Result<PathBuf> {
    let (der, restricted) = (bundle.path("spki.der"), bundle.path("pss.der"));
    ok(line("openssl pkey -pubin -outform DER -in")
        .arg(bundle.path(name))
        .arg("-out")
        .arg(&der))?;
    let text = hex::encode(fs::read(&der)?);
    let (_, key) = text.split_once(RSA_ENCRYPTION).context("no RSA key")?;
    let content = format!("{RSASSA_PSS}{key}");
    let length = content.len() / 2;
    ensure!((0x100..0x1_0000).contains(&length));
    fs::write(
        &restricted,
        hex::decode(format!("3082{length:04x}{content}"))?,
    )?;
    let pem = bundle.path("pss.spki");
    ok(line("openssl pkey -pubin -inform DER -in")
        .arg(&restricted)
        .arg("-out")
        .arg(&pem))?;
    Ok(pem)
}

fn keys_that_gyroidos_refuses(fixtures: &Fixtures) -> Result<Outcome> {
    let bundle = Bundle::new(fixtures)?;
    let (key, public) = (bundle.path("ec.key"), bundle.path("ec.pub"));
    ok(line("openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out").arg(&key))?;
    ok(line("openssl pkey -pubout -in")
        .arg(&key)
        .arg("-out")
        .arg(&public))?;
    let cert = bundle.certificate(&public)?;
    run(&mut bundle.sign(&key, &cert))?.fails_saying(&["EC", "GyroidOS refuses"])?;
    ensure!(!bundle.path(&format!("{NAME}-1.sig")).exists());
    bundle.signs(bundle.sign(&key, &cert).arg("--no-gyroidos"))?;
    ok(line("openssl genpkey -algorithm ed25519 -out").arg(&key))?;
    run(bundle.sign(&key, &cert).arg("--no-gyroidos"))?.fails_saying(&["of another kind"])?;
    Ok(Outcome::Passed)
}

/// With the development PKI's key, which is restricted to PSS, and with an EC key.
fn cosign_verifies_the_bundle(fixtures: &Fixtures) -> Result<Outcome> {
    let cosign = cosign::program(&fixtures.programs.cache())?;
    let bundle = Bundle::new(fixtures)?;
    let verify = |cert: &Path, conf: &Path| -> Result<Ran> {
        let mut show = fixtures
            .programs
            .command("trustme-convert", "pki cosign-key");
        let key = bundle.path("cosign.pub");
        fs::write(&key, ok(show.arg(cert))?)?;
        let mut command = Command::new(&cosign);
        command
            .args(["verify-blob", "--insecure-ignore-tlog", "--key"])
            .arg(&key)
            .arg("--bundle")
            .arg(bundle.path(&format!("{NAME}-1.sigstore.json")))
            .arg(conf)
            .env("HOME", bundle.dir.path());
        run(&mut command)
    };
    let pki = fixtures.pki()?;
    let cert = pki.join("ssig_cml.cert");
    bundle.signs(&mut bundle.sign(pki.join("ssig_cml.key"), &cert))?;
    verify(&cert, &bundle.conf())?.ok()?;
    verify(&pki.join("ssig_subca.cert"), &bundle.conf())?.fails()?;
    let changed = bundle.path("changed");
    fs::write(&changed, [&fs::read(bundle.conf())?[..], b" "].concat())?;
    verify(&cert, &changed)?.fails()?;

    let (key, public) = (bundle.path("ec.key"), bundle.path("ec.pub"));
    ok(line("openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out").arg(&key))?;
    ok(line("openssl pkey -pubout -in")
        .arg(&key)
        .arg("-out")
        .arg(&public))?;
    let cert = bundle.certificate(&public)?;
    bundle.signs(bundle.sign(&key, &cert).arg("--no-gyroidos"))?;
    verify(&cert, &bundle.conf())?.ok()?;
    Ok(Outcome::Passed)
}
