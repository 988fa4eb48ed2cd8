//! The kernel's own measurement list (IMA): what it measured of files, and whether that explains the PCR it extends.
//!
//! Format: the kernel's security/integrity/ima/ima_fs.c, `ima_measurements_show`. Numbers are 32 bits in the machine's byte order:
//! PCR, SHA-1 of the template data (20 bytes), length and name of the template, length of the template data, template data. The
//! template `ima` has no length; its data are a SHA-1 (20 bytes), the length of a path, and the path.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use trustme_config::Config;

use super::replay::PcrReplay;
use crate::tpm::{HexDigest, Pcr, PcrValue, Tpm, TpmError, extended};

/// Where the kernel shows the list.
pub const LIST: &str = "/sys/kernel/security/ima/binary_runtime_measurements";

/// The longest list that is read. The kernel keeps it in memory; an entry has about 100 bytes.
const MAX_LIST: u64 = 1 << 28;

/// Length of a SHA-1 digest.
const SHA1_LEN: usize = 20;

/// IMA_TEMPLATE_NAME_LEN_MAX (security/integrity/ima/ima.h).
const MAX_NAME: usize = 15;

/// Longer template data than any template's: a signature, a path and more, or a measured buffer.
const MAX_DATA: usize = 1 << 24;

/// The length to which the template `ima` fills up a path with zeros: IMA_EVENT_NAME_LEN_MAX + 1 (ima.h).
const OLD_NAME: usize = 256;

/// An entry of the list. Neither the template's name nor what a violation names is hashed, so the PCR vouches for neither.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The PCR that it was extended into.
    pub pcr: Pcr,
    /// Name of the template, for example `ima-ng`.
    pub template: String,
    /// What the SHA-256 bank was extended with: SHA-256 of the template data; for a violation 32 bytes 0xFF.
    pub digest: PcrValue,
    /// The kernel could not measure: the file was open for writing, or was written while it was read.
    pub violation: bool,
}

/// What is wrong with a list.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ImaError {
    /// It ends within an entry.
    #[error("entry {entry}: the list ends at byte {at}, {missing} bytes too early")]
    Truncated {
        /// Number of the entry, from 0.
        entry: usize,
        /// Length of the list.
        at: usize,
        /// How many bytes the part that was begun lacks.
        missing: usize,
    },
    /// No TPM has such a PCR.
    #[error("entry {entry}: PCR {pcr}, expected 0 to 23")]
    Pcr {
        /// Number of the entry.
        entry: usize,
        /// What stands there.
        pcr: u32,
    },
    /// A part is longer than the kernel makes it.
    #[error("entry {entry}: {part} of {length} bytes, expected at most {limit}")]
    TooLong {
        /// Number of the entry.
        entry: usize,
        /// The part.
        part: &'static str,
        /// Its length.
        length: usize,
        /// The longest that is taken.
        limit: usize,
    },
    /// The template's name is none.
    #[error("entry {entry}: the template's name is not printable ASCII")]
    Name {
        /// Number of the entry.
        entry: usize,
    },
    /// The entry was changed.
    #[error("entry {entry}: its template hash is not the SHA-1 of its template data")]
    Hash {
        /// Number of the entry.
        entry: usize,
    },
}

/// Parses a list, in this machine's byte order, and checks that each entry's template hash is that of its data.
///
/// # Errors
/// The list is malformed: the error says which entry.
pub fn parse(list: &[u8]) -> Result<Vec<Entry>, ImaError> {
    let mut input = Input {
        list,
        at: 0,
        entry: 0,
    };
    let mut entries = Vec::new();
    while input.at < list.len() {
        entries.push(input.entry()?);
        input.entry += 1;
    }
    Ok(entries)
}

/// What is left to read of a list.
struct Input<'l> {
    list: &'l [u8],
    at: usize,
    entry: usize,
}

impl<'l> Input<'l> {
    fn entry(&mut self) -> Result<Entry, ImaError> {
        let number = self.number()?;
        let pcr = u8::try_from(number).ok().filter(|pcr| *pcr < 24);
        let pcr = pcr.ok_or(ImaError::Pcr {
            entry: self.entry,
            pcr: number,
        })?;
        let hash = self.take(SHA1_LEN)?;
        let name = self.sized("template name", MAX_NAME)?;
        if name.is_empty() || !name.iter().all(u8::is_ascii_graphic) {
            return Err(ImaError::Name { entry: self.entry });
        }
        let template = String::from_utf8_lossy(name).into_owned();
        let measured = if template == "ima" {
            let mut measured = self.take(SHA1_LEN)?.to_vec();
            let path = self.sized("path", OLD_NAME - 1)?;
            measured.extend(path);
            measured.resize(SHA1_LEN + OLD_NAME, 0);
            measured
        } else {
            self.sized("template data", MAX_DATA)?.to_vec()
        };
        let violation = hash == [0; SHA1_LEN];
        if !violation && Sha1::digest(&measured).as_slice() != hash {
            return Err(ImaError::Hash { entry: self.entry });
        }
        let digest = match violation {
            true => [0xFF; 32],
            false => Sha256::digest(&measured).into(),
        };
        Ok(Entry {
            pcr,
            template,
            digest,
            violation,
        })
    }

    fn number(&mut self) -> Result<u32, ImaError> {
        let bytes = self.take(4)?;
        Ok(u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A part with its length before it.
    fn sized(&mut self, part: &'static str, limit: usize) -> Result<&'l [u8], ImaError> {
        // No target of ours has a usize of less than 32 bits.
        let length = self.number()? as usize;
        if length > limit {
            return Err(ImaError::TooLong {
                entry: self.entry,
                part,
                length,
                limit,
            });
        }
        self.take(length)
    }

    fn take(&mut self, length: usize) -> Result<&'l [u8], ImaError> {
        let rest = &self.list[self.at..];
        let Some(taken) = rest.get(..length) else {
            return Err(ImaError::Truncated {
                entry: self.entry,
                at: self.list.len(),
                missing: length - rest.len(),
            });
        };
        self.at += length;
        Ok(taken)
    }
}

/// What PCRs hold after the entries were extended; they begin at zero.
pub fn replay<'e>(entries: impl IntoIterator<Item = &'e Entry>) -> BTreeMap<Pcr, PcrValue> {
    let mut values = BTreeMap::new();
    for entry in entries {
        let value = values.entry(entry.pcr).or_insert([0; 32]);
        *value = extended(value, &entry.digest);
    }
    values
}

/// What comparing the list and the chip gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImaReport {
    /// The list.
    pub path: PathBuf,
    /// How many entries it has.
    pub entries: usize,
    /// How many of them are violations.
    pub violations: usize,
    /// The PCRs that it names.
    pub pcrs: Vec<PcrReplay>,
    /// The list explains the PCRs.
    pub agree: bool,
}

/// Why list and chip could not be compared.
#[derive(Debug, thiserror::Error)]
pub enum ImaVerifyError {
    /// The list cannot be read.
    #[error("IMA measurement list {}", path.display())]
    Read {
        /// The list.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The list is malformed.
    #[error("IMA measurement list {}", path.display())]
    Parse {
        /// The list.
        path: PathBuf,
        /// What is wrong.
        source: ImaError,
    },
    /// There is no TPM to compare with.
    #[error("no TPM to compare with: tpm.tcti is \"none\"")]
    NoTpm,
    /// The TPM cannot be read.
    #[error(transparent)]
    Tpm(#[from] TpmError),
}

/// The kernel may measure while one looks: so often list and chip are read before they are said to disagree.
const ATTEMPTS: u32 = 5;

/// Replays the kernel's list and compares with the TPM.
///
/// # Errors
/// The list cannot be read or is malformed, or the TPM does not answer.
pub fn verify(config: &Config) -> Result<ImaReport, ImaVerifyError> {
    if !config.tpm.is_present() {
        return Err(ImaVerifyError::NoTpm);
    }
    let path = Path::new(LIST);
    let tpm = Tpm::connect(&config.tpm.tcti)?;
    let mut attempt = 1;
    loop {
        let report = compare(path, &tpm)?;
        if report.agree || attempt == ATTEMPTS {
            return Ok(report);
        }
        attempt += 1;
    }
}

fn compare(path: &Path, tpm: &Tpm) -> Result<ImaReport, ImaVerifyError> {
    let list = read(path).map_err(|source| ImaVerifyError::Read {
        path: path.to_owned(),
        source,
    })?;
    let entries = parse(&list).map_err(|source| ImaVerifyError::Parse {
        path: path.to_owned(),
        source,
    })?;
    let expected = replay(&entries);
    let numbers: Vec<Pcr> = expected.keys().copied().collect();
    let chip = tpm.read_pcrs(&numbers)?;
    let pcrs: Vec<PcrReplay> = expected
        .iter()
        .map(|(pcr, expected)| PcrReplay {
            pcr: *pcr,
            start: HexDigest([0; 32]),
            expected: HexDigest(*expected),
            actual: HexDigest(chip[pcr]),
        })
        .collect();
    Ok(ImaReport {
        path: path.to_owned(),
        entries: entries.len(),
        violations: entries.iter().filter(|entry| entry.violation).count(),
        agree: expected == chip,
        pcrs,
    })
}

/// Reads at most [`MAX_LIST`] bytes: the kernel does not say how long the list is.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(MAX_LIST + 1)
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_LIST {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("longer than {MAX_LIST} bytes"),
        ));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lists of Debian's kernel 6.1 in the machine of conformance/vm (scenario `ima`, kernel options `ima_template=`), with what
    /// tpm2_pcrread printed for PCR 10 then.
    const CAPTURED: [(&[u8], &str, &str); 2] = [
        (
            include_bytes!("../../testdata/ima-sig.list"),
            "ima-sig",
            "91fe7e54a594d881235f268f4b910902d7706c7d4b0e66b7d2b465240ad5a8f7",
        ),
        (
            include_bytes!("../../testdata/ima.list"),
            "ima",
            "947d3127c94142f5a595b2108e9bc773757937135322939deefb92152335ef14",
        ),
    ];

    #[test]
    fn captured_lists_lead_to_what_the_chip_held() {
        for (list, template, pcr) in CAPTURED {
            let entries = parse(list).unwrap();
            assert_eq!(entries.len(), 8);
            assert!(entries.iter().all(|entry| entry.template == template));
            assert_eq!(entries.iter().filter(|entry| entry.violation).count(), 1);
            let replayed = replay(&entries);
            assert_eq!(replayed.len(), 1);
            assert_eq!(hex::encode(replayed[&10]), pcr);
        }
    }

    /// The kernel hashes neither a template's name nor what a violation names.
    #[test]
    fn every_changed_byte_that_the_kernel_hashes_is_noticed() {
        for (list, _, _) in CAPTURED {
            let entries = parse(list).unwrap();
            let begins: Vec<usize> = (0..list.len())
                .filter(|end| parse(&list[..*end]).is_ok())
                .collect();
            assert_eq!(begins.len(), entries.len());
            for at in 0..list.len() {
                let mut changed = list.to_vec();
                changed[at] ^= 1;
                let Ok(parsed) = parse(&changed) else {
                    continue;
                };
                let entry = begins.iter().rposition(|begin| *begin <= at).unwrap();
                if replay(&parsed) == replay(&entries) {
                    let renamed = parsed[entry].template != entries[entry].template;
                    assert!(renamed || entries[entry].violation, "byte {at}");
                }
            }
        }
    }

    #[test]
    fn a_list_that_ends_early_is_truncated_or_shorter() {
        let (list, _, _) = CAPTURED[0];
        let whole = parse(list).unwrap().len();
        for end in 0..list.len() {
            match parse(&list[..end]) {
                Ok(entries) => assert!(entries.len() < whole, "{end}"),
                Err(error) => assert!(
                    matches!(error, ImaError::Truncated { at, .. } if at == end),
                    "{end}: {error}"
                ),
            }
        }
    }

    #[test]
    fn hostile_numbers_are_refused_before_anything_is_allocated() {
        let (list, _, _) = CAPTURED[0];
        let changed = |at: usize, value: u32| {
            let mut list = list.to_vec();
            list[at..at + 4].copy_from_slice(&value.to_ne_bytes());
            parse(&list).unwrap_err().to_string()
        };
        let name_at = 4 + SHA1_LEN;
        for (at, value, expected) in [
            (0, 24, "entry 0: PCR 24, expected 0 to 23"),
            (0, u32::MAX, "entry 0: PCR 4294967295, expected 0 to 23"),
            (
                name_at,
                16,
                "entry 0: template name of 16 bytes, expected at most 15",
            ),
            (
                name_at,
                0,
                "entry 0: the template's name is not printable ASCII",
            ),
            (
                name_at + 4 + "ima-sig".len(),
                u32::MAX,
                "entry 0: template data of 4294967295 bytes, expected at most 16777216",
            ),
        ] {
            assert_eq!(changed(at, value), expected);
        }
    }
}
