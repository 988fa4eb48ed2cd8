//! Messages in an `Any`, as containerd's typeurl writes them: the full name, without a host before it.

use anyhow::Result;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;

/// A message with its name in `package`. (Its descriptor knows the package too, but takes half a megabyte of memory.)
///
/// # Errors
/// The message lacks a required field.
pub fn pack<M: Message>(package: &str, message: &M) -> Result<Any> {
    Ok(Any {
        type_url: format!("{package}.{}", M::NAME),
        value: message.write_to_bytes()?,
        ..Default::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::protobuf::MessageFull;

    fn same<M: MessageFull>(package: &str) {
        let packed = pack(package, &M::new()).unwrap();
        assert_eq!(packed.type_url, M::descriptor().full_name());
    }

    #[test]
    fn names_are_those_of_the_descriptors() {
        same::<containerd_shim_protos::events::task::TaskExit>("containerd.events");
        same::<containerd_shim_protos::cgroups::metrics::Metrics>("io.containerd.cgroups.v1");
        same::<containerd_shim_protos::cgroups_v2::metrics::Metrics>("io.containerd.cgroups.v2");
        same::<containerd_shim_protos::shim::oci::ProcessDetails>("containerd.runc.v1");
    }
}
