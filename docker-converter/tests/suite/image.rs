//! Images made of layers made by hand.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// An OCI layout that is being made.
#[derive(Debug)]
pub struct Layout {
    pub dir: PathBuf,
    layers: Vec<Value>,
    diff_ids: Vec<String>,
    /// The object `config` of the image configuration.
    pub config: Value,
    pub architecture: &'static str,
}

impl Layout {
    pub fn new(dir: &Path) -> Self {
        fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#).unwrap();
        Self {
            dir: dir.to_owned(),
            layers: Vec::new(),
            diff_ids: Vec::new(),
            config: json!({"Cmd": ["/bin/true"]}),
            architecture: "amd64",
        }
    }

    /// Writes a blob; its descriptor.
    pub fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = hex::encode(Sha256::digest(bytes));
        fs::write(self.dir.join("blobs/sha256").join(&digest), bytes).unwrap();
        json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()})
    }

    pub fn layer(&mut self, tar: &[u8], packing: Packing) -> &mut Self {
        let (suffix, bytes) = match packing {
            Packing::Plain => ("", tar.to_owned()),
            Packing::Gzip => ("+gzip", gzip(tar)),
            Packing::Zstd => ("+zstd", zstd::encode_all(tar, 3).unwrap()),
        };
        let media_type = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
        let diff_id = format!("sha256:{}", hex::encode(Sha256::digest(tar)));
        self.packed_layer(&media_type, &bytes, diff_id)
    }

    pub fn packed_layer(&mut self, media_type: &str, bytes: &[u8], diff_id: String) -> &mut Self {
        let descriptor = self.blob(media_type, bytes);
        self.layers.push(descriptor);
        self.diff_ids.push(diff_id);
        self
    }

    /// Writes configuration and manifest; the manifest's descriptor.
    pub fn manifest(&self) -> Value {
        let configuration = json!({
            "architecture": self.architecture, "os": "linux", "created": "2020-02-02T02:02:02Z", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": self.diff_ids},
        });
        let config = self.blob(
            "application/vnd.oci.image.config.v1+json",
            configuration.to_string().as_bytes(),
        );
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "config": config, "layers": self.layers,
        });
        self.blob(
            "application/vnd.oci.image.manifest.v1+json",
            manifest.to_string().as_bytes(),
        )
    }

    /// Writes everything; the image is called `image`.
    pub fn finish(&self) {
        let mut manifest = self.manifest();
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": "image"});
        self.index(&[manifest]);
    }

    pub fn index(&self, manifests: &[Value]) {
        let index = json!({"schemaVersion": 2, "manifests": manifests});
        fs::write(self.dir.join("index.json"), index.to_string()).unwrap();
    }

    pub fn source(&self) -> String {
        format!("oci:{}:image", self.dir.display())
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
