//! Requests to a repository: authentication, redirections, and trying again.

use std::io::Read;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use ureq::http::{Request, Response, StatusCode, Uri, header};
use ureq::{Agent, AsSendBody, Body};
use zeroize::Zeroizing;

use super::auth::{self, Credentials};
use super::challenge::Challenge;
use super::{Endpoint, Options, Reference, Wanted, certificates};
use crate::carrier::digest_text;
use crate::error::Error;

/// The longest manifest or index, in bytes (containers/image's limit).
pub(super) const MAX_MANIFEST: u64 = 4 << 20;
/// The longest answer of a token server, in bytes.
const MAX_TOKEN: u64 = 1 << 20;
/// How much of an error's text is read.
const MAX_MESSAGE: u64 = 4 << 10;
/// How often something is tried without success in between.
pub(super) const ATTEMPTS: u32 = 5;
/// The longest time that a registry may make us wait (Retry-After).
const MAX_WAIT: Duration = Duration::from_secs(60);
/// How many redirections are followed.
const REDIRECTIONS: usize = 5;

/// Manifests that are understood, and those of schema 1 so that the error can say so.
const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.1";

/// A manifest or index, its digest checked.
#[derive(Debug, Clone)]
pub struct Document {
    /// What it is.
    pub media_type: String,
    /// `sha256:HEX`.
    pub digest: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Why a request failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reason: String,
    /// Whether it may succeed when it is tried again.
    pub(super) again: bool,
    /// When the registry wants to be asked again.
    pub(super) after: Option<Duration>,
    pub(super) status: Option<StatusCode>,
}

impl Failure {
    pub(super) fn lasting(reason: impl Into<String>) -> Self {
        Self {
            reason: reason.into(),
            again: false,
            after: None,
            status: None,
        }
    }

    pub(super) fn passing(reason: impl Into<String>) -> Self {
        Self {
            again: true,
            ..Self::lasting(reason)
        }
    }
}

impl From<ureq::Error> for Failure {
    fn from(error: ureq::Error) -> Self {
        let lasting = matches!(
            error,
            ureq::Error::BadUri(_)
                | ureq::Error::InvalidProxyUrl
                | ureq::Error::HostNotFound
                | ureq::Error::NativeTls(_)
        );
        match lasting {
            true => Self::lasting(error.to_string()),
            false => Self::passing(error.to_string()),
        }
    }
}

/// A repository of a registry.
pub struct Repository {
    /// For messages: the image as it was asked for, and the place if that is another.
    shown: String,
    agent: Agent,
    /// `https://HOST[:PORT]`
    base: String,
    repository: String,
    /// `pull` or `pull,push`.
    actions: &'static str,
    insecure: bool,
    credentials: Option<Credentials>,
    authorization: Mutex<Option<Zeroizing<String>>>,
    pub(super) timeout: Duration,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Repository({})", self.shown)
    }
}

impl Repository {
    /// Finds out how the registry is spoken to.
    ///
    /// # Errors
    /// It cannot be reached, or wants other credentials.
    pub fn open(
        options: &Options,
        reference: &Reference,
        endpoint: &Endpoint,
        push: bool,
    ) -> Result<Self, Error> {
        let insecure = match options.tls_verify {
            Some(verify) => !verify,
            None => endpoint.insecure,
        };
        let name = format!("{}/{}", endpoint.host, endpoint.repository);
        let shown = match reference.name() == name {
            true => format!("docker://{reference}"),
            false => format!("docker://{reference} (at {name})"),
        };
        let host = match endpoint.host.as_str() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        let timeout = Duration::from_secs(options.registry_timeout);
        let agent = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("trustme-convert/", env!("CARGO_PKG_VERSION")))
            .tls_config(certificates::configuration(
                options,
                &endpoint.host,
                !insecure,
            )?)
            .timeout_connect(Some(timeout))
            .timeout_recv_response(Some(timeout))
            .timeout_per_read(Some(timeout))
            .timeout_per_write(Some(timeout))
            .build()
            .into();
        let mut repository = Self {
            shown,
            agent,
            base: format!("https://{host}"),
            repository: endpoint.repository.clone(),
            actions: if push { "pull,push" } else { "pull" },
            insecure,
            credentials: auth::find(options, &name)?,
            authorization: Mutex::new(None),
            timeout,
        };
        if insecure {
            // Asked once: what does not answer HTTPS at all is plain HTTP.
            match repository.ping() {
                Err(failure) if failure.status.is_none() => {
                    repository.base = format!("http://{host}")
                }
                Err(failure) if !failure.again => return Err(repository.error(failure.reason)),
                _ => {}
            }
        }
        if repository.lock().is_none() {
            repository.retry(|| repository.ping())?;
        }
        Ok(repository)
    }

    /// For messages.
    #[must_use]
    pub fn shown(&self) -> &str {
        &self.shown
    }

    pub(super) fn error(&self, reason: impl Into<String>) -> Error {
        Error::Registry {
            what: self.shown.clone(),
            reason: reason.into(),
        }
    }

    /// The base of all addresses in the repository.
    pub(super) fn address(&self, rest: &str) -> String {
        format!("{}/v2/{}/{rest}", self.base, self.repository)
    }

    /// Asks for the API, and authenticates if that is wanted.
    fn ping(&self) -> Result<(), Failure> {
        let request = Request::get(format!("{}/v2/", self.base)).body(());
        let response = self.agent.run(request.map_err(ureq::Error::from)?)?;
        match response.status() {
            StatusCode::UNAUTHORIZED => self.authenticate(&response),
            status if retryable(status) => Err(refused(response)),
            _ => Ok(()),
        }
    }

    fn authenticate<B>(&self, response: &Response<B>) -> Result<(), Failure> {
        let headers = response.headers().get_all(header::WWW_AUTHENTICATE).iter();
        let mut challenges = headers.filter_map(|value| Challenge::parse(value.to_str().ok()?));
        let authorization = match challenges.next() {
            None => {
                return Err(Failure::lasting(
                    "it refuses, and does not say what it wants (WWW-Authenticate)",
                ));
            }
            Some(Challenge::Basic) => {
                let basic = self.credentials.as_ref().and_then(Credentials::basic);
                basic.ok_or_else(|| {
                    Failure::lasting(
                        "it wants a user and a password: none are known (--creds, --authfile)",
                    )
                })?
            }
            Some(Challenge::Bearer { realm, service, .. }) => {
                self.token(&realm, service.as_deref())?
            }
        };
        *self.lock() = Some(authorization);
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Zeroizing<String>>> {
        // What it holds is whole at all times.
        self.authorization
            .lock()
            .unwrap_or_else(|error| error.into_inner())
    }

    /// Asks a token server (distribution, token authentication and OAuth 2).
    fn token(&self, realm: &str, service: Option<&str>) -> Result<Zeroizing<String>, Failure> {
        #[derive(Deserialize)]
        struct Answer {
            token: Option<Zeroizing<String>>,
            access_token: Option<Zeroizing<String>>,
        }
        let safe = realm.starts_with("https://") || (realm.starts_with("http://") && self.insecure);
        if !safe {
            return Err(Failure::lasting(format!(
                "its tokens come from {realm:?}, expected https://"
            )));
        }
        let scope = format!("repository:{}:{}", self.repository, self.actions);
        let response = match &self.credentials {
            Some(Credentials::IdentityToken(token)) => {
                let form = [
                    ("grant_type", "refresh_token"),
                    ("client_id", "trustme-convert"),
                    ("service", service.unwrap_or_default()),
                    ("scope", &scope),
                    ("refresh_token", token),
                ];
                self.agent.post(realm).send_form(form)?
            }
            credentials => {
                let mut request = self.agent.get(realm).query("scope", &scope);
                if let Some(service) = service {
                    request = request.query("service", service);
                }
                if let Some(basic) = credentials.as_ref().and_then(Credentials::basic) {
                    request = request.header(header::AUTHORIZATION, basic.as_str());
                }
                request.call()?
            }
        };
        if !response.status().is_success() {
            let mut failure = refused(response);
            failure.reason = format!("the token server {realm}: {}", failure.reason);
            return Err(failure);
        }
        let bytes = Zeroizing::new(read(response, MAX_TOKEN)?);
        let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| {
            Failure::lasting(format!(
                "the token server {realm}: expected JSON with a token"
            ))
        })?;
        let token = answer.token.or(answer.access_token);
        let token = token
            .ok_or_else(|| Failure::lasting(format!("the token server {realm} gives no token")))?;
        Ok(Zeroizing::new(format!("Bearer {}", token.as_str())))
    }

    /// Sends a request that has no body. Redirections are followed; credentials go to nobody but the registry itself.
    pub(super) fn get(
        &self,
        method: &str,
        address: &str,
        headers: &[(&str, &str)],
    ) -> Result<Response<Body>, Failure> {
        let mut address = address.to_owned();
        let mut authenticated = false;
        for _ in 0..=REDIRECTIONS {
            let own = self.is_own(&address);
            let mut request = Request::builder().method(method).uri(&address);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            if own && let Some(authorization) = &*self.lock() {
                request = request.header(header::AUTHORIZATION, authorization.as_str());
            }
            let response = self
                .agent
                .run(request.body(()).map_err(ureq::Error::from)?)?;
            match response.status() {
                // A token may have run out.
                StatusCode::UNAUTHORIZED if own && !authenticated => {
                    self.authenticate(&response)?;
                    authenticated = true;
                }
                status if status.is_redirection() => address = self.target(&address, &response)?,
                status if status.is_success() => return Ok(response),
                _ => return Err(refused(response)),
            }
        }
        Err(Failure::lasting(format!(
            "more than {REDIRECTIONS} redirections"
        )))
    }

    /// Sends a request with a body, which is sent once.
    pub(super) fn send(
        &self,
        method: &str,
        address: &str,
        headers: &[(&str, &str)],
        body: impl AsSendBody,
    ) -> Result<Response<Body>, Failure> {
        let mut request = Request::builder().method(method).uri(address);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if self.is_own(address)
            && let Some(authorization) = &*self.lock()
        {
            request = request.header(header::AUTHORIZATION, authorization.as_str());
        }
        let response = self
            .agent
            .run(request.body(body).map_err(ureq::Error::from)?)?;
        match response.status() {
            StatusCode::UNAUTHORIZED => {
                self.authenticate(&response)?;
                Err(Failure::passing("the credentials are refused"))
            }
            status if status.is_success() => Ok(response),
            _ => Err(refused(response)),
        }
    }

    fn is_own(&self, address: &str) -> bool {
        let rest = address.strip_prefix(&self.base);
        rest.is_some_and(|rest| rest.starts_with('/'))
    }

    /// Where a redirection, or an upload, leads.
    pub(super) fn target<B>(&self, from: &str, response: &Response<B>) -> Result<String, Failure> {
        let location = response.headers().get(header::LOCATION);
        let location = location
            .and_then(|value| value.to_str().ok())
            .ok_or_else(|| Failure::lasting("a redirection that says not where to"))?;
        let absolute = match location {
            _ if location.starts_with("https://") || location.starts_with("http://") => {
                location.to_owned()
            }
            _ if location.starts_with('/') && !location.starts_with("//") => {
                let uri: Uri = from
                    .parse()
                    .map_err(|_| Failure::lasting(format!("address {from:?}")))?;
                let scheme = uri.scheme_str().unwrap_or("https");
                let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
                format!("{scheme}://{authority}{location}")
            }
            _ => return Err(Failure::lasting(format!("a redirection to {location:?}"))),
        };
        if absolute.starts_with("http://") && !self.insecure {
            return Err(Failure::lasting(format!(
                "a redirection to {absolute:?}, expected https://"
            )));
        }
        Ok(absolute)
    }

    /// Does something until it succeeds, at most [`ATTEMPTS`] times.
    pub(super) fn retry<T>(
        &self,
        mut attempt: impl FnMut() -> Result<T, Failure>,
    ) -> Result<T, Error> {
        let mut failed = 0;
        loop {
            match attempt() {
                Ok(done) => return Ok(done),
                Err(failure) => {
                    failed += 1;
                    self.pause(failure, failed)?;
                }
            }
        }
    }

    /// Waits before the next attempt.
    ///
    /// # Errors
    /// There is to be none.
    pub(super) fn pause(&self, failure: Failure, failed: u32) -> Result<(), Error> {
        if !failure.again {
            return Err(self.error(failure.reason));
        }
        if failed >= ATTEMPTS {
            return Err(self.error(format!("{} ({failed} attempts)", failure.reason)));
        }
        let usual = Duration::from_millis(250 << failed);
        let wait = failure.after.unwrap_or(usual);
        if wait > MAX_WAIT {
            let reason = format!(
                "{}; it wants to be asked again in {} s",
                failure.reason,
                wait.as_secs()
            );
            return Err(self.error(reason));
        }
        thread::sleep(wait);
        Ok(())
    }

    /// The manifest or index that a tag or digest names; `None` where there is none.
    ///
    /// # Errors
    /// The registry fails, or what it sends has another digest.
    pub fn find_manifest(&self, wanted: &Wanted) -> Result<Option<Document>, Error> {
        let name = match wanted {
            Wanted::Tag(name) | Wanted::Digest(name) => name,
        };
        let address = self.address(&format!("manifests/{name}"));
        let found = self.retry(|| {
            let response = match self.get("GET", &address, &[("Accept", ACCEPT)]) {
                Err(failure) if failure.status == Some(StatusCode::NOT_FOUND) => return Ok(None),
                response => response?,
            };
            let said = |name: &str| {
                let value = response.headers().get(name)?.to_str().ok()?;
                Some(value.split(';').next().unwrap_or(value).trim().to_owned())
            };
            let (media_type, digest) = (said("content-type"), said("docker-content-digest"));
            let bytes = read(response, MAX_MANIFEST)?;
            Ok(Some((media_type, digest, bytes)))
        })?;
        let Some((header, said, bytes)) = found else {
            return Ok(None);
        };
        let digest = digest_text(&Sha256::digest(&bytes).into());
        let expected = match wanted {
            Wanted::Digest(digest) => Some(digest.clone()),
            // What the registry says of a tag only guards against damage on the way.
            Wanted::Tag(_) => said.filter(|said| said.starts_with("sha256:")),
        };
        if let Some(expected) = expected.filter(|expected| *expected != digest) {
            return Err(self.error(format!(
                "the manifest has the digest {digest}, expected {expected}"
            )));
        }
        let said = serde_json::from_slice::<Value>(&bytes).ok();
        let said = said.and_then(|value| Some(value.get("mediaType")?.as_str()?.to_owned()));
        Ok(Some(Document {
            media_type: said.or(header).unwrap_or_default(),
            digest,
            bytes,
        }))
    }

    /// The index of what refers to a manifest (distribution specification, "Listing Referrers"); `None` where the registry knows none.
    ///
    /// # Errors
    /// The registry fails.
    pub fn referrers(&self, digest: &str) -> Result<Option<Vec<u8>>, Error> {
        let address = self.address(&format!("referrers/{digest}"));
        self.retry(|| match self.get("GET", &address, &[]) {
            Ok(response) => Ok(Some(read(response, MAX_MANIFEST)?)),
            Err(failure) if failure.status.is_some() && !failure.again => Ok(None),
            Err(failure) => Err(failure),
        })
    }

    /// As [`Repository::find_manifest`], for one that has to be there.
    ///
    /// # Errors
    /// It is not, or as there.
    pub fn manifest(&self, wanted: &Wanted) -> Result<Document, Error> {
        self.find_manifest(wanted)?.ok_or_else(|| {
            let (Wanted::Tag(name) | Wanted::Digest(name)) = wanted;
            self.error(format!("no manifest {name} in the repository"))
        })
    }
}

/// Reads a short body.
pub(super) fn read(response: Response<Body>, max: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let mut reader = response.into_body().into_reader().take(max + 1);
    reader
        .read_to_end(&mut bytes)
        .map_err(|error| Failure::passing(error.to_string()))?;
    match bytes.len() as u64 > max {
        true => Err(Failure::lasting(format!(
            "a document of more than {max} bytes"
        ))),
        false => Ok(bytes),
    }
}

fn retryable(status: StatusCode) -> bool {
    status.is_server_error() || matches!(status.as_u16(), 408 | 425 | 429)
}

/// What a registry says with an error (distribution specification, "Error codes").
pub(super) fn refused(response: Response<Body>) -> Failure {
    let status = response.status();
    let after = response.headers().get(header::RETRY_AFTER);
    let seconds = after.and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let mut body = Vec::new();
    // The status says enough where this cannot be read.
    let _ = response
        .into_body()
        .into_reader()
        .take(MAX_MESSAGE)
        .read_to_end(&mut body);
    let said = serde_json::from_slice::<Value>(&body).ok();
    let said = said.and_then(|value| {
        let text = value
            .pointer("/errors/0/message")
            .or_else(|| value.get("details"))?;
        Some(
            text.as_str()?
                .chars()
                .filter(|char| !char.is_control())
                .take(200)
                .collect::<String>(),
        )
    });
    Failure {
        reason: match said.filter(|said| !said.is_empty()) {
            Some(said) => format!("HTTP {status}: {said}"),
            None => format!("HTTP {status}"),
        },
        again: retryable(status),
        after: seconds.map(Duration::from_secs),
        status: Some(status),
    }
}
