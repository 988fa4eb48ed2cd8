//! The bundle of a carrier image.

use std::fs::{self, DirBuilder, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use trustme_guestos::bundle::{MAX_SIGSTORE, SIGSTORE};
use trustme_guestos::config::{GuestOsConfig, MAX_TEXT};

use super::DIRECTORY;
use crate::blob::Blob;
use crate::convert::read_layers;
use crate::error::Error;
use crate::flatten;
use crate::layer::Limits;
use crate::progress::Progress;
use crate::source::Image;
use crate::tree::{Node, ROOT, Tree};

/// The largest signature or file of certificates, in bytes.
const MAX_SMALL: u64 = 256 << 10;

/// A bundle that lies in a directory, not yet looked at.
#[derive(Debug)]
pub struct Unpacked {
    /// The name of the GuestOS.
    pub name: String,
    /// Its version.
    pub version: u64,
    /// The path of its configuration text.
    pub conf: PathBuf,
}

/// Writes the bundle in an image into the empty directory `dir`: configuration text, signature, certificates, and the images that
/// the text names. Everything else in the image is left alone.
///
/// # Errors
/// The image holds no bundle, or more than one; a part is missing or too large; `dir` cannot be written.
pub fn unpack(
    image: &Image,
    dir: &Path,
    limits: Limits,
    progress: Progress,
) -> Result<Unpacked, Error> {
    let (tree, layers) = read_layers(image, dir, limits, progress)?;
    let files = Files {
        image,
        tree: &tree,
        layers: &layers,
    };
    let stem = files.stem()?;
    let inside = |suffix: &str| format!("{DIRECTORY}/{stem}{suffix}");
    let text = files.small(&inside(".conf"), MAX_TEXT as u64)?;
    let conf = GuestOsConfig::parse(&text)
        .map_err(|error| Error::image(&image.path, format!("{}: {error}", inside(".conf"))))?;
    if stem != format!("{}-{}", conf.name, conf.version) {
        let reason = format!(
            "{}: it says that it is {}-{}",
            inside(".conf"),
            conf.name,
            conf.version
        );
        return Err(Error::image(&image.path, reason));
    }
    let place = |name: String| dir.join(name);
    write(&place(format!("{stem}.conf")), &text)?;
    for extension in ["sig", "cert"] {
        let bytes = files.small(&inside(&format!(".{extension}")), MAX_SMALL)?;
        write(&place(format!("{stem}.{extension}")), &bytes)?;
    }
    let sigstore = inside(&format!(".{SIGSTORE}"));
    if tree.file(sigstore.as_bytes()).is_some() {
        let bytes = files.small(&sigstore, MAX_SIGSTORE as u64)?;
        write(&place(format!("{stem}.{SIGSTORE}")), &bytes)?;
    }
    let images = place(stem.clone());
    DirBuilder::new()
        .mode(0o755)
        .create(&images)
        .map_err(Error::io(&images))?;
    for mount in conf
        .mounts
        .iter()
        .filter(|mount| mount.mount_type.has_image())
    {
        let mut names = vec![format!("{}.img", mount.image_file)];
        if mount.image_verity_sha256.is_some() {
            names.push(format!("{}.hash.img", mount.image_file));
        }
        for name in names {
            let path = images.join(&name);
            // Two mounts may share an image.
            if !path.exists() {
                files.copy(&inside(&format!("/{name}")), &path)?;
            }
        }
    }
    image.check_unchanged()?;
    Ok(Unpacked {
        conf: place(format!("{stem}.conf")),
        name: conf.name,
        version: conf.version,
    })
}

/// The files of an image.
struct Files<'a> {
    image: &'a Image,
    tree: &'a Tree,
    layers: &'a [Blob],
}

impl Files<'_> {
    fn wrong(&self, reason: String) -> Error {
        Error::image(&self.image.path, reason)
    }

    /// What the only bundle in it is called.
    fn stem(&self) -> Result<String, Error> {
        let child = |id, wanted: &[u8]| {
            let mut children = self.tree.children(id);
            children.find(|(name, _)| *name == wanted).map(|(_, id)| id)
        };
        let Some(directory) = child(ROOT, DIRECTORY.as_bytes()) else {
            return Err(self.wrong(format!("no carrier of a bundle: no /{DIRECTORY} in it")));
        };
        let mut stems = Vec::new();
        for (name, id) in self.tree.children(directory) {
            let Some(stem) = name.strip_suffix(b".conf") else {
                continue;
            };
            if let (Ok(stem), Node::File { .. }) = (str::from_utf8(stem), &self.tree.inode(id).node)
            {
                stems.push(stem.to_owned());
            }
        }
        match &stems[..] {
            [stem] => Ok(stem.clone()),
            [] => Err(self.wrong(format!(
                "no carrier of a bundle: no /{DIRECTORY}/*.conf in it"
            ))),
            _ => Err(self.wrong(format!(
                "several bundles in /{DIRECTORY}: {}",
                stems.join(", ")
            ))),
        }
    }

    fn small(&self, path: &str, max: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        let (layer, content) = self.find(path)?;
        if content.size > max {
            return Err(self.wrong(format!("{path} has {} bytes, at most {max}", content.size)));
        }
        flatten::content(layer, content, &mut bytes).map_err(Error::io(&self.image.path))?;
        Ok(bytes)
    }

    fn copy(&self, path: &str, to: &Path) -> Result<(), Error> {
        let (layer, content) = self.find(path)?;
        let mut file = BufWriter::new(File::create_new(to).map_err(Error::io(to))?);
        flatten::content(layer, content, &mut file)
            .and_then(|()| file.flush())
            .map_err(Error::io(to))
    }

    /// A regular file, reached through no symbolic link: the bundle is where it says.
    fn find(&self, path: &str) -> Result<(&Blob, &crate::tarball::Content), Error> {
        let missing = || self.wrong(format!("no file /{path} in it"));
        let mut id = ROOT;
        for name in path.split('/') {
            let mut children = self.tree.children(id);
            let found = children.find(|(child, _)| *child == name.as_bytes());
            id = found.map(|(_, id)| id).ok_or_else(missing)?;
        }
        match &self.tree.inode(id).node {
            Node::File { layer, content } => Ok((&self.layers[*layer as usize], content)),
            _ => Err(missing()),
        }
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    fs::write(path, bytes).map_err(Error::io(path))
}
