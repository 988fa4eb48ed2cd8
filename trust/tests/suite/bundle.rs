//! A signed GuestOS bundle made by other programs: mksquashfs, veritysetup, openssl.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::run;

/// What stands in the image's `config.img`.
const IMAGE_CONFIG: &str = include_str!("config.json");

/// A bundle and who signed it.
#[derive(Debug)]
pub struct Bundle {
    dir: PathBuf,
    /// The configuration text.
    pub conf: PathBuf,
}

impl Bundle {
    /// Makes `nginx-1` and its PKI in `dir`.
    pub fn make(dir: &Path) -> Self {
        let images = dir.join("nginx-1");
        let root = dir.join("tree");
        fs::create_dir_all(&images).unwrap();
        fs::create_dir_all(root.join("var/www/html")).unwrap();
        for mount_point in ["proc", "dev", "sys", "etc"] {
            fs::create_dir(root.join(mount_point)).unwrap();
        }
        fs::write(root.join("var/www/html/index.html"), "hello\n").unwrap();
        // More than 128 blocks that do not compress: a hash tree of two levels.
        let noise = |place: u64| {
            place
                .wrapping_mul(0x9E37_79B9_7F4A_7C15)
                .rotate_left(29)
                .wrapping_mul(place)
                >> 33
        };
        fs::write(
            root.join("etc/large"),
            (0..800_000)
                .map(|place| noise(place) as u8)
                .collect::<Vec<_>>(),
        )
        .unwrap();
        let path = |name: &str| images.join(name).display().to_string();
        run(
            "mksquashfs",
            &[
                root.to_str().unwrap(),
                &path("root.img"),
                "-noappend",
                "-quiet",
                "-no-progress",
            ],
        );
        let printed = run(
            "veritysetup",
            &["format", &path("root.img"), &path("root.hash.img")],
        );
        let verity = printed
            .lines()
            .find_map(|line| line.strip_prefix("Root hash:"))
            .unwrap()
            .trim();
        fs::write(images.join("config.img"), IMAGE_CONFIG).unwrap();
        let bundle = Self {
            dir: dir.to_owned(),
            conf: dir.join("nginx-1.conf"),
        };
        let checked = |name: &str| {
            let image = path(&format!("{name}.img"));
            let digest = |program: &str| {
                run(program, &[&image])
                    .split(' ')
                    .next()
                    .unwrap()
                    .to_owned()
            };
            format!(
                "  image_size: {}\n  image_sha1: \"{}\"\n  image_sha2_256: \"{}\"\n",
                fs::metadata(&image).unwrap().len(),
                digest("sha1sum"),
                digest("sha256sum")
            )
        };
        let text = format!(
            "name: \"nginx\"\nhardware: \"{hardware}\"\nversion: 1\n\
             mounts {{\n  image_file: \"root\"\n  mount_point: \"/\"\n  fs_type: \"squashfs\"\n  mount_type: SHARED_RW\n\
             {root}  image_verity_sha256: \"{verity}\"\n}}\n\
             mounts {{\n  image_file: \"html\"\n  mount_point: \"/var/www/html\"\n  fs_type: \"ext4\"\n  mount_type: EMPTY\n  \
             def_size: 16\n}}\n\
             mounts {{\n  image_file: \"config\"\n  mount_point: \"/config\"\n  fs_type: \"json\"\n  mount_type: STORE_ONLY\n\
             {config}}}\n\
             init_path: \"/sbin/cservice\"\ninit_param: \"nginx\"\ninit_env: \"PATH=/usr/bin\"\n\
             description {{\n  en: \"a test\"\n}}\n",
            hardware = if cfg!(target_arch = "x86_64") {
                "x86"
            } else {
                "arm"
            },
            root = checked("root"),
            config = checked("config"),
        );
        fs::write(&bundle.conf, text).unwrap();
        bundle.make_pki();
        bundle.sign();
        bundle
    }

    /// The trust anchor.
    pub fn anchor(&self) -> PathBuf {
        self.dir.join("root.cert")
    }

    /// A file beside the configuration text, or an image.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn make_pki(&self) {
        let path = |name: &str| self.dir.join(name).display().to_string();
        let days = ["-days", "30", "-nodes", "-newkey", "rsa:2048"];
        let root = [
            "req",
            "-x509",
            "-subj",
            "/CN=root",
            "-addext",
            "keyUsage=critical,keyCertSign",
            "-keyout",
            &path("root.key"),
            "-out",
            &path("root.cert"),
        ];
        run("openssl", &[&root[..], &days[..]].concat());
        let leaf = [
            "req",
            "-x509",
            "-subj",
            "/CN=signer",
            "-CA",
            &path("root.cert"),
            "-CAkey",
            &path("root.key"),
            "-addext",
            "basicConstraints=critical,CA:FALSE",
            "-addext",
            "keyUsage=critical,digitalSignature",
            "-keyout",
            &path("leaf.key"),
            "-out",
            &path("nginx-1.cert"),
        ];
        run("openssl", &[&leaf[..], &days[..]].concat());
    }

    /// The OCI configuration that it grants, with the annotation that names it.
    pub fn granted(&self) -> Value {
        let bundle = trustme_guestos::bundle::Bundle::open(&self.conf).unwrap();
        let image = bundle.image_config().unwrap();
        let granted = trustme_guestos::grant::granted_spec(bundle.conf(), &image).unwrap();
        let mut spec = serde_json::to_value(granted).unwrap();
        spec["annotations"] = serde_json::json!({ "org.trustme.guestos": self.conf });
        spec
    }

    /// Signs the configuration text as it is now.
    pub fn sign(&self) {
        let path = |name: &str| self.dir.join(name).display().to_string();
        run(
            "openssl",
            &[
                "dgst",
                "-sha512",
                "-sign",
                &path("leaf.key"),
                "-out",
                &path("nginx-1.sig"),
                &path("nginx-1.conf"),
            ],
        );
    }

    /// Changes the configuration text and signs it again.
    pub fn rewrite(&self, from: &str, to: &str) {
        let text = fs::read_to_string(&self.conf).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(&self.conf, text.replace(from, to)).unwrap();
        self.sign();
    }

    /// SHA-256 of an image, as sha256sum prints it.
    pub fn sha256(&self, image: &str) -> String {
        let path = self.file(image).display().to_string();
        run("sha256sum", &[&path])
            .split(' ')
            .next()
            .unwrap()
            .to_owned()
    }

    /// Flips one bit of a file.
    pub fn flip(&self, name: &str, place: usize) {
        let mut bytes = fs::read(self.file(name)).unwrap();
        bytes[place] ^= 1;
        fs::write(self.file(name), bytes).unwrap();
    }
}
