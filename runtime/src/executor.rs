//! The last steps inside of the container: find the program, wait for `start` (libcontainer does), execute it.
//!
//! In place of libcontainer's default executor, for runc's error texts (engines derive exit codes 126 and 127 from
//! them), the environment in its order, and signals as the container's program expects them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CString;
use std::io;
use std::path::Path;

use libcontainer::workload::{
    Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError,
};
use nix::sys::signal::SigSet;
use oci_spec::runtime::{Process, Spec};

use crate::bundle::HOME_TO_BE_FOUND;
use crate::{log, sys};

/// Executes the container's program.
#[derive(Clone, Debug)]
pub struct Program {
    /// The signal mask that the program starts with.
    pub signals: SigSet,
    /// Kill the process if the runtime is killed before the program is executed: for `exec`, whose runtime waits.
    pub die_with_runtime: bool,
    /// Where the program was found.
    found: RefCell<Option<CString>>,
    /// The environment that libcontainer wants to be set.
    env: RefCell<HashMap<String, String>>,
}

impl Program {
    /// An executor that gives its program the signal mask `signals`.
    pub fn new(signals: SigSet, die_with_runtime: bool) -> Self {
        Self {
            signals,
            die_with_runtime,
            found: RefCell::default(),
            env: RefCell::default(),
        }
    }

    fn execute(&self, process: &Process) -> io::Result<()> {
        let path = self.found.take().ok_or(io::ErrorKind::InvalidInput)?;
        let args = process.args().as_deref().unwrap_or_default();
        let args = args
            .iter()
            .map(|arg| CString::new(arg.as_str()))
            .collect::<Result<Vec<_>, _>>()?;
        let env = environment(
            process.env().as_deref().unwrap_or_default(),
            &self.env.take(),
            process.user().uid(),
        );
        let env = env
            .into_iter()
            .map(CString::new)
            .collect::<Result<Vec<_>, _>>()?;
        if let Some(label) = process.selinux_label() {
            std::fs::write("/proc/thread-self/attr/exec", label)?;
        }
        log::end_trace();
        sys::default_sigpipe();
        self.signals.thread_set_mask()?;
        if self.die_with_runtime {
            rustix::process::set_parent_process_death_signal(None)?;
        }
        match nix::unistd::execve(&path, &args, &env) {
            Err(err) => Err(err.into()),
            Ok(never) => match never {},
        }
    }
}

impl Executor for Program {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        let error = |text: String| ExecutorValidationError::ArgValidationError(text);
        let process = spec
            .process()
            .as_ref()
            .ok_or_else(|| error("no process".into()))?;
        let args = process.args().as_deref().unwrap_or_default();
        let name = args
            .first()
            .ok_or_else(|| error("args must not be empty".into()))?;
        if self.die_with_runtime {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
                .map_err(|err| error(format!("cannot ask for a signal: {err}")))?;
        }
        let path = find(name, process.env().as_deref().unwrap_or_default())
            .map_err(|reason| error(format!("exec: {name:?}: {reason}")))?;
        self.found.replace(Some(path));
        Ok(())
    }

    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        self.env.replace(envs);
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let process = spec.process().as_ref().ok_or(ExecutorError::InvalidArg)?;
        let name = process
            .args()
            .as_deref()
            .unwrap_or_default()
            .first()
            .cloned()
            .unwrap_or_default();
        self.execute(process).map_err(|err| {
            let text = format!("exec {name}: {}", plain(&err));
            // The runtime may be gone by now: the container's own log is the place where this is seen.
            eprintln!("{text}");
            ExecutorError::Other(text)
        })
    }
}

/// Finds a program as Go's exec.LookPath does, which runc uses; the error is its text.
fn find(name: &str, env: &[String]) -> Result<CString, String> {
    if name.contains('/') {
        return check(name);
    }
    let path = env
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or_default();
    let candidates = path
        .split(':')
        .filter(|dir| !name.is_empty() && !dir.is_empty());
    for dir in candidates {
        if let Ok(path) = check(&format!("{dir}/{name}")) {
            return Ok(path);
        }
    }
    Err("executable file not found in $PATH".into())
}

/// Makes sure that a path names a file that this process may execute.
fn check(path: &str) -> Result<CString, String> {
    let stat = std::fs::metadata(path).map_err(|err| format!("stat {path}: {}", plain(&err)))?;
    if stat.is_dir() {
        return Err("permission denied".into());
    }
    let path = CString::new(path).map_err(|_| "invalid argument".to_owned())?;
    sys::is_executable(&path).map_err(|err| plain(&err))?;
    Ok(path)
}

/// The text of an error as runc prints it: in lower case, without Rust's number.
fn plain(err: &io::Error) -> String {
    let text = err.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut chars = text.chars();
    chars
        .next()
        .map(|first| first.to_lowercase().chain(chars).collect())
        .unwrap_or_default()
}

/// The environment in the order of the configuration; of a name that is set twice the last counts.
fn environment(
    wanted: &[String],
    from_libcontainer: &HashMap<String, String>,
    uid: u32,
) -> Vec<String> {
    let name_of = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    let mut env: Vec<String> = Vec::with_capacity(wanted.len() + 2);
    for (at, entry) in wanted.iter().enumerate() {
        let name = name_of(entry);
        if wanted[at + 1..].iter().any(|later| name_of(later) == name) {
            continue;
        }
        match entry.strip_prefix("HOME=") {
            Some(HOME_TO_BE_FOUND) => env.push(format!("HOME={}", home_of(uid))),
            _ => env.push(entry.clone()),
        }
    }
    // What it adds by itself: the variables of socket activation.
    for name in ["LISTEN_FDS", "LISTEN_PID"] {
        if let Some(value) = from_libcontainer.get(name)
            && !env.iter().any(|entry| name_of(entry) == name)
        {
            env.push(format!("{name}={value}"));
        }
    }
    env
}

/// The home directory in the container's /etc/passwd, `/` if there is none.
fn home_of(uid: u32) -> String {
    std::fs::read_to_string("/etc/passwd")
        .ok()
        .and_then(|passwd| home_in(&passwd, uid))
        .unwrap_or_else(|| "/".to_owned())
}

/// The sixth field of the line whose third is `uid` (passwd(5)).
fn home_in(passwd: &str, uid: u32) -> Option<String> {
    passwd.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        let matches = fields.get(2)?.parse() == Ok(uid);
        let home = *fields.get(5)?;
        (matches && Path::new(home).is_absolute()).then(|| home.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    #[test]
    fn missing_programs_are_reported_as_runc_does() {
        // Texts seen from runc 1.1.5.
        let env = strings(&["PATH=/nowhere:/usr/bin:/bin"]);
        assert_eq!(find("sh", &env).unwrap().as_c_str(), c"/usr/bin/sh");
        assert_eq!(
            find("nosuch", &env).unwrap_err(),
            "executable file not found in $PATH"
        );
        assert_eq!(
            find("sh", &[]).unwrap_err(),
            "executable file not found in $PATH"
        );
        assert_eq!(
            find("/nosuch", &env).unwrap_err(),
            "stat /nosuch: no such file or directory"
        );
        assert_eq!(find("/etc", &env).unwrap_err(), "permission denied");
        assert_eq!(find("/etc/passwd", &env).unwrap_err(), "permission denied");
    }

    #[test]
    fn the_environment_keeps_its_order() {
        let home = format!("HOME={HOME_TO_BE_FOUND}");
        let wanted = strings(&["B=1", "A=2", "B=3", &home]);
        let added = HashMap::from([("LISTEN_FDS".to_owned(), "2".to_owned())]);
        let env = environment(&wanted, &added, 0);
        assert_eq!(env, ["A=2", "B=3", "HOME=/root", "LISTEN_FDS=2"]);
    }

    #[test]
    fn homes_are_found() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\nbad\nu:x:7:7::relative:\nv:x:8:8::/v:\n";
        assert_eq!(home_in(passwd, 0).as_deref(), Some("/root"));
        assert_eq!(home_in(passwd, 7), None);
        assert_eq!(home_in(passwd, 8).as_deref(), Some("/v"));
        assert_eq!(home_in(passwd, 9), None);
    }
}
