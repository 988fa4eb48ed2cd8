//! Real images, converted and mounted, against what `umoci unpack` makes of them as root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context, Result, ensure};
use trustme_conformance::command::{line, ok};
use trustme_conformance::fixtures::{Fixtures, NAME};
use trustme_conformance::image::real;
use trustme_conformance::suite::{self, Outcome};
use trustme_conformance::twin::{Compared, compare};

fn main() -> ExitCode {
    suite::main(&[
        ("debian", |fixtures| {
            same(fixtures, "debian", &["zstd", "gzip"])
        }),
        ("static_program", |fixtures| same(fixtures, "static", ALL)),
        ("nginx", |fixtures| same(fixtures, "nginx", &["zstd"])),
        ("postgres", |fixtures| {
            same(fixtures, "postgres", &["zstd", "erofs"])
        }),
        ("python", |fixtures| same(fixtures, "python", &["zstd"])),
        ("made_by_buildah", |fixtures| {
            same(fixtures, "buildah", &["zstd"])
        }),
        ("forty_layers", |fixtures| {
            same(fixtures, "forty-layers", ALL)
        }),
        ("sixty_thousand_files", |fixtures| {
            same(fixtures, "many-files", ALL)
        }),
        ("hard_links_across_layers", |fixtures| {
            same(fixtures, "hard-links", ALL)
        }),
        ("opaque_directories_and_whiteouts", |fixtures| {
            same(fixtures, "opaque", ALL)
        }),
        ("extended_attributes_and_capabilities", |fixtures| {
            same(fixtures, "attributes", ALL)
        }),
        ("names_that_are_not_utf8", |fixtures| {
            same(fixtures, "names", ALL)
        }),
        ("devices_times_and_sparse_files", |fixtures| {
            same(fixtures, "devices", ALL)
        }),
        ("one_and_a_half_gigabytes", |fixtures| {
            same(fixtures, "big", &["zstd", "erofs"])
        }),
    ])
}

/// Every file system that a root image can be.
const ALL: &[&str] = &["zstd", "gzip", "erofs"];

/// Converts an image into each of the `kinds`, mounts it, and compares it with umoci's tree.
fn same(fixtures: &Fixtures, name: &str, kinds: &[&str]) -> Result<Outcome> {
    let real = real::ALL.iter().find(|real| real.name == name);
    let image = real
        .context("no such image")?
        .image(&fixtures.programs.cache())?;
    let dir = tempfile::tempdir()?;
    let unpacked = dir.path().join("umoci");
    ok(line("umoci unpack --image").arg(&image).arg(&unpacked))?;
    for kind in kinds {
        let out = dir.path().join(kind);
        let mut convert = fixtures.convert_source(&format!("oci:{image}"), &out, 1)?;
        match *kind {
            "erofs" => convert.args(["--fs", "erofs"]),
            compression => convert.args(["--compression", compression]),
        };
        ok(&mut convert)?;
        let mounted = Mounted::new(&out.join(format!("{NAME}-1/root.img")), kind)?;
        let compared = compare(&mounted.0, &unpacked.join("rootfs"))
            .with_context(|| format!("{name}, {kind}"))?;
        holds_what_it_is_for(name, &compared)?;
        drop(mounted);
        fs::remove_dir_all(&out)?;
    }
    Ok(Outcome::Passed)
}

/// An image without what it is here for would show nothing.
fn holds_what_it_is_for(name: &str, compared: &Compared) -> Result<()> {
    let enough = match name {
        "debian" | "nginx" | "postgres" | "python" | "buildah" => compared.names > 5000,
        "many-files" => compared.names > 60_000,
        "hard-links" => compared.links >= 9,
        "attributes" => compared.attributes > 75,
        "big" => compared.names > 59_000 && compared.bytes > 2_000_000_000,
        "devices" => compared.bytes > 300_000_000,
        _ => compared.names > 10,
    };
    ensure!(enough, "{name} holds too little: {compared:?}");
    Ok(())
}

/// A mounted image, until it is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn new(image: &Path, kind: &str) -> Result<Self> {
        let place = image.with_extension("mounted");
        fs::create_dir(&place)?;
        let kind = if kind == "erofs" { kind } else { "squashfs" };
        ok(line("mount -o loop,ro -t")
            .args([kind])
            .arg(image)
            .arg(&place))?;
        Ok(Self(place))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(&self.0).status();
    }
}
