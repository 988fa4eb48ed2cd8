//! `trustme`: the OCI runtime.

use std::process::ExitCode;

use trustme::{cli, commands, log, seal};

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    if let Err(err) = seal::protect_own_binary(&args) {
        eprintln!("error: {err:#}");
        return ExitCode::FAILURE;
    }
    let cli = match cli::parse(args) {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    if let Err(err) = log::init(&cli.global) {
        eprintln!("error: {err:#}");
        return ExitCode::FAILURE;
    }
    match commands::dispatch(cli) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            log::error(&format!("{:#}", failure.error));
            ExitCode::from(failure.code)
        }
    }
}
