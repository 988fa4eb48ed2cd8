//! The launch directory and the hook that verifies, measures and opens what a container is built from.
//!
//! The contract is docs/architecture.md, "The launch directory". With launch mode `off` nothing here runs.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use oci_spec::runtime::Spec;
use rustix::fs::{FlockOperation, Mode, OFlags};
use trustme_config::{Config, LaunchMode};

use crate::cgroup::make_private_dir;
use crate::root::Root;
use crate::{log, seal};

/// Names another hook program.
const HOOK_VARIABLE: &str = "TRUSTME_HOOK";
const HOOK_PROGRAM: &str = "trustme-hook";
const LOCK_FILE: &str = "lock";

/// A launch that the hook has allowed; released when dropped before [`Launch::keep`].
#[derive(Debug)]
pub struct Launch {
    dir: PathBuf,
    kept: bool,
    /// Held until the process ends: what has a lock is no remains.
    _lock: File,
}

/// The launch mode of this machine.
///
/// # Errors
/// If the configuration file is wrong.
pub fn mode() -> Result<LaunchMode> {
    Ok(Config::load()?.launch.mode)
}

impl Launch {
    /// Makes the launch directory and runs `trustme-hook launch`.
    ///
    /// # Errors
    /// The hook's reason, if it refuses; the launch directory is released then.
    pub fn begin(root: &Root, id: &str, bundle: &Path, config: &[u8], spec: &Spec) -> Result<Self> {
        release_remains(root)?;
        let dir = root.launch(id);
        if dir.exists() {
            // The id is claimed by us, so this is left over although its lock may be held by a waiting process.
            release(&dir)?;
        }
        make_private_dir(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let lock = File::create(dir.join(LOCK_FILE)).context("cannot create the launch lock")?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive)
            .context("cannot lock the launch directory")?;
        let launch = Self {
            dir,
            kept: false,
            _lock: lock,
        };
        std::fs::write(launch.dir.join("config.json"), config)
            .context("cannot write the launch's configuration")?;
        launch.run_hook(id, bundle, spec)?;
        Ok(launch)
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The bundle that the hook wrote.
    pub fn bundle(&self) -> PathBuf {
        self.dir.join("bundle")
    }

    /// The container exists now: the launch directory stays until it is deleted.
    pub fn keep(&mut self) {
        self.kept = true;
    }

    fn run_hook(&self, id: &str, bundle: &Path, spec: &Spec) -> Result<()> {
        let state = serde_json::json!({
            "ociVersion": spec.version(),
            "id": id,
            "status": "creating",
            "bundle": bundle,
            "annotations": spec.annotations().clone().unwrap_or_default(),
        });
        let mut hook = hook("launch", &self.dir);
        let mut child = hook
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot run {}", hook.get_program().display()))?;
        if let Some(mut stdin) = child.stdin.take() {
            match stdin.write_all(state.to_string().as_bytes()) {
                // The hook has ended already; its exit code and message say why.
                Err(err) if err.kind() == std::io::ErrorKind::BrokenPipe => (),
                other => other.context("cannot send the state to the hook")?,
            }
        }
        let output = child
            .wait_with_output()
            .context("cannot wait for the hook")?;
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.trim();
        if !output.status.success() {
            let reason = said.strip_prefix("error: ").unwrap_or(said);
            let reason = reason.strip_prefix("refused: ").unwrap_or(reason);
            match reason {
                "" => bail!("launch refused: {HOOK_PROGRAM} {}", output.status),
                reason => bail!("launch refused: {reason}"),
            }
        }
        for line in said.lines() {
            log::warning(line.strip_prefix("warning: ").unwrap_or(line));
        }
        Ok(())
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        if !self.kept
            && let Err(err) = release(&self.dir)
        {
            log::warning(&format!("cannot release {}: {err:#}", self.dir.display()));
        }
    }
}

/// Closes volumes, removes mounts and devices of a launch, and its directory, by `trustme-hook release`.
///
/// # Errors
/// The hook's, if it fails.
pub fn release(dir: &Path) -> Result<()> {
    if !dir.exists() {
        return Ok(());
    }
    let mut hook = hook("release", dir);
    let output = match hook
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()
    {
        // The hook mounts below `mnt` only: where it is not installed and never has been, the directory is all there is.
        Err(err) if err.kind() == std::io::ErrorKind::NotFound && !dir.join("mnt").exists() => {
            return std::fs::remove_dir_all(dir)
                .with_context(|| format!("cannot remove {}", dir.display()));
        }
        other => other.with_context(|| format!("cannot run {}", hook.get_program().display()))?,
    };
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("cannot release {}: {}", dir.display(), said.trim());
    }
    Ok(())
}

/// Releases launch directories that killed processes left: unlocked, and without a container.
fn release_remains(root: &Root) -> Result<()> {
    let Ok(entries) = std::fs::read_dir(root.path().join("@launch")) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let dir = entry.path();
        if root.path().join(entry.file_name()).exists() || is_locked(&dir) {
            continue;
        }
        if let Err(err) = release(&dir) {
            log::warning(&format!("{err:#}"));
        }
    }
    Ok(())
}

fn is_locked(launch: &Path) -> bool {
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    match rustix::fs::open(launch.join(LOCK_FILE), flags, Mode::empty()) {
        Ok(lock) => rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err(),
        Err(_) => false,
    }
}

fn hook(verb: &str, dir: &Path) -> Command {
    let mut command = Command::new(hook_program());
    command.arg(verb).arg("--state-dir").arg(dir);
    seal::clean_environment(&mut command);
    command
}

/// `TRUSTME_HOOK`, else the program beside this one, else the one in PATH.
fn hook_program() -> OsString {
    if let Some(program) = std::env::var_os(HOOK_VARIABLE).filter(|program| !program.is_empty()) {
        return program;
    }
    match seal::binary_dir().map(|dir| dir.join(HOOK_PROGRAM)) {
        Some(beside) if beside.is_file() => beside.into(),
        _ => HOOK_PROGRAM.into(),
    }
}
