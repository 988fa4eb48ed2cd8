//! Archives as `docker save` writes them (moby, image/spec/spec.md, "Combined Image JSON + Filesystem Changeset Format").

use std::io::Read;

use serde::Deserialize;

use super::{Configuration, Files, Image, Platform, hex_digest, parse, read};
use crate::error::Error;
use crate::layer::{Compression, PackedLayer};

const MANIFEST: &str = "manifest.json";

/// An image in an archive.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Item {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

pub(super) fn open(
    files: Files,
    reference: Option<&str>,
    platform: Option<&Platform>,
) -> Result<Image, Error> {
    let path = files.path().to_owned();
    let (manifest, _) = read(&files.get(MANIFEST)?, &path, MANIFEST)?;
    let items: Vec<Item> = parse(&manifest, &path, MANIFEST)?;
    let item = choose(&items, reference).map_err(|reason| Error::image(&path, reason))?;

    let (bytes, id) = read(&files.get(&item.config)?, &path, &item.config)?;
    // Named after its digest by all who write such archives.
    let stem = item.config.rsplit('/').next().unwrap_or_default();
    let stem = stem.strip_suffix(".json").unwrap_or(stem);
    if let Some(named) = hex_digest(stem).filter(|named| *named != id) {
        let reason = format!(
            "{:?} has the digest sha256:{}, expected sha256:{}",
            item.config,
            hex::encode(id),
            hex::encode(named)
        );
        return Err(Error::image(&path, reason));
    }
    let configuration = Configuration::parse(&bytes, &path, platform)?;
    let names = item.layers.as_deref().unwrap_or_default();
    let diff_ids = configuration.diff_ids(names.len(), &path)?;
    let mut layers = Vec::new();
    for (name, diff_id) in names.iter().zip(diff_ids) {
        let blob = files.get(name)?;
        let mut start = Vec::new();
        blob.piece(0, 4)
            .reader()
            .read_to_end(&mut start)
            .map_err(Error::io(&path))?;
        layers.push(PackedLayer {
            name: name.clone(),
            compression: Compression::of(&start),
            blob,
            digest: None,
            diff_id,
        });
    }
    Image::new(path, configuration, id, layers)
}

/// The image that a reference names: `@INDEX`, or `NAME[:TAG]`.
fn choose<'a>(items: &'a [Item], reference: Option<&str>) -> Result<&'a Item, String> {
    let tags = || {
        let tags = items
            .iter()
            .flat_map(|item| item.repo_tags.iter().flatten());
        tags.cloned().collect::<Vec<_>>().join(", ")
    };
    let Some(reference) = reference else {
        return match items {
            [item] => Ok(item),
            [] => Err("no image in it".to_owned()),
            _ => Err(format!(
                "{} images in it, choose one by name or @index: {}",
                items.len(),
                tags()
            )),
        };
    };
    if let Some(index) = reference.strip_prefix('@') {
        let index: usize = index
            .parse()
            .map_err(|_| format!("{reference:?}: expected @ and a number"))?;
        return items
            .get(index)
            .ok_or_else(|| format!("no image {reference}, there are {}", items.len()));
    }
    let wanted = normal(reference);
    items
        .iter()
        .find(|item| {
            item.repo_tags
                .iter()
                .flatten()
                .any(|tag| normal(tag) == wanted)
        })
        .ok_or_else(|| format!("no image {reference:?} in it, there are: {}", tags()))
}

/// A name without what Docker adds to it, and with the tag that it adds.
fn normal(name: &str) -> String {
    let short = name
        .strip_prefix("docker.io/library/")
        .or_else(|| name.strip_prefix("docker.io/"))
        .unwrap_or(name);
    let last = short.rsplit('/').next().unwrap_or_default();
    match last.contains(':') {
        true => short.to_owned(),
        false => format!("{short}:latest"),
    }
}
