//! What the PCRs must hold if the log is true.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use trustme_config::Config;

use super::journal;
use super::record::{LogError, Parsed, Record};
use crate::tpm::{HexDigest, Pcr, PcrValue, Tpm, TpmError, extended};

/// What PCRs that hold `values` hold after the digests of `records` are extended into them. Records of other PCRs count as
/// extended into zero.
pub(super) fn replay<'r>(
    mut values: BTreeMap<Pcr, PcrValue>,
    records: impl IntoIterator<Item = &'r Record>,
) -> BTreeMap<Pcr, PcrValue> {
    for record in records {
        if let Some(digest) = record.digest() {
            let value = values.entry(record.pcr).or_insert([0; 32]);
            *value = extended(value, digest);
        }
    }
    values
}

/// The most records that a program which is killed has written and not yet extended: those of one launch.
pub(super) const MAX_PENDING: usize = 2;

/// How many of the last records the chip has not been extended with: 0 where log and chip agree, `None` where no number
/// up to [`MAX_PENDING`] explains what the chip holds.
pub(super) fn pending(log: &Parsed, chip: &BTreeMap<Pcr, PcrValue>) -> Option<usize> {
    let start = log.start()?.values();
    let count = log.records.len();
    (0..=MAX_PENDING.min(count - 1))
        .find(|pending| replay(start.clone(), &log.records[..count - pending]) == *chip)
}

/// Whether log and chip agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum State {
    /// The log explains the PCRs.
    Complete,
    /// The log explains the PCRs but for what is said here.
    Incomplete {
        /// What is missing, or was cut short.
        reason: String,
    },
    /// The log does not explain the PCRs.
    Mismatch,
    /// There is no TPM to compare with.
    Unanchored,
}

/// One PCR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PcrReplay {
    /// The PCR.
    pub pcr: Pcr,
    /// Its value (hex) when the log began.
    pub start: HexDigest,
    /// The value (hex) that the log leads to.
    pub expected: HexDigest,
    /// The value (hex) in the TPM.
    pub actual: HexDigest,
}

/// What comparing log and chip gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// The log.
    pub path: PathBuf,
    /// How many records it has.
    pub records: usize,
    /// The PCRs, empty without TPM.
    pub pcrs: Vec<PcrReplay>,
    /// The outcome.
    #[serde(flatten)]
    pub state: State,
}

/// Why log and chip could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The log cannot be read.
    #[error("measurement log {}", path.display())]
    Read {
        /// The log.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The log is malformed.
    #[error("measurement log {}", path.display())]
    Parse {
        /// The log.
        path: PathBuf,
        /// What is wrong.
        source: LogError,
    },
    /// The log is of another boot.
    #[error("measurement log {}: of another boot of the {who}; nothing was measured since", path.display())]
    OtherBoot {
        /// The log.
        path: PathBuf,
        /// The machine, or the TPM.
        who: &'static str,
    },
    /// The TPM cannot be read.
    #[error(transparent)]
    Tpm(#[from] TpmError),
}

/// The log in the file `path`.
///
/// # Errors
/// It cannot be read or is malformed.
pub fn load(path: &Path) -> Result<Parsed, VerifyError> {
    let bytes = journal::read(path).map_err(|source| VerifyError::Read {
        path: path.to_owned(),
        source,
    })?;
    super::parse(&bytes).map_err(|source| VerifyError::Parse {
        path: path.to_owned(),
        source,
    })
}

/// Replays the log that `config` names and compares with the TPM. Changes neither.
///
/// # Errors
/// The log does not exist, is malformed or of another boot, or the TPM does not answer.
pub fn verify(config: &Config) -> Result<Report, VerifyError> {
    let path = config.log.path.as_path();
    let unreadable = |source| VerifyError::Read {
        path: path.to_owned(),
        source,
    };
    let _lock = journal::lock(path).map_err(unreadable)?;
    let bytes = journal::read(path).map_err(unreadable)?;
    let log = super::parse(&bytes).map_err(|source| VerifyError::Parse {
        path: path.to_owned(),
        source,
    })?;
    let Some(start) = log.start() else {
        return Ok(report(
            path,
            &log,
            vec![],
            incomplete("its first record was not written to its end"),
        ));
    };
    let other_boot = |who| VerifyError::OtherBoot {
        path: path.to_owned(),
        who,
    };
    if start.boot_id != journal::boot_id().map_err(unreadable)? {
        return Err(other_boot("machine"));
    }
    if !config.tpm.is_present() || start.pcrs.is_empty() {
        return Ok(report(path, &log, vec![], State::Unanchored));
    }
    let tpm = Tpm::connect(&config.tpm.tcti)?;
    let begin = start.values();
    let pcrs: Vec<Pcr> = begin.keys().copied().collect();
    let chip = tpm.read_pcrs(&pcrs)?;
    let pending = pending(&log, &chip);
    if pending != Some(0) && start.reset_count != Some(tpm.reset_count()?) {
        return Err(other_boot("TPM"));
    }
    let expected = replay(begin.clone(), &log.records);
    let state = match pending {
        None => State::Mismatch,
        Some(0) if log.complete < bytes.len() => {
            incomplete("the last record was not written to its end")
        }
        Some(0) => match &start.incomplete {
            Some(reason) => incomplete(reason),
            None => State::Complete,
        },
        Some(count) => incomplete(&format!(
            "a launch was killed before its last {count} record(s) were extended; the next launch does it"
        )),
    };
    let values = pcrs
        .into_iter()
        .map(|pcr| PcrReplay {
            pcr,
            start: HexDigest(begin[&pcr]),
            expected: HexDigest(expected[&pcr]),
            actual: HexDigest(chip[&pcr]),
        })
        .collect();
    Ok(report(path, &log, values, state))
}

fn incomplete(reason: &str) -> State {
    State::Incomplete {
        reason: reason.to_owned(),
    }
}

fn report(path: &Path, log: &Parsed, pcrs: Vec<PcrReplay>, state: State) -> Report {
    Report {
        path: path.to_owned(),
        records: log.records.len(),
        pcrs,
        state,
    }
}
