//! Warnings, which a runtime is told only when the hook succeeds: when it fails, stderr is one line, the reason.

use std::io::{self, Write};
use std::sync::{Mutex, PoisonError};

use tracing::level_filters::LevelFilter;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// Lines that were not printed yet.
static LINES: Mutex<Vec<u8>> = Mutex::new(Vec::new());

/// Appends to [`LINES`].
struct Lines;

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        LINES
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Begins to collect the warnings of this project's crates; the TSS's are in the errors that it returns.
pub(crate) fn collect() {
    let ours = Targets::new()
        .with_target("trustme_trust", LevelFilter::WARN)
        .with_target("trustme_hook", LevelFilter::WARN);
    let lines = tracing_subscriber::fmt::layer()
        .without_time()
        .with_level(false)
        .with_target(false)
        .with_ansi(false)
        .with_writer(|| Lines);
    tracing_subscriber::registry()
        .with(lines.with_filter(ours))
        .init();
}

/// Prints what was collected, each line as `warning: …`.
pub(crate) fn print() {
    let lines = LINES.lock().unwrap_or_else(PoisonError::into_inner);
    for line in String::from_utf8_lossy(&lines).lines() {
        eprintln!("warning: {}", line.trim_start());
    }
}
