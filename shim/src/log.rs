//! Messages: containerd reads them from the fifo `log` in the bundle, and prints them among its own.
//!
//! The fifo is open for reading and writing here, so that neither a containerd that has gone nor one that does not read
//! stops the shim: what does not fit in is dropped.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::OnceLock;

use crate::clock;

static LOG: OnceLock<Log> = OnceLock::new();

struct Log {
    file: File,
    /// Goes into each line: pods have one shim each.
    name: String,
    debug: bool,
}

/// Opens the log in the current directory; without it, nothing is logged.
pub fn open(namespace: &str, id: &str, debug: bool) {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(rustix::fs::OFlags::NONBLOCK.bits().cast_signed())
        .open("log");
    // A shim that is started by hand has none.
    if let Ok(file) = file {
        let name = format!("{namespace}/{id}");
        let _ = LOG.set(Log { file, name, debug });
    }
}

/// What somebody should look at.
pub fn warning(message: &str) {
    write("warning", message);
}

/// What happened, with `-debug`.
pub fn debug(message: impl FnOnce() -> String) {
    if LOG.get().is_some_and(|log| log.debug) {
        write("debug", &message());
    }
}

fn write(level: &str, message: &str) {
    let Some(log) = LOG.get() else { return };
    let line = line(&clock::now_rfc3339(), level, message, &log.name);
    // Nobody reads, or the fifo is full.
    let _ = (&log.file).write(line.as_bytes());
}

/// A line as logrus writes it.
fn line(time: &str, level: &str, message: &str, name: &str) -> String {
    format!("time=\"{time}\" level={level} msg={message:?} shim={name}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line() {
        assert_eq!(
            line("T", "warning", "a \"b\"\nc", "ns/x"),
            "time=\"T\" level=warning msg=\"a \\\"b\\\"\\nc\" shim=ns/x\n"
        );
    }
}
