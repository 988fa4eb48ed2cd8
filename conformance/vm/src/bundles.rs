//! The signed GuestOS bundles that scenarios launch: converted on the host, kept in the cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};
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
/// converter or an image changes.
///
/// # Errors
/// An image cannot be made or converted.
pub fn make(cache: &Path, programs: &Path) -> Result<PathBuf> {
    let fixtures = Fixtures::with(Programs::in_dir(programs)?)?;
    let images = [
        ("small", fixtures.small_image()?),
        ("nginx", fixtures.demo_image()?),
    ];
    let mut digest = Sha256::new();
    digest.update(fs::read(programs.join("trustme-convert"))?);
    for (_, image) in &images {
        // An image's path names what it was made of.
        digest.update(image.archive.as_os_str().as_encoded_bytes());
    }
    let name = format!("bundles-{}", &hex::encode(digest.finalize())[..16]);
    made_once(&cache.join(name), |staging| {
        fs::create_dir(staging)?;
        for (name, image) in &images {
            ok(&mut fixtures.convert_as(name, image, staging, 1)?)?;
        }
        fs::copy(fixtures.anchor()?, staging.join(ANCHOR))?;
        let noise = Command::new("unsquashfs")
            .arg("-cat")
            .arg(staging.join("small-1/root.img"))
            .arg(NOISE)
            .output()?;
        ensure!(noise.status.success(), "unsquashfs: {noise:?}");
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
