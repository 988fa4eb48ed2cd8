//! The TPM module against swtpm, with tpm2-tools as the independent opinion.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use crate::swtpm::Swtpm;
use trustme_trust::tpm::{
    Claim, FirmwareLog, PcrSignatures, SealedSecret, Sealing, Tpm, TpmError, extended,
    policy_digest,
};

pub const SECRET: &[u8; 64] = b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
pub const IDENTITY: [u8; 32] = [0x11; 32];

pub fn connect(swtpm: &Swtpm) -> Tpm {
    Tpm::connect(&swtpm.tcti()).unwrap()
}

static NO_LOG: LazyLock<FirmwareLog> = LazyLock::new(FirmwareLog::default);
static NO_SIGNATURES: LazyLock<PcrSignatures> = LazyLock::new(PcrSignatures::default);

/// To these boot PCRs and IDENTITY, nothing else.
pub fn to(boot_pcrs: &[u8]) -> Sealing<'_> {
    Sealing {
        boot_pcrs,
        identity: &IDENTITY,
        signed: None,
        pin: None,
        log: &NO_LOG,
    }
}

/// With this identity and nothing else.
pub fn with(identity: &[u8; 32]) -> Claim<'_> {
    Claim {
        identity,
        pin: None,
        signatures: &NO_SIGNATURES,
        log: &NO_LOG,
    }
}

fn sealed(swtpm: &Swtpm, pcrs: &[u8]) -> SealedSecret {
    connect(swtpm).seal(SECRET, &to(pcrs)).unwrap()
}

#[test]
fn pcrs_are_what_tpm2_tools_read() {
    let swtpm = Swtpm::start();
    let tpm = connect(&swtpm);
    tpm.extend(11, &[0x22; 32]).unwrap();
    tpm.extend(11, &[0x33; 32]).unwrap();
    let all: Vec<u8> = (0..24).collect();
    let values = tpm.read_pcrs(&all).unwrap();
    drop(tpm);
    assert_eq!(values.len(), 24);
    for pcr in all {
        assert_eq!(hex::encode(values[&pcr]), swtpm.pcr(pcr), "PCR {pcr}");
    }
    assert_eq!(
        values[&11],
        extended(&extended(&[0; 32], &[0x22; 32]), &[0x33; 32])
    );
}

#[test]
fn the_policy_digest_is_the_one_of_tpm2_tools() {
    let swtpm = Swtpm::start();
    let tpm = connect(&swtpm);
    tpm.extend(7, &[0x77; 32]).unwrap();
    tpm.extend(23, &IDENTITY).unwrap();
    let computed = policy_digest(&tpm.read_pcrs(&[0, 7, 23]).unwrap());
    drop(tpm);
    swtpm.tool(
        "tpm2_createpolicy",
        &["--policy-pcr", "-l", "sha256:0,7,23", "-L", "policy"],
    );
    assert_eq!(
        hex::encode(std::fs::read(swtpm.path("policy")).unwrap()),
        hex::encode(computed)
    );

    // A sealed object carries that policy: PCR 7 as it is, PCR 23 as the identity will make it.
    let sealed = sealed(&swtpm, &[0, 7]);
    assert_eq!(sealed.policy_digest.0, computed);
    std::fs::write(swtpm.path("public"), &sealed.public).unwrap();
    let printed = swtpm.tool("tpm2_print", &["-t", "TPM2B_PUBLIC", "public"]);
    assert!(printed.contains(&hex::encode(computed)), "{printed}");
    assert!(printed.contains("fixedtpm|fixedparent|noda"), "{printed}");
}

#[test]
fn the_storage_root_key_is_persisted_and_is_the_tcg_template() {
    let swtpm = Swtpm::start();
    let first = sealed(&swtpm, &[7]);
    let second = sealed(&swtpm, &[7]);
    assert_eq!(first.srk_name, second.srk_name);
    let printed = swtpm.tool("tpm2_readpublic", &["-c", "0x81000001", "-n", "name"]);
    assert!(
        printed.contains(
            "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt"
        ),
        "{printed}"
    );
    assert_eq!(std::fs::read(swtpm.path("name")).unwrap(), first.srk_name);
    // tpm2-tools make the same key from the TCG's template (unique field empty).
    swtpm.tool(
        "tpm2_createprimary",
        &[
            "-C",
            "o",
            "-g",
            "sha256",
            "-G",
            "ecc256:aes128cfb",
            "-c",
            "primary",
            "-a",
            "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|decrypt",
        ],
    );
    swtpm.tool("tpm2_readpublic", &["-c", "primary", "-n", "tools-name"]);
    assert_eq!(
        std::fs::read(swtpm.path("tools-name")).unwrap(),
        first.srk_name
    );
}

#[test]
fn another_kind_of_key_at_the_handle_is_refused() {
    let swtpm = Swtpm::start();
    swtpm.tool(
        "tpm2_createprimary",
        &["-C", "o", "-G", "rsa2048", "-c", "rsa"],
    );
    swtpm.tool("tpm2_evictcontrol", &["-C", "o", "-c", "rsa", "0x81000001"]);
    let error = connect(&swtpm).seal(SECRET, &to(&[7])).unwrap_err();
    assert_eq!(
        error.to_string(),
        "TPM: the key at 0x81000001 is not a storage root key of the TCG's ECC P-256 template"
    );
}

#[test]
fn a_secret_comes_back_in_the_same_state_only() {
    let mut swtpm = Swtpm::start();
    let sealed = sealed(&swtpm, &[7]);
    let json = serde_json::to_string(&sealed).unwrap();
    let sealed: SealedSecret = serde_json::from_str(&json).unwrap();
    let tpm = connect(&swtpm);
    assert_eq!(
        tpm.unseal(&sealed, &with(&IDENTITY)).unwrap().as_slice(),
        SECRET
    );
    let capped = tpm.read_pcrs(&[23]).unwrap()[&23];
    assert_ne!(
        capped,
        extended(&[0; 32], &IDENTITY),
        "PCR 23 still holds the identity"
    );

    let error = tpm
        .unseal(&sealed, &with(&[0x12; 32]))
        .unwrap_err()
        .to_string();
    let expected = format!(
        "sealed for another container: identity {}, this one's is {}",
        "11".repeat(32),
        "12".repeat(32)
    );
    assert_eq!(error, expected);

    tpm.extend(7, &[1; 32]).unwrap();
    let error = tpm
        .unseal(&sealed, &with(&IDENTITY))
        .unwrap_err()
        .to_string();
    let expected = format!(
        "PCR 7 differs from the sealed value: sealed {}, now {}",
        "00".repeat(32),
        hex::encode(extended(&[0; 32], &[1; 32]))
    );
    assert_eq!(error, expected);
    drop(tpm);

    swtpm.reboot();
    assert_eq!(
        connect(&swtpm)
            .unseal(&sealed, &with(&IDENTITY))
            .unwrap()
            .as_slice(),
        SECRET
    );
}

/// The checks above are for people; these lies get past them, and it is the TPM that refuses.
#[test]
fn the_tpm_itself_refuses_what_the_file_hides() {
    let swtpm = Swtpm::start();
    let sealed = sealed(&swtpm, &[7]);
    let tpm = connect(&swtpm);
    tpm.extend(7, &[1; 32]).unwrap();

    let mut lie = sealed.clone();
    lie.pcrs.get_mut(&7).unwrap().0 = tpm.read_pcrs(&[7]).unwrap()[&7];
    let error = tpm.unseal(&lie, &with(&IDENTITY)).unwrap_err();
    assert!(
        matches!(&error, TpmError::Malformed(text) if text.starts_with("policy_digest")),
        "{error}"
    );

    let mut identity_pcr = tpm.read_pcrs(&[7]).unwrap();
    identity_pcr.insert(23, extended(&[0; 32], &IDENTITY));
    lie.policy_digest.0 = policy_digest(&identity_pcr);
    let error = tpm.unseal(&lie, &with(&IDENTITY)).unwrap_err();
    assert!(
        matches!(&error, TpmError::Malformed(text) if text.starts_with("public: policy")),
        "{error}"
    );

    // The public area changed with them: the TPM finds that the private area is not its own.
    let place = lie
        .public
        .windows(32)
        .position(|window| window == sealed.policy_digest.0)
        .unwrap();
    lie.public[place..place + 32].copy_from_slice(&lie.policy_digest.0);
    let error = tpm.unseal(&lie, &with(&IDENTITY)).unwrap_err();
    assert!(
        matches!(
            error,
            TpmError::Command {
                step: "load the sealed secret",
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn any_flipped_byte_of_a_sealed_object_is_refused() {
    let swtpm = Swtpm::start();
    let sealed = sealed(&swtpm, &[7]);
    let tpm = connect(&swtpm);
    for place in 0..sealed.public.len() {
        let mut flipped = sealed.clone();
        flipped.public[place] ^= 1;
        assert!(
            tpm.unseal(&flipped, &with(&IDENTITY)).is_err(),
            "byte {place} of public"
        );
    }
    for place in 0..sealed.private.len() {
        let mut flipped = sealed.clone();
        flipped.private[place] ^= 1;
        assert!(
            tpm.unseal(&flipped, &with(&IDENTITY)).is_err(),
            "byte {place} of private"
        );
    }
    assert_eq!(
        tpm.unseal(&sealed, &with(&IDENTITY)).unwrap().as_slice(),
        SECRET
    );
}

#[test]
fn another_tpm_is_named() {
    let sealed = sealed(&Swtpm::start(), &[7]);
    let other = Swtpm::start();
    let error = connect(&other)
        .unseal(&sealed, &with(&IDENTITY))
        .unwrap_err();
    assert!(matches!(error, TpmError::OtherTpm { .. }), "{error}");
}

#[test]
fn random_bytes_differ() {
    let swtpm = Swtpm::start();
    let tpm = connect(&swtpm);
    let (first, second) = (tpm.random(64).unwrap(), tpm.random(64).unwrap());
    assert_eq!((first.len(), second.len()), (64, 64));
    assert_ne!(first, second);
    assert_ne!(first[..32], first[32..]);
}

#[test]
fn the_reset_count_counts_boots() {
    let mut swtpm = Swtpm::start();
    let before = connect(&swtpm).reset_count().unwrap();
    assert_eq!(connect(&swtpm).reset_count().unwrap(), before);
    swtpm.reboot();
    assert_eq!(
        connect(&swtpm).reset_count().unwrap(),
        before.wrapping_add(1)
    );
}

#[test]
fn what_a_killed_program_left_is_flushed() {
    let swtpm = Swtpm::start();
    for name in ["a", "b", "c"] {
        swtpm.tool("tpm2_createprimary", &["-C", "o", "-G", "ecc", "-c", name]);
    }
    assert_eq!(
        swtpm
            .tool("tpm2_getcap", &["handles-transient"])
            .lines()
            .count(),
        3
    );
    let sealed = sealed(&swtpm, &[7]);
    assert_eq!(
        connect(&swtpm)
            .unseal(&sealed, &with(&IDENTITY))
            .unwrap()
            .as_slice(),
        SECRET
    );
    for kind in [
        "handles-transient",
        "handles-loaded-session",
        "handles-saved-session",
    ] {
        assert_eq!(swtpm.tool("tpm2_getcap", &[kind]), "", "{kind}");
    }
}

#[test]
fn a_tpm_that_vanishes_is_an_error() {
    let mut swtpm = Swtpm::start();
    let tpm = connect(&swtpm);
    swtpm.stop();
    let error = tpm.read_pcrs(&[7]).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("TPM at {}: cannot read PCRs: ", swtpm.tcti())),
        "{error}"
    );
    drop(tpm);
    let error = Tpm::connect(&swtpm.tcti()).unwrap_err().to_string();
    assert!(
        error.starts_with(&format!("TPM at {}: cannot connect: ", swtpm.tcti())),
        "{error}"
    );
    let error = Tpm::connect("device:/nonexistent").unwrap_err().to_string();
    assert!(
        error.starts_with("TPM at device:/nonexistent: cannot connect: "),
        "{error}"
    );
    assert!(matches!(
        Tpm::connect("nonsense"),
        Err(TpmError::Connect { .. })
    ));
}

#[test]
fn a_tpm_that_hangs_is_an_error() {
    let swtpm = Swtpm::start();
    let limit = Duration::from_millis(300);
    let tpm = Tpm::connect_within(&swtpm.tcti(), limit).unwrap();
    let pid = rustix::process::Pid::from_raw(swtpm.pid() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::STOP).unwrap();
    let start = Instant::now();
    let error = tpm.extend(11, &[1; 32]).unwrap_err();
    assert!(
        matches!(
            error,
            TpmError::Timeout {
                step: "extend a PCR",
                ..
            }
        ),
        "{error}"
    );
    drop(tpm);
    assert!(start.elapsed() < Duration::from_secs(5));
    rustix::process::kill_process(pid, rustix::process::Signal::CONT).unwrap();
}
