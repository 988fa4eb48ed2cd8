//! Fetches the suite's source from Debian and builds its programs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};
use trustme_conformance::archive::Archive;
use trustme_conformance::command;

/// Debian trixie's package of the suite.
const PACKAGE: &str = "golang-github-opencontainers-runtime-tools";
/// Its source, as upstream released it: commit e931285 of opencontainers/runtime-tools.
const TARBALL: &str = "golang-github-opencontainers-runtime-tools_0.9.0.109.ge931285.orig.tar.xz";
/// SHA-256 of [`TARBALL`].
const TARBALL_SHA256: &str = "203989a1ea98cf2aaced79155bbda09270b20db19b03376dde91ab12e5e6a0fe";

/// What the suite is built with and from, in bookworm.
pub const APT_PACKAGES: &[&str] = &[
    "golang-1.19-go",
    "golang-github-blang-semver-dev",
    "golang-github-google-uuid-dev",
    "golang-github-hashicorp-go-multierror-dev",
    "golang-github-mrunalp-fileutils-dev",
    "golang-github-opencontainers-selinux-dev",
    "golang-github-opencontainers-specs-dev",
    "golang-github-sirupsen-logrus-dev",
    "golang-github-urfave-cli-dev",
    "golang-github-xeipuuv-gojsonschema-dev",
    "golang-gocapability-dev",
    "golang-golang-x-sys-dev",
];

/// The import path under which the suite wants its TAP package, which is not in Debian.
const TAP_IMPORT: &str = "github.com/mndrix/tap-go";
/// What stands in for it.
const TAP: &str = include_str!("../tap/tap.go");

/// The go tool, and where Debian's golang-*-dev packages keep their source.
const GO: &str = "/usr/lib/go-1.19/bin/go";
const GOCODE: &str = "/usr/share/gocode";

/// The program that the tests run inside of a container, and the root file system they run it in: the tests look for both
/// in the current directory, and copy them (a symbolic link breaks every test).
pub const NOT_TESTS: [&str; 2] = ["runtimetest", "rootfs-amd64.tar.gz"];

/// Builds the suite below `work`, unless it is there; the directory that holds its programs.
///
/// # Errors
/// The source cannot be fetched or is not the one expected, a package of [`APT_PACKAGES`] is missing, or the build fails.
pub fn build(work: &Path) -> Result<PathBuf> {
    let programs = work.join("programs");
    if programs.is_dir() {
        return Ok(programs);
    }
    ensure!(
        Path::new(GO).exists(),
        "{GO} is missing: apt-get install {}",
        APT_PACKAGES.join(" ")
    );
    fs::create_dir_all(work).with_context(|| work.display().to_string())?;
    // Everything is made beside its place and moved there once complete.
    let staging = tempfile::tempdir_in(work)?;
    let tarball = fetch(staging.path())?;
    let gopath = staging.path().join("gopath");
    let suite = gopath.join("src/github.com/opencontainers/runtime-tools");
    fs::create_dir_all(&suite)?;
    command::ok(
        Command::new("tar")
            .args(["--extract", "--strip-components=1", "--file"])
            .arg(&tarball)
            .arg("--directory")
            .arg(&suite),
    )?;
    let tap = gopath.join("src").join(TAP_IMPORT);
    fs::create_dir_all(&tap)?;
    fs::write(tap.join("tap.go"), TAP)?;

    let built = staging.path().join("programs");
    fs::create_dir(&built)?;
    let mut go = Command::new(GO);
    go.args(["build", "-trimpath", "-o"])
        .arg(&built)
        .args(["./cmd/runtimetest", "./validation/..."])
        .current_dir(&suite)
        .env("GOPATH", format!("{}:{GOCODE}", gopath.display()))
        .env("GOCACHE", staging.path().join("cache"))
        .env("GO111MODULE", "off")
        .env("GOFLAGS", "")
        .env("CGO_ENABLED", "0");
    command::ok(&mut go)?;
    let [_, rootfs] = NOT_TESTS;
    fs::copy(suite.join(rootfs), built.join(rootfs))?;
    fs::rename(&built, &programs).with_context(|| programs.display().to_string())?;
    Ok(programs)
}

/// Fetches the tarball with a private configuration of apt: this machine's own sources are left alone.
fn fetch(dir: &Path) -> Result<PathBuf> {
    // Bookworm's own has no validation programs.
    let archive = Archive::open(dir, "deb-src", "trixie")?;
    // Mirrors may lack the .dsc by now, which makes it fail although the tarball has come: its digest is what counts.
    let downloaded = archive.apt_get(&["source", "--download-only", PACKAGE])?;
    let tarball = dir.join(TARBALL);
    let bytes = fs::read(&tarball)
        .with_context(|| format!("{TARBALL} was not fetched: {}", downloaded.stderr.trim()))?;
    let digest = hex::encode(Sha256::digest(&bytes));
    ensure!(
        digest == TARBALL_SHA256,
        "{TARBALL}: SHA-256 is {digest}, expected {TARBALL_SHA256}"
    );
    Ok(tarball)
}

/// Names of the tests in a directory that [`build`] made, sorted.
///
/// # Errors
/// It cannot be read.
pub fn tests(programs: &Path) -> Result<Vec<String>> {
    let entries = fs::read_dir(programs).with_context(|| programs.display().to_string())?;
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if !NOT_TESTS.contains(&name.as_str()) {
            names.push(name);
        }
    }
    names.sort();
    ensure!(!names.is_empty(), "{}: no tests", programs.display());
    Ok(names)
}
