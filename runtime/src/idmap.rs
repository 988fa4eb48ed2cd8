//! Bind mounts with mappings of their own (`uidMappings`, `gidMappings`, options `idmap` and `ridmap`).
//!
//! libcontainer would mount them without the mapping. The mapping takes privileges over the file system, so the runtime
//! clones and maps the source before anything is forked; the init process attaches the clones to a tmpfs that only its
//! mount namespace sees, and gives them to libcontainer as sources.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use nix_of_libcontainer::sched::CloneFlags;
use oci_spec::runtime::{LinuxIdMapping, Mount, Spec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::mount::{MountAttrFlags, MountFlags, OpenTreeFlags};
use rustix::process::Signal;

use crate::{nodes, sys};

/// Name of the directory, in the container's state directory, that the tmpfs is mounted on.
const DIRECTORY: &str = "mounts";

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

    /// Makes the directory, below the state directory, for [`IdMapped::attach`].
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make_place(&self, state_dir: &Path) -> Result<()> {
        match self.0.is_empty() {
            true => Ok(()),
            false => std::fs::create_dir(state_dir.join(DIRECTORY))
                .context("cannot make a directory for mounts"),
        }
    }

    /// Attaches the clones, in the container's mount namespace, and names them as sources.
    ///
    /// # Errors
    /// As move_mount(2).
    pub fn attach(&self, spec: &mut Spec, state_dir: &Path) -> Result<()> {
        if self.0.is_empty() {
            return Ok(());
        }
        let dir = state_dir.join(DIRECTORY);
        // Nothing of this may be seen outside.
        let flags = rustix::mount::MountPropagationFlags::DOWNSTREAM
            | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", flags)?;
        rustix::mount::mount("tmpfs", &dir, "tmpfs", MountFlags::empty(), c"mode=700")
            .context("cannot mount a place for id-mapped mounts")?;
        let mounts = spec.mounts_mut().get_or_insert_default();
        for (at, clone) in &self.0 {
            let path = dir.join(at.to_string());
            let place = place_like(clone, &path)?;
            nodes::attach(clone, &place).context("cannot attach an id-mapped mount")?;
            let mount = mounts.get_mut(*at).context("a mount is gone")?;
            mount.set_source(Some(path));
        }
        Ok(())
    }
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

/// An empty directory or file, as what is to be attached there.
fn place_like(mount: &OwnedFd, path: &Path) -> Result<OwnedFd> {
    match FileType::from_raw_mode(rustix::fs::fstat(mount)?.st_mode) {
        FileType::Directory => std::fs::create_dir(path)?,
        FileType::Symlink => bail!("a symbolic link cannot be mounted"),
        _ => drop(std::fs::File::create_new(path)?),
    }
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::open(path, flags, Mode::empty())?)
}
