//! Bind mounts with mappings of their own (`uidMappings`, `gidMappings`, options `idmap` and `ridmap`).
//!
//! libcontainer would mount them without the mapping. The mapping takes privileges over the file system, so the runtime
//! clones and maps the source before anything is forked; the init process attaches the clone to its place, in the order of
//! the specification.

use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use nix_of_libcontainer::sched::CloneFlags;
use oci_spec::runtime::{LinuxIdMapping, Mount, Spec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::mount::{MountAttrFlags, OpenTreeFlags};
use rustix::process::Signal;

use crate::{nodes, sys};

/// The mapped clones of sources, each with the index of its mount in the specification.
#[derive(Debug, Default)]
pub struct IdMapped(Vec<(usize, OwnedFd)>);

impl IdMapped {
    /// Clones and maps the sources of all mounts that ask for it, and takes the request from the specification.
    ///
    /// # Errors
    /// A mount is no bind mount, has no mapping, or its file system cannot be mapped; the mount is named.
    pub fn prepare(spec: &mut Spec) -> Result<Self> {
        let linux = spec.linux().clone().unwrap_or_default();
        let mut mapped = Vec::new();
        for (at, mount) in spec.mounts_mut().iter_mut().flatten().enumerate() {
            let Some(recursive) = is_asked_for(mount) else {
                continue;
            };
            let place = mount.destination().display().to_string();
            let own = |list: &Option<Vec<LinuxIdMapping>>,
                       container: &Option<Vec<LinuxIdMapping>>| {
                let list = list.clone().filter(|list| !list.is_empty());
                list.or(container.clone()).unwrap_or_default()
            };
            let uids = own(mount.uid_mappings(), linux.uid_mappings());
            let gids = own(mount.gid_mappings(), linux.gid_mappings());
            ensure!(
                !uids.is_empty() && !gids.is_empty(),
                "mount of {place}: id-mapped, but there are no mappings of user and group ids"
            );
            ensure!(
                libcontainer::rootfs::utils::is_bind(mount),
                "mount of {place}: only bind mounts can be id-mapped"
            );
            let clone = clone_mapped(mount, &uids, &gids, recursive)
                .with_context(|| format!("mount of {place}: cannot map ids"))?;
            mapped.push((at, clone));
            let mut options = mount.options().clone().unwrap_or_default();
            options.retain(|option| option != "idmap" && option != "ridmap");
            mount.set_options(Some(options));
            mount.set_uid_mappings(None);
            mount.set_gid_mappings(None);
        }
        Ok(Self(mapped))
    }

    /// The clone for the mount with this index, if it is mapped.
    pub fn source(&self, at: usize) -> Option<&OwnedFd> {
        self.0
            .iter()
            .find_map(|(of, clone)| (*of == at).then_some(clone))
    }
}

/// Attaches a clone to the place of its mount below `rootfs`.
///
/// # Errors
/// The place cannot be made, or an attribute cannot be set.
pub fn attach(rootfs: &OwnedFd, mount: &Mount, clone: &OwnedFd) -> Result<()> {
    let attach = || -> Result<()> {
        for recursive in [false, true] {
            let set = attributes(mount, recursive);
            if !set.is_empty() {
                sys::set_mount_attributes(clone, set, None, recursive)?;
            }
        }
        let is_dir =
            FileType::from_raw_mode(rustix::fs::fstat(clone)?.st_mode) == FileType::Directory;
        let place = nodes::place(rootfs, mount.destination(), is_dir)?;
        Ok(nodes::attach(clone, &place)?)
    };
    attach().with_context(|| format!("mount of {}", mount.destination().display()))
}

/// The attributes that the options set, for the mount alone or for all below it too.
fn attributes(mount: &Mount, recursive: bool) -> MountAttrFlags {
    let mut set = MountAttrFlags::empty();
    for option in mount.options().iter().flatten() {
        let name = match (recursive, option.strip_prefix('r')) {
            (false, _) => option.as_str(),
            (true, Some(name)) => name,
            (true, None) => continue,
        };
        set |= match name {
            "ro" => MountAttrFlags::MOUNT_ATTR_RDONLY,
            "nosuid" => MountAttrFlags::MOUNT_ATTR_NOSUID,
            "nodev" => MountAttrFlags::MOUNT_ATTR_NODEV,
            "noexec" => MountAttrFlags::MOUNT_ATTR_NOEXEC,
            "nodiratime" => MountAttrFlags::MOUNT_ATTR_NODIRATIME,
            _ => MountAttrFlags::empty(),
        };
    }
    set
}

/// Whether a mount is to be mapped, and with what is mounted below its source.
fn is_asked_for(mount: &Mount) -> Option<bool> {
    let has = |wanted: &str| {
        mount
            .options()
            .iter()
            .flatten()
            .any(|option| option == wanted)
    };
    let mapped =
        |list: &Option<Vec<LinuxIdMapping>>| list.as_ref().is_some_and(|list| !list.is_empty());
    let asked = has("idmap")
        || has("ridmap")
        || mapped(mount.uid_mappings())
        || mapped(mount.gid_mappings());
    asked.then(|| has("ridmap"))
}

fn clone_mapped(
    mount: &Mount,
    uids: &[LinuxIdMapping],
    gids: &[LinuxIdMapping],
    recursive: bool,
) -> Result<OwnedFd> {
    let source: PathBuf = mount.source().clone().context("no source")?;
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let rbind = mount
        .options()
        .iter()
        .flatten()
        .any(|option| option == "rbind");
    flags.set(OpenTreeFlags::AT_RECURSIVE, rbind);
    let clone = rustix::mount::open_tree(rustix::fs::CWD, &source, flags)
        .with_context(|| source.display().to_string())?;
    let namespace = user_namespace(uids, gids)?;
    sys::set_mount_attributes(
        &clone,
        MountAttrFlags::empty(),
        Some(namespace.as_fd()),
        recursive,
    )
    .with_context(|| source.display().to_string())?;
    Ok(clone)
}

/// A user namespace with these mappings: a process makes it and waits until it has been opened.
fn user_namespace(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> Result<OwnedFd> {
    let (ready, tell) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let child = sys::fork(|| {
        let made = libcontainer::syscall::syscall::create_syscall()
            .unshare(CloneFlags::CLONE_NEWUSER)
            .is_ok();
        // Ends with the pipe's other end, or by the signal below.
        let _ = rustix::io::write(&tell, &[u8::from(made)]);
        loop {
            std::thread::park();
        }
    })?;
    let open = || -> Result<OwnedFd> {
        let mut made = [0];
        rustix::io::read(&ready, &mut made)?;
        ensure!(made == [1], "cannot make a user namespace");
        for (file, mappings) in [("uid_map", uids), ("gid_map", gids)] {
            let line = |map: &LinuxIdMapping| {
                format!("{} {} {}\n", map.container_id(), map.host_id(), map.size())
            };
            let text: String = mappings.iter().map(line).collect();
            std::fs::write(format!("/proc/{child}/{file}"), &text)
                .with_context(|| format!("cannot write {file}: {text:?}"))?;
        }
        let path = format!("/proc/{child}/ns/user");
        Ok(rustix::fs::open(
            path,
            OFlags::RDONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )?)
    };
    let opened = open();
    if let Some(pid) = rustix::process::Pid::from_raw(child) {
        rustix::process::kill_process(pid, Signal::KILL)?;
        rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty())?;
    }
    opened
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_become_attributes() {
        let mount: Mount = serde_json::from_value(
            serde_json::json!({"destination": "/a", "options": ["rbind", "ro", "rnosuid", "nodev"]}),
        )
        .unwrap();
        let (ro, dev) = (
            MountAttrFlags::MOUNT_ATTR_RDONLY,
            MountAttrFlags::MOUNT_ATTR_NODEV,
        );
        assert_eq!(attributes(&mount, false), ro | dev);
        assert_eq!(attributes(&mount, true), MountAttrFlags::MOUNT_ATTR_NOSUID);
    }
}
