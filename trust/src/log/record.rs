//! Records, and the parser for a file of them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::tpm::{HexDigest, Pcr, PcrValue};

/// What begins a record (RFC 7464, section 2.1).
const RECORD_SEPARATOR: u8 = 0x1E;

/// What ends a record.
const LINE_FEED: u8 = b'\n';

/// A larger file is no log: a million launches of distinct containers fit.
pub(super) const MAX_LOG: u64 = 1 << 30;

/// A larger record is none of ours: text fields are cut long before.
const MAX_RECORD: usize = 1 << 16;

/// `content_type` of every record.
pub(super) const CONTENT_TYPE: &str = "trustme";

/// One record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Its place in the log, from 0.
    pub recnum: u64,
    /// The PCR that it was extended into, or is about.
    pub pcr: Pcr,
    /// What the PCR was extended with; empty where it was not.
    pub digests: Vec<Entry>,
    /// `trustme`.
    pub content_type: String,
    /// What the record is about.
    pub content: Content,
}

impl Record {
    /// The digest that the PCR was extended with, if it was.
    #[must_use]
    pub fn digest(&self) -> Option<&[u8; 32]> {
        self.digests.first().map(|entry| &entry.digest.0)
    }

    /// The record as it stands in the file.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![RECORD_SEPARATOR];
        serde_json::to_writer(&mut bytes, self).expect("a record has nothing that JSON cannot say");
        bytes.push(LINE_FEED);
        bytes
    }
}

/// A digest and its algorithm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// The algorithm.
    #[serde(rename = "hashAlg")]
    pub hash_alg: HashAlgorithm,
    /// The digest, hex.
    pub digest: HexDigest,
}

impl Entry {
    /// A SHA-256 digest.
    #[must_use]
    pub fn sha256(digest: [u8; 32]) -> Self {
        Self {
            hash_alg: HashAlgorithm::Sha256,
            digest: HexDigest(digest),
        }
    }
}

/// The algorithms that occur in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HashAlgorithm {
    /// SHA-256.
    Sha256,
}

/// What a record is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "eventType", rename_all = "lowercase", deny_unknown_fields)]
pub enum Content {
    /// The log begins. Not extended; the first record and no other.
    Start(Start),
    /// A root image, whose bare SHA-256 is extended into the image PCR.
    Image(Subject),
    /// A configuration, the SHA-256 of whose canonical form is extended into the configuration PCR.
    Configuration(Subject),
    /// A launch that was refused. Not extended.
    Refusal(Subject),
}

impl Content {
    /// The word that the record's `eventType` is.
    #[must_use]
    pub fn event_type(&self) -> &'static str {
        match self {
            Self::Start(_) => "start",
            Self::Image(_) => "image",
            Self::Configuration(_) => "configuration",
            Self::Refusal(_) => "refusal",
        }
    }
}

/// Where the log begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Start {
    /// The kernel's id of this boot.
    pub boot_id: String,
    /// The TPM's reset count; absent without TPM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reset_count: Option<u32>,
    /// The image PCR and the configuration PCR when the log began; empty without TPM.
    pub pcrs: Vec<StartValue>,
    /// Why earlier records of this boot are missing, where they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incomplete: Option<String>,
    /// Microseconds since 1970.
    pub timestamp: u64,
}

impl Start {
    /// The PCRs' values when the log began.
    #[must_use]
    pub fn values(&self) -> BTreeMap<Pcr, PcrValue> {
        self.pcrs
            .iter()
            .map(|start| (start.pcr, start.value.0))
            .collect()
    }
}

/// A PCR's value when the log began.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StartValue {
    /// The PCR.
    pub pcr: Pcr,
    /// Its value, hex.
    pub value: HexDigest,
}

/// What was measured, for people and verifiers. Whether the same was measured before is decided by everything but
/// `path`, `container` and `timestamp`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Subject {
    /// SHA-256 (hex) of the root image; absent for a plain directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<HexDigest>,
    /// The GuestOS's name; absent where its configuration text cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The GuestOS's version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The path of the root image's file, or of the plain directory.
    pub path: String,
    /// How the root was verified.
    pub verified: Verification,
    /// Who signed it, where a signature was verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signer: Option<Signer>,
    /// What the launch policy said.
    pub verdict: Verdict,
    /// Why it is not trusted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The first container that it was measured for.
    pub container: Container,
    /// Microseconds since 1970.
    pub timestamp: u64,
}

impl Subject {
    /// Whether `other` says the same, but for another container, from another place or at another time.
    #[must_use]
    pub fn says_the_same(&self, other: &Self) -> bool {
        let like_other = Self {
            path: other.path.clone(),
            container: other.container.clone(),
            timestamp: other.timestamp,
            ..self.clone()
        };
        like_other == *other
    }
}

/// A container's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Container(pub String);

/// How a root image was compared with what is signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verification {
    /// The kernel checks each block against the signed dm-verity root when it is read.
    DmVerity,
    /// The SHA-256 of the whole file that was then mounted.
    Sha256,
    /// The tree digest of a plain directory, read before the launch.
    Tree,
    /// Not measured: the root file system is a plain directory, and an older trustme started it.
    None,
}

impl std::fmt::Display for Verification {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::DmVerity => "dm-verity",
            Self::Sha256 => "sha256",
            Self::Tree => "tree",
            Self::None => "none",
        })
    }
}

/// Who signed a GuestOS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Signer {
    /// The subject of the signing certificate.
    pub subject: String,
    /// SHA-256 (hex) of its SubjectPublicKeyInfo.
    pub spki_sha256: HexDigest,
}

/// What the launch policy said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Everything that enforce demands is fulfilled.
    Trusted,
    /// Something is not; `reason` says what.
    Untrusted,
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Trusted => "trusted",
            Self::Untrusted => "untrusted",
        })
    }
}

/// What is wrong with a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// A record is not one.
    #[error("record {recnum}: {reason}")]
    Record {
        /// Its place, from 0.
        recnum: u64,
        /// What is wrong.
        reason: String,
    },
    /// The first record does not say where the log begins.
    #[error("the first record is not a start record")]
    NoStart,
}

/// A log as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parsed {
    /// The complete records; the first is a start record. Empty for an empty file, or where the first is torn.
    pub records: Vec<Record>,
    /// How many bytes they take. Bytes after them are a last record that was not written to its end.
    pub complete: usize,
}

impl Parsed {
    /// Where the log begins; `None` without records.
    #[must_use]
    pub fn start(&self) -> Option<&Start> {
        match self.records.first().map(|record| &record.content) {
            Some(Content::Start(start)) => Some(start),
            _ => None,
        }
    }
}

/// The records in `bytes`. A last one without line end was torn by a crash and is left out.
///
/// # Errors
/// A complete record is malformed, too long, out of sequence, or the first is not a start record.
pub fn parse(bytes: &[u8]) -> Result<Parsed, LogError> {
    let mut records = Vec::new();
    let mut complete = 0;
    while let Some(length) = bytes[complete..].iter().position(|byte| *byte == LINE_FEED) {
        let recnum = records.len() as u64;
        let record = parse_record(&bytes[complete..complete + length], recnum)
            .map_err(|reason| LogError::Record { recnum, reason })?;
        if matches!(record.content, Content::Start(_)) != (recnum == 0) {
            return Err(match recnum {
                0 => LogError::NoStart,
                _ => LogError::Record {
                    recnum,
                    reason: "a second start record".into(),
                },
            });
        }
        records.push(record);
        complete += length + 1;
    }
    Ok(Parsed { records, complete })
}

/// The record on one line, which has to have the number `recnum`.
fn parse_record(line: &[u8], recnum: u64) -> Result<Record, String> {
    if line.len() > MAX_RECORD {
        return Err(format!(
            "{} bytes, at most {MAX_RECORD} allowed",
            line.len()
        ));
    }
    let Some((&RECORD_SEPARATOR, json)) = line.split_first() else {
        return Err("does not begin with a record separator (0x1E)".into());
    };
    let record: Record = serde_json::from_slice(json).map_err(|error| error.to_string())?;
    if record.recnum != recnum {
        return Err(format!("has the number {}", record.recnum));
    }
    if record.content_type != CONTENT_TYPE {
        return Err(format!(
            "content_type {:?}, not {CONTENT_TYPE:?}",
            record.content_type
        ));
    }
    let extended = matches!(
        record.content,
        Content::Image(_) | Content::Configuration(_)
    );
    if record.digests.len() != usize::from(extended) {
        return Err(format!(
            "{} digests in a record of type {}",
            record.digests.len(),
            record.content.event_type()
        ));
    }
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn start() -> Record {
        Record {
            recnum: 0,
            pcr: 11,
            digests: vec![],
            content_type: CONTENT_TYPE.into(),
            content: Content::Start(Start {
                boot_id: "b".into(),
                reset_count: Some(3),
                pcrs: vec![StartValue {
                    pcr: 11,
                    value: HexDigest([0; 32]),
                }],
                incomplete: None,
                timestamp: 7,
            }),
        }
    }

    fn image(recnum: u64) -> Record {
        Record {
            recnum,
            pcr: 11,
            digests: vec![Entry::sha256([0xAB; 32])],
            content_type: CONTENT_TYPE.into(),
            content: Content::Image(Subject {
                image: Some(HexDigest([0xAB; 32])),
                name: Some("nginx".into()),
                version: Some(1),
                path: "/srv/nginx-1/root.img".into(),
                verified: Verification::Sha256,
                signer: Some(Signer {
                    subject: "CN = signer".into(),
                    spki_sha256: HexDigest([2; 32]),
                }),
                verdict: Verdict::Trusted,
                reason: None,
                container: Container("web".into()),
                timestamp: 8,
            }),
        }
    }

    fn file(records: &[Record]) -> Vec<u8> {
        records.iter().flat_map(Record::to_bytes).collect()
    }

    #[test]
    fn a_record_is_one_json_text_of_cel() {
        let line = String::from_utf8(image(1).to_bytes()).unwrap();
        let json = line
            .strip_prefix('\x1E')
            .unwrap()
            .strip_suffix('\n')
            .unwrap();
        let expected = format!(
            concat!(
                r#"{{"recnum":1,"pcr":11,"digests":[{{"hashAlg":"sha256","digest":"{0}"}}],"#,
                r#""content_type":"trustme","content":{{"eventType":"image","image":"{0}","name":"nginx","#,
                r#""version":1,"path":"/srv/nginx-1/root.img","verified":"sha256","#,
                r#""signer":{{"subject":"CN = signer","spkiSha256":"{1}"}},"verdict":"trusted","#,
                r#""container":"web","timestamp":8}}}}"#
            ),
            "ab".repeat(32),
            "02".repeat(32)
        );
        assert_eq!(json, expected);
    }

    #[test]
    fn what_is_written_is_read() {
        let records = [start(), image(1), image(2)];
        let bytes = file(&records);
        let parsed = parse(&bytes).unwrap();
        assert_eq!(parsed.records, records);
        assert_eq!(parsed.complete, bytes.len());
        assert_eq!(parsed.start().unwrap().reset_count, Some(3));
        assert_eq!(parse(b"").unwrap().records, []);
    }

    #[test]
    fn a_log_cut_anywhere_has_its_complete_records() {
        let records = [start(), image(1)];
        let bytes = file(&records);
        let first = records[0].to_bytes().len();
        for length in 0..bytes.len() {
            let parsed = parse(&bytes[..length]).unwrap();
            let (count, complete) = if length < first { (0, 0) } else { (1, first) };
            assert_eq!(
                (parsed.records.len(), parsed.complete),
                (count, complete),
                "cut at {length}"
            );
        }
    }

    #[test]
    fn a_malformed_record_is_named() {
        let json = |record: &Record| String::from_utf8(record.to_bytes()).unwrap();
        let good = json(&image(1));
        let cases = [
            (
                good.replace('\x1E', ""),
                "does not begin with a record separator (0x1E)",
            ),
            (
                good.replace("\"recnum\":1", "\"recnum\":2"),
                "has the number 2",
            ),
            (
                good.replace("\"trustme\"", "\"systemd\""),
                "content_type \"systemd\", not \"trustme\"",
            ),
            (
                good.replace("\"pcr\":11", "\"pcr\":11,\"x\":1"),
                "unknown field `x`",
            ),
            (
                good.replace("\"pcr\":11", "\"pcr\":11,\"pcr\":13"),
                "duplicate field `pcr`",
            ),
            (
                good.replace("sha256\",\"digest\":\"ab", "sha256\",\"digest\":\"a"),
                "is not hex",
            ),
            (
                good.replace("\"image\",", "\"refusal\","),
                "1 digests in a record of type refusal",
            ),
            (
                json(&Record {
                    recnum: 1,
                    ..start()
                }),
                "a second start record",
            ),
            (
                format!("\x1E{}\n", " ".repeat(MAX_RECORD)),
                "at most 65536 allowed",
            ),
        ];
        for (line, reason) in cases {
            let bytes = [start().to_bytes(), line.into_bytes()].concat();
            let error = parse(&bytes).unwrap_err().to_string();
            assert!(
                error.starts_with("record 1: ") && error.contains(reason),
                "{error:?} has no {reason:?}"
            );
        }
        assert_eq!(parse(&image(0).to_bytes()).unwrap_err(), LogError::NoStart);
    }
}
