//! containers-registries.conf(5), version 2: mirrors, other places, plain HTTP, blocked registries.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Options, Reference, Wanted};
use crate::error::Error;

/// The largest file, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Where an image may be had.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// `HOST[:PORT]`.
    pub host: String,
    /// The repository there.
    pub repository: String,
    /// Whether certificates are not checked, and plain HTTP is tried.
    pub insecure: bool,
}

/// What the files say.
#[derive(Debug, Default)]
pub struct RegistriesConf {
    registries: Vec<Registry>,
}

#[derive(Debug, Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct File {
    registry: Vec<Registry>,
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Registry {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    mirror_by_digest_only: bool,
    mirror: Vec<Mirror>,
}

#[derive(Debug, Clone, Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Mirror {
    location: String,
    insecure: bool,
    pull_from_mirror: String,
}

impl RegistriesConf {
    /// Reads the files that the options and the environment name; those that are not there say nothing.
    ///
    /// # Errors
    /// One cannot be read or understood; the named one is missing.
    pub fn load(options: &Options) -> Result<Self, Error> {
        let variable = |name: &str| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let named = options
            .registries_conf
            .clone()
            .or_else(|| variable("CONTAINERS_REGISTRIES_CONF"));
        let home = variable("HOME")
            .unwrap_or_default()
            .join(".config/containers");
        let mut files = Vec::new();
        match named {
            Some(path) => {
                fs::metadata(&path).map_err(Error::io(&path))?;
                files.push(path);
            }
            None => {
                let own = home.join("registries.conf");
                files.push(match own.is_file() {
                    true => own,
                    false => PathBuf::from("/etc/containers/registries.conf"),
                });
                for dir in [PathBuf::from("/etc/containers"), home] {
                    let dir = dir.join("registries.conf.d");
                    let mut drop_ins: Vec<PathBuf> = fs::read_dir(&dir)
                        .into_iter()
                        .flatten()
                        .filter_map(|entry| Some(entry.ok()?.path()))
                        .filter(|path| {
                            path.extension()
                                .is_some_and(|extension| extension == "conf")
                        })
                        .collect();
                    drop_ins.sort();
                    files.append(&mut drop_ins);
                }
            }
        }
        let mut all = Self::default();
        for path in files.iter().filter(|path| path.is_file()) {
            if fs::metadata(path).map_err(Error::io(path))?.len() > MAX_FILE {
                return Err(Error::image(path, format!("more than {MAX_FILE} bytes")));
            }
            let text = fs::read_to_string(path).map_err(Error::io(path))?;
            all.add(&text, path)?;
        }
        Ok(all)
    }

    /// Adds what a file says; of two tables for one prefix the later counts.
    ///
    /// # Errors
    /// It is no TOML, or a table has neither prefix nor location.
    pub fn add(&mut self, text: &str, path: &Path) -> Result<(), Error> {
        let file: File = toml::from_str(text)
            .map_err(|error| Error::image(path, error.to_string().trim_end().to_owned()))?;
        for mut registry in file.registry {
            if registry.prefix.is_empty() {
                registry.prefix = registry.location.clone();
            }
            let wildcard = registry.prefix.starts_with("*.");
            if registry.location.is_empty() && !wildcard {
                registry.location = registry.prefix.clone();
            }
            let locations = registry.mirror.iter().map(|mirror| &mirror.location);
            let mut locations = locations.chain(Some(&registry.location));
            let bad = locations.find(|location| {
                location.contains("://")
                    || location.ends_with('/')
                    || (location.is_empty() && !wildcard)
            });
            if registry.prefix.is_empty() || bad.is_some() {
                let reason = format!(
                    "registry {:?}: expected locations as HOST[:PORT][/PATH]",
                    registry.prefix
                );
                return Err(Error::image(path, reason));
            }
            self.registries
                .retain(|other| other.prefix != registry.prefix);
            self.registries.push(registry);
        }
        Ok(())
    }

    /// Where an image may be had, in the order to try them.
    ///
    /// # Errors
    /// Its registry is blocked.
    pub fn endpoints(&self, reference: &Reference) -> Result<Vec<Endpoint>, Error> {
        let name = reference.name();
        let matching = self
            .registries
            .iter()
            .filter_map(|registry| Some((prefix_length(&registry.prefix, &name)?, registry)));
        let Some((length, registry)) =
            matching.max_by_key(|(length, registry)| (*length, !registry.prefix.starts_with('*')))
        else {
            return Ok(vec![Endpoint {
                host: reference.host.clone(),
                repository: reference.repository.clone(),
                insecure: false,
            }]);
        };
        if registry.blocked {
            return Err(Error::Reference {
                text: reference.to_string(),
                reason: format!("{} is blocked by registries.conf", registry.prefix),
            });
        }
        let rest = &name[length..];
        let endpoint = |location: &str, insecure: bool| {
            let name = match location.is_empty() {
                true => name.clone(),
                false => format!("{location}{rest}"),
            };
            let (host, repository) = name.split_once('/').unwrap_or((&name, ""));
            Endpoint {
                host: host.to_owned(),
                repository: repository.to_owned(),
                insecure,
            }
        };
        let by_digest = matches!(reference.wanted, Wanted::Digest(_));
        let mut endpoints: Vec<Endpoint> = registry
            .mirror
            .iter()
            .filter(|mirror| match mirror.pull_from_mirror.as_str() {
                "digest-only" => by_digest,
                "tag-only" => !by_digest,
                _ => by_digest || !registry.mirror_by_digest_only,
            })
            .map(|mirror| endpoint(&mirror.location, mirror.insecure))
            .collect();
        endpoints.push(endpoint(&registry.location, registry.insecure));
        Ok(endpoints)
    }
}

/// How much of a name a prefix covers: `HOST`, `HOST/PATH`, or `*.DOMAIN`.
fn prefix_length(prefix: &str, name: &str) -> Option<usize> {
    if let Some(domain) = prefix.strip_prefix('*') {
        let host = name.split('/').next().unwrap_or(name);
        return host.ends_with(domain).then_some(host.len());
    }
    let rest = name.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(prefix.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mirrors_and_other_places() {
        let mut conf = RegistriesConf::default();
        let text = r#"
            unqualified-search-registries = ["docker.io"]
            [[registry]]
            prefix = "r.io/a"
            location = "other.io:5000/b"
            [[registry.mirror]]
            location = "m.io"
            insecure = true
            [[registry.mirror]]
            location = "d.io"
            pull-from-mirror = "digest-only"
            [[registry]]
            location = "bad.io"
            blocked = true
            [[registry]]
            prefix = "*.in.io"
            insecure = true
        "#;
        conf.add(text, Path::new("x")).unwrap();
        let endpoints = |text: &str| {
            let endpoints = conf.endpoints(&text.parse().unwrap())?;
            let shown = endpoints.iter().map(|found| {
                format!(
                    "{}/{}{}",
                    found.host,
                    found.repository,
                    if found.insecure { "!" } else { "" }
                )
            });
            Ok::<_, Error>(shown.collect::<Vec<_>>().join(" "))
        };
        let digest = format!("r.io/a/x@sha256:{}", "0".repeat(64));
        assert_eq!(endpoints("r.io/a/x").unwrap(), "m.io/x! other.io:5000/b/x");
        assert_eq!(
            endpoints(&digest).unwrap(),
            "m.io/x! d.io/x other.io:5000/b/x"
        );
        assert_eq!(endpoints("r.io/ab").unwrap(), "r.io/ab");
        assert_eq!(endpoints("x.in.io/ab").unwrap(), "x.in.io/ab!");
        assert!(
            endpoints("bad.io/x")
                .unwrap_err()
                .to_string()
                .contains("blocked")
        );
        for text in [
            "[[registry]]",
            "x = ",
            "[[registry]]\nlocation = \"https://x\"",
        ] {
            assert!(conf.add(text, Path::new("x")).is_err(), "{text}");
        }
    }
}
