//! What the programs load. `trustme` runs for every state, kill and delete, so it knows neither TPM nor cryptography.

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use trustme_conformance::command::run;
use trustme_conformance::fixtures::Fixtures;
use trustme_conformance::suite::{self, Outcome};

/// Beginnings of the names of libraries of TSS, OpenSSL and cryptsetup.
const FOREIGN: &[&str] = &[
    "libtss2",
    "libssl",
    "libcrypto",
    "libcryptsetup",
    "libdevmapper",
];

fn main() -> ExitCode {
    suite::main(&[
        (
            "trustme_links_no_tss_and_no_openssl",
            trustme_links_no_tss_and_no_openssl,
        ),
        (
            "state_kill_and_delete_open_no_such_library",
            state_kill_and_delete_open_no_such_library,
        ),
        ("the_hook_does_link_them", the_hook_does_link_them),
    ])
}

/// Shared libraries, as ldd names them; of a static program there are none.
fn libraries(program: &Path) -> Result<Vec<String>> {
    let found = run(Command::new("ldd").arg(program))?;
    let is_static = found.stderr.contains("not a dynamic executable");
    ensure!(found.status.success() || is_static, "ldd: {found:?}");
    let names = found
        .stdout
        .lines()
        .filter_map(|line| line.split_whitespace().next());
    let found = names.filter(|name| FOREIGN.iter().any(|foreign| name.starts_with(foreign)));
    Ok(found.map(str::to_owned).collect())
}

/// Words of the TSS and of OpenSSL in the program's bytes: one that is linked into it cannot hide them.
fn words(program: &Path) -> Result<Vec<&'static str>> {
    let bytes = std::fs::read(program)?;
    let has = |word: &str| holds(&bytes, word.as_bytes());
    Ok(["Esys_", "OPENSSL_", "EVP_"]
        .into_iter()
        .filter(|word| has(word))
        .collect())
}

fn holds(bytes: &[u8], word: &[u8]) -> bool {
    bytes.windows(word.len()).any(|window| window == word)
}

fn trustme_links_no_tss_and_no_openssl(fixtures: &Fixtures) -> Result<Outcome> {
    let found = libraries(&fixtures.programs.path("trustme"))?;
    ensure!(found.is_empty(), "trustme links {found:?}");
    let found = words(&fixtures.programs.path("trustme"))?;
    ensure!(found.is_empty(), "trustme holds {found:?}");
    Ok(Outcome::Passed)
}

/// Also not by dlopen.
fn state_kill_and_delete_open_no_such_library(fixtures: &Fixtures) -> Result<Outcome> {
    let dir = tempfile::tempdir()?;
    let trace = dir.path().join("trace");
    for line in ["state nothing", "kill nothing", "delete --force nothing"] {
        let mut command = Command::new("strace");
        command
            .args(["-f", "-e", "trace=execve,openat,open", "-o"])
            .arg(&trace);
        command.arg(fixtures.programs.path("trustme"));
        command
            .arg("--root")
            .arg(dir.path().join("root"))
            .args(line.split(' '));
        run(&mut command)?;
        let opened = std::fs::read_to_string(&trace)?;
        ensure!(
            opened.contains("execve("),
            "strace has seen nothing: {opened}"
        );
        for foreign in FOREIGN {
            ensure!(
                !opened.contains(foreign),
                "trustme {line} opens {foreign}:\n{opened}"
            );
        }
    }
    Ok(Outcome::Passed)
}

/// The counter-check: the method finds them where they are.
fn the_hook_does_link_them(fixtures: &Fixtures) -> Result<Outcome> {
    let found = libraries(&fixtures.programs.path("trustme-hook"))?;
    ensure!(
        found.iter().any(|name| name.starts_with("libtss2-esys")),
        "{found:?}"
    );
    ensure!(
        found.iter().any(|name| name.starts_with("libcrypto")),
        "{found:?}"
    );
    let found = words(&fixtures.programs.path("trustme-hook"))?;
    ensure!(found == ["Esys_", "OPENSSL_", "EVP_"], "{found:?}");
    Ok(Outcome::Passed)
}
