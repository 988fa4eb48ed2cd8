//! A client of container registries (OCI distribution specification 1.1, Docker's registry API v2), configured by the same files as
//! skopeo and Podman.

mod auth;
mod certificates;
mod challenge;
mod client;
mod configuration;
mod download;
mod reference;
mod upload;

use std::path::PathBuf;

pub use auth::check_auth_file;
pub use client::{Document, Repository};
pub use configuration::{Endpoint, RegistriesConf};
pub use reference::{Reference, Wanted, is_digest};

/// How long a registry may be silent, in seconds.
const TIMEOUT: u64 = 30;

/// How registries are reached; the options are skopeo's.
#[derive(Debug, Clone, clap::Args)]
pub struct Options {
    /// Where the credentials of registries are; else $REGISTRY_AUTH_FILE, $XDG_RUNTIME_DIR/containers/auth.json,
    /// ~/.config/containers/auth.json, ~/.docker/config.json.
    #[arg(long, value_name = "FILE")]
    pub authfile: Option<PathBuf>,
    /// Credentials for the registry.
    #[arg(long, value_name = "USER[:PASSWORD]", hide_default_value = true)]
    pub creds: Option<String>,
    /// Whether certificates of registries are checked; false allows plain HTTP too.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub tls_verify: Option<bool>,
    /// *.crt (authorities), *.cert and *.key (this client's), instead of those in /etc/containers/certs.d and
    /// /etc/docker/certs.d.
    #[arg(long, value_name = "DIR")]
    pub cert_dir: Option<PathBuf>,
    /// Instead of $CONTAINERS_REGISTRIES_CONF, ~/.config/containers/registries.conf, /etc/containers/registries.conf.
    #[arg(long, value_name = "FILE")]
    pub registries_conf: Option<PathBuf>,
    /// How many seconds a registry may be silent.
    #[arg(long, value_name = "SECONDS", default_value_t = TIMEOUT, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub registry_timeout: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            authfile: None,
            creds: None,
            tls_verify: None,
            cert_dir: None,
            registries_conf: None,
            registry_timeout: TIMEOUT,
        }
    }
}
