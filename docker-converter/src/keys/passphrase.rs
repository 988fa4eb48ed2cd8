//! Passphrases and PINs: from a file, an open descriptor, or the terminal without echo.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use rustix::termios::{self, LocalModes, OptionalActions};
use zeroize::Zeroizing;

/// The longest passphrase, in bytes.
const MAX: usize = 1024;

/// Where a passphrase comes from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Passphrase {
    /// The terminal.
    #[default]
    Terminal,
    /// The first line of a file.
    File(PathBuf),
    /// The first line of an open descriptor.
    Descriptor(u32),
}

impl Passphrase {
    /// Whether it is said where it comes from.
    pub(super) fn is_given(&self) -> bool {
        *self != Self::Terminal
    }

    /// The passphrase; `what` it is of, for the prompt.
    ///
    /// # Errors
    /// It cannot be read, is empty, or there is no terminal.
    pub fn get(&self, what: &str) -> Result<Zeroizing<Vec<u8>>, String> {
        let text = self.get_or_empty(what)?;
        match text.is_empty() {
            true => Err("an empty passphrase".to_owned()),
            false => Ok(text),
        }
    }

    /// As [`Passphrase::get`], but it may be empty.
    pub(super) fn get_or_empty(&self, what: &str) -> Result<Zeroizing<Vec<u8>>, String> {
        match self {
            Self::Terminal => prompt(what),
            Self::File(path) => of_file(path),
            Self::Descriptor(number) => of_file(Path::new(&format!("/proc/self/fd/{number}"))),
        }
    }
}

/// The first line of a file.
pub(super) fn of_file(path: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    let shown = |reason: String| format!("{}: {reason}", path.display());
    let file = File::open(path).map_err(|error| shown(error.to_string()))?;
    first_line(file).map_err(shown)
}

fn prompt(what: &str) -> Result<Zeroizing<Vec<u8>>, String> {
    let none = |error: std::io::Error| {
        format!(
            "needs the {what}, and there is no terminal to ask for it ({error}): --passphrase-file or --passphrase-fd"
        )
    };
    let mut terminal = File::options()
        .read(true)
        .write(true)
        .open("/dev/tty")
        .map_err(none)?;
    write!(terminal, "{what}: ").map_err(none)?;
    let line = {
        let _silent = Silent::new(&terminal).map_err(|error| none(error.into()))?;
        first_line(&terminal)
    };
    writeln!(terminal).map_err(none)?;
    line
}

/// A terminal that does not show what is typed, until this is dropped.
struct Silent<'a> {
    terminal: BorrowedFd<'a>,
    before: termios::Termios,
}

impl<'a> Silent<'a> {
    fn new(terminal: &'a File) -> rustix::io::Result<Self> {
        use std::os::fd::AsFd;
        let terminal = terminal.as_fd();
        let before = termios::tcgetattr(terminal)?;
        let mut silent = before.clone();
        silent.local_modes -= LocalModes::ECHO;
        termios::tcsetattr(terminal, OptionalActions::Flush, &silent)?;
        Ok(Self { terminal, before })
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        // The terminal was there a moment ago; there is no one to tell.
        let _ = termios::tcsetattr(self.terminal, OptionalActions::Flush, &self.before);
    }
}

fn first_line(from: impl Read) -> Result<Zeroizing<Vec<u8>>, String> {
    // Its capacity is enough from the beginning: growing would leave copies behind. The reader's own buffer has one byte.
    let mut line = Zeroizing::new(Vec::with_capacity(MAX + 2));
    BufReader::with_capacity(1, from)
        .take(MAX as u64 + 1)
        .read_until(b'\n', &mut line)
        .map_err(|error| error.to_string())?;
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    match line.len() {
        ..=MAX => Ok(line),
        _ => Err(format!("a passphrase of more than {MAX} bytes")),
    }
}
