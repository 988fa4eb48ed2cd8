//! Carrier images in OCI layouts and archives.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, BufWriter, ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use indicatif::ProgressBar;
use rustix::fs::{FlockOperation, flock};
use serde_json::{Value, json};
use tempfile::{NamedTempFile, TempDir};

use super::{Carrier, MANIFEST_TYPE, Parts, digest_text, sha256, staged_prefix};
use crate::blob::{Digest, Hashing};
use crate::error::Error;

const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Names an image in a layout (OCI image specification, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The largest index.json, in bytes, as for reading.
const MAX_INDEX: u64 = 4 << 20;

/// Adds a carrier to the OCI layout at `path`, or makes one. An image of the same reference loses it, as with skopeo.
///
/// # Errors
/// There is something else at `path`, or it cannot be written.
pub fn add_to_layout(
    carrier: &Carrier,
    path: &Path,
    reference: Option<&str>,
    bar: &ProgressBar,
) -> Result<(), Error> {
    let path = &std::path::absolute(path).map_err(Error::io(path))?;
    match fs::read_dir(path).map(|mut entries| entries.next().is_none()) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            new_layout(carrier, path, reference, bar)
        }
        Err(error) => Err(Error::io(path)(error)),
        Ok(true) => new_layout(carrier, path, reference, bar),
        Ok(false) => {
            let layout = path.join("oci-layout");
            if !layout.is_file() {
                return Err(Error::image(path, "neither empty nor an OCI layout"));
            }
            let lock = File::open(&layout).map_err(Error::io(&layout))?;
            flock(&lock, FlockOperation::LockExclusive)
                .map_err(|error| Error::io(&layout)(error.into()))?;
            fill(carrier, path, reference, bar)
        }
    }
}

/// Makes a layout beside its place, and moves it there.
fn new_layout(
    carrier: &Carrier,
    path: &Path,
    reference: Option<&str>,
    bar: &ProgressBar,
) -> Result<(), Error> {
    let parent = path.parent().unwrap_or(path);
    let staging: TempDir = tempfile::Builder::new()
        .prefix(&staged_prefix(path))
        .tempdir_in(parent)
        .map_err(Error::io(parent))?;
    let layout = staging.path().join("oci-layout");
    fs::write(&layout, LAYOUT).map_err(Error::io(&layout))?;
    fill(carrier, staging.path(), reference, bar)?;
    fs::set_permissions(staging.path(), Permissions::from_mode(0o755)).map_err(Error::io(path))?;
    fs::rename(staging.path(), path).map_err(Error::io(path))?;
    // It is not there any more to be removed.
    let _ = staging.keep();
    Ok(())
}

fn fill(
    carrier: &Carrier,
    path: &Path,
    reference: Option<&str>,
    bar: &ProgressBar,
) -> Result<(), Error> {
    let blobs = path.join("blobs/sha256");
    DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(&blobs)
        .map_err(Error::io(&blobs))?;
    let put = |digest: &Digest, reader: &mut dyn Read| {
        put(&blobs.join(hex::encode(digest)), digest, reader)
    };
    put(
        &carrier.layer_digest,
        &mut bar.wrap_read(carrier.layer.reader()),
    )?;
    put(&sha256(&carrier.config), &mut &carrier.config[..])?;
    put(&carrier.digest(), &mut &carrier.manifest[..])?;

    let index_path = path.join("index.json");
    let mut index = read_index(&index_path)?;
    let Some(manifests) = index["manifests"].as_array_mut() else {
        return Err(Error::image(&index_path, "no array \"manifests\" in it"));
    };
    let digest = json!(digest_text(&carrier.digest()));
    manifests.retain(|manifest| {
        let named = manifest["annotations"][REF_NAME].as_str();
        named != reference || (reference.is_none() && manifest["digest"] != digest)
    });
    manifests.push(entry(carrier, reference));
    let mut staged = stage(&index_path)?;
    staged
        .write_all(index.to_string().as_bytes())
        .map_err(Error::io(&index_path))?;
    publish(staged, &index_path)
}

fn read_index(path: &Path) -> Result<Value, Error> {
    let size = match fs::metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok(json!({"schemaVersion": 2, "manifests": []}));
        }
        metadata => metadata.map_err(Error::io(path))?.len(),
    };
    if size > MAX_INDEX {
        return Err(Error::image(path, format!("more than {MAX_INDEX} bytes")));
    }
    let bytes = fs::read(path).map_err(Error::io(path))?;
    serde_json::from_slice(&bytes).map_err(|error| Error::image(path, error.to_string()))
}

/// The carrier's entry in an index.
fn entry(carrier: &Carrier, reference: Option<&str>) -> Value {
    let mut entry = json!({
        "mediaType": MANIFEST_TYPE,
        "digest": digest_text(&carrier.digest()),
        "size": carrier.manifest.len(),
        "platform": {"architecture": carrier.architecture, "os": "linux"},
    });
    if let Some(reference) = reference {
        entry["annotations"] = json!({REF_NAME: reference});
    }
    entry
}

/// Writes a carrier as an OCI layout in a tar archive, in the place of what was there.
///
/// # Errors
/// It cannot be written.
pub fn write_oci_archive(
    carrier: &Carrier,
    path: &Path,
    reference: Option<&str>,
    bar: &ProgressBar,
) -> Result<(), Error> {
    let index = json!({"schemaVersion": 2, "manifests": [entry(carrier, reference)]});
    let blob = |digest: &Digest| format!("blobs/sha256/{}", hex::encode(digest));
    let mut archive = Parts::default();
    archive.bytes("oci-layout", LAYOUT.to_vec())?;
    archive.bytes("index.json", index.to_string().into_bytes())?;
    archive.directory("blobs")?;
    archive.directory("blobs/sha256")?;
    archive.bytes(&blob(&carrier.digest()), carrier.manifest.clone())?;
    archive.bytes(&blob(&sha256(&carrier.config)), carrier.config.clone())?;
    archive.archive(&blob(&carrier.layer_digest), &carrier.layer)?;
    archive.end();
    write(&archive, path, bar)
}

/// Writes a carrier as `docker save` would, in the place of what was there.
///
/// # Errors
/// It cannot be written.
pub fn write_docker_archive(
    carrier: &Carrier,
    path: &Path,
    reference: Option<&str>,
    bar: &ProgressBar,
) -> Result<(), Error> {
    let config = format!("{}.json", hex::encode(sha256(&carrier.config)));
    let layer = format!("{}.tar", hex::encode(carrier.layer_digest));
    let tags: Vec<&str> = reference.into_iter().collect();
    let manifest = json!([{"Config": config, "RepoTags": tags, "Layers": [layer]}]);
    let mut archive = Parts::default();
    archive.bytes("manifest.json", manifest.to_string().into_bytes())?;
    archive.bytes(&config, carrier.config.clone())?;
    archive.archive(&layer, &carrier.layer)?;
    archive.end();
    write(&archive, path, bar)
}

fn write(archive: &Parts, path: &Path, bar: &ProgressBar) -> Result<(), Error> {
    let mut staged = stage(path)?;
    let mut reader = Hashing::new(bar.wrap_read(archive.reader()));
    io::copy(&mut reader, &mut BufWriter::new(&mut staged)).map_err(Error::io(path))?;
    // The layer in it was hashed when the carrier was made.
    if reader.finish().map_err(Error::io(path))? != archive.digest()? {
        return Err(Error::image(path, "the bundle was written to meanwhile"));
    }
    publish(staged, path)
}

/// Writes a blob, unless it is there.
fn put(path: &Path, digest: &Digest, reader: &mut dyn Read) -> Result<(), Error> {
    let mut staged = stage(path)?;
    let mut reader = Hashing::new(reader);
    io::copy(&mut reader, &mut staged).map_err(Error::io(path))?;
    if reader.finish().map_err(Error::io(path))? != *digest {
        return Err(Error::image(path, "the bundle was written to meanwhile"));
    }
    publish(staged, path)
}

fn stage(path: &Path) -> Result<NamedTempFile, Error> {
    let dir: PathBuf = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir.to_owned(),
        _ => PathBuf::from("."),
    };
    tempfile::Builder::new()
        .prefix(&staged_prefix(path))
        .permissions(Permissions::from_mode(0o644))
        .tempfile_in(&dir)
        .map_err(Error::io(&dir))
}

fn publish(staged: NamedTempFile, path: &Path) -> Result<(), Error> {
    staged.as_file().sync_all().map_err(Error::io(path))?;
    staged
        .persist(path)
        .map(|_| ())
        .map_err(|error| Error::io(path)(error.error))
}
