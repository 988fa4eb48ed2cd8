//! `trustmectl volume`.

use std::process::ExitCode;

use trustme_config::Config;
use trustme_trust::volume;

/// Prints the volumes of this machine.
pub(crate) fn list(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let volumes = volume::list(config)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&volumes)?);
        return Ok(ExitCode::SUCCESS);
    }
    for volume in volumes {
        let pcrs: Vec<String> = volume.sealed.key.pcrs.keys().map(u8::to_string).collect();
        println!(
            "{}: {} of {} MiB, of GuestOS {} signed by {}, sealed to PCR {}, {}",
            volume.name,
            volume.used >> 20,
            volume.size >> 20,
            volume.sealed.owner.name,
            volume.sealed.owner.signer,
            pcrs.join(", "),
            volume
                .open
                .as_deref()
                .map_or("closed".to_owned(), |at| format!("open on {at}")),
        );
    }
    Ok(ExitCode::SUCCESS)
}
