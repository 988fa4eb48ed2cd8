//! Packages of other Debian suites than this machine's: fetched with a configuration of apt of their own and unpacked, never
//! installed.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use crate::command::{self, Ran, ok};

/// A source of packages.
#[derive(Debug)]
pub struct Archive {
    dir: PathBuf,
}

impl Archive {
    /// The suite `name` (as `sid`) of Debian, of `kind` deb or deb-src. Its lists are kept in `dir`, what is fetched lands there.
    ///
    /// # Errors
    /// The lists cannot be fetched.
    pub fn open(dir: &Path, kind: &str, name: &str) -> Result<Self> {
        for name in ["lists/partial", "archives/partial"] {
            fs::create_dir_all(dir.join(name))?;
        }
        let line = format!(
            "{kind} [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/debian {name} main\n"
        );
        fs::write(dir.join("sources.list"), line)?;
        let archive = Self {
            dir: dir.to_owned(),
        };
        archive.apt_get(&["update"])?.ok()?;
        Ok(archive)
    }

    /// Runs apt-get on it.
    ///
    /// # Errors
    /// It cannot be run.
    pub fn apt_get(&self, arguments: &[&str]) -> Result<Ran> {
        let mut command = Command::new("apt-get");
        for (option, path) in [
            ("Dir::Etc::SourceList", self.dir.join("sources.list")),
            ("Dir::Etc::SourceParts", "/dev/null".into()),
            ("Dir::State::Lists", self.dir.join("lists")),
            ("Dir::Cache", self.dir.clone()),
        ] {
            command.arg(format!("-o{option}={}", path.display()));
        }
        command
            .args(["-oAPT::Sandbox::User=root", "-qq"])
            .args(arguments)
            .current_dir(&self.dir)
            .process_group(0);
        command::run(&mut command)
    }

    /// Fetches packages and unpacks them into `root`.
    ///
    /// # Errors
    /// There is no such package, or it cannot be fetched.
    pub fn unpack(&self, packages: &[&str], root: &Path) -> Result<()> {
        self.apt_get(&[&["download"], packages].concat())?.ok()?;
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "deb") {
                ok(Command::new("dpkg").arg("-x").arg(&path).arg(root))?;
            }
        }
        Ok(())
    }
}
