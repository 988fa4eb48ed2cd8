//! `state`: prints the state of a container.

use std::path::PathBuf;

use anyhow::Result;
use chrono::{DateTime, Utc};
use liboci_cli::State;
use serde::Serialize;

use crate::root::Root;
use crate::state::{Container, Status};

/// The state as runc prints it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Printed<'a> {
    oci_version: &'a str,
    id: &'a str,
    /// 0 once the container has stopped.
    pid: i32,
    status: &'static str,
    bundle: &'a PathBuf,
    rootfs: &'a PathBuf,
    created: DateTime<Utc>,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: std::collections::BTreeMap<&'a str, &'a str>,
    owner: &'a str,
}

impl<'a> Printed<'a> {
    /// The state of a container, with the name of its owner.
    pub fn new(container: &'a Container, owner: &'a str) -> Self {
        let record = &container.record;
        let status = container.status();
        let annotations = record
            .annotations
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()));
        Self {
            oci_version: &record.oci_version,
            id: &record.id,
            pid: if status == Status::Stopped {
                0
            } else {
                record.pid
            },
            status: status.as_str(),
            bundle: &record.bundle,
            rootfs: &record.rootfs,
            created: record.created,
            annotations: annotations.collect(),
            owner,
        }
    }

    /// Pid, status, bundle and time of creation, for a table.
    pub fn columns(&self) -> [String; 4] {
        [
            self.pid.to_string(),
            self.status.to_owned(),
            self.bundle.display().to_string(),
            self.created
                .to_rfc3339_opts(chrono::SecondsFormat::AutoSi, true),
        ]
    }
}

/// Prints the state.
///
/// # Errors
/// If there is no such container.
pub fn state(args: &State, root: &Root) -> Result<()> {
    let container = Container::load(root, &args.container_id)?;
    // The owner is empty here, as runc has it.
    println!(
        "{}",
        serde_json::to_string_pretty(&Printed::new(&container, ""))?
    );
    Ok(())
}
