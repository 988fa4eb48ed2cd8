//! The official OCI suite on cgroup v2. Its programs are in the shared directory only where `cargo xtask test --oci` boots.

use std::fs::File;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::{Boot, Guest, Scenario};

/// Where the suite's programs are below the shared directory.
pub const SUITE: &str = "oci";
/// What the run has printed, below the shared directory.
pub const TABLE: &str = "oci.txt";
/// The program that runs the suite.
pub const RUNNER: &str = "trustme-oci-suite";

/// The runtimes that trustme is compared with; they are in the initramfs.
const PEERS: [&str; 2] = ["runc=/usr/sbin/runc", "crun=/usr/bin/crun"];

pub(super) const SCENARIO: Scenario = Scenario {
    name: "oci",
    about: "the official OCI suite on cgroup v2: trustme passes what runc passes",
    boot: Boot::Oci,
    run,
};

fn run(guest: &mut Guest) -> Result<()> {
    // A program on 9p is read again at every start.
    let programs = "/disk/oci";
    let shared = guest.host.join(SUITE);
    guest.run(Command::new("cp").arg("-r").arg(shared).arg(programs))?;
    let table = File::create(guest.host.join(TABLE)).context(TABLE)?;
    let mut command = Command::new(Guest::program(RUNNER));
    command.args(["run", programs]);
    command.arg(format!(
        "--runtime=trustme={}",
        Guest::program("trustme").display()
    ));
    for peer in PEERS {
        command.args(["--runtime", peer]);
    }
    let status = command.stderr(table.try_clone()?).stdout(table).status()?;
    ensure!(status.success(), "{RUNNER}: {status}");
    Ok(())
}
