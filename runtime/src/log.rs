//! Messages: plain on standard error for people, and in the file of `--log` in the form that engines parse.

use std::fmt::Write as _;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use chrono::{SecondsFormat, Utc};
use rustix::pipe::PipeFlags;
use tracing::field::{Field, Visit};
use tracing::{Level, Metadata, Subscriber, span};

use crate::cli::Global;

static LOG: OnceLock<Log> = OnceLock::new();

/// Where messages go.
#[derive(Debug)]
struct Log {
    /// Absolute, because commands change their directory.
    path: Option<PathBuf>,
    /// Opened at the start when debug messages are wanted, because they come from inside the container too.
    file: Option<File>,
    debug: bool,
    json: bool,
}

/// Sets up what `--log`, `--log-format` and `--debug` ask for.
///
/// # Errors
/// An unknown format; with `--debug`, a log file that cannot be opened.
pub fn init(global: &Global) -> Result<()> {
    let oci = &global.oci;
    let json = match oci.log_format.as_deref() {
        None | Some("text") => false,
        Some("json") => true,
        Some(other) => bail!("invalid log-format: {other}"),
    };
    let path = oci.log.as_ref().map(std::path::absolute).transpose()?;
    let debug = oci.debug;
    let file = match (&path, debug) {
        (Some(path), true) => Some(open(path)?),
        _ => None,
    };
    let log = Log {
        path,
        file,
        debug,
        json,
    };
    if LOG.set(log).is_ok() && debug {
        tracing::subscriber::set_global_default(Events)?;
    }
    Ok(())
}

/// Reports why the command failed.
pub fn error(message: &str) {
    record("error", message);
    eprintln!("{message}");
}

/// Reports something that does not stop the command.
pub fn warning(message: &str) {
    record("warning", message);
    eprintln!("warning: {message}");
}

fn record(level: &str, message: &str) {
    if let Some(log) = LOG.get()
        && let Some(path) = &log.path
        && let Ok(mut file) = open(path)
    {
        // Standard error below has it too: nothing better can be done where the log cannot be written.
        let _ = file.write_all(line(level, message, log.json).as_bytes());
    }
}

fn open(path: &PathBuf) -> std::io::Result<File> {
    OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o644)
        .open(path)
}

/// A line of the log, as logrus (runc's logger) writes it.
fn line(level: &str, message: &str, json: bool) -> String {
    let time = Utc::now().to_rfc3339_opts(SecondsFormat::Secs, true);
    let message = serde_json::Value::from(message);
    if json {
        format!("{{\"level\":\"{level}\",\"msg\":{message},\"time\":\"{time}\"}}\n")
    } else {
        format!("time=\"{time}\" level={level} msg={message}\n")
    }
}

/// Where libcontainer's errors go while a container is being built.
static TRACE: OnceLock<OwnedFd> = OnceLock::new();
static TRACING: AtomicBool = AtomicBool::new(false);

/// The reading end of the errors that libcontainer reports, also from inside of the container: the error values that
/// it returns from there have lost their cause.
#[derive(Debug)]
pub struct Trace(OwnedFd);

/// Starts to collect libcontainer's errors.
///
/// # Errors
/// If no pipe is to be had.
pub fn begin_trace() -> Result<Trace> {
    let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
    let (read, write) = rustix::pipe::pipe_with(flags)?;
    if TRACE.set(write).is_err() {
        bail!("errors are being collected already");
    }
    TRACING.store(true, Ordering::Relaxed);
    // With --debug there is a subscriber already, the same.
    let _ = tracing::subscriber::set_global_default(Events);
    Ok(Trace(read))
}

/// Stops to collect errors: nobody reads them once the container's program is about to run.
pub fn end_trace() {
    TRACING.store(false, Ordering::Relaxed);
}

impl Trace {
    /// The first error reported, which is the innermost: none if there was none.
    pub fn first(self) -> Option<String> {
        let mut bytes = [0; 4096];
        let count = rustix::io::read(&self.0, &mut bytes).ok()?;
        let text = String::from_utf8_lossy(&bytes[..count]);
        text.lines().next().map(str::to_owned)
    }
}

/// Takes libcontainer's events: errors for [`Trace`], and all of them for `--debug`.
#[derive(Debug)]
struct Events;

impl Events {
    fn debug() -> bool {
        LOG.get().is_some_and(|log| log.debug)
    }
}

impl Subscriber for Events {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let wanted = if Self::debug() {
            Level::DEBUG
        } else {
            Level::ERROR
        };
        metadata.is_event() && *metadata.level() <= wanted
    }

    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        if *event.metadata().level() == Level::ERROR
            && TRACING.load(Ordering::Relaxed)
            && let Some(trace) = TRACE.get()
        {
            let one_line = text.0.replace('\n', " ") + "\n";
            // What does not fit into the pipe is the less interesting rest.
            let _ = rustix::io::write(trace, one_line.as_bytes());
        }
        let Some(log) = LOG.get().filter(|log| log.debug) else {
            return;
        };
        let line = line("debug", &text.0, log.json);
        // A debug message that cannot be written is lost.
        let _ = match &log.file {
            Some(file) => (&*file).write_all(line.as_bytes()),
            None => std::io::stderr().write_all(line.as_bytes()),
        };
    }

    fn new_span(&self, _: &span::Attributes<'_>) -> span::Id {
        span::Id::from_u64(1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, _: &span::Id) {}

    fn exit(&self, _: &span::Id) {}
}

/// The message of an event with its fields behind it.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing into a String cannot fail.
        let _ = if field.name() == "message" {
            write!(self.0, "{value:?} ")
        } else {
            write!(self.0, "{}={value:?} ", field.name())
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_lines_are_what_engines_decode() {
        let line = line("error", "exec: \"x\": not\nfound", true);
        let value: serde_json::Value = serde_json::from_str(&line).unwrap();
        assert_eq!(value["level"], "error");
        assert_eq!(value["msg"], "exec: \"x\": not\nfound");
        assert!(chrono::DateTime::parse_from_rfc3339(value["time"].as_str().unwrap()).is_ok());
        assert!(line.ends_with("}\n"));
    }

    #[test]
    fn text_lines_are_logfmt() {
        let line = line("warning", "a \"b\"", false);
        assert!(
            line.contains("level=warning msg=\"a \\\"b\\\"\"\n"),
            "{line}"
        );
    }
}
