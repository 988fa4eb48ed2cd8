//! OCI layouts (OCI image specification, image-layout.md) and registries, with manifests and layers of OCI and of Docker (schema 2).

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, OciLayout};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::{Access, Configuration, Files, Image, Platform, Remote, Source, parse, read, sha256};
use crate::blob::{Blob, Digest};
use crate::error::Error;
use crate::layer::{Compression, PackedLayer};
use crate::verification::Verdict;

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
    read_image(files, descriptor.clone(), platform, None)
}

/// An image in a registry. Its layers are fetched.
pub(super) fn open_remote(
    remote: Remote,
    source: &Source,
    platform: Option<&Platform>,
    access: &Access,
) -> Result<Image, Error> {
    let top = remote.top();
    let path = remote.path();
    // Only for what leads to it to be looked at in the same way: size and digest are its own.
    let descriptor = json!({
        "mediaType": top.media_type, "digest": top.digest, "size": top.bytes.len(),
    });
    let descriptor = parse(descriptor.to_string().as_bytes(), &path, "manifest")?;
    read_image(
        Files::remote(remote),
        descriptor,
        platform,
        Some((source, access)),
    )
}

fn read_image(
    files: Files,
    descriptor: Descriptor,
    platform: Option<&Platform>,
    wanted: Option<(&Source, &Access)>,
) -> Result<Image, Error> {
    let path = files.path().to_owned();
    let manifest = manifest(&files, descriptor, platform)?;
    let verdict = match wanted {
        Some((source, access)) => access.demands.check(source, files.as_remote())?,
        None => Verdict::default(),
    };
    let config = manifest.config();
    expect_type(&files, config, &CONFIGURATIONS, "image configuration")?;
    let (bytes, id) = document(&files, config, "image configuration")?;
    let configuration = Configuration::parse(&bytes, &path, platform)?;
    let diff_ids = configuration.diff_ids(manifest.layers().len(), &path)?;
    let mut described = Vec::new();
    for descriptor in manifest.layers() {
        // All of them before the first is fetched.
        digest(&files, descriptor)?;
        described.push((descriptor, compression(&files, descriptor)?));
    }
    let descriptors: Vec<&Descriptor> = manifest.layers().iter().collect();
    let blobs = match (files.as_remote(), wanted) {
        (Some(remote), Some((_, access))) => remote.blobs(&descriptors, access)?,
        _ => {
            let blobs = descriptors
                .iter()
                .map(|descriptor| blob(&files, descriptor));
            blobs.collect::<Result<_, Error>>()?
        }
    };
    let mut layers = Vec::new();
    for (((descriptor, compression), blob), diff_id) in
        described.into_iter().zip(blobs).zip(diff_ids)
    {
        let fetched = files.as_remote().is_some();
        layers.push(PackedLayer {
            name: descriptor.digest().to_string(),
            compression,
            blob,
            // That of what was fetched was checked on the way.
            digest: match fetched && compression != Compression::None {
                true => None,
                false => Some(digest(&files, descriptor)?),
            },
            diff_id,
        });
    }
    let mut image = Image::new(path, configuration, id, layers)?;
    image.remote = files.into_remote();
    image.verdict = verdict;
    Ok(image)
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
            let old = media_type.contains("manifest.v1+");
            let schema1 = if old {
                ": Docker's schema 1, which is no more; push the image anew"
            } else {
                ""
            };
            return Err(wrong(format!(
                "a manifest of the media type {media_type:?}{schema1}"
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
    let (bytes, found) = match files.as_remote() {
        Some(remote) => {
            let bytes = match what {
                "manifest" | "index" => remote.manifest(descriptor.digest().as_ref())?,
                _ => remote
                    .repository
                    .small_blob(descriptor.digest().as_ref(), descriptor.size())?,
            };
            if bytes.len() as u64 != descriptor.size() {
                let reason = format!(
                    "{what} {} has {} bytes, {} are announced",
                    descriptor.digest(),
                    bytes.len(),
                    descriptor.size()
                );
                return Err(Error::image(files.path(), reason));
            }
            let found = Sha256::digest(&bytes).into();
            (bytes, found)
        }
        None => read(&blob(files, descriptor)?, files.path(), what)?,
    };
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
