//! What a container has left behind: mounts, loop devices, cgroups, processes, files.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// Processes and mounts that are on their way out get this long.
const PATIENCE: Duration = Duration::from_secs(5);

/// Asserts that nothing is left of anything below the directory `dir` or of a container whose id begins with `id`.
///
/// # Errors
/// Names all that is left.
pub fn assert_none(dir: &Path, id: &str) -> Result<()> {
    let begin = Instant::now();
    loop {
        let found = find(dir, id)?;
        if found.is_empty() {
            return Ok(());
        }
        ensure!(
            begin.elapsed() < PATIENCE,
            "left behind:\n  {}",
            found.join("\n  ")
        );
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// All that is left, a line each.
///
/// # Errors
/// /proc or /sys cannot be read.
pub fn find(dir: &Path, id: &str) -> Result<Vec<String>> {
    let mut found = Vec::new();
    mounts(dir, &mut found)?;
    devices(dir, &mut found)?;
    cgroups(Path::new("/sys/fs/cgroup"), id, &mut found);
    processes(dir, id, &mut found)?;
    Ok(found)
}

fn mounts(dir: &Path, found: &mut Vec<String>) -> Result<()> {
    let table = fs::read_to_string("/proc/self/mountinfo")?;
    let dir = dir.to_string_lossy();
    let lines = table.lines().filter(|line| line.contains(&*dir));
    found.extend(lines.map(|line| format!("mount: {line}")));
    Ok(())
}

fn devices(dir: &Path, found: &mut Vec<String>) -> Result<()> {
    for entry in fs::read_dir("/sys/block")? {
        let device = entry?.path();
        // Unattached loop devices have no such file.
        if let Ok(backing) = fs::read_to_string(device.join("loop/backing_file"))
            && Path::new(backing.trim()).starts_with(dir)
        {
            found.push(format!(
                "loop device: {} on {}",
                device.display(),
                backing.trim()
            ));
        }
        if let Ok(name) = fs::read_to_string(device.join("dm/name"))
            && name.starts_with("trustme-")
        {
            found.push(format!("device-mapper device: {}", name.trim()));
        }
    }
    Ok(())
}

/// Cgroups vanish while one looks, so what cannot be read is not there.
fn cgroups(dir: &Path, id: &str, found: &mut Vec<String>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        if entry.file_name().to_string_lossy().contains(id) {
            found.push(format!("cgroup: {}", entry.path().display()));
        } else {
            cgroups(&entry.path(), id, found);
        }
    }
}

fn processes(dir: &Path, id: &str, found: &mut Vec<String>) -> Result<()> {
    let dir = dir.to_string_lossy();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        // What cannot be read has ended.
        let read = |file: &str| {
            let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
            String::from_utf8_lossy(&bytes).replace('\0', " ")
        };
        let command = read("cmdline");
        let named = |text: &str| text.contains(&*dir) || text.contains(id);
        let holds = fs::read_dir(entry.path().join("fd"))
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|fd| fs::read_link(fd.path()).ok())
            .any(|target| target.starts_with(&*dir));
        if named(&command) || named(&read("cgroup")) || read("mountinfo").contains(&*dir) || holds {
            found.push(format!("process: {pid} {command}"));
        }
    }
    Ok(())
}
