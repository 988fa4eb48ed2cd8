//! Credentials: containers-auth.json(5) and Docker's config.json, with their credential helpers.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::Options;
use crate::error::Error;

/// The largest file of credentials, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// What Docker's own file calls Docker Hub.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// The user name that credential helpers give with an identity token.
const TOKEN_USER: &str = "<token>";

/// Who asks.
#[derive(Clone)]
pub(super) enum Credentials {
    /// A user.
    Password {
        user: String,
        password: Zeroizing<String>,
    },
    /// What a token is given for (OAuth 2, refresh_token).
    IdentityToken(Zeroizing<String>),
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Credentials")
    }
}

impl Credentials {
    fn password(user: &str, password: &str) -> Self {
        match user {
            TOKEN_USER => Self::IdentityToken(Zeroizing::new(password.to_owned())),
            _ => Self::Password {
                user: user.to_owned(),
                password: Zeroizing::new(password.to_owned()),
            },
        }
    }

    /// The value of the header Authorization, for a user.
    pub(super) fn basic(&self) -> Option<Zeroizing<String>> {
        match self {
            Self::Password { user, password } => {
                let joined = Zeroizing::new(format!("{user}:{}", password.as_str()));
                let encoded = Zeroizing::new(STANDARD.encode(joined.as_bytes()));
                Some(Zeroizing::new(format!("Basic {}", encoded.as_str())))
            }
            Self::IdentityToken(_) => None,
        }
    }
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct AuthFile {
    auths: BTreeMap<String, Auth>,
    creds_store: Option<String>,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Auth {
    auth: Option<Zeroizing<String>>,
    username: Option<String>,
    password: Option<Zeroizing<String>>,
    identitytoken: Option<Zeroizing<String>>,
}

/// What a credential helper says.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Helped {
    username: String,
    secret: Zeroizing<String>,
}

/// The credentials for `HOST/REPOSITORY`, if there are any.
///
/// # Errors
/// A file that is there cannot be read or understood, a helper fails.
pub(super) fn find(options: &Options, name: &str) -> Result<Option<Credentials>, Error> {
    if let Some(given) = &options.creds {
        let (user, password) = given.split_once(':').unwrap_or((given, ""));
        return Ok(Some(Credentials::password(user, password)));
    }
    for path in files(options) {
        let bytes = match fs::metadata(&path).map(|metadata| metadata.len()) {
            Ok(size) if size > MAX_FILE => {
                return Err(Error::image(&path, format!("more than {MAX_FILE} bytes")));
            }
            Ok(_) => Zeroizing::new(fs::read(&path).map_err(Error::io(&path))?),
            // Those that are named must be there.
            Err(error) if options.authfile.is_some() => return Err(Error::io(&path)(error)),
            Err(_) => continue,
        };
        let file = parse(&bytes).map_err(|reason| Error::image(&path, reason))?;
        if let Some(found) = look_up(&file, name).map_err(|reason| Error::image(&path, reason))? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

fn files(options: &Options) -> Vec<PathBuf> {
    let variable = |name: &str| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(path) = &options.authfile {
        return vec![path.clone()];
    }
    if let Some(path) = variable("REGISTRY_AUTH_FILE") {
        return vec![path];
    }
    let mut files = Vec::new();
    match variable("XDG_RUNTIME_DIR") {
        Some(dir) => files.push(dir.join("containers/auth.json")),
        None => {
            let user = rustix::process::getuid().as_raw();
            files.push(PathBuf::from(format!("/run/containers/{user}/auth.json")));
        }
    }
    let home = variable("HOME").unwrap_or_default();
    let config = variable("XDG_CONFIG_HOME").unwrap_or_else(|| home.join(".config"));
    files.push(config.join("containers/auth.json"));
    let docker = variable("DOCKER_CONFIG").unwrap_or_else(|| home.join(".docker"));
    files.push(docker.join("config.json"));
    files
}

fn parse(bytes: &[u8]) -> Result<AuthFile, String> {
    // serde_json's message may show a part of the file: only the place is told.
    serde_json::from_slice(bytes).map_err(|error| {
        format!(
            "not as containers-auth.json(5) says, at line {} column {}",
            error.line(),
            error.column()
        )
    })
}

/// The credentials of the longest name that has some: `HOST/a/b`, `HOST/a`, `HOST`.
fn look_up(file: &AuthFile, name: &str) -> Result<Option<Credentials>, String> {
    let host = name.split('/').next().unwrap_or(name);
    let server = match host {
        "docker.io" => DOCKER_HUB,
        host => host,
    };
    let helpers = [host, server].into_iter();
    let helper = helpers.filter_map(|key| file.cred_helpers.get(key)).next();
    if let Some(helper) = helper {
        return ask(helper, server);
    }
    let mut part = name;
    loop {
        if let Some(auth) = file.auths.get(part)
            && let Some(found) = stored(auth)?
        {
            return Ok(Some(found));
        }
        match part.rsplit_once('/') {
            Some((parent, _)) => part = parent,
            None => break,
        }
    }
    for (key, auth) in &file.auths {
        let same = key == server || bare_host(key) == host;
        if same && let Some(found) = stored(auth)? {
            return Ok(Some(found));
        }
    }
    match &file.creds_store {
        Some(helper) if !helper.is_empty() => ask(helper, server),
        _ => Ok(None),
    }
}

/// The host of keys that older Dockers write: `https://HOST/v1/`.
fn bare_host(key: &str) -> &str {
    let rest = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"));
    rest.map_or("", |rest| rest.split('/').next().unwrap_or_default())
}

fn stored(auth: &Auth) -> Result<Option<Credentials>, String> {
    if let Some(token) = auth
        .identitytoken
        .as_ref()
        .filter(|token| !token.is_empty())
    {
        return Ok(Some(Credentials::IdentityToken(token.clone())));
    }
    if let Some(encoded) = auth.auth.as_ref().filter(|encoded| !encoded.is_empty()) {
        let decoded = STANDARD.decode(encoded.trim_end());
        let decoded = Zeroizing::new(decoded.map_err(|_| "an \"auth\" that is not base64")?);
        let text = str::from_utf8(&decoded).map_err(|_| "an \"auth\" that is not UTF-8")?;
        let (user, password) = text
            .split_once(':')
            .ok_or("an \"auth\" that is not USER:PASSWORD")?;
        return Ok(Some(Credentials::password(
            user,
            password.trim_end_matches('\0'),
        )));
    }
    Ok(match (&auth.username, &auth.password) {
        (Some(user), Some(password)) => Some(Credentials::password(user, password)),
        _ => None,
    })
}

/// Asks `docker-credential-HELPER` (docker-credential-helpers, its README).
fn ask(helper: &str, server: &str) -> Result<Option<Credentials>, String> {
    let plain = |char: char| char.is_ascii_alphanumeric() || matches!(char, '-' | '_' | '.');
    if !helper.chars().all(plain) {
        return Err(format!("credential helper {helper:?}: not a name"));
    }
    let program = format!("docker-credential-{helper}");
    let failed = |reason: String| format!("{program}: {reason}");
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // One that does not listen says so by its exit code.
        let _ = stdin.write_all(server.as_bytes());
    }
    let output = child
        .wait_with_output()
        .map_err(|error| failed(error.to_string()))?;
    let stdout = Zeroizing::new(output.stdout);
    if !output.status.success() {
        let said = String::from_utf8_lossy(&stdout);
        return match said.contains("credentials not found") {
            true => Ok(None),
            false => Err(failed(format!("{}: {}", output.status, said.trim()))),
        };
    }
    let helped: Helped = serde_json::from_slice(&stdout)
        .map_err(|_| failed("expected JSON with Username and Secret".to_owned()))?;
    Ok(Some(Credentials::password(
        &helped.username,
        &helped.secret,
    )))
}

/// Whether bytes are a file of credentials; for fuzzing, which looks up a name in it.
///
/// # Errors
/// They are not.
pub fn check_auth_file(bytes: &[u8], path: &Path) -> Result<(), Error> {
    let mut file = parse(bytes).map_err(|reason| Error::image(path, reason))?;
    // No programs are run.
    file.cred_helpers.clear();
    file.creds_store = None;
    look_up(&file, "registry.example/a/b")
        .map(|_| ())
        .map_err(|reason| Error::image(path, reason))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_name_counts() {
        let file = parse(
            br#"{"auths": {
                "r.io": {"auth": "YTpi"}, "r.io/x": {"auth": "YzpkOmU="}, "https://old.io/v1/": {"username": "u", "password": "p"},
                "https://index.docker.io/v1/": {"identitytoken": "t"}, "bad.io": {"auth": "YQ=="}, "none.io": {}
            }}"#,
        )
        .unwrap();
        let user = |name: &str| match look_up(&file, name).unwrap() {
            Some(Credentials::Password { user, password }) => {
                format!("{user}:{}", password.as_str())
            }
            Some(Credentials::IdentityToken(token)) => token.to_string(),
            None => "none".to_owned(),
        };
        for (name, expected) in [
            ("r.io/y", "a:b"),
            ("r.io/x/y", "c:d:e"),
            ("r.io/xy", "a:b"),
            ("old.io/a", "u:p"),
            ("docker.io/library/nginx", "t"),
            ("none.io/a", "none"),
            ("other.io/a", "none"),
        ] {
            assert_eq!(user(name), expected, "{name}");
        }
        assert!(look_up(&file, "bad.io/a").is_err());
    }
}
