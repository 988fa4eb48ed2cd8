//! A container is built: what `create` and `run` have in common.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use chrono::Utc;
use libcontainer::container::{ContainerStatus, State};
use nix::sys::signal::SigSet;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use trustme_config::LaunchMode;

use crate::cgroup::Cgroups;
use crate::creation::{Creation, Journal};
use crate::executor::Program;
use crate::launch::{self, Launch};
use crate::process::{self, Request};
use crate::root::Root;
use crate::state::{CONFIG_FILE, Container, ProcessStat, Record, START_SOCKET, write_whole};
use crate::{bundle, mounts, terminal};

/// What the command line says of the container.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Container id.
    pub id: &'a str,
    /// The bundle as the caller named it.
    pub bundle: &'a Path,
    /// Socket for the terminal.
    pub console_socket: Option<&'a Path>,
    /// File for the pid of the init process.
    pub pid_file: Option<&'a Path>,
    /// Change the root by a move of the mount.
    pub no_pivot: bool,
    /// Keep the caller's session keyring.
    pub no_new_keyring: bool,
    /// Number of file descriptors after standard error that the process keeps.
    pub preserve_fds: i32,
    /// The caller does not wait for the container.
    pub detach: bool,
    /// The cgroup is a systemd scope.
    pub systemd_cgroup: bool,
    /// The signal mask that the container's program gets.
    pub signals: SigSet,
}

/// A container that waits for its start.
#[derive(Debug)]
pub struct Built {
    /// The container.
    pub container: Container,
    /// The master of its terminal, if the caller is to serve it.
    pub master: Option<OwnedFd>,
}

impl Plan<'_> {
    /// Builds the container.
    ///
    /// # Errors
    /// If it cannot be built; then nothing of it is left.
    pub fn build(&self, root: &Root) -> Result<Built> {
        let pid_file = self.pid_file.map(std::path::absolute).transpose()?;
        let console_socket = self.console_socket.map(std::path::absolute).transpose()?;
        crate::root::validate_id(self.id)?;
        let bundle = bundle::enter(self.bundle)?;
        let mut config = bundle::read_config(&bundle)?;
        let mut spec = bundle::parse(&config, &bundle)?;
        bundle::check(&spec)?;
        let mode = launch::mode()?;

        // Dropped after the creation, which first ends the processes that use what the launch has opened.
        let mut launch = None;
        let mut creation = Creation::begin(root, self.id)?;
        let mut source = bundle.clone();
        if mode != LaunchMode::Off {
            creation.note(Journal {
                launch: Some(root.launch(self.id)),
                ..Journal::default()
            })?;
            let allowed = Launch::begin(root, self.id, &bundle, &config, &spec)?;
            source = allowed.bundle();
            config = bundle::read_config(&source)?;
            spec = bundle::parse(&config, &source)?;
            bundle::check(&spec)?;
            launch = Some(allowed);
        }
        bundle::adapt(&mut spec, &source, self.id)?;
        let process = spec
            .process()
            .as_ref()
            .context("process property must not be empty")?
            .clone();
        terminal::check(&process, self.detach, console_socket.as_deref())?;

        let cgroups = cgroups_of(&spec, self.systemd_cgroup)?;
        creation.note(Journal {
            cgroups: cgroups.clone(),
            pid_file: pid_file.clone(),
            launch: launch.as_ref().map(|launch| launch.dir().to_path_buf()),
        })?;
        write_whole(&creation.dir().join(CONFIG_FILE), &config)?;

        let step = mounts::adapt(&mut spec, &cgroups)?;
        let channel = (process.terminal() == Some(true))
            .then(terminal::Channel::new)
            .transpose()?;
        let record = self.record(&spec, bundle, cgroups, launch.is_some());
        let start_socket = creation.dir().join(START_SOCKET);
        let owner = process::host_uid(&spec);
        let request = Request {
            id: self.id,
            state: creating_state(&record),
            cgroups: &record.cgroups,
            start_socket: &start_socket,
            terminal: channel.as_ref(),
            preserve_fds: self.preserve_fds,
            no_pivot: self.no_pivot,
            new_keyring: !self.no_new_keyring,
            step,
            program: Program::new(self.signals),
        };
        let created = request.create(spec)?;
        let pid = created.pid;

        let master = channel
            .map(|channel| channel.receive(&process, owner))
            .transpose()?;
        let master = match (master, &console_socket) {
            (Some(master), Some(socket)) => {
                terminal::send_to(socket, &master)?;
                None
            }
            (master, _) => master,
        };
        let mut container = Container {
            dir: creation.dir().to_path_buf(),
            record,
        };
        container.record.pid = pid;
        container.record.pid_start = ProcessStat::of(pid)
            .context("the init process has ended")?
            .start;
        container.record.intel_rdt = created.intel_rdt;
        container.record.intel_rdt_monitoring = created.intel_rdt_monitoring;
        if let Some(pid_file) = &pid_file {
            write_whole(pid_file, pid.to_string().as_bytes())?;
        }
        container.save()?;
        if let Some(launch) = &mut launch {
            launch.keep();
        }
        creation.finish()?;
        Ok(Built { container, master })
    }

    fn record(&self, spec: &Spec, bundle: PathBuf, cgroups: Cgroups, launch: bool) -> Record {
        let hooks = spec.hooks().as_ref();
        let namespaces = spec
            .linux()
            .as_ref()
            .and_then(|linux| linux.namespaces().as_deref());
        let own = |kind| {
            namespaces
                .unwrap_or_default()
                .iter()
                .any(|ns| ns.typ() == kind && ns.path().is_none())
        };
        Record {
            oci_version: spec.version().clone(),
            id: self.id.to_owned(),
            pid: 0,
            pid_start: 0,
            started: false,
            bundle,
            rootfs: spec
                .root()
                .as_ref()
                .map(|root| root.path().clone())
                .unwrap_or_default(),
            created: Utc::now(),
            owner: rustix::process::geteuid().as_raw(),
            annotations: spec.annotations().clone().unwrap_or_default(),
            cgroups,
            own_pid_namespace: own(LinuxNamespaceType::Pid),
            launch,
            poststart: hooks
                .and_then(|hooks| hooks.poststart().clone())
                .unwrap_or_default(),
            poststop: hooks
                .and_then(|hooks| hooks.poststop().clone())
                .unwrap_or_default(),
            intel_rdt: None,
            intel_rdt_monitoring: None,
        }
    }
}

/// The state that hooks get while the container is being built.
fn creating_state(record: &Record) -> State {
    let mut state = State::new(
        &record.id,
        ContainerStatus::Creating,
        None,
        record.bundle.clone(),
    );
    state.oci_version = record.oci_version.clone();
    state.annotations = Some(record.annotations.clone());
    state
}

fn cgroups_of(spec: &Spec, systemd: bool) -> Result<Cgroups> {
    let path = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.cgroups_path().as_deref());
    Cgroups::locate(path.context("no cgroupsPath")?, systemd)
}
