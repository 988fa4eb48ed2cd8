//! A container, and what is done with it.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use containerd_shim_protos::api::{CreateTaskRequest, ExecProcessRequest, Status};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use rustix::io::Errno;

use crate::bundle::{Config, PID_FILE};
use crate::cgroup::Cgroups;
use crate::console::ConsoleSocket;
use crate::events::Event;
use crate::exits::{Exit, Member};
use crate::failure;
use crate::options::Options;
use crate::process::Process;
use crate::runtime::{Call, Runtime};
use crate::service::Shim;
use crate::stdio::{Ends, Owner, Paths, Pipes, Streams};
use crate::{log, mounts, stats, sys};

/// Where containerd's snapshot is mounted, in the bundle.
pub const ROOTFS: &str = "rootfs";

/// A container.
#[derive(Debug)]
pub struct Container {
    /// Its name.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// Its first process.
    pub init: Arc<Process>,
    options: Options,
    runtime: Runtime,
    own_pids: bool,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    /// Held by commands of the runtime that must not run at the same time.
    operation: Mutex<()>,
    paused: AtomicBool,
    cgroups: Option<Cgroups>,
}

/// What a process is connected with, while the runtime makes it.
enum Connecting {
    Pipes(Pipes),
    Console(ConsoleSocket),
}

impl Container {
    /// Creates it.
    ///
    /// # Errors
    /// Whatever keeps it from being created; nothing is left then.
    pub fn create(shim: &'static Shim, request: &CreateTaskRequest) -> Result<Arc<Self>> {
        if !request.checkpoint.is_empty() {
            return Err(failure::unimplemented(
                "containers cannot be restored from a checkpoint",
            ));
        }
        let bundle = PathBuf::from(&request.bundle);
        let options = Options::from_any(request.options.as_ref())?;
        let config = Config::read(&bundle)?;
        options.keep(&bundle)?;
        let rootfs = bundle.join(ROOTFS);
        mounts::mount_all(&request.rootfs, &rootfs)?;
        let created = Self::create_mounted(shim, request, bundle, options, &config);
        if created.is_err() {
            mounts::unmount_all(&rootfs)?;
        }
        created
    }

    fn create_mounted(
        shim: &'static Shim,
        request: &CreateTaskRequest,
        bundle: PathBuf,
        options: Options,
        config: &Config,
    ) -> Result<Arc<Self>> {
        let id = &request.id;
        let runtime = Runtime::new(&options, &shim.namespace, &bundle);
        let paths = Paths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let owner = Owner {
            namespace: &shim.namespace,
            id,
            uid: options.io_uid,
            gid: options.io_gid,
        };
        let pid_file = bundle.join(PID_FILE);
        let mut call = runtime.call("create").arg("--bundle").arg(&bundle);
        call = call.arg("--pid-file").arg(&pid_file);
        if options.no_pivot_root {
            call = call.arg("--no-pivot");
        }
        if options.no_new_keyring {
            call = call.arg("--no-new-keyring");
        }
        let claim = shim.exits.claim();
        let (call, connecting) = prepare(shim, call, &paths, owner)?;
        call.arg(id)
            .run(&shim.exits)
            .context("OCI runtime create failed")?;
        let made =
            read_pid(&pid_file).and_then(|pid| Ok((pid, connecting.connect(shim, &paths, owner)?)));
        let (pid, streams) = match made {
            Ok(made) => made,
            Err(error) => {
                let delete = runtime.call("delete").arg("--force").arg(id);
                if let Err(more) = delete.run(&shim.exits) {
                    log::warning(&format!("{more:#}"));
                }
                return Err(error);
            }
        };
        let init = Process::new(String::new(), paths, Vec::new());
        init.made(pid, streams);
        let container = Arc::new(Self {
            id: id.clone(),
            bundle,
            init,
            options,
            runtime,
            own_pids: config.has_own_pids(),
            execs: Mutex::default(),
            operation: Mutex::default(),
            paused: AtomicBool::new(false),
            // A container may have no limits and no cgroup.
            cgroups: Cgroups::of(pid).ok(),
        });
        shim.events.publish(Event::create(request, pid));
        let member = Member {
            container: Arc::clone(&container),
            process: Arc::clone(&container.init),
        };
        if let Some(exit) = claim.watch(pid, member) {
            container.ended(shim, &container.init, pid, exit);
        }
        Ok(container)
    }

    fn operation(&self) -> MutexGuard<'_, ()> {
        self.operation
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first process, or that of an exec.
    ///
    /// # Errors
    /// There is no such exec.
    pub fn process(&self, exec: &str) -> Result<Arc<Process>> {
        if exec.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let execs = self.execs();
        let found = execs.get(exec).cloned();
        found.ok_or_else(|| failure::not_found(format!("process does not exist {exec}")))
    }

    /// A process's state.
    pub fn status(&self, process: &Process) -> Status {
        match process.status() {
            Status::RUNNING if self.paused.load(Ordering::SeqCst) => Status::PAUSED,
            other => other,
        }
    }

    /// A process has ended.
    pub fn ended(self: &Arc<Self>, shim: &'static Shim, process: &Process, pid: i32, exit: Exit) {
        process.ended(&self.id, pid, exit, &shim.events, &shim.relay);
        if process.exec.is_empty() && !self.own_pids {
            // The kernel does not end the others.
            let container = Arc::clone(self);
            std::thread::spawn(move || {
                let _operation = container.operation();
                let kill = container.runtime.call("kill").arg("--all");
                if let Err(error) = kill.arg(&container.id).arg("KILL").run(&shim.exits) {
                    log::debug(|| format!("{error:#}"));
                }
            });
        }
    }

    /// Announces an exec.
    ///
    /// # Errors
    /// There is one with this id.
    pub fn exec(&self, shim: &Shim, request: &ExecProcessRequest) -> Result<()> {
        let paths = Paths {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        };
        let exec = &request.exec_id;
        let mut execs = self.execs();
        if exec.is_empty() || execs.contains_key(exec) {
            return Err(failure::already_exists(format!("id {exec}")));
        }
        let process = Process::new(exec.clone(), paths, request.spec.value.clone());
        execs.insert(exec.clone(), process);
        drop(execs);
        shim.events.publish(Event::exec_added(&self.id, exec));
        Ok(())
    }

    /// Starts a process; its pid.
    ///
    /// # Errors
    /// The runtime's.
    pub fn start(self: &Arc<Self>, shim: &'static Shim, exec: &str) -> Result<i32> {
        let process = self.process(exec)?;
        process.begin_start()?;
        let started = match exec {
            "" => self.start_init(shim),
            _ => self.start_exec(shim, &process),
        };
        match started {
            Ok(()) => {
                process.started(&self.id, &shim.events, &shim.relay);
                Ok(process.pid())
            }
            Err(error) => {
                process.start_failed(&self.id, &shim.events);
                Err(error)
            }
        }
    }

    fn start_init(&self, shim: &Shim) -> Result<()> {
        let _operation = self.operation();
        if let Some(cgroups) = &self.cgroups
            && let Err(error) = shim.oom.watch(&self.id, cgroups)
        {
            log::debug(|| format!("{}: {error:#}", self.id));
        }
        let start = self.runtime.call("start").arg(&self.id);
        start.run(&shim.exits).context("OCI runtime start failed")
    }

    fn start_exec(self: &Arc<Self>, shim: &Shim, process: &Arc<Process>) -> Result<()> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let spec = self.bundle.join(format!("exec-{number}.json"));
        let pid_file = self.bundle.join(format!("exec-{number}.pid"));
        let started = self.start_exec_from(shim, process, &spec, &pid_file);
        for file in [spec, pid_file] {
            // The second is not there after a failure.
            let _ = fs::remove_file(file);
        }
        started
    }

    fn start_exec_from(
        self: &Arc<Self>,
        shim: &Shim,
        process: &Arc<Process>,
        spec: &Path,
        pid_file: &Path,
    ) -> Result<()> {
        if self.init.exit().is_some() {
            return Err(failure::failed_precondition("the container has stopped"));
        }
        fs::write(spec, &process.spec).with_context(|| spec.display().to_string())?;
        let owner = Owner {
            namespace: &shim.namespace,
            id: &process.exec,
            uid: self.options.io_uid,
            gid: self.options.io_gid,
        };
        let call = self.runtime.call("exec").arg("--process").arg(spec);
        let call = call.arg("--detach").arg("--pid-file").arg(pid_file);
        let claim = shim.exits.claim();
        let (call, connecting) = prepare(shim, call, &process.paths, owner)?;
        call.arg(&self.id)
            .run(&shim.exits)
            .context("OCI runtime exec failed")?;
        let pid = read_pid(pid_file)?;
        // Watched before its streams are connected, which may fail.
        let member = Member {
            container: Arc::clone(self),
            process: Arc::clone(process),
        };
        process.made(pid, Streams::default());
        if let Some(exit) = claim.watch(pid, member) {
            process.ended(&self.id, pid, exit, &shim.events, &shim.relay);
        }
        match connecting.connect(shim, &process.paths, owner) {
            Ok(streams) => process.made(pid, streams),
            Err(error) => {
                signal(
                    process,
                    rustix::process::Signal::KILL.as_raw().cast_unsigned(),
                )?;
                return Err(error);
            }
        }
        Ok(())
    }

    /// Sends a signal to a process, or to all.
    ///
    /// # Errors
    /// It has ended.
    pub fn kill(&self, shim: &Shim, exec: &str, number: u32, all: bool) -> Result<()> {
        let process = self.process(exec)?;
        if process.exit().is_some() && !all {
            return Err(failure::not_found("process already finished"));
        }
        if !exec.is_empty() {
            return signal(&process, number);
        }
        let mut kill = self.runtime.call("kill");
        if all {
            kill = kill.arg("--all");
        }
        let killed = kill.arg(&self.id).arg(number.to_string()).run(&shim.exits);
        killed.map_err(|error| {
            let text = format!("{error:#}");
            let ended = ["process already finished", "not running", "no such process"];
            if ended
                .iter()
                .any(|known| text.to_lowercase().contains(known))
            {
                failure::not_found("process already finished")
            } else if text.contains("does not exist") {
                failure::not_found(format!("no such container: {text}"))
            } else {
                error
            }
        })
    }

    /// Stops all processes, or lets them go on.
    ///
    /// # Errors
    /// The runtime's.
    pub fn pause(&self, shim: &Shim, pause: bool) -> Result<()> {
        let _operation = self.operation();
        let name = if pause { "pause" } else { "resume" };
        let call = self.runtime.call(name).arg(&self.id);
        call.run(&shim.exits)
            .with_context(|| format!("OCI runtime {name} failed"))?;
        self.paused.store(pause, Ordering::SeqCst);
        shim.events.publish(match pause {
            true => Event::paused(&self.id),
            false => Event::resumed(&self.id),
        });
        Ok(())
    }

    /// Sets limits: JSON of OCI resources.
    ///
    /// # Errors
    /// The runtime's.
    pub fn update(&self, shim: &Shim, resources: &[u8]) -> Result<()> {
        let _operation = self.operation();
        let call = self.runtime.call("update").arg("--resources").arg("-");
        call.arg(&self.id)
            .output(&shim.exits, resources)
            .context("OCI runtime update failed")?;
        Ok(())
    }

    /// The pids of all its processes, and the exec that each belongs to, if it is one's first.
    ///
    /// # Errors
    /// The runtime's.
    pub fn pids(&self, shim: &Shim) -> Result<Vec<(u32, Option<String>)>> {
        let call = self.runtime.call("ps").arg("--format").arg("json");
        let printed = call.arg(&self.id).output(&shim.exits, &[])?;
        let pids: Option<Vec<u32>> = serde_json::from_slice(&printed)
            .context("the runtime's list of processes cannot be read")?;
        let execs = self.execs();
        let exec_of = |pid: u32| {
            let mut execs = execs.values();
            let found = execs.find(|exec| exec.pid().cast_unsigned() == pid);
            found.map(|exec| exec.exec.clone())
        };
        let pids = pids.unwrap_or_default().into_iter();
        Ok(pids.map(|pid| (pid, exec_of(pid))).collect())
    }

    /// What it uses.
    ///
    /// # Errors
    /// It is in no cgroup.
    pub fn stats(&self) -> Result<Any> {
        let cgroups = self.cgroups.as_ref();
        stats::of(cgroups.ok_or_else(|| failure::not_found("cgroup does not exist"))?)
    }

    /// Deletes an ended process; its pid and how it ended.
    ///
    /// # Errors
    /// It has not ended, or the runtime's.
    pub fn delete(&self, shim: &Shim, exec: &str) -> Result<(i32, Exit)> {
        let process = self.process(exec)?;
        if process.status() == Status::RUNNING {
            return Err(failure::failed_precondition(
                "cannot delete a running process",
            ));
        }
        if !exec.is_empty() {
            // One that was never started has not ended either.
            let exit = process.exit().unwrap_or_else(|| Exit::now(0));
            process.take_streams().finish(&shim.relay);
            self.execs().remove(exec);
            return Ok((process.pid(), exit));
        }
        let operation = self.operation();
        let delete = self.runtime.call("delete").arg(&self.id);
        if let Err(error) = delete.run(&shim.exits)
            && !format!("{error:#}").contains("does not exist")
        {
            return Err(error.context("OCI runtime delete failed"));
        }
        // One that was never started has been killed by that.
        let exit = process.wait();
        drop(operation);
        shim.oom.forget(&self.id);
        process.take_streams().finish(&shim.relay);
        for exec in self.execs().drain() {
            exec.1.take_streams().finish(&shim.relay);
        }
        mounts::unmount_all(&self.bundle.join(ROOTFS))?;
        shim.events
            .publish(Event::delete(&self.id, "", process.pid(), exit));
        Ok((process.pid(), exit))
    }
}

/// Adds to a runtime's command what connects the process that it makes.
fn prepare(shim: &Shim, call: Call, paths: &Paths, owner: Owner<'_>) -> Result<(Call, Connecting)> {
    if paths.terminal {
        let socket = ConsoleSocket::new()?;
        let call = call.arg("--console-socket").arg(socket.path());
        return Ok((call, Connecting::Console(socket)));
    }
    let (pipes, ends) = Pipes::new(paths, owner, &shim.exits)?;
    let Ends {
        stdin,
        stdout,
        stderr,
    } = ends;
    let call: Call = call.stdio(stdin, stdout, stderr);
    Ok((call, Connecting::Pipes(pipes)))
}

impl Connecting {
    fn connect(self, shim: &Shim, paths: &Paths, owner: Owner<'_>) -> Result<Streams> {
        match self {
            Self::Pipes(pipes) => pipes.connect(&shim.relay),
            Self::Console(socket) => {
                let master = socket.receive()?;
                Streams::of_terminal(master, paths, owner, &shim.exits, &shim.relay)
            }
        }
    }
}

fn read_pid(file: &Path) -> Result<i32> {
    let place = || file.display().to_string();
    let text = fs::read_to_string(file).with_context(place)?;
    text.trim().parse().with_context(place)
}

/// Sends a signal to an exec's process.
fn signal(process: &Process, number: u32) -> Result<()> {
    let pid = process.pid();
    if pid == 0 {
        return Err(failure::failed_precondition("process not created"));
    }
    match sys::kill(pid, number.cast_signed()) {
        Ok(()) => Ok(()),
        Err(Errno::SRCH) => Err(failure::not_found("process already finished")),
        Err(error) => Err(error).context("cannot send the signal"),
    }
}
