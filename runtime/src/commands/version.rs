//! `--version`.

/// Prints the versions of the program, of the OCI specification and of libseccomp, in runc's form.
pub fn version() {
    println!("trustme version {}", env!("CARGO_PKG_VERSION"));
    println!("spec: {}", super::features::SPEC_VERSION);
    println!("libseccomp: {}", super::features::libseccomp_version());
}
