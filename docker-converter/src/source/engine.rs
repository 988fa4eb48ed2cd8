//! Images that a container engine keeps: of Docker's daemon by its API, of Podman's storage by `podman save`.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Seek, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::error::Error;

/// Where Docker's daemon listens, if DOCKER_HOST does not say.
const DOCKER_SOCKET: &str = "/var/run/docker.sock";
/// How long a daemon may be silent: it packs the image before it sends.
const TIMEOUT: Duration = Duration::from_secs(600);
/// The longest line or message of an answer, in bytes.
const MAX_LINE: u64 = 8 << 10;
/// The most lines of an answer's header.
const MAX_HEADERS: usize = 100;

fn failed(what: &str, reason: impl ToString) -> Error {
    Error::Registry {
        what: what.to_owned(),
        reason: reason.to_string(),
    }
}

/// A file without a name, where there is room for images.
fn temporary() -> Result<File, Error> {
    let dir = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
    tempfile::tempfile_in(&dir).map_err(Error::io(&dir))
}

/// What `docker save` would write (Docker Engine API, ImageGet).
pub(super) fn docker(reference: &str) -> Result<File, Error> {
    let what = format!("docker-daemon:{reference}");
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    let socket = match host.as_str() {
        "" => DOCKER_SOCKET,
        host => host.strip_prefix("unix://").ok_or_else(|| {
            failed(
                &what,
                format!("DOCKER_HOST is {host:?}, expected unix://SOCKET"),
            )
        })?,
    };
    let plain = |char: char| char.is_ascii_alphanumeric() || "._-/:@".contains(char);
    if reference.is_empty() || !reference.chars().all(plain) {
        return Err(failed(&what, "expected a name or an ID of an image"));
    }
    let mut file = temporary()?;
    receive(Path::new(socket), reference, &mut file)
        .map_err(|error| failed(&what, format!("{socket}: {error}")))?;
    Ok(file)
}

/// HTTP 1.0: the answer comes in one piece and ends with the connection.
fn receive(socket: &Path, reference: &str, to: &mut File) -> io::Result<()> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(
        stream,
        "GET /images/{reference}/get HTTP/1.0\r\nHost: docker\r\n\r\n"
    )?;
    let mut reader = BufReader::new(stream);
    let mut line = || -> io::Result<String> {
        let mut text = String::new();
        (&mut reader).take(MAX_LINE).read_line(&mut text)?;
        match text.ends_with('\n') {
            true => Ok(text.trim_end().to_owned()),
            false => Err(io::Error::other("no answer in HTTP")),
        }
    };
    let status = line()?;
    let mut ended = false;
    for _ in 0..MAX_HEADERS {
        if line()?.is_empty() {
            ended = true;
            break;
        }
    }
    let code = status.split(' ').nth(1).unwrap_or_default();
    if !ended || code != "200" {
        let mut body = Vec::new();
        reader.take(MAX_LINE).read_to_end(&mut body)?;
        let said: Option<serde_json::Value> = serde_json::from_slice(&body).ok();
        let said = said.and_then(|said| Some(said.get("message")?.as_str()?.to_owned()));
        return Err(io::Error::other(said.unwrap_or(status)));
    }
    io::copy(&mut reader, to)?;
    to.rewind()
}

/// What `podman save` writes: an OCI layout in an archive.
pub(super) fn podman(reference: &str) -> Result<File, Error> {
    let what = format!("containers-storage:{reference}");
    if reference.is_empty() || reference.starts_with('-') {
        return Err(failed(&what, "expected a name or an ID of an image"));
    }
    let mut file = temporary()?;
    let mut complaints = tempfile::tempfile().map_err(|error| failed(&what, error))?;
    let cloned = |file: &File| file.try_clone().map_err(|error| failed(&what, error));
    let status = Command::new("podman")
        .args(["save", "--quiet", "--format", "oci-archive", reference])
        .stdin(Stdio::null())
        .stdout(cloned(&file)?)
        .stderr(cloned(&complaints)?)
        .status()
        .map_err(|error| failed(&what, format!("podman: {error}")))?;
    if !status.success() {
        let mut said = Vec::new();
        complaints
            .rewind()
            .and_then(|()| complaints.take(MAX_LINE).read_to_end(&mut said))
            .map_err(|error| failed(&what, error))?;
        let said = String::from_utf8_lossy(&said);
        let last = said.trim().lines().last().unwrap_or_default();
        return Err(failed(&what, format!("podman save: {status}: {last}")));
    }
    file.rewind().map_err(|error| failed(&what, error))?;
    Ok(file)
}
