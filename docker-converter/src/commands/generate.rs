//! `trustme-convert generate`: completions for shells and man pages, out of the command line itself.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::CommandFactory;
use clap_complete::{Shell, generate_to};

/// Writes completions for bash, zsh and fish, and man pages, into a directory.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The directory; made where it is missing.
    dir: PathBuf,
}

/// Writes them, for the command line `C`.
pub fn run<C: CommandFactory>(arguments: &Arguments) -> Result<()> {
    let dir = &arguments.dir;
    let shown = || dir.display().to_string();
    std::fs::create_dir_all(dir).with_context(shown)?;
    let mut command = C::command();
    let name = command.get_name().to_owned();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command, &name, dir).with_context(shown)?;
    }
    clap_mangen::generate_to(command, dir).with_context(shown)?;
    Ok(())
}
