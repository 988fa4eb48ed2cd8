//! A conversion from beginning to end.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use chrono::DateTime;
use rayon::iter::{IntoParallelRefIterator, ParallelIterator};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use trustme_guestos::config::{GuestOsConfig, I18nString, Mount, MountType};
use trustme_guestos::image_config::{CheckedSource, ImageConfig};
use trustme_guestos::signature::{SignatureError, SigningKey};
use trustme_guestos::sigstore;
use trustme_guestos::verity::{self, VerityError};
use trustme_guestos::write::BundleWriter;

use crate::blob::Blob;
use crate::erofs;
use crate::error::Error;
use crate::flatten;
use crate::guestos::{Accounts, Description, Naming};
use crate::layer::{Budget, Layer, Limits};
use crate::progress::Progress;
use crate::registry;
use crate::source::{self, Access, Image, Platform, Source};
use crate::squashfs::{self, ImageCompression};
use crate::tree::Tree;
use crate::verification::Demands;

/// The longest /etc/passwd or /etc/group that is read, in bytes.
const MAX_ACCOUNTS: u64 = 1 << 20;

/// How much of an image is hashed at a time.
const CHUNK: usize = 1 << 20;

/// What to make.
#[derive(Debug)]
pub struct Conversion {
    /// The image.
    pub source: Source,
    /// How registries are reached.
    pub registry: registry::Options,
    /// What is demanded of the image.
    pub demands: Demands,
    /// Which one, where there are several.
    pub platform: Option<Platform>,
    /// The directory of bundles.
    pub out: PathBuf,
    /// What the GuestOS is called.
    pub naming: Naming,
    /// Who signs it.
    pub key: SigningKey,
    /// The signer's certificate, then those that lead to an anchor; PEM.
    pub cert: Vec<u8>,
    /// What the root image is.
    pub format: RootFormat,
    /// What the image may take.
    pub limits: Limits,
    /// Whether a bundle of the same name and version is replaced.
    pub force: bool,
    /// When the image counts as made, in seconds since 1970; where it is not given, when it says that it was made.
    pub time: Option<u32>,
}

/// What a root image is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootFormat {
    /// squashfs, compressed.
    Squashfs(ImageCompression),
    /// erofs, not compressed.
    Erofs,
}

impl RootFormat {
    /// What mount(8) calls it.
    fn name(self) -> &'static str {
        match self {
            Self::Squashfs(_) => "squashfs",
            Self::Erofs => "erofs",
        }
    }
}

/// What was made.
#[derive(Debug)]
pub struct Converted {
    /// The path of the configuration text.
    pub conf: PathBuf,
    /// SHA-256 of the root image.
    pub sha256: [u8; 32],
    /// The size of the root image in bytes.
    pub size: u64,
}

impl Conversion {
    fn access(&self, progress: Progress) -> Access {
        Access {
            registry: self.registry.clone(),
            demands: self.demands.clone(),
            limits: self.limits,
            progress,
        }
    }

    /// What the bundle says of where it came from, if that was checked.
    fn checked_source(&self, image: &Image) -> Option<CheckedSource> {
        let verified = &image.verdict.0;
        (!verified.is_empty()).then(|| CheckedSource {
            image: self.source.to_string(),
            verified: verified.clone(),
        })
    }

    /// Converts the image. Nothing is left of a conversion that fails.
    ///
    /// # Errors
    /// The image is not as it should be, a GuestOS cannot say what it says, or the bundle cannot be written.
    pub fn run(&self, progress: Progress) -> Result<Converted, Error> {
        let image = source::open(&self.source, self.platform.as_ref(), &self.access(progress))?;
        let description = Description::of(&image.configuration)?;
        // What the text cannot say is found out before the work.
        let mut guestos = description.guestos(&self.naming)?;
        let source = self.checked_source(&image);
        if let Some(source) = &source {
            let said = format!("{}: {}", source.image, source.verified.join("; "));
            guestos.description_long = Some(I18nString::english(match guestos.description_long {
                Some(long) => format!("{} ({said})", long.en),
                None => said,
            }));
        }
        text(&guestos)?;
        let writer = BundleWriter::create(
            &self.out,
            &self.naming.name,
            self.naming.version,
            self.force,
        )?;
        let images = writer.images();
        let (tree, layers) = read_layers(&image, images, self.limits, progress)?;
        let mut image_config = description.image_config(&accounts(&tree, &layers, &image.path)?)?;
        image_config.source = source;
        let image_config = image_config
            .to_bytes()
            .map_err(|error| Error::Configuration(said(&error)))?;

        let time = self.time.unwrap_or_else(|| created(&image));
        let root_path = images.join("root.img");
        let bar = progress.step("making root.img".to_owned(), tree.size());
        let losses = match self.format {
            RootFormat::Squashfs(compression) => {
                squashfs::make(&root_path, compression, time, |to| {
                    flatten::write(&tree, &layers, bar.wrap_write(to))
                })?
            }
            RootFormat::Erofs => erofs::make(&root_path, time, &tree, &layers, &bar)?,
        };
        drop(bar);
        image.check_unchanged()?;
        for loss in losses {
            progress.warn(&loss);
        }

        let root = Root::finish(&root_path, self.format)?;
        guestos.mounts.insert(0, root.mount.clone());
        guestos.mounts.push(store(images, image_config)?);
        let conf = text(&guestos)?;
        let sig = self
            .key
            .sign(conf.as_bytes())
            .map_err(|error| signing(&error))?;
        let sigstore =
            sigstore::bundle(&self.key, conf.as_bytes()).map_err(|error| signing(&error))?;
        Ok(Converted {
            conf: writer.finish(conf.as_bytes(), &sig, &self.cert, Some(&sigstore))?,
            sha256: root.sha256,
            size: root.size,
        })
    }
}

/// Reads all layers of an image, as many at a time as there are processors, and applies them one after the other. The tree
/// and the uncompressed layers, for which files without names are made in `dir`.
///
/// # Errors
/// A layer is not as it should be, or the layers or the files have more than `limits` allow.
pub fn read_layers(
    image: &Image,
    dir: &Path,
    limits: Limits,
    progress: Progress,
) -> Result<(Tree, Vec<Blob>), Error> {
    let bytes = image.layers.iter().map(|layer| layer.blob.size()).sum();
    let what = format!("reading {} layers", image.layers.len());
    let bar = progress.step(what, bytes);
    let budget = Budget::new(limits);
    let read: Vec<Result<Layer, String>> = image
        .layers
        .par_iter()
        .map(|layer| layer.read(dir, &budget, &bar))
        .collect();
    let mut tree = Tree::new();
    let mut contents = Vec::new();
    for (number, (packed, read)) in image.layers.iter().zip(read).enumerate() {
        let wrong = |reason: String| Error::Layer {
            path: image.path.clone(),
            number: number + 1,
            name: packed.name.clone(),
            reason,
        };
        let layer = read.map_err(wrong)?;
        for entry in layer.entries {
            let path = String::from_utf8_lossy(&entry.path).into_owned();
            tree.apply(number as u32, entry)
                .map_err(|reason| wrong(format!("entry {path:?}: {reason}")))?;
        }
        contents.push(layer.content);
    }
    match tree.size() {
        size if size > limits.size => Err(Error::image(
            &image.path,
            format!(
                "its files have {size} bytes, at most {} (--max-size)",
                limits.size
            ),
        )),
        _ => Ok((tree, contents)),
    }
}

/// The root image, hashed.
struct Root {
    mount: Mount,
    sha256: [u8; 32],
    size: u64,
}

impl Root {
    /// Hashes the image and makes its dm-verity tree beside it.
    fn finish(path: &Path, format: RootFormat) -> Result<Self, Error> {
        let file = File::open(path).map_err(Error::io(path))?;
        let (sha256, sha1, size) = hash(&file).map_err(Error::io(path))?;
        let hash_path = path.with_extension("hash.img");
        let hash_file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&hash_path)
            .map_err(Error::io(&hash_path))?;
        // A salt from the image itself: the same image gives the same tree.
        let verity = verity::format(&file, &hash_file, &Sha256::digest(sha256))
            .map_err(|error: VerityError| Error::image(&hash_path, said(&error)))?;
        let mut mount = Mount::new("root", "/", format.name(), MountType::SharedRw);
        mount.image_verity_sha256 = Some(hex::encode(verity));
        describe(&mut mount, sha256, sha1, size);
        Ok(Self {
            mount,
            sha256,
            size,
        })
    }
}

/// Writes config.img; its mount.
fn store(images: &Path, bytes: Vec<u8>) -> Result<Mount, Error> {
    let mut mount = ImageConfig::mount();
    let path = images.join(format!("{}.img", mount.image_file));
    std::fs::write(&path, &bytes).map_err(Error::io(&path))?;
    describe(
        &mut mount,
        Sha256::digest(&bytes).into(),
        Sha1::digest(&bytes).into(),
        bytes.len() as u64,
    );
    Ok(mount)
}

fn describe(mount: &mut Mount, sha256: [u8; 32], sha1: [u8; 20], size: u64) {
    mount.image_size = Some(size);
    mount.image_sha1 = Some(hex::encode(sha1));
    mount.image_sha2_256 = Some(hex::encode(sha256));
}

/// SHA-256, SHA-1 and size of a file.
fn hash(file: &File) -> io::Result<([u8; 32], [u8; 20], u64)> {
    let (mut sha256, mut sha1, mut size) = (Sha256::new(), Sha1::new(), 0);
    let mut chunk = Vec::with_capacity(CHUNK);
    loop {
        chunk.clear();
        if file.take(CHUNK as u64).read_to_end(&mut chunk)? == 0 {
            return Ok((sha256.finalize().into(), sha1.finalize().into(), size));
        }
        rayon::join(|| sha256.update(&chunk), || sha1.update(&chunk));
        size += chunk.len() as u64;
    }
}

/// The image's files of users and groups.
fn accounts(tree: &Tree, layers: &[Blob], path: &Path) -> Result<Accounts, Error> {
    let read = |name: &str| -> Result<String, Error> {
        let Some((layer, content)) = tree.file(name.as_bytes()) else {
            return Ok(String::new());
        };
        if content.size > MAX_ACCOUNTS {
            let reason = format!("/{name} has {} bytes, at most {MAX_ACCOUNTS}", content.size);
            return Err(Error::image(path, reason));
        }
        let mut bytes = Vec::new();
        flatten::content(&layers[layer as usize], content, &mut bytes).map_err(Error::io(path))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    Ok(Accounts {
        passwd: read("etc/passwd")?,
        group: read("etc/group")?,
    })
}

/// When an image says that it was made, in what squashfs can hold.
fn created(image: &Image) -> u32 {
    let created = image.configuration.created.as_deref().unwrap_or_default();
    let seconds = DateTime::parse_from_rfc3339(created).map_or(0, |time| time.timestamp());
    seconds.clamp(0, u32::MAX.into()) as u32
}

fn text(guestos: &GuestOsConfig) -> Result<String, Error> {
    guestos
        .to_text()
        .map_err(|error| Error::Configuration(error.to_string()))
}

fn signing(error: &SignatureError) -> Error {
    Error::Configuration(said(error))
}

/// What an error and its causes say.
fn said(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
