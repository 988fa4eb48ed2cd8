//! `trustme-convert bundle`

use std::fs::{self, DirBuilder, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use trustme_guestos::bundle::Bundle;
use trustme_guestos::grant::granted_spec;

/// Names the GuestOS of an OCI bundle (docs/architecture.md).
const ANNOTATION: &str = "org.trustme.guestos";

/// Makes an OCI bundle that `trustme run --bundle DIR ID` starts. The rights are those that the GuestOS grants.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The configuration text of a GuestOS bundle, whose images are checked.
    conf: PathBuf,
    /// The OCI bundle: a directory that is empty or not there.
    dir: PathBuf,
    /// Certificates that are trusted, to check the signature now too: a PEM file, or a directory of them.
    #[arg(long, value_name = "FILE|DIR")]
    anchors: Option<PathBuf>,
}

/// Writes config.json and the directory that the root file system is mounted on.
pub fn run(arguments: &Arguments) -> Result<()> {
    let bundle = Bundle::open(&arguments.conf)?;
    super::verify::check(&bundle, arguments.anchors.as_deref())?;
    let conf = fs::canonicalize(bundle.conf_path())
        .with_context(|| bundle.conf_path().display().to_string())?;
    let conf = conf
        .to_str()
        .with_context(|| format!("{}: not UTF-8", conf.display()))?;
    let mut spec =
        granted_spec(bundle.conf(), &bundle.image_config()?).with_context(|| conf.to_owned())?;
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    annotations.insert(ANNOTATION.to_owned(), conf.to_owned());
    spec.set_annotations(Some(annotations));
    // Sorted, so that the same bundle gives the same file.
    let config = serde_json::to_value(&spec)?;
    make(&arguments.dir, format!("{config:#}\n").as_bytes())
}

/// Makes the directory beside its place, and moves it there when it is whole.
fn make(dir: &Path, config: &[u8]) -> Result<()> {
    let dir = &std::path::absolute(dir)?;
    let shown = || dir.display().to_string();
    match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
        Ok(true) => bail!("{}: not empty", shown()),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error).with_context(shown)?,
        _ => {}
    }
    let parent = dir.parent().with_context(shown)?;
    let staging = tempfile::Builder::new()
        .prefix(".trustme-bundle-")
        .tempdir_in(parent)
        .with_context(|| parent.display().to_string())?;
    fs::write(staging.path().join("config.json"), config).with_context(shown)?;
    DirBuilder::new()
        .mode(0o755)
        .create(staging.path().join("rootfs"))
        .with_context(shown)?;
    fs::set_permissions(staging.path(), Permissions::from_mode(0o755)).with_context(shown)?;
    fs::rename(staging.path(), dir).with_context(shown)?;
    // It is not there any more to be removed.
    let _ = staging.keep();
    Ok(())
}
