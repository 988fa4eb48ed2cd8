//! What the tests of a suite share: images, a development PKI, a signed bundle of the small image.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Result, anyhow};
use tempfile::TempDir;

use crate::command::ok;
use crate::image::Image;
use crate::programs::Programs;

/// The GuestOS name that bundles here have.
pub const NAME: &str = "small";

/// Shared by the tests of a suite; each part is made when it is first asked for.
#[derive(Debug)]
pub struct Fixtures {
    /// The built programs.
    pub programs: Programs,
    dir: TempDir,
    pki: OnceLock<Result<PathBuf, String>>,
    bundle: OnceLock<Result<PathBuf, String>>,
}

impl Fixtures {
    /// Nothing is made yet.
    ///
    /// # Errors
    /// The programs are not built.
    pub fn new() -> Result<Self> {
        Self::with(Programs::built()?)
    }

    /// For the given programs.
    ///
    /// # Errors
    /// No temporary directory can be made.
    pub fn with(programs: Programs) -> Result<Self> {
        Ok(Self {
            programs,
            dir: tempfile::Builder::new()
                .prefix("trustme-fixtures-")
                .tempdir()?,
            pki: OnceLock::new(),
            bundle: OnceLock::new(),
        })
    }

    /// Debian with nginx.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn demo_image(&self) -> Result<Image> {
        Image::demo(&self.programs.cache())
    }

    /// Busybox with all that layers can hold.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn small_image(&self) -> Result<Image> {
        Image::small(&self.programs.cache())
    }

    /// The small image without its volume.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn stateless_image(&self) -> Result<Image> {
        Image::stateless(&self.programs.cache())
    }

    /// A directory with what `trustme-convert pki init` makes.
    ///
    /// # Errors
    /// It fails.
    pub fn pki(&self) -> Result<&Path> {
        once(&self.pki, || {
            let dir = self.dir.path().join("pki");
            ok(self
                .programs
                .command("trustme-convert", "pki init")
                .arg(&dir))?;
            Ok(dir)
        })
    }

    /// The trust anchor.
    ///
    /// # Errors
    /// As [`Fixtures::pki`].
    pub fn anchor(&self) -> Result<PathBuf> {
        Ok(self.pki()?.join("ssig_rootca.cert"))
    }

    /// `trustme-convert convert` of an archive into `out`, signed, as GuestOS [`NAME`].
    ///
    /// # Errors
    /// As [`Fixtures::pki`].
    pub fn convert(&self, image: &Image, out: &Path, version: u64) -> Result<Command> {
        self.convert_as(NAME, image, out, version)
    }

    /// As [`Fixtures::convert`], under another name.
    ///
    /// # Errors
    /// As [`Fixtures::pki`].
    pub fn convert_as(
        &self,
        name: &str,
        image: &Image,
        out: &Path,
        version: u64,
    ) -> Result<Command> {
        let source = format!("docker-archive:{}", image.archive.display());
        self.convert_any(name, &source, out, version)
    }

    /// As [`Fixtures::convert`], of any source in skopeo's notation.
    ///
    /// # Errors
    /// As [`Fixtures::pki`].
    pub fn convert_source(&self, source: &str, out: &Path, version: u64) -> Result<Command> {
        self.convert_any(NAME, source, out, version)
    }

    fn convert_any(&self, name: &str, source: &str, out: &Path, version: u64) -> Result<Command> {
        let pki = self.pki()?;
        let mut command = self.programs.command("trustme-convert", "convert");
        command
            .arg(source)
            .args(["--name", name, "--version", &version.to_string()])
            .arg("--out")
            .arg(out)
            .arg("--key")
            .arg(pki.join("ssig_cml.key"))
            .arg("--cert")
            .arg(pki.join("ssig_cml.cert"));
        Ok(command)
    }

    /// The directory that holds the small image as signed bundle `small-1`.
    ///
    /// # Errors
    /// It cannot be converted.
    pub fn small_bundle(&self) -> Result<&Path> {
        once(&self.bundle, || {
            let out = self.dir.path().join("bundles");
            ok(&mut self.convert(&self.small_image()?, &out, 1)?)?;
            Ok(out)
        })
    }
}

fn once(
    cell: &OnceLock<Result<PathBuf, String>>,
    make: impl FnOnce() -> Result<PathBuf>,
) -> Result<&Path> {
    let made = cell.get_or_init(|| make().map_err(|error| format!("{error:#}")));
    made.as_ref()
        .map(PathBuf::as_path)
        .map_err(|error| anyhow!("{error}"))
}
