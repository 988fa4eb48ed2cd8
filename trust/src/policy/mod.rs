//! Launch policy: what a container may ask for, and which versions may start.

mod bounds;
mod decide;
pub mod floor;
mod namespace;
mod rights;
pub mod rules;

pub use bounds::beyond;
pub(crate) use decide::remove as remove_capabilities;
pub use decide::{Decision, Request, decide};
pub(crate) use namespace::is_host_network;
pub use rights::excess;
