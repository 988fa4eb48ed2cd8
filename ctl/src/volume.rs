//! `trustmectl volume`.

use std::process::ExitCode;

use trustme_config::Config;
use trustme_trust::volume::{self, Listing};

/// Prints the volumes of this machine.
pub(crate) fn list(config: &Config, json: bool) -> anyhow::Result<ExitCode> {
    let volumes = volume::list(config)?;
    if json {
        println!("{}", serde_json::to_string_pretty(&volumes)?);
        return Ok(ExitCode::SUCCESS);
    }
    for volume in &volumes {
        println!("{}", line(volume));
    }
    Ok(ExitCode::SUCCESS)
}

/// A volume for people.
fn line(volume: &Listing) -> String {
    let (used, size) = (volume.used >> 20, volume.size >> 20);
    let sealed = match (&volume.sealed, &volume.damage) {
        (_, Some(damage)) => format!("damaged: {damage}"),
        (None, None) => "damaged".to_owned(),
        (Some(sealed), None) => {
            let pcrs: Vec<String> = sealed.key.pcrs.keys().map(u8::to_string).collect();
            let owner = &sealed.owner;
            let pcrs = pcrs.join(", ");
            format!(
                "of GuestOS {} signed by {}, sealed to PCR {pcrs}",
                owner.name, owner.signer
            )
        }
    };
    let open = match &volume.open {
        Some(at) => format!("open on {at}"),
        None => "closed".to_owned(),
    };
    format!("{}: {used} of {size} MiB, {sealed}, {open}", volume.name)
}
