//! Makes the parts of the machines, which are kept in a cache, and the directory that a guest shares.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::bundles;
use crate::initramfs::{self, Made};
use crate::machine::Firmware;
use crate::packages;

/// The programs that a guest has in `/host/bin`, and copies to `/opt/trustme`.
pub const PROGRAMS: &[&str] = &[
    "trustme",
    "trustme-hook",
    "trustme-convert",
    "trustmectl",
    "trustme-vm-guest",
];

/// The kernel's command line on both machines. Lockdown and module signatures are what a hardened device has on.
pub const COMMAND_LINE: &str =
    "console=ttyS0 quiet panic=-1 module.sig_enforce=1 lockdown=integrity";

/// Fills IMA's list and PCR 10. Only where a scenario looks: it has the kernel hash every file that root reads, a volume of 1 GiB too.
pub const IMA: &str = "ima_policy=tcb";

/// Where the harness keeps what lasts: kernel, initramfs, images, console logs.
#[derive(Debug)]
pub struct Workshop {
    cache: PathBuf,
    programs: PathBuf,
}

impl Workshop {
    /// Uses `cache` (`<target>/vm`) and the built programs in `programs` (`<target>/release`).
    ///
    /// # Errors
    /// The cache cannot be made.
    pub fn new(cache: PathBuf, programs: PathBuf) -> Result<Self> {
        fs::create_dir_all(&cache).with_context(|| format!("{}", cache.display()))?;
        Ok(Self { cache, programs })
    }

    /// The cache directory.
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The machine `direct`, with additions to its kernel command line.
    ///
    /// # Errors
    /// The kernel cannot be fetched, or a program is missing.
    pub fn direct(&self, additions: &str) -> Result<Firmware> {
        let made = self.initramfs()?;
        Ok(Firmware::Direct {
            kernel: made.kernel.image,
            initramfs: made.path,
            command_line: format!("{COMMAND_LINE} {additions}"),
        })
    }

    /// Kernel and initramfs.
    ///
    /// # Errors
    /// As [`Workshop::direct`].
    pub fn initramfs(&self) -> Result<Made> {
        let kernel = packages::kernel(&self.cache)?;
        let own: Vec<PathBuf> = PROGRAMS.iter().map(|p| self.programs.join(p)).collect();
        initramfs::make(&self.cache, kernel, &own)
    }

    /// Makes the directory that guest `name` shares: programs in `bin`, signed GuestOS in `bundles`.
    ///
    /// # Errors
    /// A program has not been built, or a bundle cannot be made.
    pub fn share(&self, name: &str) -> Result<PathBuf> {
        let share = self.cache.join(format!("share-{name}"));
        if share.exists() {
            fs::remove_dir_all(&share).with_context(|| format!("{}", share.display()))?;
        }
        let bin = share.join("bin");
        fs::create_dir_all(&bin)?;
        for name in PROGRAMS {
            let from = self.programs.join(name);
            fs::copy(&from, bin.join(name))
                .with_context(|| format!("{}: has it been built?", from.display()))?;
        }
        bundles::share(&self.cache, &self.programs, &share)?;
        Ok(share)
    }
}

/// Makes `path` by a staging path beside it that is renamed, so it is complete where it exists.
///
/// # Errors
/// That of `make`, or the rename fails.
pub fn made_once(path: &Path, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    if !path.exists() {
        let parent = path.parent().context("a path in the cache")?;
        let dir = tempfile::tempdir_in(parent)?;
        let staging = dir.path().join("made");
        make(&staging).with_context(|| format!("cannot make {}", path.display()))?;
        fs::rename(&staging, path).with_context(|| format!("{}: rename", path.display()))?;
    }
    Ok(path.to_owned())
}
