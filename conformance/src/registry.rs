//! Registries for tests: docker-registry with TLS and a password, and one that lies, fails, and cuts connections.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::command::{line, ok, until};
use crate::cosign;

/// User and password of all registries here.
pub const CREDENTIALS: &str = "u:pw";
/// The same as Basic authentication has it.
const BASIC: &str = "Basic dTpwdw==";
/// The same, hashed by crypt(3) with bcrypt.
const HTPASSWD: &str = "u:$2b$12$7xPN7sxvbQR27BLYj9cF8upUWQJOmyqGZcx8aI.Uylr2na/EOJnri\n";
/// The token that the token server gives.
const TOKEN: &str = "Bearer once-only";

/// docker-registry on loopback, ended when it is dropped.
#[derive(Debug)]
pub struct Registry {
    child: Child,
    /// `localhost:PORT`.
    pub host: String,
    /// Holds the certificate that it is trusted by, as `--cert-dir` wants it.
    pub certs: PathBuf,
    /// Docker's configuration with its credentials: `config.json` in this directory.
    pub docker_config: PathBuf,
}

impl Registry {
    /// Starts one that keeps its images in `dir`.
    ///
    /// # Errors
    /// It cannot be fetched or started.
    pub fn start(cache: &Path, dir: &Path) -> Result<Self> {
        let program = cosign::docker_registry(cache)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let host = format!("localhost:{port}");
        let (certs, docker_config) = (dir.join("certs"), dir.join("docker"));
        fs::create_dir_all(&certs)?;
        fs::create_dir_all(&docker_config)?;
        ok(line("openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost -keyout")
            .arg(dir.join("key"))
            .arg("-out")
            .arg(certs.join("ca.crt")))?;
        fs::write(dir.join("htpasswd"), HTPASSWD)?;
        let auth = json!({"auths": {&host: {"auth": "dTpwdw=="}}});
        fs::write(docker_config.join("config.json"), auth.to_string())?;
        let config = json!({
            "version": "0.1", "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": dir.join("data")}},
            "http": {"addr": format!("127.0.0.1:{port}"), "tls": {"certificate": certs.join("ca.crt"), "key": dir.join("key")}},
            "auth": {"htpasswd": {"realm": "test", "path": dir.join("htpasswd")}},
        });
        // JSON is YAML.
        fs::write(dir.join("config.yml"), config.to_string())?;
        let child = Command::new(program)
            .arg("serve")
            .arg(dir.join("config.yml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let registry = Self {
            child,
            host,
            certs,
            docker_config,
        };
        until("docker-registry", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        })?;
        Ok(registry)
    }

    /// Copies the only image of a layout to it with skopeo.
    ///
    /// # Errors
    /// skopeo fails.
    pub fn put(&self, layout: &Path, name: &str) -> Result<()> {
        ok(
            line("skopeo copy --quiet --insecure-policy --dest-creds u:pw --dest-cert-dir")
                .arg(&self.certs)
                .arg(format!("oci:{}:image", layout.display()))
                .arg(format!("docker://{}/{name}", self.host)),
        )?;
        Ok(())
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // Ended already is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a registry does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    None,
    /// Wants a token, which is given for a password.
    Token,
    /// Every answer with a blob ends after 100,000 bytes.
    Cuts,
    /// The first two answers with a blob end after 100,000 bytes, and it knows no ranges.
    CutsWithoutRange,
    /// Says twice that it is asked too often.
    TooMany,
    /// Fails twice.
    FailsTwice,
    /// Fails always.
    Fails,
    /// Wants to be asked again tomorrow.
    Tomorrow,
    /// Announces more bytes than the manifest.
    Longer,
    /// Announces fewer.
    Shorter,
    /// Changes a byte of blobs.
    OtherBlob,
    /// Serves another manifest for a digest.
    OtherManifest,
    /// Sends bytes without an end.
    Endless,
    /// Sends a byte now and then.
    Slow,
    /// Sends nothing after the header.
    Silent,
    /// Sends blobs from another host.
    Redirects,
    /// Sends around in circles.
    Circles,
}

/// A registry that has one image, `x:v1`, over plain HTTP. Its thread ends with the program.
#[derive(Debug)]
pub struct Faulty {
    /// `127.0.0.1:PORT`.
    pub host: String,
    /// The digest of its manifest.
    pub digest: String,
    /// What the other host got as Authorization.
    pub leaked: Arc<Mutex<Vec<String>>>,
    /// How many blobs were asked for.
    pub requests: Arc<AtomicUsize>,
}

struct Server {
    layout: PathBuf,
    manifest: Vec<u8>,
    media_type: String,
    address: SocketAddr,
    other: SocketAddr,
    fault: Fault,
    leaked: Arc<Mutex<Vec<String>>>,
    requests: Arc<AtomicUsize>,
    failures: AtomicUsize,
}

/// A request as far as it matters here.
struct Request {
    path: String,
    authorization: String,
    begin: Option<usize>,
}

impl Faulty {
    /// Serves the only image of a layout.
    ///
    /// # Errors
    /// The layout cannot be read, no port is free.
    pub fn start(layout: &Path, fault: Fault) -> Result<Self> {
        let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json"))?)?;
        let digest = index["manifests"][0]["digest"]
            .as_str()
            .context("no digest")?
            .to_owned();
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let other = TcpListener::bind("127.0.0.1:0")?;
        let server = Arc::new(Server {
            layout: layout.to_owned(),
            manifest: fs::read(layout.join("blobs").join(digest.replace(':', "/")))?,
            media_type: index["manifests"][0]["mediaType"]
                .as_str()
                .unwrap_or_default()
                .to_owned(),
            address: listener.local_addr()?,
            other: other.local_addr()?,
            fault,
            leaked: Arc::default(),
            requests: Arc::default(),
            failures: AtomicUsize::new(0),
        });
        let faulty = Self {
            host: server.address.to_string(),
            digest,
            leaked: Arc::clone(&server.leaked),
            requests: Arc::clone(&server.requests),
        };
        for (listener, own) in [(listener, true), (other, false)] {
            let server = Arc::clone(&server);
            thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let server = Arc::clone(&server);
                    // A client that goes away is no failure of the server.
                    thread::spawn(move || server.answer(stream, own).ok());
                }
            });
        }
        Ok(faulty)
    }
}

impl Server {
    fn answer(&self, mut stream: TcpStream, own: bool) -> Result<()> {
        let request = read(&stream)?;
        let reply = |stream: &mut TcpStream, status: &str, headers: &str, body: &[u8]| {
            let head = format!(
                "HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
                body.len()
            );
            stream.write_all(&[head.as_bytes(), body].concat())
        };
        if !own {
            if !request.authorization.is_empty() {
                let mut leaked = self.leaked.lock().expect("no test panics with it");
                leaked.push(request.authorization.clone());
            }
            let blob = self.blob(&request.path)?;
            return Ok(reply(&mut stream, "200 OK", "", &blob)?);
        }
        let token = self.fault == Fault::Token;
        if request.path.starts_with("/token?") {
            let right = request.authorization == BASIC
                && request.path.contains("scope=repository%3Ax%3Apull");
            if right {
                reply(&mut stream, "200 OK", "", br#"{"token": "once-only"}"#)?;
            } else {
                reply(&mut stream, "401 Unauthorized", "", b"")?;
            }
            return Ok(());
        }
        let wanted = if token { TOKEN } else { BASIC };
        if request.authorization != wanted {
            let challenge = match token {
                true => format!(
                    "Bearer realm=\"http://{}/token\",service=\"s\"",
                    self.address
                ),
                false => "Basic realm=\"x\"".to_owned(),
            };
            let challenge = format!("WWW-Authenticate: {challenge}\r\n");
            return Ok(reply(&mut stream, "401 Unauthorized", &challenge, b"")?);
        }
        let media_type = format!("Content-Type: {}\r\n", self.media_type);
        match request.path.as_str() {
            "/v2/" => reply(&mut stream, "200 OK", "", b"{}")?,
            path if path.starts_with("/v2/x/manifests/") => {
                let mut manifest = self.manifest.clone();
                if self.fault == Fault::OtherManifest {
                    manifest.push(b'\n');
                }
                reply(&mut stream, "200 OK", &media_type, &manifest)?;
            }
            path if path.starts_with("/v2/x/blobs/") => self.send_blob(&mut stream, &request)?,
            _ => reply(&mut stream, "404 Not Found", "", b"")?,
        }
        Ok(())
    }

    fn blob(&self, path: &str) -> Result<Vec<u8>> {
        let digest = path.rsplit('/').next().unwrap_or_default();
        let hex = digest.strip_prefix("sha256:").context("no digest")?;
        ensure!(
            hex.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "no digest"
        );
        Ok(fs::read(self.layout.join("blobs/sha256").join(hex))?)
    }

    fn send_blob(&self, stream: &mut TcpStream, request: &Request) -> Result<()> {
        let mut blob = self.blob(&request.path)?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        let failed = |most: usize| self.failures.fetch_add(1, Ordering::Relaxed) < most;
        let refusal = match self.fault {
            Fault::TooMany if failed(2) => Some("429 Too Many Requests\r\nRetry-After: 1"),
            Fault::FailsTwice if failed(2) => Some("500 Internal Server Error"),
            Fault::Fails => Some("500 Internal Server Error"),
            Fault::Tomorrow => Some("429 Too Many Requests\r\nRetry-After: 86400"),
            _ => None,
        };
        if let Some(refusal) = refusal {
            write!(
                stream,
                "HTTP/1.1 {refusal}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"
            )?;
            return Ok(());
        }
        let place = match self.fault {
            Fault::Redirects => Some(self.other),
            Fault::Circles => Some(self.address),
            _ => None,
        };
        if let Some(place) = place {
            write!(
                stream,
                "HTTP/1.1 307 Temporary Redirect\r\nLocation: http://{place}{}\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
                request.path
            )?;
            return Ok(());
        }
        let whole = blob.len();
        let mut announced = whole;
        match self.fault {
            Fault::OtherBlob => blob[whole / 2] ^= 1,
            Fault::Longer => announced += 1,
            Fault::Shorter => announced -= 1,
            _ => {}
        }
        let mut status = "200 OK".to_owned();
        if let Some(begin) = request
            .begin
            .filter(|_| self.fault != Fault::CutsWithoutRange)
        {
            status = format!(
                "206 Partial Content\r\nContent-Range: bytes {begin}-{}/{whole}",
                whole - 1
            );
            blob.drain(..begin);
            announced -= begin;
        }
        let length = match self.fault {
            Fault::Endless => String::new(),
            _ => format!("Content-Length: {announced}\r\n"),
        };
        write!(
            stream,
            "HTTP/1.1 {status}\r\nConnection: close\r\n{length}\r\n"
        )?;
        match self.fault {
            Fault::Cuts => blob.truncate(100_000),
            Fault::CutsWithoutRange if failed(2) => blob.truncate(100_000),
            Fault::Endless => loop {
                stream.write_all(&blob)?;
            },
            Fault::Slow => {
                for byte in &blob {
                    stream.write_all(&[*byte])?;
                    thread::sleep(Duration::from_millis(100));
                }
            }
            Fault::Silent => thread::sleep(Duration::from_secs(600)),
            _ => {}
        }
        stream.write_all(&blob)?;
        Ok(())
    }
}

fn read(stream: &TcpStream) -> Result<Request> {
    let mut reader = BufReader::new(stream).take(64 << 10);
    let mut first = String::new();
    reader.read_line(&mut first)?;
    let mut request = Request {
        path: first.split(' ').nth(1).context("no HTTP")?.to_owned(),
        authorization: String::new(),
        begin: None,
    };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end();
        let Some((name, value)) = line.split_once(": ") else {
            return Ok(request);
        };
        match name.to_ascii_lowercase().as_str() {
            "authorization" => request.authorization = value.to_owned(),
            "range" => {
                let begin = value
                    .strip_prefix("bytes=")
                    .and_then(|range| range.strip_suffix('-'));
                request.begin = begin.and_then(|begin| begin.parse().ok());
            }
            _ => {}
        }
    }
}

/// Gives a command a home and a TMPDIR in `dir`: nothing of this machine's configuration counts.
pub fn alone(command: &mut Command, dir: &Path) {
    command
        .env("HOME", dir.join("home"))
        .env("TMPDIR", dir.join("tmp"))
        .env("XDG_RUNTIME_DIR", dir.join("home"))
        .env_remove("DOCKER_CONFIG")
        .env_remove("REGISTRY_AUTH_FILE");
}

/// Whether nothing is left of a conversion that failed, in `out` and `tmp` in `dir`.
///
/// # Errors
/// Something is; it is named.
pub fn nothing_is_left(dir: &Path) -> Result<()> {
    for name in ["out", "tmp"] {
        let left: Vec<_> = fs::read_dir(dir.join(name))
            .into_iter()
            .flatten()
            .flatten()
            .collect();
        ensure!(left.is_empty(), "left in {name}: {left:?}");
    }
    Ok(())
}
