//! The commands, one a file.

mod create;
mod delete;
mod events;
mod exec;
mod features;
mod kill;
mod list;
mod pause;
mod ps;
mod resume;
mod run;
mod spec;
mod start;
mod state;
mod update;
mod version;

use crate::cli::{self, Cli, Command};
use crate::root::Root;

/// Exit code of a command that failed, as runc's.
const FAILED: u8 = 1;
/// Exit code of `exec` when the process could not be started, as runc's.
const EXEC_FAILED: u8 = 255;

/// A command that failed.
#[derive(Debug)]
pub struct Failure {
    /// Why.
    pub error: anyhow::Error,
    /// The exit code to end with.
    pub code: u8,
}

/// Carries out what the command line says; returns the exit code.
///
/// # Errors
/// If the command fails.
pub fn dispatch(cli: Cli) -> Result<u8, Failure> {
    if cli.version {
        version::version();
        return Ok(0);
    }
    let Some(command) = cli.command else {
        cli::print_help();
        return Ok(0);
    };
    let systemd = cli.global.oci.systemd_cgroup;
    let root = Root::new(&cli.global).map_err(|error| Failure {
        error,
        code: FAILED,
    })?;
    let mut code = FAILED;
    let result = match command {
        Command::Checkpoint(_) => Err(unsupported("checkpoint")),
        Command::Create(args) => create::create(&args, &root, systemd).map(|()| 0),
        Command::Delete(args) => delete::delete(&args, &root).map(|()| 0),
        Command::Events(args) => events::events(&args, &root).map(|()| 0),
        Command::Exec(args) => {
            code = EXEC_FAILED;
            exec::exec(&args, &root)
        }
        Command::Features(_) => features::features().map(|()| 0),
        Command::Kill(args) => kill::kill(&args, &root).map(|()| 0),
        Command::List(args) => list::list(&args, &root).map(|()| 0),
        Command::Pause(args) => pause::pause(&args, &root).map(|()| 0),
        Command::Ps(args) => ps::ps(&args, &root).map(|()| 0),
        Command::Restore(_) => Err(unsupported("restore")),
        Command::Resume(args) => resume::resume(&args, &root).map(|()| 0),
        Command::Run(args) => run::run(&args, &root, systemd),
        Command::Spec(args) => spec::spec(&args).map(|()| 0),
        Command::Start(args) => start::start(&args, &root).map(|()| 0),
        Command::State(args) => state::state(&args, &root).map(|()| 0),
        Command::Update(args) => update::update(&args, &root).map(|()| 0),
    };
    result.map_err(|error| Failure { error, code })
}

fn unsupported(command: &str) -> anyhow::Error {
    anyhow::anyhow!(
        "{command} is not supported: trustme does not drive criu (docs/libcontainer.md)"
    )
}
