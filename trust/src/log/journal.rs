//! Writing the log so that it and the PCRs never disagree unnoticed: a record is on disk before its PCR is extended, and
//! the next writer finishes what a killed one began.

use std::collections::BTreeMap;
use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use trustme_config::Config;

use super::record::{
    CONTENT_TYPE, Content, Entry, MAX_LOG, Parsed, Record, Start, StartValue, Subject, parse,
};
use super::replay::pending;
use crate::lock;
use crate::tpm::{HexDigest, Pcr, PcrValue, Tpm, TpmError};

/// How long to wait for another launch to finish its measurement.
const LOCK_TIMEOUT: Duration = Duration::from_secs(60);

/// Where the kernel says which boot this is.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Something to record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A root image by its SHA-256.
    Image([u8; 32], Subject),
    /// A configuration by the SHA-256 of its canonical form.
    Configuration([u8; 32], Subject),
    /// A launch that was refused: recorded, not extended.
    Refusal(Subject),
}

/// What became of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measured {
    /// It is in the log now, and extended if there is a TPM.
    New,
    /// It was in the log already.
    Before,
}

/// Why nothing could be measured.
#[derive(Debug, thiserror::Error)]
pub enum MeasureError {
    /// The log cannot be read or written.
    #[error("measurement log {}: cannot {step}", path.display())]
    Log {
        /// The log.
        path: PathBuf,
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] TpmError),
}

/// Records `events` in the log that `config` names and extends their PCRs, leaving out what was recorded in this boot
/// before. A log of another boot is moved aside first (`measure.log.1`, …); so is one that does not explain what the PCRs
/// hold, and the new one says that it is incomplete.
///
/// # Errors
/// The log cannot be written, or the TPM does not answer. What was recorded and not extended is extended by the next call.
pub fn measure(config: &Config, events: &[Event]) -> Result<Vec<Measured>, MeasureError> {
    let path = config.log.path.as_path();
    if let Some(dir) = path.parent() {
        let made = DirBuilder::new().recursive(true).mode(0o755).create(dir);
        made.map_err(failed(path, "make its directory"))?;
    }
    let _lock = lock(path).map_err(failed(path, "lock it"))?;
    let tpm = match config.tpm.is_present() {
        true => Some(Tpm::connect(&config.tpm.tcti)?),
        false => None,
    };
    let mut journal = Journal::open(config, tpm.as_ref())?;
    let mut outcome = Vec::new();
    let mut new = Vec::new();
    for event in events {
        if journal.has(event) {
            outcome.push(Measured::Before);
        } else {
            new.push(journal.add(config, event));
            outcome.push(Measured::New);
        }
    }
    journal.write(&new)?;
    extend(tpm.as_ref(), &new)?;
    Ok(outcome)
}

/// The lock that whoever reads or writes the log holds; the log's directory has to exist.
pub(super) fn lock(path: &Path) -> io::Result<File> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    lock::exclusive(Path::new(&name), Instant::now() + LOCK_TIMEOUT)
}

/// The log's bytes.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_LOG + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_LOG {
        return Err(io::Error::other(format!("larger than {MAX_LOG} bytes")));
    }
    Ok(bytes)
}

/// The kernel's id of this boot.
pub(super) fn boot_id() -> io::Result<String> {
    Ok(std::fs::read_to_string(BOOT_ID)?.trim_end().to_owned())
}

/// Microseconds since 1970.
pub(crate) fn now() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn failed(path: &Path, step: &'static str) -> impl Fn(io::Error) -> MeasureError {
    move |source| MeasureError::Log {
        path: path.to_owned(),
        step,
        source,
    }
}

fn extend(tpm: Option<&Tpm>, records: &[Record]) -> Result<(), TpmError> {
    let Some(tpm) = tpm else { return Ok(()) };
    for record in records {
        if let Some(digest) = record.digest() {
            tpm.extend(record.pcr, digest)?;
        }
    }
    Ok(())
}

/// The log of this boot, open for appending; it explains what the PCRs hold.
struct Journal {
    path: PathBuf,
    file: File,
    records: Vec<Record>,
}

impl Journal {
    /// Opens the log, finishes what a killed writer began, or begins a new log.
    fn open(config: &Config, tpm: Option<&Tpm>) -> Result<Self, MeasureError> {
        let path = config.log.path.as_path();
        let bytes = match read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => vec![],
            Err(error) => return Err(failed(path, "read it")(error)),
        };
        let pcrs = [config.tpm.image_pcr, config.tpm.config_pcr];
        let chip = match tpm {
            Some(tpm) => tpm.read_pcrs(&pcrs)?,
            None => BTreeMap::new(),
        };
        let incomplete = match parse(&bytes) {
            Ok(log) if log.records.is_empty() => None,
            Ok(log) => match standing(&log, &chip, tpm)? {
                Standing::Current { pending } => {
                    let file = truncated(path, log.complete).map_err(failed(path, "repair it"))?;
                    extend(tpm, &log.records[log.records.len() - pending..])?;
                    let path = path.to_owned();
                    let records = log.records;
                    return Ok(Self {
                        path,
                        file,
                        records,
                    });
                }
                Standing::OtherBoot => None,
                Standing::Lost(reason) => Some(reason),
            },
            Err(error) => Some(error.to_string()),
        };
        let aside = match bytes.is_empty() {
            true => None,
            false => Some(move_aside(path).map_err(failed(path, "move it aside"))?),
        };
        let incomplete = incomplete.map(|reason| match &aside {
            Some(aside) => format!("{}: {reason}", aside.display()),
            None => reason,
        });
        if let Some(reason) = &incomplete {
            tracing::warn!("measurement log {} is incomplete: {reason}", path.display());
        }
        Self::begin(config, tpm, &chip, incomplete)
    }

    /// Begins a new log.
    fn begin(
        config: &Config,
        tpm: Option<&Tpm>,
        chip: &BTreeMap<Pcr, PcrValue>,
        incomplete: Option<String>,
    ) -> Result<Self, MeasureError> {
        let path = config.log.path.clone();
        let values = chip.iter().map(|(pcr, value)| StartValue {
            pcr: *pcr,
            value: HexDigest(*value),
        });
        let start = Start {
            boot_id: boot_id().map_err(failed(&path, "read the boot id for it"))?,
            reset_count: tpm.map(Tpm::reset_count).transpose()?,
            pcrs: values.collect(),
            incomplete,
            timestamp: now(),
        };
        let record = Record {
            recnum: 0,
            pcr: config.tpm.image_pcr,
            digests: vec![],
            content_type: CONTENT_TYPE.to_owned(),
            content: Content::Start(start),
        };
        let file = truncated(&path, 0).map_err(failed(&path, "make it"))?;
        let records = vec![record.clone()];
        let mut journal = Self {
            path,
            file,
            records,
        };
        journal.write(&[record])?;
        if let Some(dir) = journal.path.parent() {
            let synced = File::open(dir).and_then(|dir| dir.sync_all());
            synced.map_err(failed(&journal.path, "write its directory to disk"))?;
        }
        Ok(journal)
    }

    /// Whether the log has the event already.
    fn has(&self, event: &Event) -> bool {
        self.records
            .iter()
            .any(|record| match (event, &record.content) {
                (Event::Image(digest, subject), Content::Image(known))
                | (Event::Configuration(digest, subject), Content::Configuration(known)) => {
                    record.digest() == Some(digest) && known.says_the_same(subject)
                }
                (Event::Refusal(subject), Content::Refusal(known)) => known.says_the_same(subject),
                _ => false,
            })
    }

    /// The record of a new event, counted but not yet written.
    fn add(&mut self, config: &Config, event: &Event) -> Record {
        let (pcr, digest, content) = match event.clone() {
            Event::Image(digest, subject) => {
                (config.tpm.image_pcr, Some(digest), Content::Image(subject))
            }
            Event::Configuration(digest, subject) => (
                config.tpm.config_pcr,
                Some(digest),
                Content::Configuration(subject),
            ),
            Event::Refusal(subject) => (config.tpm.config_pcr, None, Content::Refusal(subject)),
        };
        let record = Record {
            recnum: self.records.len() as u64,
            pcr,
            digests: digest.map(Entry::sha256).into_iter().collect(),
            content_type: CONTENT_TYPE.to_owned(),
            content,
        };
        self.records.push(record.clone());
        record
    }

    /// Appends records to the file and waits until they are on disk.
    fn write(&mut self, records: &[Record]) -> Result<(), MeasureError> {
        let bytes: Vec<u8> = records.iter().flat_map(Record::to_bytes).collect();
        if bytes.is_empty() {
            return Ok(());
        }
        let written = self
            .file
            .write_all(&bytes)
            .and_then(|()| self.file.sync_data());
        written.map_err(failed(&self.path, "write to it"))
    }
}

/// How a log relates to this boot and its PCRs.
enum Standing {
    /// It is of this boot and explains the PCRs, but for its last `pending` records, which were not yet extended.
    Current { pending: usize },
    /// It is of another boot.
    OtherBoot,
    /// It is of this boot and does not explain the PCRs.
    Lost(String),
}

fn standing(
    log: &Parsed,
    chip: &BTreeMap<Pcr, PcrValue>,
    tpm: Option<&Tpm>,
) -> Result<Standing, MeasureError> {
    let Some(start) = log.start() else {
        return Ok(Standing::OtherBoot);
    };
    let boot_id = boot_id().map_err(failed(Path::new(BOOT_ID), "read the boot id"))?;
    if start.boot_id != boot_id {
        return Ok(Standing::OtherBoot);
    }
    if !start.values().keys().eq(chip.keys()) {
        let before: Vec<Pcr> = start.values().into_keys().collect();
        return Ok(Standing::Lost(format!("measured into PCRs {before:?}")));
    }
    let pending = match tpm {
        Some(_) => pending(log, chip),
        None => Some(0),
    };
    match (pending, tpm) {
        (Some(0), _) => Ok(Standing::Current { pending: 0 }),
        (_, Some(tpm)) if start.reset_count != Some(tpm.reset_count()?) => Ok(Standing::OtherBoot),
        (Some(pending), _) => Ok(Standing::Current { pending }),
        (None, _) => Ok(Standing::Lost(
            "does not lead to what the PCRs hold".to_owned(),
        )),
    }
}

/// The log, made if absent, cut to `length` bytes, open at its end.
fn truncated(path: &Path, length: usize) -> io::Result<File> {
    let file = File::options()
        .create(true)
        .append(true)
        .mode(0o600)
        .open(path)?;
    if file.metadata()?.len() != length as u64 {
        file.set_len(length as u64)?;
        file.sync_all()?;
    }
    Ok(file)
}

/// Renames the log to the first free name of `measure.log.1`, `measure.log.2`, …
fn move_aside(path: &Path) -> io::Result<PathBuf> {
    let mut number = 1_u32;
    loop {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{number}"));
        let aside = PathBuf::from(name);
        if !aside.try_exists()? {
            std::fs::rename(path, &aside)?;
            return Ok(aside);
        }
        number += 1;
    }
}
