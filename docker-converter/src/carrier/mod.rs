//! Carrier images: a signed GuestOS bundle as the only layer of an OCI image, below `/.guestos`, so that registries and engines
//! carry it as they carry any image. docs/converter.md has the format.

mod layout;
mod parts;
mod unpack;

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};
use trustme_guestos::bundle::{Bundle, SIGSTORE};
use trustme_guestos::config::MountType;
use trustme_guestos::image_config::ImageConfig;

pub use layout::{add_to_layout, write_docker_archive, write_oci_archive};
pub use parts::{Parts, PartsReader};
pub use unpack::{Unpacked, unpack};

use crate::blob::{Blob, Digest};
use crate::error::Error;

/// The directory of an image's root that holds the bundle.
pub const DIRECTORY: &str = ".guestos";

/// The label of the image configuration, and annotation of the manifest, that names the configuration text within the image.
pub const ANNOTATION: &str = "org.trustme.carrier";

/// Media types of the OCI image specification.
pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const LAYER_TYPE: &str = "application/vnd.oci.image.layer.v1.tar";

/// A carrier image. The same bundle gives the same bytes.
#[derive(Debug)]
pub struct Carrier {
    /// The layer, a plain tar archive: what is in it is compressed already.
    pub layer: Parts,
    /// The layer's SHA-256.
    pub layer_digest: Digest,
    /// The image configuration, JSON.
    pub config: Vec<u8>,
    /// The manifest, JSON.
    pub manifest: Vec<u8>,
    /// The image's architecture, as Go names it.
    pub architecture: String,
}

impl Carrier {
    /// Makes the carrier image of a bundle. The images were checked by the caller; what is sent later is compared with what
    /// was read here.
    ///
    /// # Errors
    /// A file of the bundle is missing or cannot be read; its architecture is not that of its hardware.
    pub fn of(bundle: &Bundle) -> Result<Self, Error> {
        let conf = bundle.conf();
        let name = format!("{}-{}", conf.name, conf.version);
        let path = format!("/{DIRECTORY}/{name}.conf");
        let mut layer = Parts::default();
        layer.directory(DIRECTORY)?;
        layer.bytes(
            &format!("{DIRECTORY}/{name}.conf"),
            bundle.conf_bytes().to_vec(),
        )?;
        layer.bytes(&format!("{DIRECTORY}/{name}.sig"), bundle.signature()?)?;
        layer.bytes(&format!("{DIRECTORY}/{name}.cert"), bundle.certificates()?)?;
        if let Some(sigstore) = bundle.sigstore()? {
            layer.bytes(&format!("{DIRECTORY}/{name}.{SIGSTORE}"), sigstore)?;
        }
        layer.directory(&format!("{DIRECTORY}/{name}"))?;
        let mut files = BTreeMap::new();
        for mount in bundle.mounts() {
            if !mount.mount_type.has_image() {
                continue;
            }
            let image = format!("{}.img", mount.image_file);
            files.insert(image, (bundle.image_path(mount), bundle.open_image(mount)?));
            if mount.image_verity_sha256.is_some() {
                let hash = format!("{}.hash.img", mount.image_file);
                files.insert(
                    hash,
                    (
                        bundle.hash_image_path(mount),
                        bundle.open_hash_image(mount)?,
                    ),
                );
            }
        }
        for (file, (on_disk, open)) in files {
            let blob = Blob::whole(open).map_err(Error::io(&on_disk))?;
            layer.file(&format!("{DIRECTORY}/{name}/{file}"), &on_disk, blob)?;
        }
        layer.end();
        let layer_digest = layer.digest()?;

        let image = image_config(bundle)?;
        let architecture = architecture(bundle, image.as_ref())?;
        let config = configuration(bundle, image.as_ref(), &architecture, &path, layer_digest);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptor(CONFIG_TYPE, &sha256(&config), config.len() as u64),
            "layers": [descriptor(LAYER_TYPE, &layer_digest, layer.size())],
            "annotations": annotations(bundle, &path),
        });
        Ok(Self {
            layer,
            layer_digest,
            config,
            manifest: manifest.to_string().into_bytes(),
            architecture,
        })
    }

    /// The manifest's digest, by which the image is named.
    #[must_use]
    pub fn digest(&self) -> Digest {
        sha256(&self.manifest)
    }
}

/// What config.img holds; a bundle of GyroidOS's own converter has none.
fn image_config(bundle: &Bundle) -> Result<Option<ImageConfig>, Error> {
    let stored = bundle.mounts().iter().any(|mount| {
        mount.mount_type == MountType::StoreOnly && mount.image_file == ImageConfig::IMAGE_FILE
    });
    match stored {
        true => Ok(Some(bundle.image_config()?)),
        false => Ok(None),
    }
}

/// The architecture, as Go names it: what config.img says, else the usual one of the hardware.
fn architecture(bundle: &Bundle, image: Option<&ImageConfig>) -> Result<String, Error> {
    let hardware = bundle.conf().hardware.as_str();
    let known: &[&str] = match hardware {
        "x86" => &["amd64", "386"],
        "arm" => &["arm64", "arm"],
        "riscv" => &["riscv64"],
        _ => &[],
    };
    let wrong = |reason: String| Error::image(bundle.conf_path(), reason);
    let Some(usual) = known.first() else {
        return Err(wrong(format!(
            "hardware {hardware:?}, expected x86, arm or riscv"
        )));
    };
    match image.map(|image| image.architecture.as_str()) {
        Some(said) if !known.contains(&said) => Err(wrong(format!(
            "hardware {hardware:?}, but config.img says {said:?}"
        ))),
        Some(said) => Ok(said.to_owned()),
        None => Ok((*usual).to_owned()),
    }
}

/// The image configuration: what engines start the container with is what the GuestOS says.
fn configuration(
    bundle: &Bundle,
    image: Option<&ImageConfig>,
    architecture: &str,
    path: &str,
    layer: Digest,
) -> Vec<u8> {
    let conf = bundle.conf();
    let mut config = image.map(|image| image.config.clone()).unwrap_or_default();
    // The GuestOS brings its volumes; an engine's own would be in their place.
    config.remove("Volumes");
    match image {
        Some(image) => {
            // Names cannot be looked up: an engine sees no /etc/passwd in the carrier.
            let user = format!("{}:{}", image.uid, image.gid);
            set(&mut config, "User", json!(user));
            set(&mut config, "WorkingDir", json!(image.cwd));
            set(&mut config, "Entrypoint", json!(image.entrypoint));
            set(&mut config, "Cmd", json!(image.cmd));
        }
        None => set(&mut config, "Cmd", json!(conf.init_param)),
    }
    set(&mut config, "Env", json!(conf.init_env));
    let mut labels = match config.remove("Labels") {
        Some(Value::Object(labels)) => labels,
        _ => Map::new(),
    };
    labels.insert(ANNOTATION.to_owned(), json!(path));
    set(&mut config, "Labels", Value::Object(labels));
    json!({
        "architecture": architecture,
        "config": config,
        "created": EPOCH,
        "history": [{"created": EPOCH, "created_by": "trustme-convert push"}],
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest_text(&layer)]},
    })
    .to_string()
    .into_bytes()
}

/// When carriers count as made: a bundle says no time, and the same bundle is to give the same image.
const EPOCH: &str = "1970-01-01T00:00:00Z";

fn set(config: &mut Map<String, Value>, key: &str, value: Value) {
    config.insert(key.to_owned(), value);
}

fn annotations(bundle: &Bundle, path: &str) -> BTreeMap<&'static str, String> {
    let conf = bundle.conf();
    let mut annotations = BTreeMap::from([
        (ANNOTATION, path.to_owned()),
        ("org.opencontainers.image.title", conf.name.clone()),
        ("org.opencontainers.image.version", conf.version.to_string()),
    ]);
    let description = conf.description.en.clone();
    annotations.insert("org.opencontainers.image.description", description);
    annotations
}

fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": digest_text(digest), "size": size})
}

/// `sha256:HEX`.
#[must_use]
pub fn digest_text(digest: &Digest) -> String {
    format!("sha256:{}", hex::encode(digest))
}

fn sha256(bytes: &[u8]) -> Digest {
    use sha2::Digest as _;
    sha2::Sha256::digest(bytes).into()
}

/// What a temporary file beside `path` begins with.
fn staged_prefix(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    format!(".{name}.")
}
