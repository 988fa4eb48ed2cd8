//! The signed GuestOS bundles that scenarios launch: converted on the host, kept in the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use trustme_conformance::command::ok;
use trustme_conformance::fixtures::Fixtures;
use trustme_conformance::programs::Programs;

use crate::packages::printed;
use crate::workshop::made_once;

/// The trust anchor's file beside the bundles.
pub const ANCHOR: &str = "anchor.pem";

/// The content of the small image's [`NOISE`], for comparison.
pub const NOISE_COPY: &str = "noise";

/// A file of two million random bytes, which squashfs stores as they are.
pub const NOISE: &str = "srv/noise";

/// The directory with the bundles `small-1` (busybox, a volume at /data) and `nginx-1` (the demo's), made anew when the
/// converter changes.
///
/// # Errors
/// An image cannot be made or converted.
pub fn make(cache: &Path, programs: &Path) -> Result<PathBuf> {
    let converter = programs.join("trustme-convert");
    let bytes = fs::read(&converter)
        .with_context(|| format!("{}: has it been built?", converter.display()))?;
    let digest = hex::encode(&Sha256::digest(bytes)[..8]);
    made_once(&cache.join(format!("bundles-{digest}")), |staging| {
        let fixtures = Fixtures::with(Programs::in_dir(programs)?)?;
        fs::create_dir(staging)?;
        for (name, image) in [
            ("small", fixtures.small_image()?),
            ("nginx", fixtures.demo_image()?),
        ] {
            ok(&mut fixtures.convert_as(name, &image, staging, 1)?)?;
        }
        fs::copy(fixtures.anchor()?, staging.join(ANCHOR))?;
        let noise = Command::new("unsquashfs")
            .arg("-cat")
            .arg(staging.join("small-1/root.img"))
            .arg(NOISE)
            .output()?;
        anyhow::ensure!(noise.status.success(), "unsquashfs: {noise:?}");
        fs::write(staging.join(NOISE_COPY), noise.stdout)?;
        Ok(())
    })
}

/// Copies the bundles to where a guest finds them.
///
/// # Errors
/// As [`make`].
pub fn share(cache: &Path, programs: &Path, share: &Path) -> Result<()> {
    let made = make(cache, programs)?;
    let mut copy = Command::new("cp");
    copy.args(["-a", "--reflink=auto"]);
    printed(copy.arg(made).arg(share.join("bundles")))?;
    Ok(())
}
