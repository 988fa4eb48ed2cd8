//! Index, manifest and image configuration of a layout, as `trustme-convert` reads them before it looks at a layer.
//!
//! An input is the three documents, separated by [`NEXT`]. `@D@` and `@S@` in the first two stand for digest and size of the next,
//! `@L@` in the second for the digest of an empty layer: no change would get beyond the digests else.
#![no_main]

use std::cell::OnceCell;
use std::fs;
use std::path::{Path, PathBuf};

use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};
use trustme_convert::guestos::{Accounts, Description, Naming};
use trustme_convert::layer::Limits;
use trustme_convert::progress::Progress;
use trustme_convert::source::{self, Access, Source};
use trustme_guestos::config::GuestOsConfig;
use trustme_guestos::image_config::ImageConfig;

const NEXT: &[u8] = b"\0NEXT\0";

/// An archive with nothing in it.
const LAYER: [u8; 1024] = [0; 1024];

thread_local! {
    static LAYOUT: OnceCell<PathBuf> = const { OnceCell::new() };
}

fuzz_target!(|bytes: &[u8]| {
    LAYOUT.with(|layout| {
        let layout = layout.get_or_init(make);
        look(layout, bytes);
    });
});

/// An empty layout, in memory.
fn make() -> PathBuf {
    let dir = PathBuf::from(format!("/dev/shm/trustme-fuzz-{}", std::process::id()));
    fs::create_dir_all(dir.join("blobs/sha256")).expect("memory can be written");
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion": "1.0.0"}"#)
        .expect("memory can be written");
    blob(&dir, &LAYER);
    dir
}

fn blob(dir: &Path, bytes: &[u8]) -> PathBuf {
    let path = dir.join("blobs/sha256").join(hex(bytes));
    fs::write(&path, bytes).expect("memory can be written");
    path
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

fn look(dir: &Path, bytes: &[u8]) {
    let mut documents = split(bytes);
    let configuration = documents.pop().unwrap_or_default();
    let manifest = documents.pop().unwrap_or_default();
    let index = documents.pop().unwrap_or_default();
    let manifest = filled(&manifest, &configuration);
    let index = filled(&index, &manifest);
    fs::write(dir.join("index.json"), &index).expect("memory can be written");
    let made = [blob(dir, &manifest), blob(dir, &configuration)];
    let source = Source::Oci {
        path: dir.to_owned(),
        reference: None,
    };
    if let Ok(image) = source::open(
        &source,
        None,
        &Access::new(
            Limits {
                size: 1 << 20,
                ratio: 1,
            },
            Progress::hidden(),
        ),
    ) && let Ok(description) = Description::of(&image.configuration)
    {
        let naming = Naming {
            name: "image".to_owned(),
            version: 1,
        };
        if let Ok(guestos) = description.guestos(&naming)
            && let Ok(text) = guestos.to_text()
        {
            let again = GuestOsConfig::parse(text.as_bytes()).expect("it was written here");
            assert_eq!(again.to_text().expect("it was read"), text);
        }
        let accounts = Accounts {
            passwd: "web:x:33:34::/:\n".to_owned(),
            group: "more:x:55:web\n".to_owned(),
        };
        if let Ok(config) = description.image_config(&accounts)
            && let Ok(bytes) = config.to_bytes()
        {
            ImageConfig::parse(&bytes).expect("it was written here");
        }
    }
    for path in made {
        // The empty layer stays; two documents may be the same.
        if path != dir.join("blobs/sha256").join(hex(&LAYER)) {
            let _ = fs::remove_file(path);
        }
    }
}

fn split(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut parts = Vec::new();
    let mut rest = bytes;
    while let Some(end) = rest.windows(NEXT.len()).position(|window| window == NEXT) {
        parts.push(rest[..end].to_vec());
        rest = &rest[end + NEXT.len()..];
    }
    parts.push(rest.to_vec());
    parts
}

/// A document with what stands for digests and sizes filled in.
fn filled(document: &[u8], next: &[u8]) -> Vec<u8> {
    let text = String::from_utf8_lossy(document)
        .replace("@D@", &format!("sha256:{}", hex(next)))
        .replace("@S@", &next.len().to_string())
        .replace("@L@", &format!("sha256:{}", hex(&LAYER)));
    text.into_bytes()
}
