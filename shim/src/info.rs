//! What the runtime can do, for containerd 2.x: `-info`.

use std::path::Path;

use anyhow::{Context, Result};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeRequest, RuntimeVersion};

use crate::bootstrap;
use crate::exits::Exits;
use crate::options::Options;
use crate::runtime::Runtime;

const NAME: &str = "io.containerd.trustme.v1";
/// The type of an OCI features document, as containerd registers it.
const FEATURES: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The message that containerd reads; standard input holds the request.
///
/// # Errors
/// The request cannot be read, or the runtime's.
pub fn print() -> Result<Vec<u8>> {
    let request = RuntimeRequest::parse_from_bytes(&bootstrap::read_input()?)
        .context("standard input holds no request")?;
    let options = Options::from_any(request.options.as_ref())?;
    let exits: &'static Exits = Box::leak(Box::default());
    std::thread::spawn(|| exits.collect(|_, _, _| ()));
    let directory = tempfile::tempdir()?;
    let runtime = Runtime::new(&options, "", Path::new(directory.path()));
    let features = runtime.call("features").output(exits, &[])?;
    let version = RuntimeVersion {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    };
    let info = RuntimeInfo {
        name: NAME.to_owned(),
        version: Some(version).into(),
        options: request.options,
        features: Some(Any {
            type_url: FEATURES.to_owned(),
            value: features,
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    Ok(info.write_to_bytes()?)
}
