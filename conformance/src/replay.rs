//! A second, independent replay of the measurement log, by docs/measurement-log.md alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use sha2::{Digest, Sha256};

/// The records of a log: JSON texts, each after the byte 0x1E (RFC 7464).
///
/// # Errors
/// It cannot be read, or something between two 0x1E is not JSON and a line feed.
pub fn records(log: &Path) -> Result<Vec<Value>> {
    let bytes = fs::read(log).with_context(|| format!("{}", log.display()))?;
    ensure!(
        bytes.first() == Some(&0x1E),
        "the log does not begin with 0x1E"
    );
    let texts = bytes[1..].split(|byte| *byte == 0x1E);
    texts
        .map(|text| {
            ensure!(text.ends_with(b"\n"), "a record without end");
            Ok(serde_json::from_slice(text)?)
        })
        .collect()
}

/// The values, in hex, that the PCRs named in the start record must have now.
///
/// # Errors
/// The log is not as documented.
pub fn replay(log: &Path) -> Result<BTreeMap<u8, String>> {
    let records = records(log)?;
    let mut pcrs = BTreeMap::new();
    for (number, record) in records.iter().enumerate() {
        ensure!(record["recnum"] == number, "record {number}: {record}");
        let content = &record["content"];
        let event = content["eventType"].as_str().context("eventType")?;
        ensure!(
            (number == 0) == (event == "start"),
            "record {number} is a {event}"
        );
        if event == "start" {
            for start in content["pcrs"].as_array().context("pcrs")? {
                let value = hex::decode(start["value"].as_str().context("value")?)?;
                pcrs.insert(pcr(&start["pcr"])?, value);
            }
        }
        for digest in record["digests"].as_array().context("digests")? {
            ensure!(digest["hashAlg"] == "sha256", "record {number}: {digest}");
            let digest = hex::decode(digest["digest"].as_str().context("digest")?)?;
            ensure!(
                digest.len() == 32,
                "record {number}: digest length {}",
                digest.len()
            );
            let value = pcrs
                .get_mut(&pcr(&record["pcr"])?)
                .context("a PCR without start")?;
            *value = Sha256::new()
                .chain_update(&*value)
                .chain_update(digest)
                .finalize()
                .to_vec();
        }
    }
    Ok(pcrs
        .into_iter()
        .map(|(pcr, value)| (pcr, hex::encode(value)))
        .collect())
}

fn pcr(value: &Value) -> Result<u8> {
    Ok(u8::try_from(value.as_u64().context("pcr")?)?)
}
