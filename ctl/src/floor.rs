//! `trustmectl floor`.

use std::process::ExitCode;

use trustme_config::Config;
use trustme_trust::policy::floor;

/// Sets the floor of a GuestOS if there is a version, and prints it.
pub(crate) fn run(config: &Config, name: &str, version: Option<u64>) -> anyhow::Result<ExitCode> {
    let floors = &config.launch.floors;
    if let Some(version) = version {
        floor::write(floors, name, version)?;
    }
    match floor::read(floors, name)? {
        Some(version) => println!("{name}: versions from {version} on may start"),
        None => println!("{name}: every version may start"),
    }
    Ok(ExitCode::SUCCESS)
}
