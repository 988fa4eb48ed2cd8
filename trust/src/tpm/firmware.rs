//! The event log that firmware and boot loaders leave (TCG PC Client Platform Firmware Profile 1.05, section 10): which
//! events made a PCR what it is, and which of them differ from those of another boot.

use serde::{Deserialize, Serialize};

use super::policy::ALG_SHA256;
use super::{HexDigest, Pcr, PcrValue, extended};

/// Where the kernel shows the log.
pub const PATH: &str = "/sys/kernel/security/tpm0/binary_bios_measurements";

/// EV_NO_ACTION: in the log, but not extended.
const NO_ACTION: u32 = 3;

/// The first event's signature in a log with more than one bank.
const SIGNATURE: &[u8] = b"Spec ID Event03\0";

/// Names of event types (section 10.4.1).
const TYPES: &[(u32, &str)] = &[
    (0x0000_0000, "EV_PREBOOT_CERT"),
    (0x0000_0001, "EV_POST_CODE"),
    (0x0000_0004, "EV_SEPARATOR"),
    (0x0000_0005, "EV_ACTION"),
    (0x0000_0006, "EV_EVENT_TAG"),
    (0x0000_0007, "EV_S_CRTM_CONTENTS"),
    (0x0000_0008, "EV_S_CRTM_VERSION"),
    (0x0000_000D, "EV_IPL"),
    (0x8000_0001, "EV_EFI_VARIABLE_DRIVER_CONFIG"),
    (0x8000_0002, "EV_EFI_VARIABLE_BOOT"),
    (0x8000_0003, "EV_EFI_BOOT_SERVICES_APPLICATION"),
    (0x8000_0004, "EV_EFI_BOOT_SERVICES_DRIVER"),
    (0x8000_0006, "EV_EFI_GPT_EVENT"),
    (0x8000_0007, "EV_EFI_ACTION"),
    (0x8000_0008, "EV_EFI_PLATFORM_FIRMWARE_BLOB"),
    (0x8000_000C, "EV_EFI_VARIABLE_BOOT2"),
    (0x8000_00E0, "EV_EFI_VARIABLE_AUTHORITY"),
];

/// Types whose event is a UEFI_VARIABLE_DATA.
const VARIABLES: &[u32] = &[0x8000_0001, 0x8000_0002, 0x8000_000C, 0x8000_00E0];

/// At most this many differences are told.
const MOST: usize = 6;

/// An event that was extended into a PCR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FirmwareEvent {
    /// Its type, and the name of the UEFI variable where it is about one.
    pub event: String,
    /// What was extended.
    pub digest: HexDigest,
}

/// The firmware's log, as far as it is about the SHA-256 bank.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FirmwareLog(Vec<(Pcr, FirmwareEvent)>);

/// Reads fields of a log from its beginning.
struct Reader<'b> {
    rest: &'b [u8],
    length: usize,
}

impl<'b> Reader<'b> {
    fn take(&mut self, length: usize) -> Result<&'b [u8], String> {
        match self.rest.split_at_checked(length) {
            Some((taken, rest)) => {
                self.rest = rest;
                Ok(taken)
            }
            None => Err(format!("ends at byte {}, within an event", self.length)),
        }
    }

    fn u16(&mut self) -> Result<u16, String> {
        let bytes = self.take(2)?;
        Ok(u16::from_le_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, String> {
        let bytes = self.take(4)?;
        Ok(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    fn sized(&mut self) -> Result<&'b [u8], String> {
        let length = self.u32()?;
        self.take(length as usize)
    }
}

/// The sizes of the digests that a log with SHA-256 has, by algorithm; `None` where the log is of the old form.
fn algorithms(first: &[u8]) -> Result<Option<Vec<(u16, u16)>>, String> {
    let Some(rest) = first.strip_prefix(SIGNATURE) else {
        return Ok(None);
    };
    let mut reader = Reader {
        rest,
        length: rest.len(),
    };
    // platformClass, versions and uintnSize.
    reader.take(8)?;
    let count = reader.u32()?;
    (0..count)
        .map(|_| Ok((reader.u16()?, reader.u16()?)))
        .collect::<Result<_, _>>()
        .map(Some)
}

impl FirmwareLog {
    /// The log of this boot; empty where the kernel shows none.
    #[must_use]
    pub fn of_this_boot() -> Self {
        match std::fs::read(PATH).map(|bytes| Self::parse(&bytes)) {
            Ok(Ok(log)) => log,
            Ok(Err(reason)) => {
                tracing::warn!("{PATH}: {reason}");
                Self::default()
            }
            Err(_) => Self::default(),
        }
    }

    /// The events of the SHA-256 bank in the log `bytes`; none where it is of the old form with SHA-1 alone.
    ///
    /// # Errors
    /// The log ends within an event, or names an algorithm that its header does not.
    pub fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut reader = Reader {
            rest: bytes,
            length: bytes.len(),
        };
        // TCG_PCR_EVENT: PCR, type, SHA-1 digest, event.
        reader.take(4 + 4 + 20)?;
        let Some(algorithms) = algorithms(reader.sized()?)? else {
            return Ok(Self::default());
        };
        let mut events = Vec::new();
        // The kernel may show more memory than the log takes: it ends with a PCR that is none.
        while !reader.rest.is_empty() && reader.rest.get(..4) != Some(&[0xFF; 4]) {
            let (pcr, kind) = (reader.u32()?, reader.u32()?);
            let count = reader.u32()?;
            let mut sha256 = None;
            for _ in 0..count {
                let algorithm = reader.u16()?;
                let size = algorithms
                    .iter()
                    .find(|(known, _)| *known == algorithm)
                    .map(|(_, size)| *size)
                    .ok_or_else(|| format!("a digest of the unknown algorithm {algorithm:#06x}"))?;
                let digest = reader.take(usize::from(size))?;
                if algorithm == ALG_SHA256 {
                    sha256 = <[u8; 32]>::try_from(digest).ok();
                }
            }
            let event = reader.sized()?;
            if let (true, Some(digest), Ok(pcr)) = (kind != NO_ACTION, sha256, Pcr::try_from(pcr)) {
                events.push((
                    pcr,
                    FirmwareEvent {
                        event: describe(kind, event),
                        digest: HexDigest(digest),
                    },
                ));
            }
        }
        Ok(Self(events))
    }

    /// The events that made `pcr` what it is; empty where they lead to another value than `present`, so that what is told
    /// of them is true.
    #[must_use]
    pub fn events_of(&self, pcr: Pcr, present: &PcrValue) -> Vec<FirmwareEvent> {
        let events: Vec<_> = self
            .0
            .iter()
            .filter(|(of, _)| *of == pcr)
            .map(|(_, event)| event.clone())
            .collect();
        let replayed = events
            .iter()
            .fold([0; 32], |value, event| extended(&value, &event.digest.0));
        match replayed == *present {
            true => events,
            false => vec![],
        }
    }
}

/// The type's name, and the variable's.
fn describe(kind: u32, event: &[u8]) -> String {
    let name = TYPES.iter().find(|(known, _)| *known == kind);
    let name = name.map_or_else(|| format!("{kind:#010x}"), |(_, name)| (*name).to_owned());
    match variable(event).filter(|_| VARIABLES.contains(&kind)) {
        Some(variable) => format!("{name} {variable}"),
        None => name,
    }
}

/// The name in a UEFI_VARIABLE_DATA: GUID, number of UTF-16 units of the name, size of the value, name.
fn variable(event: &[u8]) -> Option<String> {
    let units = u64::from_le_bytes(event.get(16..24)?.try_into().ok()?);
    let length = usize::try_from(units).ok()?.checked_mul(2)?;
    let name = event.get(32..)?.get(..length)?;
    let units = name
        .chunks_exact(2)
        .map(|unit| u16::from_le_bytes([unit[0], unit[1]]));
    let text: String = char::decode_utf16(units)
        .map(|unit| unit.unwrap_or(char::REPLACEMENT_CHARACTER))
        .filter(|letter| !letter.is_control())
        .collect();
    (!text.is_empty()).then_some(text)
}

/// What differs between the events of a PCR when a secret was sealed and now, for people.
#[must_use]
pub fn differences(sealed: &[FirmwareEvent], present: &[FirmwareEvent]) -> Vec<String> {
    if sealed.is_empty() || present.is_empty() {
        return vec![];
    }
    let gone: Vec<_> = sealed
        .iter()
        .filter(|event| !present.contains(event))
        .collect();
    let mut new: Vec<_> = present
        .iter()
        .filter(|event| !sealed.contains(event))
        .collect();
    let mut told = Vec::new();
    for event in gone {
        let changed = new.iter().position(|other| other.event == event.event);
        told.push(match changed.map(|place| new.remove(place)) {
            Some(other) => format!("{} was {}, is {}", event.event, event.digest, other.digest),
            None => format!("{} ({}) is missing", event.event, event.digest),
        });
    }
    told.extend(
        new.iter()
            .map(|event| format!("{} ({}) is new", event.event, event.digest)),
    );
    if told.is_empty() {
        told.push("the same events in another order or number".to_owned());
    }
    if told.len() > MOST {
        let more = told.len() - MOST;
        told.truncate(MOST);
        told.push(format!("and {more} more"));
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event2(log: &mut Vec<u8>, pcr: u32, kind: u32, digest: [u8; 32], event: &[u8]) {
        for number in [pcr, kind, 1] {
            log.extend_from_slice(&number.to_le_bytes());
        }
        log.extend_from_slice(&ALG_SHA256.to_le_bytes());
        log.extend_from_slice(&digest);
        log.extend_from_slice(&(event.len() as u32).to_le_bytes());
        log.extend_from_slice(event);
    }

    fn variable_event(name: &str) -> Vec<u8> {
        let mut event = vec![0; 16];
        event.extend_from_slice(&(name.len() as u64).to_le_bytes());
        event.extend_from_slice(&1_u64.to_le_bytes());
        name.encode_utf16()
            .for_each(|unit| event.extend_from_slice(&unit.to_le_bytes()));
        event.push(1);
        event
    }

    fn log(secure_boot: [u8; 32]) -> Vec<u8> {
        let mut log = vec![0; 4];
        log.extend_from_slice(&NO_ACTION.to_le_bytes());
        log.extend_from_slice(&[0; 20]);
        let mut first = SIGNATURE.to_vec();
        first.extend_from_slice(&[0, 0, 0, 0, 0, 2, 0, 2]);
        first.extend_from_slice(&1_u32.to_le_bytes());
        first.extend_from_slice(&[0x0B, 0, 32, 0, 0]);
        log.extend_from_slice(&(first.len() as u32).to_le_bytes());
        log.extend_from_slice(&first);
        event2(
            &mut log,
            7,
            0x8000_0001,
            secure_boot,
            &variable_event("SecureBoot"),
        );
        event2(&mut log, 0, 8, [9; 32], b"v");
        event2(&mut log, 7, 4, [2; 32], &[0; 4]);
        log
    }

    /// `tpm2_eventlog` (tpm2-tools 5.4) reads the same log the same way.
    #[test]
    fn a_log_is_read_and_replayed() {
        let bytes = log([1; 32]);
        let parsed = FirmwareLog::parse(&bytes).unwrap();
        let value = extended(&extended(&[0; 32], &[1; 32]), &[2; 32]);
        let events = parsed.events_of(7, &value);
        let names: Vec<_> = events.iter().map(|event| event.event.as_str()).collect();
        assert_eq!(
            names,
            ["EV_EFI_VARIABLE_DRIVER_CONFIG SecureBoot", "EV_SEPARATOR"]
        );
        assert_eq!(parsed.events_of(7, &[3; 32]), []);

        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        let output = std::process::Command::new("tpm2_eventlog")
            .arg(file.path())
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        for wanted in [
            "UnicodeName: SecureBoot".to_owned(),
            format!("7  : 0x{}", hex::encode(value)),
        ] {
            assert!(printed.contains(&wanted), "{wanted}: {printed}");
        }

        let now = FirmwareLog::parse(&log([5; 32])).unwrap();
        let present = extended(&extended(&[0; 32], &[5; 32]), &[2; 32]);
        assert_eq!(
            differences(&events, &now.events_of(7, &present)),
            [format!(
                "EV_EFI_VARIABLE_DRIVER_CONFIG SecureBoot was {}, is {}",
                "01".repeat(32),
                "05".repeat(32)
            )]
        );
        assert!(differences(&events, &[]).is_empty());
    }

    #[test]
    fn a_log_that_ends_early_or_lies_is_an_error() {
        let bytes = log([1; 32]);
        let whole = FirmwareLog::parse(&bytes).unwrap();
        for length in 0..bytes.len() {
            if let Ok(read) = FirmwareLog::parse(&bytes[..length]) {
                assert!(read.0.len() < whole.0.len(), "{length} bytes");
            }
        }
        let mut lie = bytes.clone();
        let place = lie.len() - 4 - 4 - 32 - 2;
        lie[place] = 0x0C;
        let error = FirmwareLog::parse(&lie).unwrap_err();
        assert_eq!(error, "a digest of the unknown algorithm 0x000c");
    }
}
