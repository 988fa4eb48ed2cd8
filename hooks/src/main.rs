//! Verifies, measures, opens and closes volumes for an OCI runtime.

fn main() {}
