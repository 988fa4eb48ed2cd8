//! The virtual machine for what a build machine's kernel lacks.
//!
//! The host side fetches Debian's kernel, makes an initramfs, starts swtpm and QEMU under emulation and shares a directory over 9p. The
//! guest side (`trustme-vm-guest`, a program of this crate) runs the scenarios named in the plan and writes one verdict
//! for each. One boot runs many scenarios: a boot is dear, a scenario is cheap.

pub mod cpio;
pub mod initramfs;
pub mod machine;
pub mod packages;
pub mod scenarios;
pub mod verdict;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};

use machine::{Boot, Firmware};
use verdict::{PLAN, Plan, Verdict};

/// The programs that a guest gets in `/host/bin`.
pub const PROGRAMS: &[&str] = &[
    "trustme",
    "trustme-hook",
    "trustme-convert",
    "trustmectl",
    "trustme-vm-guest",
];

/// Kernel command line of the direct machine.
///
/// `ima_policy=tcb` fills IMA's list and PCR 10; lockdown and module signatures are what a hardened device has on.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 ima_policy=tcb module.sig_enforce=1 lockdown=integrity";

/// A machine's boot may take this long, scenarios included: three times what was seen.
const BOOT_LIMIT: Duration = Duration::from_secs(420);

/// Where the harness keeps what lasts: kernel, initramfs, console logs.
#[derive(Debug)]
pub struct Workshop {
    /// Cache directory, usually `target/vm`.
    pub cache: PathBuf,
    /// The directory of the built programs, usually `target/release`.
    pub programs: PathBuf,
}

impl Workshop {
    /// Makes the direct machine's parts.
    ///
    /// # Errors
    /// Fails when the kernel cannot be fetched or a program is missing.
    pub fn direct(&self, extra_arguments: &str) -> Result<Firmware> {
        fs::create_dir_all(&self.cache)?;
        let kernel = packages::kernel(&self.cache)?;
        let own: Vec<PathBuf> = PROGRAMS.iter().map(|p| self.programs.join(p)).collect();
        let initramfs = initramfs::make(&self.cache, &kernel, &own)?;
        let command_line = format!("{COMMAND_LINE} {extra_arguments}");
        Ok(Firmware::Direct {
            kernel: kernel.image,
            initramfs,
            command_line,
        })
    }

    /// Puts the programs into `share/bin`.
    ///
    /// # Errors
    /// Fails when a program has not been built.
    pub fn share_programs(&self, share: &Path) -> Result<()> {
        let bin = share.join("bin");
        fs::create_dir_all(&bin)?;
        for name in PROGRAMS {
            let from = self.programs.join(name);
            fs::copy(&from, bin.join(name))
                .with_context(|| format!("{}: has it been built?", from.display()))?;
        }
        Ok(())
    }

    /// Boots `firmware` once, lets it run `scenarios`, and returns their verdicts in the same order and the time of the whole boot.
    ///
    /// A scenario without a verdict is returned as failed.
    ///
    /// # Errors
    /// Fails when the machine does not start or does not end; the error names the console log.
    pub fn boot(
        &self,
        firmware: &Firmware,
        name: &str,
        share: &Path,
        tpm_state: &Path,
        scenarios: &[&str],
    ) -> Result<(Vec<Verdict>, Duration)> {
        let verdicts = share.join("verdicts");
        if verdicts.exists() {
            fs::remove_dir_all(&verdicts)?;
        }
        fs::create_dir_all(&verdicts)?;
        let plan = Plan {
            scenarios: scenarios.iter().map(|s| (*s).to_owned()).collect(),
        };
        fs::write(share.join(PLAN), serde_json::to_vec_pretty(&plan)?)?;
        let console_log = self.cache.join(format!("console-{name}.log"));
        let took = Boot {
            firmware,
            tpm_state,
            share,
            disk: None,
            console_log: &console_log,
            timeout: BOOT_LIMIT,
        }
        .run()?;
        let found = scenarios
            .iter()
            .map(|scenario| {
                Verdict::read(share, scenario).unwrap_or_else(|error| Verdict {
                    scenario: (*scenario).to_owned(),
                    failure: Some(format!("{error:#}; console: {}", console_log.display())),
                    milliseconds: 0,
                    log: Vec::new(),
                })
            })
            .collect();
        Ok((found, took))
    }
}
