//! Conversion of the demo image against `umoci unpack` and `mksquashfs` with equal compression; of the largest image against
//! all steps from a registry's layers to a hash tree, with the memory that it takes; the hash tree alone.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::{Effort, Table, timed};
use crate::command::{line, ok, shown};
use crate::fixtures::{Fixtures, NAME};
use crate::image::real::BIG;

/// How often the memory of a conversion is looked at.
const SAMPLE: Duration = Duration::from_millis(10);

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
        let squash = mksquashfs(&unpacked, &theirs, &flags);
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

/// The largest image: 1.5 GB, 2.2 GB unpacked.
pub(super) fn run_big(fixtures: &Fixtures, effort: Effort) -> Result<()> {
    let image = BIG.image(&fixtures.programs.cache())?;
    fixtures.pki()?;
    let mut table = Table::new(
        "conversion of the largest image",
        &[
            "skopeo, umoci, mksquashfs, veritysetup",
            "trustme-convert convert",
        ],
    );
    let mut tree = Table::new(
        "hash tree of its root image",
        &["veritysetup format", "trustme-convert verity"],
    );
    for _ in 0..effort.runs(1, 3) {
        let dir = tempfile::Builder::new()
            .prefix("trustme-bench-")
            .tempdir()?;
        let ours = dir.path().join("ours");
        let (time, memory) =
            measured(&mut fixtures.convert_source(&format!("oci:{image}"), &ours, 1)?)?;
        table.rows[1].times.push(time);
        let root = ours.join(format!("{NAME}-1/root.img"));
        let flags = compression_of(&root)?;
        table.rows[1].note = format!(
            "{} MiB, peak memory {} MB, {}",
            fs::metadata(&root)?.len() >> 20,
            memory / 1_000_000,
            flags.join(" ")
        );
        for (row, program) in [(0, "veritysetup"), (1, "trustme-convert")] {
            let hash = dir.path().join("hash.img");
            let mut command = match row {
                0 => line("veritysetup format"),
                _ => fixtures.programs.command(program, "verity"),
            };
            command.arg(&root).arg(&hash);
            tree.rows[row].times.push(timed(&mut [command])?);
            fs::remove_file(&hash)?;
        }
        fs::remove_dir_all(&ours)?;

        let copied = dir.path().join("copied");
        let unpacked = dir.path().join("unpacked");
        let (theirs, hash) = (dir.path().join("theirs.img"), dir.path().join("hash.img"));
        let mut copy = line("skopeo copy --quiet");
        copy.arg(format!("oci:{image}"))
            .arg(format!("oci:{}:image", copied.display()));
        let mut unpack = line("umoci unpack --image");
        unpack
            .arg(format!("{}:image", copied.display()))
            .arg(&unpacked);
        let squash = mksquashfs(&unpacked, &theirs, &flags);
        let mut verity = line("veritysetup format");
        verity.arg(&theirs).arg(&hash);
        table.rows[0]
            .times
            .push(timed(&mut [copy, unpack, squash, verity])?);
        table.rows[0].note = format!("{} MiB", fs::metadata(&theirs)?.len() >> 20);
    }
    table.print();
    tree.print();
    Ok(())
}

/// mksquashfs of a tree that umoci unpacked.
fn mksquashfs(unpacked: &Path, image: &Path, flags: &[String]) -> Command {
    let mut squash = line("mksquashfs");
    squash
        .arg(unpacked.join("rootfs"))
        .arg(image)
        .args(["-noappend", "-quiet", "-no-progress", "-xattrs"])
        .args(flags);
    squash
}

/// How long a command takes, and how many bytes of memory: the peaks of all its processes together, which is never less than
/// what they had at one time.
fn measured(command: &mut Command) -> Result<(Duration, u64)> {
    let shown = shown(command);
    let begin = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let mut peaks = std::collections::BTreeMap::new();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        for process in processes(child.id()) {
            if let Some(peak) = peak(process) {
                peaks.insert(process, peak);
            }
        }
        std::thread::sleep(SAMPLE);
    };
    let time = begin.elapsed();
    ensure!(status.success(), "{shown}: {status}");
    Ok((time, peaks.values().sum()))
}

/// A process and those that it started.
fn processes(parent: u32) -> Vec<u32> {
    let mut found = vec![parent];
    let mut next = 0;
    while let Some(process) = found.get(next) {
        let tasks = fs::read_dir(format!("/proc/{process}/task"));
        for task in tasks.into_iter().flatten().flatten() {
            let children = fs::read_to_string(task.path().join("children")).unwrap_or_default();
            found.extend(
                children
                    .split_whitespace()
                    .filter_map(|child| child.parse::<u32>().ok()),
            );
        }
        next += 1;
    }
    found
}

/// The most memory that a process ever had, in bytes; nothing where it has ended.
fn peak(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kibibytes << 10)
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
