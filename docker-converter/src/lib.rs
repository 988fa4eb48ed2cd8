//! Turns Docker and OCI images into signed trust|me GuestOS bundles: what `trustme-convert` is made of.

pub mod blob;
pub mod convert;
pub mod error;
pub mod flatten;
pub mod guestos;
pub mod layer;
pub mod progress;
pub mod source;
pub mod squashfs;
pub mod tarball;
pub mod tree;
pub mod users;
