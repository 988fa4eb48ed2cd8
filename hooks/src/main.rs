//! Verifies, measures, opens and closes volumes for an OCI runtime. What trustme and this program agree on is in
//! docs/architecture.md.

mod warnings;

use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use rustix::mm::MlockAllFlags;
use rustix::process::DumpableBehavior;
use trustme_config::Config;
use trustme_trust::launch::{self, State};

/// A larger state is none.
const MAX_STATE: u64 = 16 << 20;

/// Verifies, measures, opens and closes volumes for an OCI runtime.
#[derive(Debug, Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Step,
}

#[derive(Debug, Subcommand)]
enum Step {
    /// Verify and measure a container and prepare its root file system and volumes, before it is created.
    Launch {
        /// The launch directory, with the container's config.json in it.
        #[arg(long, value_name = "DIR")]
        state_dir: PathBuf,
    },
    /// Remove everything that a launch has made, also one that was killed.
    Release {
        /// The launch directory.
        #[arg(long, value_name = "DIR")]
        state_dir: PathBuf,
    },
}

fn main() -> ExitCode {
    trustme_trust::quiet_tss();
    warnings::collect();
    keep_memory_private();
    match run(Arguments::parse().command) {
        Ok(()) => {
            warnings::print();
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {}", format!("{error:#}").replace('\n', " "));
            ExitCode::FAILURE
        }
    }
}

/// Keys stay out of core dumps, debuggers and, where the limits allow it, swap.
fn keep_memory_private() {
    let locked = rustix::mm::mlockall(
        MlockAllFlags::CURRENT | MlockAllFlags::FUTURE | MlockAllFlags::ONFAULT,
    );
    let private = rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable);
    for error in [locked, private].into_iter().filter_map(Result::err) {
        tracing::warn!("memory is not fully protected: {error}");
    }
}

fn run(step: Step) -> anyhow::Result<()> {
    match step {
        Step::Launch { state_dir } => {
            let config = Config::load()?;
            let mut state = Vec::new();
            std::io::stdin()
                .take(MAX_STATE)
                .read_to_end(&mut state)
                .context("OCI state on standard input")?;
            Ok(launch::launch(&config, &state_dir, &State::parse(&state)?)?)
        }
        Step::Release { state_dir } => {
            // Whatever is wrong with the configuration, the mounts go.
            launch::release(&state_dir)?;
            Ok(launch::remove_half_made_volumes(&Config::load()?)?)
        }
    }
}
