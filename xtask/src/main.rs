//! cargo xtask demo | test | bench: the project's glue.

fn main() {}
