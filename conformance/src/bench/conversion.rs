//! Conversion of the demo image against `umoci unpack` and `mksquashfs` with equal compression.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

use super::{Effort, Table, timed};
use crate::command::{line, ok};
use crate::fixtures::{Fixtures, NAME};

pub(super) fn run(fixtures: &Fixtures, effort: Effort) -> Result<()> {
    let image = fixtures.demo_image()?;
    fixtures.pki()?;
    let mut table = Table::new(
        "conversion of the demo image (ours also: digests, verity tree, signature)",
        &["umoci unpack + mksquashfs", "trustme-convert convert"],
    );
    let mut compression = None;
    for _ in 0..effort.runs(1, 5) {
        let dir = tempfile::Builder::new()
            .prefix("trustme-bench-")
            .tempdir()?;
        let ours = dir.path().join("ours");
        let time = timed(&mut [fixtures.convert(&image, &ours, 1)?])?;
        table.rows[1].times.push(time);
        let root = ours.join(format!("{NAME}-1/root.img"));
        let flags = compression_of(&root)?;

        let unpacked = dir.path().join("unpacked");
        let theirs = dir.path().join("theirs.img");
        let mut unpack = line("umoci unpack --image");
        unpack
            .arg(format!("{}:image", image.layout.display()))
            .arg(&unpacked);
        let mut squash = line("mksquashfs");
        squash.arg(unpacked.join("rootfs")).arg(&theirs);
        squash
            .args(["-noappend", "-quiet", "-no-progress", "-xattrs"])
            .args(&flags);
        table.rows[0].times.push(timed(&mut [unpack, squash])?);
        for (row, path) in table.rows.iter_mut().zip([&theirs, &root]) {
            row.note = format!("{} MiB", fs::metadata(path)?.len() >> 20);
        }
        compression = Some(flags.join(" "));
    }
    table.title = format!("{}, {}", table.title, compression.unwrap_or_default());
    table.print();
    Ok(())
}

/// mksquashfs's flags for the compression that an image has, as `unsquashfs -stat` prints it.
fn compression_of(image: &Path) -> Result<Vec<String>> {
    let stat = ok(line("unsquashfs -stat").arg(image))?;
    let value = |begin: &str| {
        stat.lines()
            .find_map(|line| line.trim().strip_prefix(begin))
    };
    let algorithm = value("Compression ").context("no compression")?.trim();
    let block = value("Block size ").context("no block size")?.trim();
    let mut flags = vec![
        "-comp".to_owned(),
        algorithm.to_owned(),
        "-b".to_owned(),
        block.to_owned(),
    ];
    if let Some(level) = value("compression-level ") {
        flags.extend(["-Xcompression-level".to_owned(), level.trim().to_owned()]);
    }
    Ok(flags)
}
