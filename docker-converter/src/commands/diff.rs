//! `trustme-convert diff`

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};
use trustme_convert::contents::{self, Item, ItemKind};
use trustme_guestos::bundle::Bundle;
use trustme_guestos::config::Mount;

/// Shows what differs between two bundles: what they say, the sizes of their images, the files of their root images (squashfs).
/// Signatures are not checked: that is `verify`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The configuration text of a bundle.
    old: PathBuf,
    /// The configuration text of another one.
    new: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Compares, and prints the differences.
pub fn run(arguments: &Arguments) -> Result<()> {
    let (old, new) = (Bundle::open(&arguments.old)?, Bundle::open(&arguments.new)?);
    let said = changes(&said(&old)?, &said(&new)?);
    let files = match (files(&old)?, files(&new)?) {
        (Some(old), Some(new)) => Some(file_changes(&old, &new)),
        _ => None,
    };
    if arguments.json {
        println!("{:#}", json!({"said": said, "files": files}));
        return Ok(());
    }
    for change in &said {
        let (name, old, new) = (&change["name"], &change["old"], &change["new"]);
        println!("{}: {old} -> {new}", name.as_str().unwrap_or_default());
    }
    match &files {
        None => eprintln!("files: not compared, a root image is no squashfs"),
        Some(files) => {
            for file in files {
                let word = |name: &str| file[name].as_str().unwrap_or_default().to_owned();
                let sign = match &*word("change") {
                    "added" => '+',
                    "removed" => '-',
                    _ => 'M',
                };
                let what: Vec<&str> = file["what"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .filter_map(Value::as_str)
                    .collect();
                match what[..] {
                    [] => println!("{sign} {}", word("path")),
                    _ => println!("{sign} {} ({})", word("path"), what.join(", ")),
                }
            }
        }
    }
    if said.is_empty() && files.is_none_or(|files| files.is_empty()) {
        println!("no differences");
    }
    Ok(())
}

/// Everything that a bundle says, as paths in JSON and their values.
fn said(bundle: &Bundle) -> Result<BTreeMap<String, Value>> {
    let mut flat = BTreeMap::new();
    let conf = serde_json::to_value(bundle.conf())?;
    flatten("guestos", &named_mounts(conf), &mut flat);
    if bundle.has_image_config() {
        flatten(
            "image",
            &serde_json::to_value(bundle.image_config()?)?,
            &mut flat,
        );
    }
    Ok(flat)
}

/// Mounts by the names of their images: one more must not make all behind it differ.
fn named_mounts(mut conf: Value) -> Value {
    if let Some(mounts) = conf.get_mut("mounts") {
        let named: Map<String, Value> = mounts
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|mount| Some((mount["image_file"].as_str()?.to_owned(), mount.clone())))
            .collect();
        *mounts = Value::Object(named);
    }
    conf
}

fn flatten(path: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                flatten(&format!("{path}.{name}"), value, into);
            }
        }
        value => {
            into.insert(path.to_owned(), value.clone());
        }
    }
}

fn changes(old: &BTreeMap<String, Value>, new: &BTreeMap<String, Value>) -> Vec<Value> {
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort();
    names.dedup();
    names
        .into_iter()
        .filter(|name| old.get(*name) != new.get(*name))
        .map(|name| json!({"name": name, "old": old.get(name), "new": new.get(name)}))
        .collect()
}

/// The files of the root image; nothing where it is no squashfs.
fn files(bundle: &Bundle) -> Result<Option<BTreeMap<Vec<u8>, Item>>> {
    let root = |mount: &&Mount| mount.mount_point == "/" && mount.mount_type.has_image();
    let mount = bundle.mounts().iter().find(root);
    let mount =
        mount.with_context(|| format!("{}: no root image", bundle.conf_path().display()))?;
    if mount.fs_type != "squashfs" {
        return Ok(None);
    }
    // Its bytes are read by another program: they must be what is signed.
    bundle.verify_image(mount)?;
    Ok(Some(contents::of_squashfs(&bundle.image_path(mount))?))
}

fn file_changes(old: &BTreeMap<Vec<u8>, Item>, new: &BTreeMap<Vec<u8>, Item>) -> Vec<Value> {
    let mut paths: Vec<&Vec<u8>> = old.keys().chain(new.keys()).collect();
    paths.sort();
    paths.dedup();
    let shown = |path: &[u8]| format!("/{}", path.escape_ascii());
    let mut all = Vec::new();
    for path in paths {
        all.push(match (old.get(path), new.get(path)) {
            (None, Some(new)) => json!({"path": shown(path), "change": "added", "size": size(new)}),
            (Some(old), None) => {
                json!({"path": shown(path), "change": "removed", "size": size(old)})
            }
            (Some(old), Some(new)) if old != new => json!({
                "path": shown(path), "change": "changed", "what": differing(old, new), "oldSize": size(old), "newSize": size(new),
            }),
            _ => continue,
        });
    }
    all
}

fn size(item: &Item) -> Option<u64> {
    match item.kind {
        ItemKind::File(size, _) => Some(size),
        _ => None,
    }
}

fn differing(old: &Item, new: &Item) -> Vec<&'static str> {
    let kind = match (&old.kind, &new.kind) {
        (ItemKind::File(..), ItemKind::File(..)) => "content",
        (ItemKind::Symlink(_), ItemKind::Symlink(_)) => "target",
        _ => "type",
    };
    [
        (kind, old.kind != new.kind),
        ("mode", old.meta.mode != new.meta.mode),
        (
            "owner",
            (old.meta.uid, old.meta.gid) != (new.meta.uid, new.meta.gid),
        ),
        ("time", old.meta.mtime != new.meta.mtime),
        ("extended attributes", old.meta.xattrs != new.meta.xattrs),
        ("hard links", old.names != new.names),
    ]
    .into_iter()
    .filter_map(|(what, differs)| differs.then_some(what))
    .collect()
}
