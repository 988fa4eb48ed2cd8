//! Mounts the root file system that containerd's snapshotter describes.

use std::collections::HashMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use containerd_shim_protos::api::Mount;
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags, mount, mount_remount, unmount};

use crate::sys;

/// The kernel takes a page of options, the zero byte at their end included.
const MAX_DATA: usize = 4096;

/// Options of mount(8) that are flags: name, flag, whether it is set or cleared.
const FLAGS: &[(&str, MountFlags, bool)] = &[
    ("async", MountFlags::SYNCHRONOUS, false),
    ("atime", MountFlags::NOATIME, false),
    ("dev", MountFlags::NODEV, false),
    ("diratime", MountFlags::NODIRATIME, false),
    ("dirsync", MountFlags::DIRSYNC, true),
    ("exec", MountFlags::NOEXEC, false),
    ("noatime", MountFlags::NOATIME, true),
    ("nodev", MountFlags::NODEV, true),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("noexec", MountFlags::NOEXEC, true),
    ("norelatime", MountFlags::RELATIME, false),
    ("nostrictatime", MountFlags::STRICTATIME, false),
    ("nosuid", MountFlags::NOSUID, true),
    ("relatime", MountFlags::RELATIME, true),
    ("ro", MountFlags::RDONLY, true),
    ("rw", MountFlags::RDONLY, false),
    ("strictatime", MountFlags::STRICTATIME, true),
    ("suid", MountFlags::NOSUID, false),
    ("sync", MountFlags::SYNCHRONOUS, true),
];

/// What a mount's options say.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    flags: MountFlags,
    /// A bind mount, with what is mounted below it or without.
    bind: Option<bool>,
    data: Vec<String>,
}

impl Options {
    fn parse(options: &[String]) -> Result<Self> {
        let mut parsed = Self {
            flags: MountFlags::empty(),
            bind: None,
            data: Vec::new(),
        };
        for option in options {
            match option.as_str() {
                "" | "defaults" => (),
                "bind" => parsed.bind = Some(false),
                "rbind" => parsed.bind = Some(true),
                "loop" => bail!("option loop: images are not mounted by the shim"),
                name => match FLAGS.iter().find(|(known, ..)| *known == name) {
                    Some((_, flag, set)) => parsed.flags.set(*flag, *set),
                    None => parsed.data.push(name.to_owned()),
                },
            }
        }
        Ok(parsed)
    }
}

/// Mounts one after the other onto `target`; nothing stays mounted after an error.
///
/// # Errors
/// A mount that fails, named by its type, source and target.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<()> {
    for described in mounts {
        if let Err(error) = mount_one(described, target) {
            unmount_all(target)?;
            return Err(error).with_context(|| {
                format!(
                    "cannot mount {} {} at {}",
                    described.type_,
                    described.source,
                    target.display()
                )
            });
        }
    }
    Ok(())
}

fn mount_one(described: &Mount, target: &Path) -> Result<()> {
    std::fs::create_dir_all(target)?;
    let options = Options::parse(&described.options)?;
    let source = Path::new(&described.source);
    if let Some(recursive) = options
        .bind
        .or((described.type_ == "bind").then_some(false))
    {
        let recursive = match recursive {
            true => MountFlags::REC,
            false => MountFlags::empty(),
        };
        mount(source, target, "none", MountFlags::BIND | recursive, None)?;
        if !options.flags.is_empty() {
            mount_remount(target, MountFlags::BIND | options.flags, "")?;
        }
        return Ok(());
    }
    let data = CString::new(options.data.join(","))?;
    if data.as_bytes_with_nul().len() <= MAX_DATA {
        return Ok(mount(
            source,
            target,
            &*described.type_,
            options.flags,
            &*data,
        )?);
    }
    ensure!(described.type_ == "overlay", "the options are too long");
    let (base, data) = relative(&options.data)?;
    let data = CString::new(data)?;
    ensure!(
        data.as_bytes_with_nul().len() <= MAX_DATA,
        "too many layers"
    );
    let target = std::path::absolute(target)?;
    // In a thread, whose working directory is nobody else's.
    let mounted = std::thread::scope(|scope| {
        let mounting = scope.spawn(|| -> Result<()> {
            sys::own_working_directory()?;
            std::env::set_current_dir(&base)?;
            Ok(mount(source, &target, "overlay", options.flags, &*data)?)
        });
        mounting.join()
    });
    match mounted {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Options of an overlay with all lower directories relative to the directory that they have in common.
fn relative(data: &[String]) -> Result<(PathBuf, String)> {
    let options: HashMap<&str, &str> = data
        .iter()
        .map(|option| option.split_once('=').unwrap_or((option, "")))
        .collect();
    let lower = options.get("lowerdir").context("no lowerdir")?;
    let layers: Vec<&Path> = lower.split(':').map(Path::new).collect();
    let mut base = layers[0].parent().context("no lowerdir")?;
    while !layers.iter().all(|layer| layer.starts_with(base)) {
        base = base.parent().context("no common directory")?;
    }
    let mut short = Vec::new();
    for layer in &layers {
        let layer = layer.strip_prefix(base)?.to_str();
        short.push(layer.context("no text")?);
    }
    let rest = data
        .iter()
        .filter(|option| !option.starts_with("lowerdir="));
    let all: Vec<String> = [format!("lowerdir={}", short.join(":"))]
        .into_iter()
        .chain(rest.cloned())
        .collect();
    Ok((base.to_owned(), all.join(",")))
}

/// Unmounts everything from `target`.
///
/// # Errors
/// The kernel's.
pub fn unmount_all(target: &Path) -> Result<()> {
    loop {
        match unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => (),
            // Not mounted, or not there.
            Err(Errno::INVAL | Errno::NOENT) => return Ok(()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot unmount {}", target.display()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn options_are_told_apart() {
        let options = Options::parse(&strings(&["rbind", "ro", "nosuid", "suid", "x=y"])).unwrap();
        assert_eq!(options.bind, Some(true));
        assert_eq!(options.flags, MountFlags::RDONLY);
        assert_eq!(options.data, ["x=y"]);
        assert!(Options::parse(&strings(&["loop"])).is_err());
    }

    #[test]
    fn long_options_of_overlays_become_short() {
        let data = strings(&["index=off", "lowerdir=/s/1/fs:/s/22/fs", "upperdir=/s/3/fs"]);
        assert_eq!(
            relative(&data).unwrap(),
            (
                PathBuf::from("/s"),
                "lowerdir=1/fs:22/fs,index=off,upperdir=/s/3/fs".to_owned()
            )
        );
        assert!(relative(&strings(&["upperdir=/x"])).is_err());
    }

    #[test]
    fn an_overlay_of_a_hundred_layers_is_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let layers: Vec<String> = (0..100)
            .map(|number| {
                let layer = dir.path().join(format!("{number:028}")).join("fs");
                std::fs::create_dir_all(&layer).unwrap();
                std::fs::write(layer.join(number.to_string()), "").unwrap();
                layer.display().to_string()
            })
            .collect();
        let target = dir.path().join("target");
        let described = Mount {
            type_: "overlay".to_owned(),
            source: "overlay".to_owned(),
            options: vec![format!("lowerdir={}", layers.join(":"))],
            ..Default::default()
        };
        mount_all(&[described], &target).unwrap();
        let count = std::fs::read_dir(&target).unwrap().count();
        unmount_all(&target).unwrap();
        assert_eq!(count, 100);
        assert_eq!(std::fs::read_dir(&target).unwrap().count(), 0);
    }
}
