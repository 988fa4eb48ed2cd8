//! Turns Docker and OCI images into signed trust|me GuestOS bundles.

fn main() {}
