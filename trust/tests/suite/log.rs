//! The measurement log against swtpm: replay by this library, replay by hand, and what tpm2_pcrread says.

use std::path::{Path, PathBuf};

use crate::chain;
use crate::swtpm::Swtpm;
use sha2::{Digest, Sha256};
use trustme_config::Config;
use trustme_trust::log::{
    Container, Event, Measured, State, Subject, Verdict, Verification, VerifyError, measure, verify,
};
use trustme_trust::tpm::{HexDigest, Tpm};

fn config(swtpm: &Swtpm) -> Config {
    let mut config = Config::default();
    config.tpm.tcti = swtpm.tcti();
    config.log.path = swtpm.path("log/measure.log");
    config
}

fn subject(image: [u8; 32]) -> Subject {
    Subject {
        image: Some(HexDigest(image)),
        name: Some("nginx".into()),
        version: Some(1),
        path: "/srv/nginx-1/root.img".into(),
        verified: Verification::Sha256,
        signer: None,
        verdict: Verdict::Trusted,
        reason: None,
        container: Container("web".into()),
        timestamp: 1,
    }
}

fn launch(byte: u8) -> Vec<Event> {
    let image = [byte; 32];
    vec![
        Event::Image(image, subject(image)),
        Event::Configuration([!byte; 32], subject(image)),
    ]
}

/// A replay that shares nothing with the library's: JSON values, one SHA-256 after the other.
fn replay_by_hand(path: &Path, pcr: u8) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let mut value = vec![];
    for line in text.lines() {
        let record: serde_json::Value = serde_json::from_str(&line[1..]).unwrap();
        if record["content"]["eventType"] == "start" {
            let starts = record["content"]["pcrs"].as_array().unwrap();
            let start = starts.iter().find(|start| start["pcr"] == pcr).unwrap();
            value = hex::decode(start["value"].as_str().unwrap()).unwrap();
        } else if record["pcr"] == pcr && record["digests"] != serde_json::json!([]) {
            let digest = record["digests"][0]["digest"].as_str().unwrap();
            value.extend(hex::decode(digest).unwrap());
            value = Sha256::digest(&value).to_vec();
        }
    }
    hex::encode(value)
}

fn assert_agreement(swtpm: &Swtpm, config: &Config) {
    let report = verify(config).unwrap();
    assert_eq!(report.state, State::Complete, "{report:?}");
    for pcr in &report.pcrs {
        assert_eq!(pcr.expected, pcr.actual);
        assert_eq!(pcr.actual.to_string(), swtpm.pcr(pcr.pcr));
        assert_eq!(
            pcr.actual.to_string(),
            replay_by_hand(&config.log.path, pcr.pcr)
        );
    }
    assert_eq!(report.pcrs.len(), 2);
}

fn aside(config: &Config, number: u32) -> PathBuf {
    let mut name = config.log.path.clone().into_os_string();
    name.push(format!(".{number}"));
    name.into()
}

#[test]
fn log_and_pcrs_agree() {
    let swtpm = Swtpm::start();
    let config = config(&swtpm);
    // As systemd's stub leaves PCR 11 when the machine boots.
    Tpm::connect(&swtpm.tcti())
        .unwrap()
        .extend(11, &[9; 32])
        .unwrap();
    assert_eq!(
        measure(&config, &launch(1)).unwrap(),
        [Measured::New, Measured::New]
    );
    assert_agreement(&swtpm, &config);
    let once = std::fs::read(&config.log.path).unwrap();

    // The same again, in another container and later: nothing new.
    let mut again = launch(1);
    for event in &mut again {
        let (Event::Image(_, subject) | Event::Configuration(_, subject)) = event else {
            unreachable!()
        };
        subject.container = Container("other".into());
        subject.timestamp = 2;
    }
    assert_eq!(
        measure(&config, &again).unwrap(),
        [Measured::Before, Measured::Before]
    );
    assert_eq!(std::fs::read(&config.log.path).unwrap(), once);

    // The same image with another configuration, a refusal, another image.
    let [image, _] = launch(1).try_into().unwrap();
    let configuration = Event::Configuration([7; 32], subject([1; 32]));
    let outcome = measure(
        &config,
        &[image, configuration, Event::Refusal(subject([1; 32]))],
    )
    .unwrap();
    assert_eq!(outcome, [Measured::Before, Measured::New, Measured::New]);
    measure(&config, &launch(2)).unwrap();
    assert_agreement(&swtpm, &config);
    assert_eq!(verify(&config).unwrap().records, 1 + 2 + 2 + 2);
}

#[test]
fn what_a_killed_launch_did_not_extend_is_extended_by_the_next() {
    let swtpm = Swtpm::start();
    let config = config(&swtpm);
    measure(&config, &launch(1)).unwrap();
    let log = std::fs::read_to_string(&config.log.path).unwrap();
    let last: Vec<&str> = log.lines().skip(1).collect();
    let renumber = |line: &str, from: u8, to: u8| {
        line.replace(&format!("\"recnum\":{from}"), &format!("\"recnum\":{to}"))
    };
    for (events, expected) in [(1, 6), (2, 10)] {
        // The records of another launch, on disk but not in the PCRs.
        let mut text = std::fs::read_to_string(&config.log.path).unwrap();
        let count = text.lines().count() as u8;
        for event in 0..events {
            text.push_str(&renumber(last[event as usize], event + 1, count + event));
            text.push('\n');
        }
        std::fs::write(&config.log.path, text).unwrap();
        let report = verify(&config).unwrap();
        assert!(
            matches!(&report.state, State::Incomplete { reason } if reason.contains(&format!("last {events} record"))),
            "{report:?}"
        );
        assert_ne!(report.pcrs[0].expected, report.pcrs[0].actual);
        measure(&config, &launch(expected)).unwrap();
        assert_agreement(&swtpm, &config);
        assert_eq!(
            verify(&config).unwrap().records,
            usize::from(count + events + 2)
        );
    }
}

#[test]
fn a_torn_record_is_named_and_dropped() {
    let mut swtpm = Swtpm::start();
    let config = config(&swtpm);
    measure(&config, &launch(1)).unwrap();
    let whole = std::fs::read(&config.log.path).unwrap();
    for length in [1, 20, 300] {
        let torn = [whole.as_slice(), &whole[..length]].concat();
        std::fs::write(&config.log.path, torn).unwrap();
        let report = verify(&config).unwrap();
        let reason = "the last record was not written to its end".to_owned();
        assert_eq!(report.state, State::Incomplete { reason });
        assert_eq!(measure(&config, &launch(1)).unwrap(), [Measured::Before; 2]);
        assert_eq!(std::fs::read(&config.log.path).unwrap(), whole);
        assert_agreement(&swtpm, &config);
    }
    // Torn in its first record: nothing was measured yet.
    swtpm.reboot();
    std::fs::write(&config.log.path, &whole[..50]).unwrap();
    assert!(matches!(
        verify(&config).unwrap().state,
        State::Incomplete { .. }
    ));
    measure(&config, &launch(1)).unwrap();
    assert_agreement(&swtpm, &config);
}

#[test]
fn a_log_that_does_not_explain_the_pcrs_is_told() {
    let swtpm = Swtpm::start();
    let config = config(&swtpm);
    measure(&config, &launch(1)).unwrap();
    Tpm::connect(&swtpm.tcti())
        .unwrap()
        .extend(11, &[9; 32])
        .unwrap();
    let report = verify(&config).unwrap();
    assert_eq!(report.state, State::Mismatch);
    assert_ne!(report.pcrs[0].expected, report.pcrs[0].actual);
    assert_eq!(report.pcrs[1].expected, report.pcrs[1].actual);

    measure(&config, &launch(2)).unwrap();
    let first = aside(&config, 1);
    let reason = format!("{}: does not lead to what the PCRs hold", first.display());
    let report = verify(&config).unwrap();
    assert_eq!(report.state, State::Incomplete { reason });
    assert!(report.pcrs.iter().all(|pcr| pcr.expected == pcr.actual));

    // A log with a flipped byte.
    let mut bytes = std::fs::read(&config.log.path).unwrap();
    let place = bytes
        .windows(6)
        .position(|window| window == b"sha256")
        .unwrap();
    bytes[place] ^= 1;
    std::fs::write(&config.log.path, bytes).unwrap();
    let error = chain(verify(&config).unwrap_err());
    assert!(
        error.starts_with(&format!(
            "measurement log {}: record 1: ",
            config.log.path.display()
        )),
        "{error}"
    );
    measure(&config, &launch(3)).unwrap();
    assert!(aside(&config, 2).exists());
    assert!(matches!(
        verify(&config).unwrap().state,
        State::Incomplete { .. }
    ));
}

#[test]
fn a_new_boot_begins_a_new_log() {
    let mut swtpm = Swtpm::start();
    let config = config(&swtpm);
    measure(&config, &launch(1)).unwrap();
    swtpm.reboot();
    assert!(matches!(
        verify(&config),
        Err(VerifyError::OtherBoot { who: "TPM", .. })
    ));
    measure(&config, &launch(1)).unwrap();
    assert!(aside(&config, 1).exists());
    assert_agreement(&swtpm, &config);

    let log = std::fs::read_to_string(&config.log.path).unwrap();
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    std::fs::write(&config.log.path, log.replace(boot_id.trim(), "another")).unwrap();
    assert!(matches!(
        verify(&config),
        Err(VerifyError::OtherBoot { who: "machine", .. })
    ));
    measure(&config, &launch(1)).unwrap();
    assert!(aside(&config, 2).exists());
    assert_agreement(&swtpm, &config);
}

#[test]
fn without_tpm_the_log_is_unanchored() {
    let dir = tempfile::tempdir().unwrap();
    let mut config = Config::default();
    config.tpm.tcti = "none".into();
    config.log.path = dir.path().join("measure.log");
    assert!(matches!(verify(&config), Err(VerifyError::Read { .. })));
    measure(&config, &launch(1)).unwrap();
    assert_eq!(measure(&config, &launch(1)).unwrap(), [Measured::Before; 2]);
    assert_eq!(verify(&config).unwrap().state, State::Unanchored);
}

#[test]
fn a_tpm_that_vanishes_is_an_error_and_nothing_is_lost() {
    let mut swtpm = Swtpm::start();
    let config = config(&swtpm);
    measure(&config, &launch(1)).unwrap();
    let log = std::fs::read(&config.log.path).unwrap();
    swtpm.stop();
    let error = chain(measure(&config, &launch(2)).unwrap_err());
    assert!(error.starts_with("TPM at "), "{error}");
    assert_eq!(std::fs::read(&config.log.path).unwrap(), log);
}
