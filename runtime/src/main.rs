//! `trustme`: the OCI runtime.

use std::ffi::OsStr;
use std::process::ExitCode;

use trustme::{cli, commands, log, mounts, seal};

fn main() -> ExitCode {
    let args: Vec<_> = std::env::args_os().collect();
    if let [_, verb, step] = &args[..]
        && verb == mounts::STEP_ARGUMENT
    {
        return finish_mounts(step);
    }
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

/// Called by libcontainer, as a hook, between a container's mounts and the change of its root.
fn finish_mounts(step: &OsStr) -> ExitCode {
    match mounts::finish(&step.to_string_lossy()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("{err:#}");
            ExitCode::FAILURE
        }
    }
}
