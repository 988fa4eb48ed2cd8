//! Launch policy: what a container may ask for, and which versions may start.

pub mod floor;
mod namespace;
mod rights;

pub(crate) use namespace::is_host_network;
pub use rights::excess;
