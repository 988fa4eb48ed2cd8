//! The last step inside of the container: find the program and execute it.
//!
//! With runc's error texts (engines derive exit codes 126 and 127 from them), the environment in its order, and signals as
//! the container's program expects them.

use std::cell::RefCell;
use std::ffi::CString;
use std::io;
use std::path::Path;

use anyhow::{Context, Result, anyhow};
use nix::sys::signal::SigSet;
use oci_spec::runtime::Process;

use crate::bundle::HOME_TO_BE_FOUND;
use crate::{log, sys};

/// Executes the container's program.
#[derive(Debug)]
pub struct Program {
    /// The signal mask that the program starts with.
    signals: SigSet,
    /// Number of sockets that the caller has passed for socket activation (sd_listen_fds(3)).
    listen_fds: u32,
    /// Where the program was found.
    found: RefCell<Option<CString>>,
}

impl Program {
    /// One that gives its program the signal mask `signals`, and the sockets that this process was given.
    pub fn new(signals: SigSet) -> Self {
        let listen_fds = std::env::var("LISTEN_FDS").ok();
        Self {
            signals,
            listen_fds: listen_fds.and_then(|text| text.parse().ok()).unwrap_or(0),
            found: RefCell::default(),
        }
    }

    /// Number of descriptors after standard error that are passed for socket activation.
    pub fn listen_fds(&self) -> u32 {
        self.listen_fds
    }

    /// Finds the program, as the user and with the capabilities that it is to run with. `die_with_runtime`: from here on,
    /// this process is killed if its parent ends before the program is executed.
    ///
    /// # Errors
    /// There is no such program, or it may not be executed: in runc's words.
    pub fn find(&self, process: &Process, die_with_runtime: bool) -> Result<()> {
        if die_with_runtime {
            rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
        }
        let args = process.args().as_deref().unwrap_or_default();
        let name = args.first().context("args must not be empty")?;
        let path = find(name, process.env().as_deref().unwrap_or_default())
            .map_err(|reason| anyhow!("exec: {name:?}: {reason}"))?;
        self.found.replace(Some(path));
        Ok(())
    }

    /// The environment of the program, in the order of the configuration.
    pub fn environment(&self, process: &Process) -> Vec<String> {
        let wanted = process.env().as_deref().unwrap_or_default();
        environment(wanted, self.listen_fds, process.user().uid())
    }

    /// Executes the program. Returns only if that fails.
    ///
    /// # Errors
    /// As execve(2).
    pub fn execute(&self, process: &Process, die_with_runtime: bool) -> Result<()> {
        let args = process.args().as_deref().unwrap_or_default();
        let name = args.first().cloned().unwrap_or_default();
        let Err(err) = self.replace_process(process, die_with_runtime);
        let text = format!("exec {name}: {}", plain(&err));
        // The runtime may be gone by now: the container's own log is the place where this is seen.
        eprintln!("{text}");
        Err(anyhow!(text))
    }

    fn replace_process(
        &self,
        process: &Process,
        die_with_runtime: bool,
    ) -> io::Result<std::convert::Infallible> {
        let path = self.found.take().ok_or(io::ErrorKind::InvalidInput)?;
        let strings = |list: &[String]| -> Result<Vec<CString>, _> {
            list.iter()
                .map(|text| CString::new(text.as_str()))
                .collect()
        };
        let args = strings(process.args().as_deref().unwrap_or_default())?;
        let env = strings(&self.environment(process))?;
        log::end_trace();
        sys::default_sigpipe();
        self.signals.thread_set_mask()?;
        if die_with_runtime {
            rustix::process::set_parent_process_death_signal(None)?;
        }
        Ok(nix::unistd::execve(&path, &args, &env)?)
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
fn environment(wanted: &[String], listen_fds: u32, uid: u32) -> Vec<String> {
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
    if listen_fds > 0 {
        env.retain(|entry| !["LISTEN_FDS", "LISTEN_PID"].contains(&name_of(entry).as_str()));
        env.push(format!("LISTEN_FDS={listen_fds}"));
        env.push("LISTEN_PID=1".to_owned());
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
        let env = environment(&wanted, 2, 0);
        assert_eq!(
            env,
            ["A=2", "B=3", "HOME=/root", "LISTEN_FDS=2", "LISTEN_PID=1"]
        );
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
