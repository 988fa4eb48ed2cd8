//! `trustme-convert`: turns Docker and OCI images into signed trust|me GuestOS bundles; signs, verifies and shows bundles.

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Turns Docker and OCI images into signed trust|me GuestOS bundles.
#[derive(Debug, Parser)]
#[command(name = "trustme-convert", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Convert(commands::convert::Arguments),
    Sign(commands::sign::Arguments),
    Verify(commands::verify::Arguments),
    Inspect(commands::inspect::Arguments),
    Diff(commands::diff::Arguments),
    Bundle(commands::bundle::Arguments),
    Verity(commands::verity::Arguments),
    Push(commands::push::Arguments),
    Pull(commands::pull::Arguments),
    Digest(commands::digest::Arguments),
    Manifest(commands::manifest::Arguments),
    #[command(subcommand)]
    Pki(commands::pki::Command),
    #[command(hide = true)]
    Generate(commands::generate::Arguments),
}

fn main() -> ExitCode {
    let done = match Arguments::parse().command {
        Command::Convert(arguments) => commands::convert::run(arguments),
        Command::Sign(arguments) => commands::sign::run(&arguments),
        Command::Verify(arguments) => commands::verify::run(&arguments),
        Command::Inspect(arguments) => commands::inspect::run(&arguments),
        Command::Diff(arguments) => commands::diff::run(&arguments),
        Command::Bundle(arguments) => commands::bundle::run(&arguments),
        Command::Verity(arguments) => commands::verity::run(&arguments),
        Command::Push(arguments) => commands::push::run(&arguments),
        Command::Pull(arguments) => commands::pull::run(&arguments),
        Command::Digest(arguments) => commands::digest::run(&arguments),
        Command::Manifest(arguments) => commands::manifest::run(&arguments),
        Command::Pki(command) => commands::pki::run(&command),
        Command::Generate(arguments) => commands::generate::run::<Arguments>(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", commands::said(&error));
            ExitCode::FAILURE
        }
    }
}
