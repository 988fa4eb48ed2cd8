//! `trustmectl status`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;
use trustme_config::{Config, IDENTITY_PCR};
use trustme_trust::log;
use trustme_trust::tpm::{HexDigest, Pcr, Tpm};

/// What `status --json` prints.
#[derive(Debug, Serialize)]
struct Status {
    /// The configuration file, absent where there is none.
    config: Option<PathBuf>,
    /// off, measure or enforce.
    mode: String,
    /// The trust anchors' file or directory.
    anchors: PathBuf,
    /// The TCTI string.
    tcti: String,
    /// PCRs that matter here, and their values in hex; absent without TPM.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pcrs: BTreeMap<Pcr, HexDigest>,
    /// Why the TPM cannot be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    tpm_error: Option<String>,
    /// Whether log and TPM agree, or why that is not known.
    log: String,
}

/// Prints configuration, TPM and log.
pub(crate) fn print(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let (pcrs, tpm_error) = match read_pcrs(config) {
        Ok(pcrs) => (pcrs, None),
        Err(error) => (BTreeMap::new(), Some(error.to_string())),
    };
    let status = Status {
        config: config.source.clone(),
        mode: config.launch.mode.to_string(),
        anchors: config.launch.anchors.clone(),
        tcti: config.tpm.tcti.clone(),
        pcrs,
        tpm_error,
        log: match log::verify(config) {
            Ok(report) => crate::log::outcome(&report.state),
            Err(error) => error.to_string(),
        },
    };
    if json {
        println!("{}", serde_json::to_string_pretty(&status)?);
        return Ok(ExitCode::SUCCESS);
    }
    let none = "none (launch mode off)".to_owned();
    let file = status
        .config
        .map_or(none, |path| path.display().to_string());
    println!("configuration  {file}");
    println!("launch mode    {}", status.mode);
    println!("anchors        {}", status.anchors.display());
    println!("TPM            {}", status.tcti);
    for (pcr, value) in status.pcrs {
        println!("  PCR {pcr:<2}       {value}");
    }
    if let Some(error) = status.tpm_error {
        println!("  {error}");
    }
    println!("log            {}", status.log);
    Ok(ExitCode::SUCCESS)
}

/// The boot PCRs of volumes, the PCRs of the log, and that of identities.
fn read_pcrs(config: &Config) -> Result<BTreeMap<Pcr, HexDigest>, trustme_trust::tpm::TpmError> {
    if !config.tpm.is_present() {
        return Ok(BTreeMap::new());
    }
    let mut pcrs = config.volumes.pcrs.clone();
    pcrs.extend([config.tpm.image_pcr, config.tpm.config_pcr, IDENTITY_PCR]);
    let values = Tpm::connect(&config.tpm.tcti)?.read_pcrs(&pcrs)?;
    Ok(values
        .into_iter()
        .map(|(pcr, value)| (pcr, HexDigest(value)))
        .collect())
}
