//! What a process's standard input and output are connected with: containerd's fifos, a file, or a logging program.
//!
//! The process gets pipes, so that it never holds a file of the host; [`relay`](crate::relay) copies. A logging program reads
//! the pipes itself.

use std::fs::{File, OpenOptions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::fs::{Gid, OFlags, Uid, fchown};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::exits::Exits;
use crate::logger::Logger;
use crate::relay::{Id, Open, Relay, Stream, nonblocking};
use crate::uri;

/// How long containerd's client may take to open a fifo that it wants to read.
const OPEN_LIMIT: Duration = Duration::from_secs(30);
const OPEN_PAUSE: Duration = Duration::from_millis(1);
/// Of a log file that is made.
const LOG_MODE: u32 = 0o644;
/// How long output may take to be read after the process has ended.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// Where containerd wants input and output.
#[derive(Clone, Debug, Default)]
pub struct Paths {
    /// A fifo; empty for none.
    pub stdin: String,
    /// A fifo, or `file:` or `binary:` URI; empty for none.
    pub stdout: String,
    /// A fifo; empty for none. A file or program is that of `stdout`.
    pub stderr: String,
    /// The process has a terminal.
    pub terminal: bool,
}

/// Whose streams they are: a logging program is told.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// containerd's namespace.
    pub namespace: &'a str,
    /// The container, or the exec.
    pub id: &'a str,
    /// Owner of the pipes.
    pub uid: u32,
    /// Their group.
    pub gid: u32,
}

/// Where output goes.
#[derive(Debug)]
enum Target {
    Fifos,
    File(PathBuf),
    Logger(Logger),
}

/// Pipes whose other ends the process has, before they are connected.
#[derive(Debug)]
pub struct Pipes {
    paths: Paths,
    target: Target,
    stdin: Option<File>,
    stdout: Option<File>,
    stderr: Option<File>,
}

/// The process's ends.
#[derive(Debug)]
pub struct Ends {
    /// Standard input.
    pub stdin: process::Stdio,
    /// Standard output.
    pub stdout: process::Stdio,
    /// Standard error.
    pub stderr: process::Stdio,
}

/// The connected streams of a process.
#[derive(Debug, Default)]
pub struct Streams {
    ids: Vec<Id>,
    output: Arc<Open>,
    /// A writing end of the input fifo: input does not end with the client that writes it, but when it says so.
    input: Option<File>,
    /// A descriptor of the terminal.
    held: Option<File>,
    logger: Option<Logger>,
}

impl Pipes {
    /// Makes the pipes of a process without a terminal, and starts its logging program, if it has one.
    ///
    /// # Errors
    /// An unknown kind of output, or one that cannot be opened.
    pub fn new(paths: &Paths, owner: Owner<'_>, exits: &Exits) -> Result<(Self, Ends)> {
        let mut pipes = Self {
            paths: paths.clone(),
            target: Target::Fifos,
            stdin: None,
            stdout: None,
            stderr: None,
        };
        let null = || process::Stdio::null();
        let mut ends = Ends {
            stdin: null(),
            stdout: null(),
            stderr: null(),
        };
        let (scheme, rest) = scheme(&paths.stdout);
        match scheme {
            "fifo" => (),
            "file" => pipes.target = Target::File(log_file(rest)?),
            "binary" => {
                let (logger, stdout, stderr) = Logger::start(rest, owner, exits)?;
                ends.stdout = stdout.into();
                ends.stderr = stderr.into();
                pipes.target = Target::Logger(logger);
                return Ok((pipes, ends));
            }
            other => bail!("unknown STDIO scheme {other}"),
        }
        if !paths.stdin.is_empty() {
            let (read, write) = pipe(owner)?;
            ends.stdin = read.into();
            pipes.stdin = Some(write);
        }
        if !paths.stdout.is_empty() {
            let (read, write) = pipe(owner)?;
            ends.stdout = write.into();
            pipes.stdout = Some(read);
        }
        if !paths.stderr.is_empty() {
            let (read, write) = pipe(owner)?;
            ends.stderr = write.into();
            pipes.stderr = Some(read);
        }
        Ok((pipes, ends))
    }

    /// Connects the pipes, once the process has its ends.
    ///
    /// # Errors
    /// A fifo or file that cannot be opened.
    pub fn connect(self, relay: &Relay) -> Result<Streams> {
        let mut streams = Streams::default();
        // What has been added goes with an error.
        match self.connect_to(&mut streams, relay) {
            Ok(()) => Ok(streams),
            Err(error) => {
                relay.close(&streams.ids);
                Err(error)
            }
        }
    }

    fn connect_to(self, streams: &mut Streams, relay: &Relay) -> Result<()> {
        let (stdout, stderr) = match self.target {
            Target::Logger(logger) => {
                streams.logger = Some(logger);
                return Ok(());
            }
            Target::File(path) => {
                let sink = Sink::file(&path)?;
                (Some(sink.again()?), Some(sink))
            }
            Target::Fifos => {
                let sink = |path: &str| (!path.is_empty()).then(|| Sink::open(path)).transpose();
                let stdout = sink(&self.paths.stdout)?;
                // Two descriptors of one file would write over each other, and nobody needs two of one fifo.
                let stderr = match self.paths.stderr == self.paths.stdout {
                    true => stdout.as_ref().map(Sink::again).transpose()?,
                    false => sink(&self.paths.stderr)?,
                };
                (stdout, stderr)
            }
        };
        for (from, sink) in [(self.stdout, stdout), (self.stderr, stderr)] {
            if let (Some(from), Some(sink)) = (from, sink) {
                streams.output(from, sink, relay)?;
            }
        }
        if let Some(to) = self.stdin {
            streams.input(&self.paths.stdin, to, None, relay)?;
        }
        Ok(())
    }
}

impl Streams {
    /// Connects a terminal.
    ///
    /// # Errors
    /// A fifo that cannot be opened, or a logging program that does not start.
    pub fn of_terminal(
        master: OwnedFd,
        paths: &Paths,
        owner: Owner<'_>,
        exits: &Exits,
        relay: &Relay,
    ) -> Result<Self> {
        let mut streams = Self::default();
        let master = File::from(master);
        let (scheme, rest) = scheme(&paths.stdout);
        let sink = match scheme {
            "fifo" if paths.stdout.is_empty() => Sink::file(Path::new("/dev/null"))?,
            "fifo" => Sink::open(&paths.stdout)?,
            "file" => Sink::file(&log_file(rest)?)?,
            "binary" => {
                let (logger, stdout, _) = Logger::start(rest, owner, exits)?;
                streams.logger = Some(logger);
                Sink {
                    to: Arc::new(stdout),
                    keep: None,
                    regular: false,
                }
            }
            other => bail!("unknown STDIO scheme {other}"),
        };
        // Each stream has a descriptor of its own: the kernel tells events apart by them.
        let console = master.try_clone()?;
        let input = master.try_clone()?;
        let output = streams.output(master, sink, relay)?;
        if !paths.stdin.is_empty() {
            streams.input(&paths.stdin, input, Some(output), relay)?;
        }
        streams.held = Some(console);
        Ok(streams)
    }

    /// Copies what the process writes.
    fn output(&mut self, from: File, sink: Sink, relay: &Relay) -> Result<Id> {
        nonblocking(&from)?;
        let stream = Stream {
            from,
            to: sink.to,
            _keep: sink.keep,
            regular: sink.regular,
            hang_up: None,
        };
        let id = relay.add(stream, Some(&self.output))?;
        self.ids.push(id);
        Ok(id)
    }

    /// Copies from a fifo to the process. A terminal's input ends with its output.
    fn input(&mut self, path: &str, to: File, output: Option<Id>, relay: &Relay) -> Result<()> {
        let place = || format!("cannot open {path}");
        let from = open_fifo(path, OpenOptions::new().read(true)).with_context(place)?;
        self.input = Some(open_fifo(path, OpenOptions::new().write(true)).with_context(place)?);
        nonblocking(&to)?;
        let stream = Stream {
            from,
            to: Arc::new(to),
            _keep: None,
            regular: false,
            hang_up: None,
        };
        let id = relay.add(stream, None)?;
        self.ids.push(id);
        if let Some(output) = output {
            relay.hang_up(output, id);
        }
        Ok(())
    }

    /// The client has written all input.
    pub fn close_input(&mut self) {
        self.input = None;
    }

    /// Sets the terminal's size; whether there is a terminal.
    ///
    /// # Errors
    /// The kernel's.
    pub fn resize(&self, width: u16, height: u16) -> Result<bool> {
        let Some(console) = &self.held else {
            return Ok(false);
        };
        let size = Winsize {
            ws_row: height,
            ws_col: width,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        tcsetwinsize(console, size)?;
        Ok(true)
    }

    /// What the process has written so far is on its way to the client.
    pub fn settle(&self, relay: &Relay) {
        relay.settle(&self.ids);
    }

    /// Waits until the output of an ended process is read, for a while, and closes everything.
    pub fn finish(mut self, relay: &Relay) {
        self.input = None;
        self.output.wait(DRAIN_LIMIT);
        relay.close(&self.ids);
        drop(self.logger);
    }
}

/// Where output goes to.
#[derive(Debug)]
struct Sink {
    to: Arc<File>,
    keep: Option<OwnedFd>,
    regular: bool,
}

impl Sink {
    /// A fifo, whose reader may still be about to open it; or a file that is there.
    fn open(path: &str) -> Result<Self> {
        let place = || format!("cannot open {path}");
        if !is_fifo(path).with_context(place)? {
            return Self::file(Path::new(path));
        }
        let begin = Instant::now();
        let to = loop {
            match open_fifo(path, OpenOptions::new().write(true)) {
                // Nobody reads yet.
                Err(error)
                    if error.raw_os_error() == Some(Errno::NXIO.raw_os_error())
                        && begin.elapsed() < OPEN_LIMIT =>
                {
                    std::thread::sleep(OPEN_PAUSE);
                }
                other => break other.with_context(place)?,
            }
        };
        let keep = open_fifo(path, OpenOptions::new().read(true)).with_context(place)?;
        Ok(Self {
            to: Arc::new(to),
            keep: Some(keep.into()),
            regular: false,
        })
    }

    fn file(path: &Path) -> Result<Self> {
        let file = OpenOptions::new()
            .append(true)
            .create(true)
            .mode(LOG_MODE)
            .open(path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        Ok(Self {
            to: Arc::new(file),
            keep: None,
            regular: true,
        })
    }

    /// Another descriptor of the same.
    fn again(&self) -> Result<Self> {
        Ok(Self {
            to: Arc::new(self.to.try_clone()?),
            keep: self.keep.as_ref().map(OwnedFd::try_clone).transpose()?,
            regular: self.regular,
        })
    }
}

fn is_fifo(path: &str) -> std::io::Result<bool> {
    use std::os::unix::fs::FileTypeExt;
    Ok(std::fs::metadata(path)?.file_type().is_fifo())
}

fn open_fifo(path: &str, options: &mut OpenOptions) -> std::io::Result<File> {
    options
        .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
        .open(path)
}

/// A pipe whose ends belong to the owner of the streams.
pub fn pipe(owner: Owner<'_>) -> Result<(File, File)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC).context("cannot make a pipe")?;
    if (owner.uid, owner.gid) != (0, 0) {
        for end in [&read, &write] {
            fchown(
                end,
                Some(Uid::from_raw(owner.uid)),
                Some(Gid::from_raw(owner.gid)),
            )
            .context("cannot give a pipe away")?;
        }
    }
    Ok((read.into(), write.into()))
}

/// The scheme of a URI, and what follows it; a path is that of a fifo.
fn scheme(uri: &str) -> (&str, &str) {
    uri.split_once("://").unwrap_or(("fifo", uri))
}

/// The path of a `file:` URI, whose directory is made.
fn log_file(rest: &str) -> Result<PathBuf> {
    let path = uri::path(rest)?;
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_are_told_apart() {
        assert_eq!(scheme("/run/fifo"), ("fifo", "/run/fifo"));
        assert_eq!(scheme("file:///var/log/a"), ("file", "/var/log/a"));
        assert_eq!(scheme("binary:///l?a=b"), ("binary", "/l?a=b"));
    }

    #[test]
    fn output_reaches_a_reader_that_comes_late() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("fifo");
        let made = process::Command::new("mkfifo").arg(&path).status().unwrap();
        assert!(made.success());
        let late = path.clone();
        let reader = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            std::fs::read(late).unwrap()
        });
        let sink = Sink::open(path.to_str().unwrap()).unwrap();
        std::io::Write::write_all(&mut &*sink.to, b"text").unwrap();
        drop(sink);
        assert_eq!(reader.join().unwrap(), b"text");
    }
}
