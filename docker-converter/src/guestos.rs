//! What an image's configuration becomes: a GuestOS configuration text, and config.img for what that cannot say.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use trustme_guestos::config::{GuestOsConfig, I18nString, INJECTED_INIT, Mount, MountType};
use trustme_guestos::image_config::ImageConfig;

use crate::error::Error;
use crate::source::Configuration;
use crate::users::{self, User};

/// The longest part of an image's name that comes from a volume's path.
const MAX_VOLUME_NAME: usize = 64;

/// The object `config` of an image configuration (OCI image specification, config.md; Docker's fields).
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Config {
    user: Option<String>,
    exposed_ports: Option<BTreeMap<String, Value>>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    volumes: Option<BTreeMap<String, Value>>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    stop_signal: Option<String>,
    healthcheck: Option<Value>,
}

/// What a GuestOS is called.
#[derive(Debug, Clone)]
pub struct Naming {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: u64,
}

/// The files that users and groups are looked up in, empty where the image has none.
#[derive(Debug, Clone, Default)]
pub struct Accounts {
    /// /etc/passwd
    pub passwd: String,
    /// /etc/group
    pub group: String,
}

/// What an image's configuration says, understood.
#[derive(Debug)]
pub struct Description {
    hardware: &'static str,
    architecture: String,
    os: String,
    raw: Map<String, Value>,
    config: Config,
    /// Normal paths.
    volumes: BTreeSet<String>,
}

impl Description {
    /// Understands an image's configuration.
    ///
    /// # Errors
    /// It is for other hardware than GyroidOS knows, names no program, or has fields that are not what they should be.
    pub fn of(configuration: &Configuration) -> Result<Self, Error> {
        let hardware = match configuration.architecture.as_str() {
            "amd64" | "386" => "x86",
            "arm64" | "arm" => "arm",
            "riscv64" => "riscv",
            other => {
                let reason =
                    format!("architecture {other:?}, expected amd64, 386, arm64, arm or riscv64");
                return Err(Error::Configuration(reason));
            }
        };
        let raw = configuration.config.clone().unwrap_or_default();
        let config: Config = serde_json::from_value(Value::Object(raw.clone()))
            .map_err(|error| Error::Configuration(format!("config: {error}")))?;
        let description = Self {
            hardware,
            architecture: configuration.architecture.clone(),
            os: configuration.os.clone(),
            raw,
            volumes: volumes(&config)?,
            config,
        };
        match description.command().is_empty() {
            true => Err(Error::Configuration(
                "no ENTRYPOINT and no CMD: there is nothing to run".to_owned(),
            )),
            false => Ok(description),
        }
    }

    /// The configuration of a GuestOS without the mounts of its images.
    ///
    /// # Errors
    /// Two volumes get the same name.
    pub fn guestos(&self, naming: &Naming) -> Result<GuestOsConfig, Error> {
        let label = |key: &str| {
            let labels = self.config.labels.as_ref()?;
            let plain = |text: &&String| {
                !text.is_empty() && !text.ends_with('\\') && !text.contains(char::is_control)
            };
            labels.get(key).filter(plain).cloned()
        };
        let title = label("org.opencontainers.image.title");
        Ok(GuestOsConfig {
            name: naming.name.clone(),
            hardware: self.hardware.to_owned(),
            version: naming.version,
            mounts: self.volume_mounts()?,
            init_path: Some(INJECTED_INIT.to_owned()),
            init_param: self.command(),
            init_env: self.config.env.clone().unwrap_or_default(),
            description: I18nString::english(title.unwrap_or_else(|| naming.name.clone())),
            description_long: label("org.opencontainers.image.description")
                .map(I18nString::english),
            upstream_version: label("org.opencontainers.image.version"),
            ..GuestOsConfig::default()
        })
    }

    /// What config.img holds.
    ///
    /// # Errors
    /// The user is not in the image.
    pub fn image_config(&self, accounts: &Accounts) -> Result<ImageConfig, Error> {
        let config = &self.config;
        let user = config.user.clone().unwrap_or_default();
        let User { uid, gid, groups } = users::look_up(&user, &accounts.passwd, &accounts.group)
            .map_err(|reason| Error::Configuration(format!("User {user:?}: {reason}")))?;
        let keys = |map: &Option<BTreeMap<String, Value>>| {
            map.iter().flatten().map(|(key, _)| key.clone()).collect()
        };
        Ok(ImageConfig {
            architecture: self.architecture.clone(),
            os: self.os.clone(),
            user,
            uid,
            gid,
            additional_gids: groups,
            cwd: working_dir(config.working_dir.as_deref().unwrap_or_default()),
            stop_signal: config
                .stop_signal
                .clone()
                .filter(|signal| !signal.is_empty()),
            labels: config.labels.clone().unwrap_or_default(),
            exposed_ports: keys(&config.exposed_ports),
            volumes: self.volumes.clone(),
            entrypoint: config.entrypoint.clone().unwrap_or_default(),
            cmd: config.cmd.clone().unwrap_or_default(),
            env: config.env.clone().unwrap_or_default(),
            healthcheck: config.healthcheck.clone(),
            config: self.raw.clone(),
            source: None,
        })
    }

    fn command(&self) -> Vec<String> {
        let parts = [&self.config.entrypoint, &self.config.cmd];
        parts.into_iter().flatten().flatten().cloned().collect()
    }

    fn volume_mounts(&self) -> Result<Vec<Mount>, Error> {
        let mut mounts: Vec<Mount> = Vec::new();
        for path in &self.volumes {
            let name = volume_name(path);
            if mounts.iter().any(|mount| mount.image_file == name) {
                let reason = format!("volume {path:?}: another is called {name:?} already");
                return Err(Error::Configuration(reason));
            }
            mounts.push(Mount::new(name, path.clone(), "ext4", MountType::Empty));
        }
        Ok(mounts)
    }
}

/// The volumes as normal paths.
fn volumes(config: &Config) -> Result<BTreeSet<String>, Error> {
    let mut volumes = BTreeSet::new();
    for path in config.volumes.iter().flatten().map(|(path, _)| path) {
        let normal = normalize(path);
        if !path.starts_with('/') || normal == "/" {
            let reason = format!("volume {path:?}, expected an absolute path below /");
            return Err(Error::Configuration(reason));
        }
        volumes.insert(normal);
    }
    Ok(volumes)
}

/// The name of a volume's image: the same for the same path, whatever other volumes there are, since the volume's content is
/// found by it. A path of plain names gives them; any other a name with a part of its digest.
fn volume_name(path: &str) -> String {
    let relative = path.trim_start_matches('/');
    let plain = |char: char| char.is_ascii_alphanumeric() || char == '_' || char == '/';
    let name: String = relative
        .chars()
        .map(|char| match char {
            '/' => '-',
            char if plain(char) => char,
            _ => '_',
        })
        .take(MAX_VOLUME_NAME)
        .collect();
    let taken = matches!(relative, "root" | "config");
    match relative.chars().all(plain) && relative.len() <= MAX_VOLUME_NAME && !taken {
        true => name,
        false => format!("{name}-{}", &hex::encode(Sha256::digest(path))[..8]),
    }
}

fn working_dir(path: &str) -> String {
    normalize(path)
}

/// An absolute path without `.`, `..`, and empty names; what is relative starts at the root.
fn normalize(path: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn configuration(config: Value) -> Configuration {
        serde_json::from_value(json!({
            "architecture": "amd64", "os": "linux", "config": config,
            "rootfs": {"type": "layers", "diff_ids": []},
        }))
        .unwrap()
    }

    fn naming() -> Naming {
        Naming {
            name: "web".to_owned(),
            version: 3,
        }
    }

    #[test]
    fn everything_that_docker_writes() {
        let description = Description::of(&configuration(json!({
            "User": "www", "ExposedPorts": {"80/tcp": {}}, "Env": ["PATH=/bin", "A=b=c"],
            "Entrypoint": ["/entry"], "Cmd": ["-g", "daemon off;"], "Volumes": {"/data/": {}, "/srv/a-b": null},
            "WorkingDir": "srv//./x/..", "Labels": {"org.opencontainers.image.title": "Web", "x": "y\\"},
            "StopSignal": "SIGQUIT", "Healthcheck": {"Test": ["NONE"]}, "OnBuild": null, "Hostname": "", "Shell": ["/bin/sh"],
        })))
        .unwrap();
        let guestos = description.guestos(&naming()).unwrap();
        assert_eq!(guestos.init_path(), "/sbin/cservice");
        assert_eq!(guestos.init_param, ["/entry", "-g", "daemon off;"]);
        assert_eq!(guestos.init_env, ["PATH=/bin", "A=b=c"]);
        assert_eq!(guestos.description.en, "Web");
        let mounts: Vec<_> = guestos
            .mounts
            .iter()
            .map(|mount| (mount.image_file.as_str(), mount.mount_point.as_str()))
            .collect();
        assert_eq!(
            mounts,
            [("data", "/data"), ("srv-a_b-742fc61d", "/srv/a-b")]
        );

        let accounts = Accounts {
            passwd: "www:x:33:34::/:".to_owned(),
            group: "adm:x:4:www".to_owned(),
        };
        let image = description.image_config(&accounts).unwrap();
        assert_eq!(
            (image.uid, image.gid, &image.additional_gids[..]),
            (33, 34, &[4, 34][..])
        );
        assert_eq!(image.cwd, "/srv");
        assert_eq!(image.stop_signal.as_deref(), Some("SIGQUIT"));
        assert_eq!(image.healthcheck, Some(json!({"Test": ["NONE"]})));
        assert_eq!(image.config["Shell"], json!(["/bin/sh"]));
        assert!(image.to_bytes().is_ok());
        let missing = description.image_config(&Accounts::default()).unwrap_err();
        assert!(missing.to_string().contains("no user \"www\""), "{missing}");
    }

    #[test]
    fn nulls_are_as_good_as_nothing() {
        let nulls = json!({
            "User": null, "ExposedPorts": null, "Env": null, "Entrypoint": null, "Cmd": ["true"], "Volumes": null,
            "WorkingDir": null, "Labels": null, "StopSignal": null,
        });
        let description = Description::of(&configuration(nulls)).unwrap();
        assert_eq!(description.guestos(&naming()).unwrap().mounts, []);
        assert_eq!(
            description.image_config(&Accounts::default()).unwrap().cwd,
            "/"
        );
    }

    #[test]
    fn what_cannot_be_said() {
        for (config, error) in [
            (json!({}), "no ENTRYPOINT and no CMD"),
            (json!({"Cmd": []}), "no ENTRYPOINT and no CMD"),
            (json!({"Cmd": "true"}), "config: invalid type: string"),
            (
                json!({"Cmd": ["x"], "Volumes": {"data": {}}}),
                "volume \"data\", expected an absolute path",
            ),
            (
                json!({"Cmd": ["x"], "Volumes": {"/a/..": {}}}),
                "volume \"/a/..\", expected an absolute path",
            ),
        ] {
            let found = Description::of(&configuration(config))
                .unwrap_err()
                .to_string();
            assert!(found.contains(error), "{found}");
        }
        let mut other = configuration(json!({"Cmd": ["x"]}));
        other.architecture = "s390x".to_owned();
        let found = Description::of(&other).unwrap_err().to_string();
        assert!(found.contains("architecture \"s390x\""), "{found}");
    }

    /// The digests are of sha256sum.
    #[test]
    fn names_of_volumes() {
        for (path, name) in [
            ("/data", "data"),
            ("/var/www/html", "var-www-html"),
            ("/root", "root-94a6b447"),
            ("/config", "config-01d0ea69"),
            ("/var-www", "var_www-2710fc1b"),
            ("/a.hash", "a_hash-486eb505"),
            ("/ä", "_-325e06d1"),
        ] {
            assert_eq!(volume_name(path), name);
        }
        assert_eq!(
            volume_name(&format!("/{}", "x".repeat(300))).len(),
            MAX_VOLUME_NAME + 9
        );
    }
}
