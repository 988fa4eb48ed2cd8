//! Removes what a killed shim has left: containerd runs `delete` for each of its containers.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::Message;

use crate::arguments::Arguments;
use crate::bundle::PID_FILE;
use crate::container::ROOTFS;
use crate::exits::{Exit, Exits};
use crate::options::Options;
use crate::runtime::Runtime;
use crate::{clock, mounts};

/// How a container ends whose shim was killed: by SIGKILL.
const KILLED: u32 = 137;

/// Deletes the container; the message that containerd reads.
///
/// # Errors
/// The runtime's, or what cannot be unmounted.
pub fn delete(arguments: &Arguments) -> Result<Vec<u8>> {
    let bundle = match arguments.bundle.as_os_str().is_empty() {
        true => std::env::current_dir()?,
        false => PathBuf::from(&arguments.bundle),
    };
    let exits: &'static Exits = Box::leak(Box::default());
    std::thread::spawn(|| exits.collect(|_, _, _| ()));
    let options = Options::of_bundle(&bundle)?;
    let runtime = Runtime::new(&options, &arguments.namespace, &bundle);
    let delete = runtime.call("delete").arg("--force").arg(&arguments.id);
    delete.run(exits).context("OCI runtime delete failed")?;
    mounts::unmount_all(&bundle.join(ROOTFS))?;
    let exit = Exit::now(KILLED);
    let response = DeleteResponse {
        pid: pid(&bundle),
        exit_status: exit.status,
        exited_at: clock::timestamp(exit.at),
        ..Default::default()
    };
    Ok(response.write_to_bytes()?)
}

/// The container's pid; 0 if it was never made.
fn pid(bundle: &Path) -> u32 {
    let text = std::fs::read_to_string(bundle.join(PID_FILE)).unwrap_or_default();
    text.trim().parse().unwrap_or(0)
}
