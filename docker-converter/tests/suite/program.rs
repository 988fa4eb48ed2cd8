//! Running the program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::archive::Archive;
use crate::image::Layout;

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_trustme-convert");

/// A PKI for all tests: keys take seconds to make.
pub fn pki() -> &'static Path {
    static PKI: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, path) = PKI.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pki");
        says(Command::new(PROGRAM).args(["pki", "init"]).arg(&path));
        (dir, path)
    });
    path
}

pub fn convert(source: &str, out: &Path) -> Command {
    convert_as("test", source, out)
}

pub fn convert_as(name: &str, source: &str, out: &Path) -> Command {
    let mut command = Command::new(PROGRAM);
    command
        .args(["convert", source, "--name", name, "--version", "1", "--out"])
        .arg(out)
        .arg("--key")
        .arg(pki().join("ssig_cml.key"))
        .arg("--cert")
        .arg(pki().join("ssig_cml.cert"))
        .env_remove("SOURCE_DATE_EPOCH");
    command
}

/// What a command prints; it must succeed.
#[track_caller]
pub fn says(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

/// The command must fail with one line that has this in it, and leave nothing in `out`.
#[track_caller]
pub fn fails(command: &mut Command, expected: &str, out: &Path) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    let last = said.lines().last().unwrap_or_default();
    assert_eq!(output.status.code(), Some(1), "{command:?}: {said}");
    assert!(
        last.starts_with("error: ") && last.contains(expected),
        "{said}, expected {expected:?}"
    );
    if let Ok(entries) = fs::read_dir(out) {
        assert_eq!(entries.count(), 0, "{out:?}");
    }
}

pub fn layer() -> Vec<u8> {
    Archive::new()
        .directory("bin")
        .file("bin/true", "#!/bin/sh\n")
        .directory("etc")
        .file("etc/passwd", "web:x:33:34::/:\n")
        .file("etc/group", "more:x:55:web\n")
        .end()
}

pub struct Place {
    pub dir: tempfile::TempDir,
    pub layout: Layout,
}

impl Place {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(&dir.path().join("layout"));
        Self { dir, layout }
    }

    pub fn out(&self) -> PathBuf {
        self.dir.path().join("out")
    }

    #[track_caller]
    pub fn fails(&self, expected: &str) {
        fails(
            &mut convert(&self.layout.source(), &self.out()),
            expected,
            &self.out(),
        );
    }
}

pub fn sha256(bytes: &[u8]) -> String {
    use sha2::Digest;
    hex::encode(sha2::Sha256::digest(bytes))
}
