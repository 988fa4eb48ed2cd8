//! `trustmectl log`.

use std::process::ExitCode;

use trustme_config::Config;
use trustme_trust::log::{self, Content, PcrReplay, Record, State, Subject};

/// Prints the records of the log.
pub(crate) fn show(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let log = log::load(&config.log.path)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&log.records)?);
        return Ok(ExitCode::SUCCESS);
    }
    for record in &log.records {
        println!("{}", line(record));
    }
    Ok(ExitCode::SUCCESS)
}

/// A record for people.
fn line(record: &Record) -> String {
    let number = record.recnum;
    match &record.content {
        Content::Start(start) => {
            let values = start
                .pcrs
                .iter()
                .map(|start| format!(", PCR {} at {}", start.pcr, start.value));
            let incomplete = start
                .incomplete
                .iter()
                .map(|reason| format!(", incomplete: {reason}"));
            let rest: String = values.chain(incomplete).collect();
            format!("{number}: start of boot {}{rest}", start.boot_id)
        }
        Content::Image(subject) | Content::Configuration(subject) => {
            let digest = record
                .digests
                .first()
                .map(|entry| entry.digest.to_string())
                .unwrap_or_default();
            let event = record.content.event_type();
            format!(
                "{number}: PCR {} {event} {digest} {}",
                record.pcr,
                about(subject)
            )
        }
        Content::Refusal(subject) => format!("{number}: refusal {}", about(subject)),
    }
}

fn about(subject: &Subject) -> String {
    let name = match (&subject.name, subject.version) {
        (Some(name), Some(version)) => format!("{name}-{version}"),
        _ => subject.path.clone(),
    };
    let signer = subject
        .signer
        .as_ref()
        .map(|signer| format!(", signed by {}", signer.subject));
    let reason = subject.reason.as_ref().map(|reason| format!(": {reason}"));
    format!(
        "{name} for {}, root verified by {}{}, {}{}",
        subject.container.0,
        subject.verified,
        signer.unwrap_or_default(),
        subject.verdict,
        reason.unwrap_or_default()
    )
}

/// Compares log and TPM.
pub(crate) fn verify(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let report = log::verify(config)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("{}: {} records", report.path.display(), report.records);
        print_pcrs(&report.pcrs);
        println!("{}", outcome(&report.state));
    }
    Ok(match report.state {
        State::Complete | State::Unanchored => ExitCode::SUCCESS,
        State::Incomplete { .. } | State::Mismatch => ExitCode::FAILURE,
    })
}

/// Compares the kernel's list and the TPM.
pub(crate) fn verify_ima(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let report = log::ima::verify(config)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!(
            "{}: {} entries, {} violations",
            report.path.display(),
            report.entries,
            report.violations
        );
        print_pcrs(&report.pcrs);
        println!(
            "{}",
            match report.agree {
                true => "list and TPM agree",
                false => "list and TPM disagree: what the PCRs hold is not what the list leads to",
            }
        );
    }
    Ok(match report.agree {
        true => ExitCode::SUCCESS,
        false => ExitCode::FAILURE,
    })
}

fn print_pcrs(pcrs: &[PcrReplay]) {
    for pcr in pcrs {
        println!("PCR {}", pcr.pcr);
        println!("  start    {}", pcr.start);
        println!("  expected {}", pcr.expected);
        println!("  actual   {}", pcr.actual);
    }
}

/// What the state means, for people.
pub(crate) fn outcome(state: &State) -> String {
    match state {
        State::Complete => "log and TPM agree".to_owned(),
        State::Unanchored => "no TPM to compare with".to_owned(),
        State::Mismatch => {
            "log and TPM disagree: what the PCRs hold is not what the log leads to".to_owned()
        }
        State::Incomplete { reason } => format!("incomplete: {reason}"),
    }
}
