//! What an operator types: status, measurement log, volumes, rollback floors.

mod floor;
mod log;
mod status;
mod volume;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use trustme_config::Config;

/// Looks at, and looks after, a machine that launches containers with trustme.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Say what is configured, what the TPM holds, and whether the measurement log explains it.
    Status {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// The measurement log.
    #[command(subcommand)]
    Log(Log),
    /// Containers' encrypted volumes.
    #[command(subcommand)]
    Volume(Volume),
    /// Print, or set, the lowest version of a GuestOS that may start.
    Floor {
        /// The GuestOS's name.
        name: String,
        /// The lowest version that may start from now on.
        version: Option<u64>,
    },
}

#[derive(Debug, Subcommand)]
enum Log {
    /// Print its records.
    Show {
        /// Print a JSON array.
        #[arg(long)]
        json: bool,
    },
    /// Replay it and compare with the TPM; exit code 1 where they disagree.
    Verify {
        /// Verify the kernel's list of measured files (IMA) instead.
        #[arg(long)]
        ima: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
enum Volume {
    /// List them.
    List {
        /// Print a JSON array.
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    trustme_trust::quiet_tss();
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> anyhow::Result<ExitCode> {
    let config = Config::load()?;
    match command {
        Command::Status { json } => status::print(&config, json),
        Command::Log(Log::Show { json }) => log::show(&config, json),
        Command::Log(Log::Verify { ima: true, json }) => log::verify_ima(&config, json),
        Command::Log(Log::Verify { json, .. }) => log::verify(&config, json),
        Command::Volume(Volume::List { json }) => volume::list(&config, json),
        Command::Floor { name, version } => floor::run(&config, &name, version),
    }
}
