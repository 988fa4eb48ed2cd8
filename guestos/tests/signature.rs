//! Signatures and chains, with keys, certificates and signatures that OpenSSL's program made or checks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;
use trustme_guestos::pki;
use trustme_guestos::signature::{Anchors, SignatureError, Signer, SigningKey, verify};

const CONF: &[u8] = b"name: \"nginx\"\n";

fn openssl(arguments: &[&str]) -> String {
    let output = Command::new("openssl").args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A root CA and a signer by `openssl req`, and the signature by `openssl dgst`.
struct Made(TempDir);

impl Made {
    fn new(new_key: &[&str], leaf: &[&str], padding: &[&str]) -> Self {
        let made = Self(TempDir::new().unwrap());
        let path = |name: &str| made.path(name).display().to_string();
        openssl(&[
            "req",
            "-x509",
            "-nodes",
            "-days",
            "30",
            "-newkey",
            "rsa:2048",
            "-subj",
            "/CN=root",
            "-addext",
            "keyUsage=critical,keyCertSign",
            "-keyout",
            &path("root.key"),
            "-out",
            &path("root.cert"),
        ]);
        let (root, root_key, key, cert) = (
            path("root.cert"),
            path("root.key"),
            path("leaf.key"),
            path("leaf.cert"),
        );
        let request = [
            "req",
            "-x509",
            "-nodes",
            "-subj",
            "/CN=signer/O=a company",
            "-CA",
            &root,
            "-CAkey",
            &root_key,
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-keyout",
            &key,
            "-out",
            &cert,
        ];
        let days = if leaf.contains(&"-days") {
            &[][..]
        } else {
            &["-days", "20"][..]
        };
        openssl(&[&request[..], new_key, leaf, days].concat());
        fs::write(made.path("conf"), CONF).unwrap();
        let (conf, sig) = (path("conf"), path("sig"));
        openssl(
            &[
                &["dgst", "-sha512", "-sign", &key, "-out", &sig][..],
                padding,
                &[&conf],
            ]
            .concat(),
        );
        made
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap()
    }

    fn verify_at(&self, at: SystemTime) -> Result<Signer, SignatureError> {
        let anchors = Anchors::load(&self.path("root.cert")).unwrap();
        verify(
            CONF,
            &self.read("sig"),
            &self.read("leaf.cert"),
            &anchors,
            at,
        )
    }

    fn refusal(&self) -> String {
        self.verify_at(SystemTime::now()).unwrap_err().to_string()
    }
}

const RSA: [&str; 2] = ["-newkey", "rsa:2048"];
const RSA_PSS: [&str; 4] = ["-newkey", "rsa-pss", "-pkeyopt", "rsa_keygen_bits:2048"];
const PSS_64: [&str; 4] = [
    "-sigopt",
    "rsa_padding_mode:pss",
    "-sigopt",
    "rsa_pss_saltlen:64",
];

#[test]
fn the_kind_of_key_decides_the_padding() {
    let pss_32 = [
        "-sigopt",
        "rsa_padding_mode:pss",
        "-sigopt",
        "rsa_pss_saltlen:32",
    ];
    let ec = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"];
    let not_made = "signature: does not belong to this text and this certificate";
    for (key, padding, refusal) in [
        (&RSA[..], &[][..], None),
        (&RSA, &PSS_64, Some(not_made)),
        (&RSA_PSS, &PSS_64, None),
        (&RSA_PSS, &pss_32, Some(not_made)),
        (&ec, &[], None),
        (
            &["-newkey", "rsa:1024"],
            &[],
            Some("certificates: a key of 1024 bits, at least 2048"),
        ),
    ] {
        let made = Made::new(key, &[], padding);
        match (made.verify_at(SystemTime::now()), refusal) {
            (Ok(signer), None) => {
                assert_eq!(signer.subject, "CN=signer, O=a company");
                assert_eq!(signer.anchor, made.path("root.cert"));
                assert!(!signer.locally_signed);
                let spki = openssl(&[
                    "x509",
                    "-in",
                    made.path("leaf.cert").to_str().unwrap(),
                    "-noout",
                    "-pubkey",
                ]);
                fs::write(made.path("spki.pem"), spki).unwrap();
                let der = made.path("spki.der");
                let spki = made.path("spki.pem");
                openssl(&[
                    "pkey",
                    "-pubin",
                    "-in",
                    spki.to_str().unwrap(),
                    "-outform",
                    "DER",
                    "-out",
                    der.to_str().unwrap(),
                ]);
                let digest = openssl(&["dgst", "-sha256", "-r", der.to_str().unwrap()]);
                assert!(
                    digest.starts_with(&hex::encode(signer.spki_sha256)),
                    "{digest}"
                );
            }
            (Err(error), Some(refusal)) => assert_eq!(error.to_string(), refusal),
            (result, _) => panic!("{key:?} {padding:?}: {result:?}"),
        }
    }
}

#[test]
fn dates_key_usage_and_issuers_are_checked() {
    let made = Made::new(&RSA, &["-addext", "keyUsage=critical,keyEncipherment"], &[]);
    assert_eq!(
        made.refusal(),
        "certificates: not trusted by any anchor: CN=signer, O=a company: its key usage is not digitalSignature"
    );

    let made = Made::new(
        &RSA,
        &["-addext", "keyUsage=critical,digitalSignature"],
        &[],
    );
    let days = |days: u64| Duration::from_secs(days * 86_400);
    let signer = made.verify_at(SystemTime::now()).unwrap();
    assert!(
        signer.not_after > SystemTime::now() + days(19)
            && signer.not_after < SystemTime::now() + days(21)
    );
    let later = made
        .verify_at(SystemTime::now() + days(21))
        .unwrap_err()
        .to_string();
    assert!(
        later.ends_with("CN=signer, O=a company: certificate has expired"),
        "{later}"
    );
    let earlier = made
        .verify_at(SystemTime::now() - days(1))
        .unwrap_err()
        .to_string();
    assert!(earlier.contains("not yet valid"), "{earlier}");

    let other = Made::new(&RSA, &[], &[]);
    fs::copy(other.path("root.cert"), made.path("root.cert")).unwrap();
    assert!(
        made.refusal()
            .starts_with("certificates: not trusted by any anchor: "),
        "{}",
        made.refusal()
    );
    assert_eq!(
        Anchors::load(&made.path("leaf.key"))
            .unwrap_err()
            .to_string(),
        format!(
            "{}: no certificate in PEM form",
            made.path("leaf.key").display()
        )
    );
}

/// One PKI for all tests: keys of 4096 bits take their time.
fn development_pki() -> &'static Path {
    static PKI: OnceLock<TempDir> = OnceLock::new();
    PKI.get_or_init(|| {
        let dir = TempDir::new().unwrap();
        pki::init(dir.path()).unwrap();
        dir
    })
    .path()
}

fn pki_file(name: &str) -> Vec<u8> {
    fs::read(development_pki().join(name)).unwrap()
}

#[test]
fn openssl_accepts_what_the_development_pki_signs() {
    let key = SigningKey::from_pem(&pki_file("ssig_cml.key")).unwrap();
    key.belongs_to(&pki_file("ssig_cml.cert")).unwrap();
    assert_eq!(
        key.belongs_to(&pki_file("ssig_subca.cert"))
            .unwrap_err()
            .to_string(),
        "certificates: the first certificate is another key's"
    );
    let sig = key.sign(CONF).unwrap();
    assert_eq!(sig, key.sign(CONF).unwrap(), "a conversion can be repeated");
    assert_ne!(sig, key.sign(b"another text").unwrap());

    let dir = TempDir::new().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        fs::write(dir.path().join(name), bytes).unwrap();
        dir.path().join(name).display().to_string()
    };
    let (conf, sig_file) = (file("conf", CONF), file("sig", &sig));
    let of = |name: &str| development_pki().join(name).display().to_string();
    let public = openssl(&["x509", "-in", &of("ssig_cml.cert"), "-noout", "-pubkey"]);
    let public = file("public", public.as_bytes());
    let check = [
        "dgst",
        "-sha512",
        "-verify",
        &public,
        "-signature",
        &sig_file,
    ];
    assert_eq!(
        openssl(&[&check[..], &PSS_64, &[&conf]].concat()),
        "Verified OK\n"
    );
    let chain = [
        "verify",
        "-x509_strict",
        "-CAfile",
        &of("ssig_rootca.cert"),
        "-untrusted",
        &of("ssig_subca.cert"),
        &of("ssig_cml.cert"),
    ];
    assert!(openssl(&chain).ends_with(": OK\n"));

    let anchors = Anchors::load(&development_pki().join("ssig_rootca.cert")).unwrap();
    verify(
        CONF,
        &sig,
        &pki_file("ssig_cml.cert"),
        &anchors,
        SystemTime::now(),
    )
    .unwrap();
    let with_root = [pki_file("ssig_cml.cert"), pki_file("ssig_rootca.cert")].concat();
    verify(CONF, &sig, &with_root, &anchors, SystemTime::now()).unwrap();
    let sub_ca = Anchors::load(&development_pki().join("ssig_subca.cert")).unwrap();
    let error = verify(
        CONF,
        &sig,
        &pki_file("ssig_cml.cert"),
        &sub_ca,
        SystemTime::now(),
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("unable to get issuer certificate"),
        "a sub-CA alone is no anchor: {error}"
    );
    let stranger = Made::new(&RSA, &[], &[]);
    let with_stranger = [pki_file("ssig_cml.cert"), stranger.read("leaf.cert")].concat();
    let error = verify(CONF, &sig, &with_stranger, &anchors, SystemTime::now()).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("certificate 3 (CN=signer, O=a company) is no part of the signer's chain"),
        "{error}"
    );
}

#[test]
fn no_changed_byte_of_signature_or_certificates_is_accepted() {
    let key = SigningKey::from_pem(&pki_file("ssig_cml.key")).unwrap();
    let sig = key.sign(CONF).unwrap();
    let anchors = Anchors::load(development_pki()).unwrap();
    let cert = [pki_file("ssig_cml.cert"), pki_file("ssig_rootca.cert")].concat();
    let verify = |sig: &[u8], cert: &[u8]| verify(CONF, sig, cert, &anchors, SystemTime::now());
    verify(&sig, &cert).unwrap();
    for place in 0..cert.len() {
        for mask in [0x01, 0x20, 0xff] {
            let mut changed = cert.clone();
            changed[place] ^= mask;
            assert!(
                verify(&sig, &changed).is_err(),
                "byte {place} of the certificates, mask {mask:#x}"
            );
        }
    }
    for place in 0..sig.len() {
        let mut changed = sig.clone();
        changed[place] ^= 1;
        assert!(
            verify(&changed, &cert).is_err(),
            "byte {place} of the signature"
        );
    }
    let described = [b"Certificate:\n    Data:\n", &cert[..]].concat();
    verify(&sig, &described).unwrap();
    for grown in ["x", "\n", "x\n", "-----BEGIN CERTIFICATE-----\n"] {
        assert!(verify(&sig, &[&cert, grown.as_bytes()].concat()).is_err());
    }
    assert!(verify(&sig[1..], &cert).is_err());
    assert!(verify(&[&sig[..], &[0]].concat(), &cert).is_err());
    assert!(verify(&sig, &cert[..cert.len() / 2]).is_err());
}

#[test]
fn a_directory_of_anchors_is_tried_with_the_local_ca_last() {
    let (first, second) = (Made::new(&RSA, &[], &[]), Made::new(&RSA, &[], &[]));
    let dir = TempDir::new().unwrap();
    let load = || Anchors::load(dir.path());
    assert!(
        load()
            .unwrap_err()
            .to_string()
            .ends_with("a directory without certificates")
    );
    fs::copy(
        first.path("root.cert"),
        dir.path().join("localca_rootca.cert"),
    )
    .unwrap();
    fs::copy(second.path("root.cert"), dir.path().join("store.pem")).unwrap();
    let anchors = load().unwrap();
    for (made, local) in [(&first, true), (&second, false)] {
        let signer = verify(
            CONF,
            &made.read("sig"),
            &made.read("leaf.cert"),
            &anchors,
            SystemTime::now(),
        )
        .unwrap();
        assert_eq!(signer.locally_signed, local);
    }
    fs::write(dir.path().join("broken"), "nothing").unwrap();
    assert!(
        load()
            .unwrap_err()
            .to_string()
            .ends_with("broken: no certificate in PEM form")
    );
}

#[test]
fn a_pki_is_not_made_over_another() {
    let before = pki_file("ssig_rootca.key");
    let error = pki::init(development_pki()).unwrap_err();
    assert!(
        error.to_string().ends_with("already holds files"),
        "{error}"
    );
    assert_eq!(before, pki_file("ssig_rootca.key"));
}

#[test]
fn encrypted_keys_and_other_kinds_are_named() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("key").display().to_string();
    openssl(&[
        "genpkey",
        "-algorithm",
        "RSA",
        "-pkeyopt",
        "rsa_keygen_bits:2048",
        "-aes256",
        "-pass",
        "pass:secret",
        "-out",
        &path,
    ]);
    let read = || {
        SigningKey::from_pem(&fs::read(&path).unwrap())
            .unwrap_err()
            .to_string()
    };
    assert_eq!(read(), "private key: it is encrypted");
    openssl(&["genpkey", "-algorithm", "ed25519", "-out", &path]);
    assert_eq!(
        read(),
        "private key: a key of another kind, expected rsaEncryption, id-RSASSA-PSS or EC"
    );
    fs::write(&path, "nothing").unwrap();
    assert_eq!(read(), "private key: no private key in PEM form");
}
