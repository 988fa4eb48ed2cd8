//! Starts the process that serves, and is it.

use std::fs::{self, File};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};
use containerd_shim_protos::ttrpc;
use rustix::process::{getpid, getppid, set_child_subreaper};

use crate::arguments::Arguments;
use crate::bootstrap::{Bootstrap, EVENTS_VARIABLE};
use crate::bundle::Config;
use crate::events::Event;
use crate::options::Options;
use crate::service::Shim;
use crate::{cgroup, log, socket, sys};

/// glibc gives each thread a heap of its own unless told otherwise: most of this process's memory.
pub const ARENAS_VARIABLE: &str = "MALLOC_ARENA_MAX";

/// Threads that wait for a request on a connection: at least, at the start, at most.
const IDLE_THREADS: (usize, usize, usize) = (1, 2, 3);
/// Bytes; the deepest is a request's, with a runtime's command.
const STACK: &str = "262144";
/// Size of the threads' stacks.
pub const STACK_VARIABLE: &str = "RUST_MIN_STACK";

/// Scores are between -1000 and this.
const MAX_OOM_SCORE: i32 = 1000;

/// Starts the process that serves the pod of the container in the current directory, if there is none yet; what
/// containerd gets as the answer.
///
/// # Errors
/// The bundle cannot be read, or the process cannot be started.
pub fn start(arguments: &Arguments) -> Result<Vec<u8>> {
    let bootstrap = Bootstrap::read(arguments)?;
    let config = Config::read(Path::new("."))?;
    let group = config.group().unwrap_or(&arguments.id);
    let path = socket::path(
        bootstrap.socket_dir.as_deref(),
        &arguments.address,
        &arguments.namespace,
        group,
    );
    let address = socket::address(&path);
    if let Some(listener) = socket::listen(&path)?
        && let Err(error) = launch(arguments, &bootstrap, listener)
    {
        socket::remove(&path);
        return Err(error);
    }
    fs::write(socket::ADDRESS_FILE, &address).context("cannot write the address")?;
    bootstrap.answer(&address)
}

fn launch(arguments: &Arguments, bootstrap: &Bootstrap, listener: UnixListener) -> Result<()> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["-namespace", &arguments.namespace, "-id", &arguments.id])
        .args(["-address", &arguments.address])
        .env(EVENTS_VARIABLE, &bootstrap.events)
        .env(ARENAS_VARIABLE, "1")
        .env(STACK_VARIABLE, STACK)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if arguments.debug {
        command.arg("-debug");
    }
    sys::new_session(&mut command);
    sys::give(&mut command, [File::from(OwnedFd::from(listener))])?;
    let mut child = command.spawn().context("cannot start the shim")?;
    let pid = child.id().cast_signed();
    let settled = settle(pid, bootstrap);
    if settled.is_err() {
        child.kill()?;
        child.wait()?;
    }
    settled
}

/// Puts the process where the options want it.
fn settle(pid: i32, bootstrap: &Bootstrap) -> Result<()> {
    let options = Options::from_any(bootstrap.options.as_ref())?;
    if !options.shim_cgroup.is_empty() {
        cgroup::join(pid, &options.shim_cgroup)?;
    }
    // The kernel ends the shim before containerd, but not before the containers.
    let Some(parent) = getppid() else {
        return Ok(());
    };
    let score = |pid: i32| format!("/proc/{pid}/oom_score_adj");
    let parents = fs::read_to_string(score(parent.as_raw_nonzero().get()))?;
    let adjusted = (parents.trim().parse::<i32>()? + 1).min(MAX_OOM_SCORE);
    // To lower it takes a privilege that root may lack; then it stays as inherited.
    if let Err(error) = fs::write(score(pid), adjusted.to_string()) {
        log::debug(|| format!("oom_score_adj: {error}"));
    }
    Ok(())
}

/// Serves until containerd says that it may end.
///
/// # Errors
/// The kernel's.
pub fn serve(arguments: &Arguments) -> Result<()> {
    let listener = UnixListener::from(sys::given());
    log::open(&arguments.namespace, &arguments.id, arguments.debug);
    set_child_subreaper(Some(getpid())).context("cannot become the parent of orphans")?;
    let address = listener.local_addr().context("descriptor 3 is no socket")?;
    let path = address.as_pathname().context("the socket has no path")?;
    let events = std::env::var(EVENTS_VARIABLE).unwrap_or_default();
    let shim = Shim::new(&arguments.namespace, &events, path.to_owned())?;
    // It lives as long as the process.
    let shim: &'static Shim = Box::leak(Box::new(shim));
    let (min, default, max) = IDLE_THREADS;
    let mut server = ttrpc::Server::new()
        .add_listener(listener.into_raw_fd())?
        .register_service(shim.methods())
        .set_thread_count_min(min)
        .set_thread_count_default(default)
        .set_thread_count_max(max);
    server.start()?;
    run("relay", move || shim.relay.copy());
    run("oom", move || {
        shim.oom
            .run(|container| shim.events.publish(Event::oom(container)))
    });
    run("events", move || {
        shim.events.send();
        Ok(())
    });
    let error = shim.exits.collect(|member, pid, exit| {
        member.container.ended(shim, &member.process, pid, exit);
    });
    Err(error).context("cannot wait for processes")
}

/// Runs a part of the shim in a thread; without it there is no shim.
fn run(name: &str, part: impl FnOnce() -> Result<()> + Send + 'static) {
    let ran = move || {
        if let Err(error) = part() {
            log::warning(&format!("{error:#}"));
            std::process::exit(1);
        }
    };
    if let Err(error) = std::thread::Builder::new().name(name.to_owned()).spawn(ran) {
        log::warning(&format!("cannot start a thread: {error}"));
        std::process::exit(1);
    }
}
