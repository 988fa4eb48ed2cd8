//! `containerd-shim-trustme-v1`: stands between containerd and the containers of a pod, and outlives containerd.
//!
//! containerd runs it with `start`, which leaves a process that serves the Task API; later with `delete` when that process
//! was killed; and with `-info` to learn what the runtime can do. See docs/shim.md.

mod any;
mod arguments;
mod bootstrap;
mod bundle;
mod cgroup;
mod clock;
mod console;
mod container;
mod events;
mod exits;
mod failure;
mod info;
mod log;
mod logger;
mod mounts;
mod oom;
mod options;
mod process;
mod relay;
mod remains;
mod runtime;
mod serve;
mod service;
mod socket;
mod stats;
mod stdio;
mod sys;
mod uri;

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;

use crate::arguments::{Action, Arguments};

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // containerd prints it as the reason.
            eprintln!("containerd-shim-trustme-v1: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let arguments = Arguments::parse(std::env::args().skip(1))?;
    let printed = match arguments.action {
        Action::Start => serve::start(&arguments)?,
        Action::Serve => return serve::serve(&arguments),
        Action::Delete => remains::delete(&arguments)?,
        Action::Info => info::print()?,
        Action::Version => format!(
            "containerd-shim-trustme-v1:\n  Version:  {}\n",
            env!("CARGO_PKG_VERSION")
        )
        .into_bytes(),
    };
    Ok(std::io::stdout().write_all(&printed)?)
}
