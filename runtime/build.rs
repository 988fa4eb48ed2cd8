//! Links `trustme` statically where the C libraries are there in that form, as Debian's development packages have them.
//!
//! Each OCI command is a process of its own, and `create`, `run` and `exec` execute the binary twice (docs/runtime.md): to
//! load libraries and to relocate 17,000 addresses took more than half of the time of a `state`. Cargo can link
//! a whole build statically (`crt-static`), not one program of it; the others need the TSS and OpenSSL as shared
//! libraries. So the archives come first in the search for libraries, under the names that rustc asks for.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What rustc names on the linker's command line, and the archives that stand for it.
const LIBRARIES: [(&str, &[&str]); 9] = [
    ("c", &["libc.a"]),
    ("dl", &["libdl.a"]),
    ("gcc_s", &["libgcc_eh.a", "libgcc.a"]),
    ("m", &["libm.a"]),
    ("pthread", &["libpthread.a"]),
    ("rt", &["librt.a"]),
    ("seccomp", &["libseccomp.a"]),
    ("util", &["libutil.a"]),
    ("gcc", &["libgcc.a"]),
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets OUT_DIR"));
    if !write_archives(&out) {
        println!(
            "cargo::warning=trustme is linked dynamically: there are no static libc and libseccomp"
        );
        return;
    }
    // Not as a search path of cargo's, which would count for the tests too: those are linked dynamically.
    let search = format!("-L{}", out.display());
    for argument in [search.as_str(), "-no-pie", "-static"] {
        println!("cargo::rustc-link-arg-bin=trustme={argument}");
    }
}

/// Writes linker scripts that lead to the archives; false if one is missing.
fn write_archives(out: &Path) -> bool {
    LIBRARIES.iter().all(|(name, archives)| {
        let Some(found) = archives
            .iter()
            .map(|archive| find(archive))
            .collect::<Option<Vec<_>>>()
        else {
            return false;
        };
        let script = format!("GROUP ( {} )\n", found.join(" "));
        std::fs::write(out.join(format!("lib{name}.a")), script).is_ok()
    })
}

/// The path of an archive in the C compiler's directories; it prints the bare name where it has none.
fn find(archive: &str) -> Option<String> {
    let output = Command::new("cc")
        .arg(format!("-print-file-name={archive}"))
        .output()
        .ok()?;
    let path = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    Path::new(&path).is_absolute().then_some(path)
}
