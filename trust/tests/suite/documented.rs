//! A sealed key's policy, recomputed by tpm2-tools and openssl from nothing but what docs/volumes.md documents.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use trustme_trust::identity::Owner;
use trustme_trust::tpm::{HexDigest, Pin, Sealing, SignedPcrs};

use crate::swtpm::Swtpm;
use crate::tpm::{SECRET, connect, to};

/// SHA-256 as openssl computes it.
fn sha256(swtpm: &Swtpm, bytes: &[u8]) -> Vec<u8> {
    fs::write(swtpm.path("to-hash"), bytes).unwrap();
    let output = Command::new("openssl")
        .args(["dgst", "-sha256", "-binary"])
        .arg(swtpm.path("to-hash"))
        .output()
        .unwrap();
    assert_eq!(output.stdout.len(), 32, "{output:?}");
    output.stdout
}

/// What openssl makes of base64 text.
fn decoded(swtpm: &Swtpm, text: &Value) -> Vec<u8> {
    fs::write(swtpm.path("base64"), text.as_str().unwrap()).unwrap();
    let output = Command::new("openssl")
        .args(["base64", "-d", "-A", "-in"])
        .arg(swtpm.path("base64"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    output.stdout
}

/// The identity of an owner, hex: SHA-256 of its canonical JSON.
fn identity(swtpm: &Swtpm, owner: &Value) -> String {
    let (name, signer) = (owner["name"].as_str(), owner["signer"].as_str());
    let text = format!(
        r#"{{"name":"{}","signer":"{}"}}"#,
        name.unwrap(),
        signer.unwrap()
    );
    hex::encode(sha256(swtpm, text.as_bytes()))
}

/// The policy digest (hex) of a sealed key's parts `pcrs`, `identity`, `signed` and `pin`, by a trial session. No PCR is read.
fn recomputed(swtpm: &Swtpm, key: &Value) -> String {
    swtpm.tool("tpm2_startauthsession", &["-S", "trial"]);
    if let Some(signer) = key["signed"]["public_key"].as_str() {
        fs::write(swtpm.path("signer.pem"), signer).unwrap();
        swtpm.tool(
            "tpm2_loadexternal",
            &[
                "-C",
                "o",
                "-G",
                "rsa",
                "-u",
                "signer.pem",
                "-c",
                "signer.ctx",
                "-n",
                "signer.name",
            ],
        );
        swtpm.tool(
            "tpm2_policyauthorize",
            &["-S", "trial", "-n", "signer.name", "-L", "policy"],
        );
    }
    // swtpm has no resource manager: what was loaded for a name stays.
    swtpm.tool("tpm2_flushcontext", &["-t"]);
    let mut pcrs: Vec<(u8, Vec<u8>)> = key["pcrs"]
        .as_object()
        .unwrap()
        .iter()
        .map(|(pcr, value)| {
            (
                pcr.parse().unwrap(),
                hex::decode(value.as_str().unwrap()).unwrap(),
            )
        })
        .collect();
    pcrs.sort();
    let identity = hex::decode(key["identity"].as_str().unwrap()).unwrap();
    let extended = sha256(swtpm, &[vec![0; 32], identity].concat());
    pcrs.push((23, extended));
    let numbers: Vec<String> = pcrs.iter().map(|(pcr, _)| pcr.to_string()).collect();
    let values: Vec<u8> = pcrs.into_iter().flat_map(|(_, value)| value).collect();
    fs::write(swtpm.path("values"), values).unwrap();
    let selection = format!("sha256:{}", numbers.join(","));
    swtpm.tool(
        "tpm2_policypcr",
        &[
            "-S", "trial", "-l", &selection, "-f", "values", "-L", "policy",
        ],
    );
    if key["pin"] == true {
        swtpm.tool("tpm2_policyauthvalue", &["-S", "trial", "-L", "policy"]);
    }
    swtpm.tool("tpm2_flushcontext", &["trial"]);
    hex::encode(fs::read(swtpm.path("policy")).unwrap())
}

/// What tpm2_readpublic prints of the sealed object, loaded under the storage root key: its attributes and its policy (hex).
fn loaded(swtpm: &Swtpm, key: &Value) -> (String, String) {
    for part in ["public", "private"] {
        fs::write(swtpm.path(part), decoded(swtpm, &key[part])).unwrap();
    }
    swtpm.tool(
        "tpm2_load",
        &[
            "-C",
            "0x81000001",
            "-u",
            "public",
            "-r",
            "private",
            "-c",
            "object",
        ],
    );
    swtpm.tool("tpm2_flushcontext", &["-t"]);
    let printed = swtpm.tool("tpm2_readpublic", &["-c", "object"]);
    swtpm.tool("tpm2_flushcontext", &["-t"]);
    let after = |name: &str| {
        let found = printed
            .lines()
            .skip_while(|line| !line.starts_with(name))
            .find_map(|line| {
                line.trim()
                    .strip_prefix("value: ")
                    .or(line.strip_prefix("authorization policy: "))
            });
        found
            .unwrap_or_else(|| panic!("{name}: {printed}"))
            .to_owned()
    };
    (after("attributes"), after("authorization policy"))
}

/// A key pair of openssl's.
fn signer(swtpm: &Swtpm) -> SignedPcrs {
    let path = swtpm.path("signer.key");
    crate::run(
        "openssl",
        &["genrsa", "-out", path.to_str().unwrap(), "2048"],
    );
    SignedPcrs {
        public_key: crate::run(
            "openssl",
            &["rsa", "-in", path.to_str().unwrap(), "-pubout"],
        ),
        pcrs: vec![11, 12],
    }
}

/// The volume whose key is sealed: PCR 23 stands for its owner.
fn owner() -> Owner {
    Owner {
        name: "nginx".into(),
        signer: HexDigest([0xA5; 32]),
    }
}

#[test]
fn the_policy_of_a_sealed_key_is_that_of_its_documented_parts() {
    let swtpm = Swtpm::start();
    let signed = signer(&swtpm);
    let pin = Pin::new(b"1234");
    let identity_digest = owner().digest();
    let sealing = |boot_pcrs, signed, pin| Sealing {
        signed,
        pin,
        identity: &identity_digest,
        ..to(boot_pcrs)
    };
    let no_pin = "fixedtpm|fixedparent|noda";
    let with_pin = "fixedtpm|fixedparent";
    let cases = [
        (sealing(&[7], None, None), no_pin),
        (sealing(&[7, 0, 14], None, None), no_pin),
        (sealing(&[], None, None), no_pin),
        (sealing(&[7], Some(&signed), None), no_pin),
        (sealing(&[7], None, Some(&pin)), with_pin),
        (sealing(&[0, 7], Some(&signed), Some(&pin)), with_pin),
    ];
    connect(&swtpm).extend(7, &[0x77; 32]).unwrap();
    let sealed: Vec<Value> = cases
        .iter()
        .map(|(sealing, _)| json!(connect(&swtpm).seal(SECRET, sealing).unwrap()))
        .collect();
    // The parts are enough: what the PCRs hold now is something else.
    for pcr in [0, 7, 14, 23] {
        connect(&swtpm).extend(pcr, &[0x55; 32]).unwrap();
    }
    for ((case, attributes), key) in cases.iter().zip(&sealed) {
        assert_eq!(key["identity"], identity(&swtpm, &json!(owner())));
        let policy = recomputed(&swtpm, key);
        assert_eq!(key["policy_digest"], policy, "{case:?}");
        let shown = loaded(&swtpm, key);
        let expected = ((*attributes).to_owned(), policy.clone());
        assert_eq!(shown, expected, "{case:?}");
        for (part, changed) in [
            ("identity", json!("12".repeat(32))),
            ("pcrs", json!({ "7": "78".repeat(32) })),
            ("pin", json!(key["pin"] != true)),
        ] {
            let mut other = key.clone();
            other[part] = changed;
            assert_ne!(recomputed(&swtpm, &other), policy, "{part} of {case:?}");
        }
    }
}

#[test]
fn tpm2_tools_unseal_what_was_sealed() {
    let swtpm = Swtpm::start();
    connect(&swtpm).extend(7, &[0x77; 32]).unwrap();
    let sealing = Sealing {
        identity: &owner().digest(),
        ..to(&[7])
    };
    let key = json!(connect(&swtpm).seal(SECRET, &sealing).unwrap());
    loaded(&swtpm, &key);
    let tool = |line: &str| {
        let (program, arguments) = line.split_once(' ').unwrap();
        swtpm.tool(program, &arguments.split(' ').collect::<Vec<_>>())
    };
    let extend = format!(
        "tpm2_pcrextend 23:sha256={}",
        identity(&swtpm, &json!(owner()))
    );
    for line in [
        "tpm2_pcrreset 23",
        &extend,
        "tpm2_startauthsession --policy-session -S session",
        "tpm2_policypcr -S session -l sha256:7,23",
        "tpm2_unseal -c object -p session:session -o unsealed",
        "tpm2_flushcontext session",
        "tpm2_flushcontext -t",
    ] {
        tool(line);
    }
    assert_eq!(fs::read(swtpm.path("unsealed")).unwrap(), SECRET);
}
