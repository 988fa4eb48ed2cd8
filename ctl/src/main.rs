//! What an operator types: status, measurement log, volumes.

fn main() {}
