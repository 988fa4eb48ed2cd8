//! Who a container is: the configuration that is measured, and the owner of its volumes.
//! docs/launch-identity.md lists each field.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use crate::policy::is_host_network;
use crate::tpm::HexDigest;

/// Stands for the container's id.
const ID: &str = "<id>";
/// Stands for the root file system's path.
const ROOT: &str = "<root>";
/// Stands for the cgroup's path.
const CGROUP: &str = "<cgroup>";
/// Stands for the path of a network namespace that is not the host's.
const NETWORK: &str = "<network namespace>";
/// Stands for the path of the host's network namespace.
const HOST_NETWORK: &str = "<host network namespace>";
/// Stands for the process of the engine.
const ENGINE: &str = "<engine>";
/// Stands for the path of the bundle.
const BUNDLE: &str = "<bundle>";

/// Annotations that decide something begin with this.
const ANNOTATIONS: &str = "org.trustme.";

/// The annotation that names a GuestOS's configuration text.
pub const GUESTOS_ANNOTATION: &str = "org.trustme.guestos";

/// Engines name a container's host after the beginning of its id: Docker takes 12 characters.
const SHORTEST_ID: usize = 12;

/// Whose volumes a container may open: those of every version of one GuestOS by one signer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    /// The GuestOS's name.
    pub name: String,
    /// SHA-256 (hex) of the SubjectPublicKeyInfo of the signing certificate.
    pub signer: HexDigest,
}

impl Owner {
    /// What PCR 23 is extended with while a volume's key is unsealed: SHA-256 of this in canonical JSON (RFC 8785),
    /// `{"name":"…","signer":"…"}`.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let canonical =
            serde_json_canonicalizer::to_vec(self).expect("two strings are canonical JSON");
        Sha256::digest(canonical).into()
    }
}

/// The parts of an OCI runtime configuration that decide what runs and with which rights, in canonical JSON (RFC 8785):
/// everything but what an engine makes up for each container, which is replaced by a placeholder, and annotations of
/// others; sets of capabilities are sorted. `id` is the container's id, `bundle` the path of its bundle.
///
/// # Errors
/// A number has no canonical form.
pub fn canonical_configuration(
    config: &Value,
    id: &str,
    bundle: &Path,
) -> serde_json::Result<Vec<u8>> {
    let mut config = config.clone();
    if let Some(members) = config.as_object_mut() {
        members.remove("ociVersion");
    }
    if let Some(process) = config.get_mut("process").and_then(Value::as_object_mut) {
        process.remove("consoleSize");
    }
    if let Some(annotations) = config.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.retain(|name, _| name.starts_with(ANNOTATIONS) && name != GUESTOS_ANNOTATION);
        if annotations.is_empty() {
            config
                .as_object_mut()
                .expect("it has annotations")
                .remove("annotations");
        }
    }
    if let Some(Value::Object(sets)) = config.pointer_mut("/process/capabilities") {
        for set in sets.values_mut().filter_map(Value::as_array_mut) {
            set.sort_by(|one, other| one.as_str().cmp(&other.as_str()));
        }
    }
    replace(&mut config, "/root/path", |_| Some(ROOT.to_owned()));
    replace(&mut config, "/linux/cgroupsPath", |_| {
        Some(CGROUP.to_owned())
    });
    if let Some(namespaces) = config
        .pointer_mut("/linux/namespaces")
        .and_then(Value::as_array_mut)
    {
        for namespace in namespaces
            .iter_mut()
            .filter(|namespace| namespace["type"] == "network")
        {
            replace(namespace, "/path", |path| {
                match is_host_network(Path::new(path)) {
                    Ok(true) => Some(HOST_NETWORK.to_owned()),
                    Ok(false) => Some(NETWORK.to_owned()),
                    Err(_) => None,
                }
            });
        }
    }
    let host = config["hostname"].as_str().unwrap_or_default().to_owned();
    let is_id =
        !host.is_empty() && (host == id || (host.len() >= SHORTEST_ID && id.starts_with(&host)));
    if is_id {
        replace(&mut config, "/hostname", |_| Some(ID.to_owned()));
        let environment = config
            .pointer_mut("/process/env")
            .and_then(Value::as_array_mut);
        for variable in environment.into_iter().flatten() {
            replace(variable, "", |variable| {
                (variable.strip_prefix("HOSTNAME=") == Some(&host))
                    .then(|| format!("HOSTNAME={ID}"))
            });
        }
    }
    let mounts = config.get_mut("mounts").and_then(Value::as_array_mut);
    for mount in mounts.into_iter().flatten() {
        replace(mount, "/source", |source| {
            Some(portable(source, id, bundle))
        });
    }
    engine_hooks(&mut config);
    serde_json_canonicalizer::to_vec(&config)
}

/// Of a hook that is the engine itself only the name of what it does stays: the rest are ids and sockets of the container.
fn engine_hooks(config: &mut Value) {
    let kinds = config.get_mut("hooks").and_then(Value::as_object_mut);
    for hook in kinds
        .into_iter()
        .flat_map(|kinds| kinds.values_mut())
        .filter_map(Value::as_array_mut)
        .flatten()
    {
        if !hook["path"].as_str().is_some_and(is_engine_itself) {
            continue;
        }
        replace(hook, "/path", |_| Some(ENGINE.to_owned()));
        if let Some(arguments) = hook.get_mut("args").and_then(Value::as_array_mut) {
            arguments.truncate(1);
        }
    }
}

/// Whether a program's path is the process of an engine that is running: Docker names itself so in a hook.
pub(crate) fn is_engine_itself(path: &str) -> bool {
    let process = path
        .strip_prefix("/proc/")
        .and_then(|rest| rest.strip_suffix("/exe"));
    process.is_some_and(|id| {
        id == "self" || (!id.is_empty() && id.bytes().all(|byte| byte.is_ascii_digit()))
    })
}

/// Puts what `f` makes of it in the place of the string at a JSON pointer, if there is one and `f` makes something.
fn replace(value: &mut Value, pointer: &str, f: impl FnOnce(&str) -> Option<String>) {
    if let Some(Value::String(text)) = value.pointer_mut(pointer)
        && let Some(new) = f(text)
    {
        *text = new;
    }
}

/// A path with the bundle's path, and components that are the id, replaced.
fn portable(path: &str, id: &str, bundle: &Path) -> String {
    let path = match Path::new(path).strip_prefix(bundle) {
        Ok(rest) => match rest.to_str() {
            Some("") | None => BUNDLE.to_owned(),
            Some(rest) => format!("{BUNDLE}/{rest}"),
        },
        Err(_) => path.to_owned(),
    };
    let components: Vec<&str> = path
        .split('/')
        .map(|component| if component == id { ID } else { component })
        .collect();
    components.join("/")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn canonical(config: &Value, id: &str) -> String {
        let bytes = canonical_configuration(config, id, Path::new("/run/bundles/web")).unwrap();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn what_an_engine_makes_up_is_replaced() {
        let id = "0123456789abcdef0123456789abcdef";
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "args": ["sh"],
                "capabilities": {"bounding": ["CAP_KILL", "CAP_CHOWN"]},
                "env": ["PATH=/bin", "HOSTNAME=0123456789ab", "HOSTNAME=other"],
                "consoleSize": {"height": 1, "width": 2},
                "cwd": "/"
            },
            "hostname": "0123456789ab",
            "root": {"path": "/var/lib/docker/x", "readonly": false},
            "mounts": [
                {"destination": "/etc/hosts", "source": format!("/var/lib/docker/containers/{id}/hosts")},
                {"destination": "/b", "source": "/run/bundles/web/extra"},
                {"destination": "/c", "source": "/run/bundles/webber"},
                {"destination": "/proc", "source": "proc"}
            ],
            "annotations": {
                "io.kubernetes.pod": "x",
                "org.trustme.guestos": "/g/nginx-1.conf",
                "org.trustme.volume.a": "/data"
            },
            "linux": {
                "cgroupsPath": format!("/docker/{id}"),
                "namespaces": [
                    {"type": "network", "path": "/proc/self/ns/mnt"},
                    {"type": "network", "path": "/proc/self/ns/net"},
                    {"type": "network", "path": "/nonexistent"},
                    {"type": "pid", "path": "/proc/self/ns/pid"}
                ]
            }
        });
        let expected = concat!(
            r#"{"annotations":{"org.trustme.volume.a":"/data"},"hostname":"<id>","linux":{"cgroupsPath":"<cgroup>","#,
            r#""namespaces":[{"path":"<network namespace>","type":"network"},"#,
            r#"{"path":"<host network namespace>","type":"network"},{"path":"/nonexistent","type":"network"},"#,
            r#"{"path":"/proc/self/ns/pid","type":"pid"}]},"mounts":[{"destination":"/etc/hosts","#,
            r#""source":"/var/lib/docker/containers/<id>/hosts"},{"destination":"/b","source":"<bundle>/extra"},"#,
            r#"{"destination":"/c","source":"/run/bundles/webber"},{"destination":"/proc","source":"proc"}],"#,
            r#""process":{"args":["sh"],"capabilities":{"bounding":["CAP_CHOWN","CAP_KILL"]},"cwd":"/","env":["PATH=/bin","HOSTNAME=<id>","HOSTNAME=other"]},"#,
            r#""root":{"path":"<root>","readonly":false}}"#
        );
        assert_eq!(canonical(&config, id), expected);
    }

    #[test]
    fn everything_else_counts() {
        let config =
            json!({"process": {"args": ["sh"]}, "hostname": "web", "new": {"b": 1, "a": 2}});
        let same = canonical(&config, "one");
        assert_eq!(
            same,
            r#"{"hostname":"web","new":{"a":2,"b":1},"process":{"args":["sh"]}}"#
        );
        assert_eq!(canonical(&config, "two"), same);
        // A host name that only begins like the id is the configuration's own.
        assert_eq!(canonical(&config, "webber"), same);
        assert_ne!(canonical(&config, "web"), same);
        assert_eq!(canonical(&json!([]), "x"), "[]");
    }

    /// The value that `printf '{"name":"nginx","signer":"0505…"}' | openssl dgst -sha256` prints (OpenSSL 3.0).
    #[test]
    fn the_owners_digest_is_of_canonical_json() {
        let owner = Owner {
            name: "nginx".into(),
            signer: HexDigest([5; 32]),
        };
        assert_eq!(
            hex::encode(owner.digest()),
            "3f3c74048fa7f6627cec28def1d1bb44c2386be82668d76c2acb1589f4f79da3"
        );
    }
}
