//! The measurement log: what was extended into the PCRs since boot, and why.
//!
//! Records are those of the TCG's Canonical Event Log format in JSON (CEL-JSON: recnum, pcr, digests, content_type,
//! content), one after the other as a JSON text sequence (RFC 7464), as systemd's userspace log is. A record with an empty list
//! of digests was not extended. docs/measurement-log.md describes every field.

pub mod ima;
mod journal;
mod record;
mod replay;

pub(crate) use journal::now;
pub use journal::{Event, MeasureError, Measured, measure};
pub use record::{
    Container, Content, Entry, HashAlgorithm, LogError, Parsed, Record, Signer, Start, StartValue,
    Subject, Verdict, Verification, parse,
};
pub use replay::{PcrReplay, Report, State, VerifyError, load, verify};
