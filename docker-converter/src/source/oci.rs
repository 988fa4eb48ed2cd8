//! OCI layouts (OCI image specification, image-layout.md), with manifests and layers of OCI and of Docker (schema 2).

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, OciLayout};

use super::{Configuration, Files, Image, Platform, parse, read, sha256};
use crate::blob::{Blob, Digest};
use crate::error::Error;
use crate::layer::{Compression, PackedLayer};

/// Names an image in a layout (OCI image specification, annotations.md).
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// How deep an index may lie in an index.
const MAX_DEPTH: usize = 4;

const MANIFESTS: [&str; 2] = [
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
];
const INDEXES: [&str; 2] = [
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
];
const CONFIGURATIONS: [&str; 2] = [
    "application/vnd.oci.image.config.v1+json",
    "application/vnd.docker.container.image.v1+json",
];

pub(super) fn open(
    files: Files,
    reference: Option<&str>,
    platform: Option<&Platform>,
) -> Result<Image, Error> {
    let path = files.path().to_owned();
    let (layout, _) = read(&files.get("oci-layout")?, &path, "oci-layout")?;
    let layout: OciLayout = parse(&layout, &path, "oci-layout")?;
    if layout.image_layout_version() != "1.0.0" {
        let reason = format!(
            "imageLayoutVersion {:?}, expected \"1.0.0\"",
            layout.image_layout_version()
        );
        return Err(Error::image(&path, reason));
    }
    let (index, _) = read(&files.get("index.json")?, &path, "index.json")?;
    let index: ImageIndex = parse(&index, &path, "index.json")?;
    let mut candidates: Vec<&Descriptor> = index.manifests().iter().collect();
    if let Some(reference) = reference {
        candidates.retain(|descriptor| ref_name(descriptor) == Some(reference));
    }
    let narrowed: Vec<&Descriptor> = match candidates.len() {
        0 | 1 => candidates.clone(),
        _ => candidates
            .iter()
            .filter(|descriptor| is_for(descriptor, platform))
            .copied()
            .collect(),
    };
    let [descriptor] = narrowed[..] else {
        let names: Vec<&str> = index.manifests().iter().filter_map(ref_name).collect();
        let names = names.join(", ");
        let reason = match (reference, candidates.len()) {
            (Some(reference), 0) => format!("no image {reference:?} in it, there are: {names}"),
            (None, 0) => "no image in it".to_owned(),
            (_, number) => format!("{number} images in it, choose one by name: {names}"),
        };
        return Err(Error::image(&path, reason));
    };
    let manifest = manifest(&files, descriptor.clone(), platform)?;
    let config = manifest.config();
    expect_type(&files, config, &CONFIGURATIONS, "image configuration")?;
    let (bytes, id) = document(&files, config, "image configuration")?;
    let configuration = Configuration::parse(&bytes, &path, platform)?;
    let diff_ids = configuration.diff_ids(manifest.layers().len(), &path)?;
    let mut layers = Vec::new();
    for (descriptor, diff_id) in manifest.layers().iter().zip(diff_ids) {
        layers.push(PackedLayer {
            name: descriptor.digest().to_string(),
            compression: compression(&files, descriptor)?,
            blob: blob(&files, descriptor)?,
            digest: Some(digest(&files, descriptor)?),
            diff_id,
        });
    }
    Image::new(path, configuration, id, layers)
}

/// The manifest that a descriptor leads to, through indexes.
fn manifest(
    files: &Files,
    mut descriptor: Descriptor,
    platform: Option<&Platform>,
) -> Result<ImageManifest, Error> {
    let wrong = |reason: String| Error::image(files.path(), reason);
    for _ in 0..MAX_DEPTH {
        let media_type = descriptor.media_type().to_string();
        if MANIFESTS.contains(&media_type.as_str()) {
            let (bytes, _) = document(files, &descriptor, "manifest")?;
            let manifest: ImageManifest = parse(&bytes, files.path(), "manifest")?;
            return match manifest.schema_version() {
                2 => Ok(manifest),
                other => Err(wrong(format!(
                    "a manifest of schema version {other}, expected 2"
                ))),
            };
        }
        if !INDEXES.contains(&media_type.as_str()) {
            return Err(wrong(format!(
                "a manifest of the media type {media_type:?}"
            )));
        }
        let (bytes, _) = document(files, &descriptor, "index")?;
        let index: ImageIndex = parse(&bytes, files.path(), "index")?;
        let found = index
            .manifests()
            .iter()
            .find(|found| is_for(found, platform));
        descriptor = found.cloned().ok_or_else(|| {
            let there: Vec<String> = index
                .manifests()
                .iter()
                .filter_map(|found| found.platform().as_ref())
                .map(|platform| format!("{}/{}", platform.os(), platform.architecture()))
                .collect();
            let asked = platform.cloned().unwrap_or_else(Platform::here);
            wrong(format!(
                "no image for {asked} in it, there are: {}",
                there.join(", ")
            ))
        })?;
    }
    Err(wrong(format!("indexes in indexes, more than {MAX_DEPTH}")))
}

/// Whether a descriptor is for a platform; for this machine's, where none is given.
fn is_for(descriptor: &Descriptor, platform: Option<&Platform>) -> bool {
    let here = Platform::here();
    let wanted = platform.unwrap_or(&here);
    descriptor.platform().as_ref().is_some_and(|found| {
        wanted.matches(
            &found.os().to_string(),
            &found.architecture().to_string(),
            found.variant().as_deref(),
        )
    })
}

fn ref_name(descriptor: &Descriptor) -> Option<&str> {
    let annotations = descriptor.annotations().as_ref()?;
    annotations.get(REF_NAME).map(String::as_str)
}

fn compression(files: &Files, descriptor: &Descriptor) -> Result<Compression, Error> {
    match descriptor.media_type().to_string().as_str() {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.docker.image.rootfs.diff.tar" => Ok(Compression::None),
        "application/vnd.oci.image.layer.v1.tar+gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip" => Ok(Compression::Gzip),
        "application/vnd.oci.image.layer.v1.tar+zstd"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd" => Ok(Compression::Zstd),
        other => {
            let foreign = other.contains("nondistributable") || other.contains("foreign");
            let reason = format!(
                "layer {} has the media type {other:?}, {}",
                descriptor.digest(),
                match foreign {
                    true => "whose content is kept elsewhere",
                    false => "which is no layer's",
                }
            );
            Err(Error::image(files.path(), reason))
        }
    }
}

fn expect_type(
    files: &Files,
    descriptor: &Descriptor,
    types: &[&str],
    what: &str,
) -> Result<(), Error> {
    let found = descriptor.media_type().to_string();
    match types.contains(&found.as_str()) {
        true => Ok(()),
        false => {
            let reason = format!(
                "{what} of the media type {found:?}, expected {:?}",
                types[0]
            );
            Err(Error::image(files.path(), reason))
        }
    }
}

fn digest(files: &Files, descriptor: &Descriptor) -> Result<Digest, Error> {
    sha256(descriptor.digest().as_ref(), files.path())
}

/// What a descriptor leads to; its size is checked, its digest not yet.
fn blob(files: &Files, descriptor: &Descriptor) -> Result<Blob, Error> {
    let name = format!("blobs/sha256/{}", hex::encode(digest(files, descriptor)?));
    let blob = files.get(&name)?;
    match blob.size() == descriptor.size() {
        true => Ok(blob),
        false => {
            let reason = format!(
                "{name} has {} bytes, {} are announced",
                blob.size(),
                descriptor.size()
            );
            Err(Error::image(files.path(), reason))
        }
    }
}

/// A document that a descriptor leads to, its digest checked.
fn document(
    files: &Files,
    descriptor: &Descriptor,
    what: &str,
) -> Result<(Vec<u8>, Digest), Error> {
    let expected = digest(files, descriptor)?;
    let (bytes, found) = read(&blob(files, descriptor)?, files.path(), what)?;
    match found == expected {
        true => Ok((bytes, found)),
        false => {
            let reason = format!(
                "{what} has the digest sha256:{}, expected {}",
                hex::encode(found),
                descriptor.digest()
            );
            Err(Error::image(files.path(), reason))
        }
    }
}
