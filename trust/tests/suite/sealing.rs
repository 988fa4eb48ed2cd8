//! Signed PCR policies, PINs, firmware events and counters against swtpm, with tpm2-tools and openssl as the independent opinion.

use std::fs;
use std::process::Command;

use trustme_trust::tpm::{
    Claim, FirmwareLog, PcrSignatures, Pin, SealedSecret, Sealing, SignedPcrs, TpmError, extended,
    policy_digest,
};

use crate::swtpm::Swtpm;
use crate::tpm::{IDENTITY, SECRET, connect, to, with};

fn openssl(swtpm: &Swtpm, arguments: &[&str]) -> Vec<u8> {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(swtpm.path("."))
        .output()
        .unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "openssl {arguments:?}: {stderr}");
    output.stdout
}

/// A key pair of openssl's; what is sealed to it.
fn signer(swtpm: &Swtpm, name: &str, pcrs: &[u8]) -> SignedPcrs {
    openssl(swtpm, &["genrsa", "-out", name, "2048"]);
    let public_key = openssl(swtpm, &["rsa", "-in", name, "-pubout"]);
    SignedPcrs {
        public_key: String::from_utf8(public_key).unwrap(),
        pcrs: pcrs.to_vec(),
    }
}

/// What systemd-measure(1) writes for the value of PCR 12: openssl signs the policy digest of tpm2_createpolicy.
fn signature(swtpm: &Swtpm, name: &str, value: [u8; 32]) -> serde_json::Value {
    fs::write(swtpm.path("value"), value).unwrap();
    swtpm.tool(
        "tpm2_createpolicy",
        &[
            "--policy-pcr",
            "-l",
            "sha256:12",
            "-f",
            "value",
            "-L",
            "pol",
        ],
    );
    let sig = openssl(swtpm, &["dgst", "-sha256", "-sign", name, "pol"]);
    fs::write(swtpm.path("sig"), sig).unwrap();
    let sig = openssl(swtpm, &["base64", "-A", "-in", "sig"]);
    openssl(
        swtpm,
        &[
            "rsa", "-in", name, "-pubout", "-outform", "DER", "-out", "der",
        ],
    );
    let pkfp = openssl(swtpm, &["dgst", "-sha256", "-r", "der"]);
    serde_json::json!({
        "pcrs": [12],
        "pkfp": std::str::from_utf8(&pkfp[..64]).unwrap(),
        "pol": hex::encode(fs::read(swtpm.path("pol")).unwrap()),
        "sig": std::str::from_utf8(&sig).unwrap(),
    })
}

fn signatures(entries: &[serde_json::Value]) -> PcrSignatures {
    let text = serde_json::json!({ "sha256": entries }).to_string();
    PcrSignatures::parse(text.as_bytes()).unwrap()
}

#[test]
fn a_signed_pcr_policy_opens_after_a_planned_update() {
    let mut swtpm = Swtpm::start();
    let old = extended(&[0; 32], &[1; 32]);
    let new = extended(&[0; 32], &[2; 32]);
    let signed = signer(&swtpm, "key", &[12]);
    let both = [signature(&swtpm, "key", old), signature(&swtpm, "key", new)];
    let sealing = Sealing {
        signed: Some(&signed),
        ..to(&[7])
    };
    let tpm = connect(&swtpm);
    tpm.extend(12, &[1; 32]).unwrap();
    let sealed = tpm.seal(SECRET, &sealing).unwrap();
    let text = serde_json::to_string(&sealed).unwrap();
    let sealed: SealedSecret = serde_json::from_str(&text).unwrap();
    let unseal = |tpm: &trustme_trust::tpm::Tpm, entries: &[serde_json::Value]| {
        let signatures = signatures(entries);
        let claim = Claim {
            signatures: &signatures,
            ..with(&IDENTITY)
        };
        tpm.unseal(&sealed, &claim)
    };
    assert_eq!(unseal(&tpm, &both).unwrap().as_slice(), SECRET);
    let error = unseal(&tpm, &both[1..]).unwrap_err();
    let expected = format!(
        "no PCR signature for the present values (PCR 12 {}",
        hex::encode(old)
    );
    assert!(error.to_string().starts_with(&expected), "{error}");
    drop(tpm);

    // Another kernel, signed by the same key: nothing is sealed anew.
    swtpm.reboot();
    let tpm = connect(&swtpm);
    tpm.extend(12, &[2; 32]).unwrap();
    assert_eq!(unseal(&tpm, &both).unwrap().as_slice(), SECRET);

    // A signature of the right digest by another key, under the right key's fingerprint: the TPM finds out.
    drop(tpm);
    signer(&swtpm, "other", &[12]);
    let mut forged = signature(&swtpm, "other", new);
    forged["pkfp"] = both[1]["pkfp"].clone();
    let tpm = connect(&swtpm);
    let error = unseal(&tpm, &[forged]).unwrap_err().to_string();
    assert!(
        error.contains("cannot unseal: ") && error.contains("signature"),
        "{error}"
    );

    // The boot PCRs beside it still have to be what they were.
    tpm.extend(7, &[1; 32]).unwrap();
    assert!(matches!(
        unseal(&tpm, &both),
        Err(TpmError::PcrDiffers { pcr: 7, .. })
    ));
}

#[test]
fn the_policy_digest_of_all_parts_is_the_one_of_tpm2_tools() {
    let swtpm = Swtpm::start();
    let signed = signer(&swtpm, "key", &[12]);
    fs::write(swtpm.path("key.pem"), &signed.public_key).unwrap();
    let pin = Pin::new(b"1234");
    let sealing = Sealing {
        signed: Some(&signed),
        pin: Some(&pin),
        ..to(&[7])
    };
    let sealed = connect(&swtpm).seal(SECRET, &sealing).unwrap();
    connect(&swtpm).extend(23, &IDENTITY).unwrap();
    // What docs/volumes.md tells an operator to type.
    swtpm.tool(
        "tpm2_loadexternal",
        &[
            "-C", "o", "-G", "rsa", "-u", "key.pem", "-c", "key.ctx", "-n", "key.name",
        ],
    );
    swtpm.tool("tpm2_startauthsession", &["-S", "session"]);
    swtpm.tool(
        "tpm2_policyauthorize",
        &["-S", "session", "-n", "key.name", "-L", "unused"],
    );
    swtpm.tool("tpm2_policypcr", &["-S", "session", "-l", "sha256:7,23"]);
    swtpm.tool("tpm2_policyauthvalue", &["-S", "session", "-L", "policy"]);
    swtpm.tool("tpm2_flushcontext", &["session"]);
    assert_eq!(
        hex::encode(fs::read(swtpm.path("policy")).unwrap()),
        sealed.policy_digest.to_string()
    );
    fs::write(swtpm.path("public"), &sealed.public).unwrap();
    let printed = swtpm.tool("tpm2_print", &["-t", "TPM2B_PUBLIC", "public"]);
    assert!(printed.contains("fixedtpm|fixedparent\n"), "{printed}");
}

#[test]
fn a_key_that_is_none_is_refused() {
    let swtpm = Swtpm::start();
    let tpm = connect(&swtpm);
    let ec = [
        "genpkey",
        "-algorithm",
        "EC",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-out",
        "ec",
    ];
    openssl(&swtpm, &ec);
    let ec = openssl(&swtpm, &["pkey", "-in", "ec", "-pubout"]);
    let cases = [
        (String::from_utf8(ec).unwrap(), vec![12], "not an RSA key"),
        ("no key".to_owned(), vec![12], "public key of signed PCRs"),
        (String::new(), vec![], "at least one of 0 to 22"),
        (String::new(), vec![23], "at least one of 0 to 22"),
    ];
    for (public_key, pcrs, reason) in cases {
        let signed = SignedPcrs { public_key, pcrs };
        let sealing = Sealing {
            signed: Some(&signed),
            ..to(&[7])
        };
        let error = tpm.seal(SECRET, &sealing).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn a_pin_is_needed_and_wrong_ones_lock() {
    let swtpm = Swtpm::start();
    swtpm.tool(
        "tpm2_dictionarylockout",
        &["-s", "-n", "3", "-t", "77", "-l", "88"],
    );
    let (right, wrong) = (Pin::new(b"correct horse"), Pin::new(b"battery"));
    let sealing = Sealing {
        pin: Some(&right),
        ..to(&[7])
    };
    let tpm = connect(&swtpm);
    let sealed = tpm.seal(SECRET, &sealing).unwrap();
    let try_pin = |pin| {
        tpm.unseal(
            &sealed,
            &Claim {
                pin,
                ..with(&IDENTITY)
            },
        )
    };
    assert_eq!(try_pin(Some(&right)).unwrap().as_slice(), SECRET);
    assert_eq!(try_pin(None).unwrap_err().to_string(), "a PIN is needed");
    assert_eq!(
        try_pin(Some(&wrong)).unwrap_err().to_string(),
        "wrong PIN; 2 more wrong ones lock the TPM, which forgets one every 77 s"
    );
    assert_eq!(try_pin(Some(&right)).unwrap().as_slice(), SECRET);
    try_pin(Some(&wrong)).unwrap_err();
    let error = try_pin(Some(&wrong)).unwrap_err().to_string();
    assert!(
        error.starts_with(
            "the TPM is locked after 3 wrong PINs; it takes one PIN again within 77 s"
        ),
        "{error}"
    );
    let error = try_pin(Some(&right)).unwrap_err();
    assert!(
        matches!(
            error,
            TpmError::LockedOut {
                wrong: 3,
                interval: 77
            }
        ),
        "{error}"
    );
    let without = tpm.seal(SECRET, &to(&[7])).unwrap();
    assert_eq!(
        tpm.unseal(&without, &with(&IDENTITY)).unwrap().as_slice(),
        SECRET
    );
    let capped = tpm.read_pcrs(&[23]).unwrap()[&23];
    assert_ne!(capped, extended(&[0; 32], &IDENTITY));
    drop(tpm);
    swtpm.tool("tpm2_dictionarylockout", &["-c"]);
    let tpm = connect(&swtpm);
    let claim = Claim {
        pin: Some(&right),
        ..with(&IDENTITY)
    };
    assert_eq!(tpm.unseal(&sealed, &claim).unwrap().as_slice(), SECRET);

    // Without the PIN's part of the policy the object is another one.
    let mut lie = sealed.clone();
    lie.pin = false;
    let error = tpm.unseal(&lie, &with(&IDENTITY)).unwrap_err();
    assert!(matches!(error, TpmError::Malformed(_)), "{error}");
    let mut values = tpm.read_pcrs(&[7]).unwrap();
    values.insert(23, extended(&[0; 32], &IDENTITY));
    assert_ne!(sealed.policy_digest.0, policy_digest(&values));
}

#[test]
fn a_counter_only_grows() {
    let swtpm = Swtpm::start();
    let tpm = connect(&swtpm);
    let (one, other) = (tpm.new_counter().unwrap(), tpm.new_counter().unwrap());
    assert_ne!(one, other);
    let start = tpm.read_counter(one).unwrap();
    tpm.increment_counter(one).unwrap();
    tpm.increment_counter(one).unwrap();
    assert_eq!(tpm.read_counter(one).unwrap(), start + 2);
    drop(tpm);
    let printed = swtpm.tool("tpm2_nvread", &[&format!("{one:#x}")]);
    assert_eq!(printed.as_bytes(), (start + 2).to_be_bytes());

    // Deleted and made again it goes on from where it was.
    let tpm = connect(&swtpm);
    tpm.delete_counter(one).unwrap();
    tpm.delete_counter(one).unwrap();
    let error = tpm.read_counter(one).unwrap_err().to_string();
    assert_eq!(
        error,
        format!("NV counter {one:#010x}: there is none: the TPM was cleared, or it was deleted")
    );
    assert!(tpm.increment_counter(one).is_err());
    assert_eq!(tpm.new_counter().unwrap(), one);
    assert!(tpm.read_counter(one).unwrap() > start + 2);
    tpm.delete_counter(one).unwrap();
    drop(tpm);

    // An index that can be written is no counter.
    let index = format!("{one:#x}");
    swtpm.tool(
        "tpm2_nvdefine",
        &[
            "-C",
            "o",
            "-s",
            "8",
            "-a",
            "ownerread|ownerwrite|authread",
            &index,
        ],
    );
    fs::write(swtpm.path("eight"), start.to_be_bytes()).unwrap();
    swtpm.tool("tpm2_nvwrite", &["-C", "o", "-i", "eight", &index]);
    let error = connect(&swtpm).read_counter(one).unwrap_err().to_string();
    assert!(error.ends_with("that index is no counter"), "{error}");
}

#[test]
fn events_that_changed_a_pcr_are_named() {
    let mut swtpm = Swtpm::start();
    let log = |secure_boot: u8| {
        let mut bytes = vec![0; 4];
        bytes.extend_from_slice(&[3, 0, 0, 0]);
        bytes.extend_from_slice(&[0; 20]);
        let mut first = b"Spec ID Event03\0".to_vec();
        first.extend_from_slice(&[0, 0, 0, 0, 0, 2, 0, 2, 1, 0, 0, 0, 0x0B, 0, 32, 0, 0]);
        bytes.extend_from_slice(&(first.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&first);
        for (kind, digest) in [(0x8000_0008_u32, 9), (4, secure_boot)] {
            bytes.extend_from_slice(&[7, 0, 0, 0]);
            bytes.extend_from_slice(&kind.to_le_bytes());
            bytes.extend_from_slice(&[1, 0, 0, 0, 0x0B, 0]);
            bytes.extend_from_slice(&[digest; 32]);
            bytes.extend_from_slice(&[0; 4]);
        }
        FirmwareLog::parse(&bytes).unwrap()
    };
    let boot = |swtpm: &Swtpm, secure_boot| {
        let tpm = connect(swtpm);
        tpm.extend(7, &[9; 32]).unwrap();
        tpm.extend(7, &[secure_boot; 32]).unwrap();
        tpm
    };
    let tpm = boot(&swtpm, 1);
    let sealing = Sealing {
        log: &log(1),
        ..to(&[7])
    };
    let sealed = tpm.seal(SECRET, &sealing).unwrap();
    assert_eq!(sealed.events[&7].len(), 2);
    drop(tpm);
    swtpm.reboot();
    let tpm = boot(&swtpm, 5);
    let (five, one) = (log(5), log(1));
    let claim = |log| Claim {
        log,
        ..with(&IDENTITY)
    };
    let error = tpm.unseal(&sealed, &claim(&five)).unwrap_err().to_string();
    let told = format!(
        "; firmware events: EV_SEPARATOR was {}, is {}",
        "01".repeat(32),
        "05".repeat(32)
    );
    assert!(
        error.starts_with("PCR 7 differs") && error.ends_with(&told),
        "{error}"
    );
    // A log that does not lead to what the TPM holds is not believed.
    let error = tpm.unseal(&sealed, &claim(&one)).unwrap_err().to_string();
    assert!(
        error.starts_with("PCR 7 differs") && !error.contains("events"),
        "{error}"
    );
}
