//! Runtime options: runc's message, and the generic one, which names a file or holds a text.
//!
//! `ctr` and the CRI plug-in send `containerd.runc.v1.Options` only to runtimes that they know as runc's. Others get
//! `runtimeoptions.v1.Options` (containerd's api/runtimeoptions/v1/api.proto): `type_url = 1; config_path = 2;
//! config_body = 3`. Path or body hold TOML with the names that runc's options have in containerd's config.toml.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{CodedInputStream, Message};
use containerd_shim_protos::shim::oci;
use serde::{Deserialize, Serialize};

use crate::failure;

/// Where the options are kept in the bundle: `delete` needs them after the shim was killed.
pub const FILE: &str = "options.json";

/// Where trustme keeps its containers, in a directory per namespace.
const DEFAULT_ROOT: &str = "/run/containerd/trustme";
const PROGRAM: &str = "trustme";

const RUNC: &str = "containerd.runc.v1.Options";
/// What `ctr` of containerd 1.6 sends to runtimes that it does not know as runc's, to give pipes to a user namespace's root.
const LEGACY: &str = "containerd.linux.runc.CreateOptions";
const GENERIC: &str = "runtimeoptions.v1.Options";

/// What the runtime is called with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "PascalCase", deny_unknown_fields, default)]
pub struct Options {
    /// Call the runtime with `--no-pivot`.
    pub no_pivot_root: bool,
    /// Call the runtime with `--no-new-keyring`.
    pub no_new_keyring: bool,
    /// Cgroup of the shim itself.
    pub shim_cgroup: String,
    /// Owner of the pipes that are the container's standard input and output.
    pub io_uid: u32,
    /// Their group.
    pub io_gid: u32,
    /// The runtime's program; empty for the `trustme` beside the shim, else the one in PATH.
    pub binary_name: String,
    /// Directory of the containers' states; empty for the default.
    pub root: String,
    /// Cgroups are made by systemd.
    pub systemd_cgroup: bool,
    /// Accepted and ignored: containers cannot be checkpointed.
    #[serde(skip_serializing)]
    pub criu_path: String,
    /// Accepted and ignored.
    #[serde(skip_serializing)]
    pub criu_image_path: String,
    /// Accepted and ignored.
    #[serde(skip_serializing)]
    pub criu_work_path: String,
}

impl Options {
    /// The options in a request; the defaults if there are none.
    ///
    /// # Errors
    /// They are of an unknown type, or cannot be read; names what is wrong.
    pub fn from_any(any: Option<&Any>) -> Result<Self> {
        let Some(any) = any.filter(|any| !any.type_url.is_empty()) else {
            return Ok(Self::default());
        };
        // typeurl writes bare names, others a host before them.
        let name = any.type_url.rsplit('/').next().unwrap_or_default();
        match name {
            RUNC => Ok(oci::Options::parse_from_bytes(&any.value)
                .context("runtime options")?
                .into()),
            GENERIC => generic(&any.value),
            LEGACY => legacy(&any.value),
            _ => Err(failure::invalid(format!(
                "runtime options of unknown type {:?}",
                any.type_url
            ))),
        }
    }

    /// Those of a bundle; the defaults if the container was never made.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn of_bundle(bundle: &Path) -> Result<Self> {
        let file = bundle.join(FILE);
        match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).with_context(|| file.display().to_string()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(error).with_context(|| file.display().to_string()),
        }
    }

    /// Writes them into a bundle.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn keep(&self, bundle: &Path) -> Result<()> {
        let file = bundle.join(FILE);
        std::fs::write(&file, serde_json::to_vec(self)?).with_context(|| file.display().to_string())
    }

    /// The runtime's program.
    pub fn binary(&self) -> PathBuf {
        if !self.binary_name.is_empty() {
            return self.binary_name.clone().into();
        }
        // A shim that was replaced while it runs has no path any more; then PATH decides.
        std::env::current_exe()
            .map(|shim| shim.with_file_name(PROGRAM))
            .ok()
            .filter(|program| program.is_file())
            .unwrap_or_else(|| PROGRAM.into())
    }

    /// The runtime's root directory for a namespace.
    pub fn root(&self, namespace: &str) -> PathBuf {
        let root = match self.root.as_str() {
            "" => DEFAULT_ROOT,
            root => root,
        };
        Path::new(root).join(namespace)
    }
}

impl From<oci::Options> for Options {
    fn from(options: oci::Options) -> Self {
        Self {
            no_pivot_root: options.no_pivot_root,
            no_new_keyring: options.no_new_keyring,
            shim_cgroup: options.shim_cgroup,
            io_uid: options.io_uid,
            io_gid: options.io_gid,
            binary_name: options.binary_name,
            root: options.root,
            systemd_cgroup: options.systemd_cgroup,
            ..Self::default()
        }
    }
}

/// `containerd.linux.runc.CreateOptions` (containerd 1.6, runtime/linux/runctypes/runc.proto); what concerns checkpoints is skipped.
fn legacy(bytes: &[u8]) -> Result<Options> {
    let mut options = Options::default();
    let mut input = CodedInputStream::from_bytes(bytes);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        // Field number and wire type: 0 is a number, 2 length-delimited.
        match (tag >> 3, tag & 7) {
            (1, 0) => options.no_pivot_root = input.read_bool()?,
            (8, 0) => options.no_new_keyring = input.read_bool()?,
            (9, 2) => options.shim_cgroup = input.read_string()?,
            (10, 0) => options.io_uid = input.read_uint32()?,
            (11, 0) => options.io_gid = input.read_uint32()?,
            (_, 0) => drop(input.read_uint64()?),
            (_, 2) => drop(input.read_bytes()?),
            _ => return Err(failure::invalid("runtime options: unknown field")),
        }
    }
    Ok(options)
}

/// `runtimeoptions.v1.Options`.
fn generic(bytes: &[u8]) -> Result<Options> {
    let (mut path, mut body) = (String::new(), Vec::new());
    let mut input = CodedInputStream::from_bytes(bytes);
    while let Some(tag) = input.read_raw_tag_or_eof()? {
        // Field number and wire type; all fields are length-delimited (type 2).
        match (tag >> 3, tag & 7) {
            (2, 2) => path = input.read_string()?,
            (3, 2) => body = input.read_bytes()?,
            (_, 2) => drop(input.read_bytes()?),
            _ => return Err(failure::invalid("runtime options: unknown field")),
        }
    }
    let text = match (path.as_str(), body.is_empty()) {
        (_, false) => String::from_utf8(body).context("runtime options: config body")?,
        ("", true) => return Ok(Options::default()),
        (path, true) => std::fs::read_to_string(path)
            .with_context(|| format!("runtime options: cannot read {path}"))?,
    };
    let place = if path.is_empty() {
        "config body"
    } else {
        &path
    };
    toml::from_str(&text).with_context(|| format!("runtime options: {place}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(name: &str, value: Vec<u8>) -> Any {
        Any {
            type_url: name.to_owned(),
            value,
            ..Default::default()
        }
    }

    /// A field of strings: number, wire type 2, length, bytes.
    fn field(number: u8, text: &str) -> Vec<u8> {
        let length = u8::try_from(text.len()).unwrap();
        [&[number << 3 | 2, length], text.as_bytes()].concat()
    }

    #[test]
    fn runcs_options_are_understood() {
        let sent = oci::Options {
            binary_name: "/usr/bin/crun".into(),
            systemd_cgroup: true,
            io_uid: 5,
            ..Default::default()
        };
        let options = Options::from_any(Some(&any(RUNC, sent.write_to_bytes().unwrap()))).unwrap();
        assert_eq!(options.binary(), Path::new("/usr/bin/crun"));
        assert_eq!((options.systemd_cgroup, options.io_uid), (true, 5));
        assert_eq!(options.root("ns"), Path::new("/run/containerd/trustme/ns"));
    }

    #[test]
    fn generic_options_name_a_file_or_hold_a_text() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("options.toml");
        std::fs::write(&file, "Root = \"/r\"\nSystemdCgroup = true\n").unwrap();
        let path = [field(1, "x"), field(2, file.to_str().unwrap())].concat();
        let options = Options::from_any(Some(&any(GENERIC, path))).unwrap();
        assert_eq!(options.root("n"), Path::new("/r/n"));
        let body = any(GENERIC, field(3, "NoPivotRoot = true"));
        assert!(Options::from_any(Some(&body)).unwrap().no_pivot_root);
        assert_eq!(
            Options::from_any(Some(&any(GENERIC, Vec::new()))).unwrap(),
            Options::default()
        );
    }

    #[test]
    fn older_options_are_understood() {
        let sent = [
            &field(9, "/shims")[..],
            &[10 << 3, 7, 11 << 3, 8, 3 << 3, 1],
        ]
        .concat();
        let options = Options::from_any(Some(&any(LEGACY, sent))).unwrap();
        assert_eq!((options.io_uid, options.io_gid), (7, 8));
        assert_eq!(options.shim_cgroup, "/shims");
        assert!(Options::from_any(Some(&any(LEGACY, vec![10 << 3]))).is_err());
    }

    #[test]
    fn wrong_options_are_named() {
        let error = |any: Any| format!("{:#}", Options::from_any(Some(&any)).unwrap_err());
        assert!(error(any("some.Type", Vec::new())).contains("some.Type"));
        assert!(error(any(GENERIC, field(2, "/nosuch"))).contains("/nosuch"));
        assert!(error(any(GENERIC, field(3, "NoSuch = 1"))).contains("NoSuch"));
        assert!(Options::from_any(Some(&any(GENERIC, vec![0x12, 200]))).is_err());
        assert!(Options::from_any(Some(&any(RUNC, vec![0xff]))).is_err());
    }

    #[test]
    fn what_is_kept_is_read_again() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Options::of_bundle(dir.path()).unwrap(), Options::default());
        let options = Options {
            root: "/r".into(),
            ..Options::default()
        };
        options.keep(dir.path()).unwrap();
        assert_eq!(Options::of_bundle(dir.path()).unwrap(), options);
    }
}
