//! A machine that launches containers with trustme: configuration, software TPM, state directory, a bundle store.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tempfile::TempDir;

use crate::command::{Ran, ok, run, until};
use crate::fixtures::{Fixtures, NAME};
use crate::programs::Programs;
use crate::remains;
use crate::swtpm::Swtpm;

/// A machine in a temporary directory; its containers are deleted at the end.
#[derive(Debug)]
pub struct Machine {
    dir: TempDir,
    programs: Programs,
    anchor: PathBuf,
    /// Its TPM.
    pub tpm: Swtpm,
    /// A container id of no other machine; ids of its containers begin with it.
    pub id: String,
}

impl Machine {
    /// A machine in launch mode `mode`, with a new TPM, that trusts the fixtures' anchor.
    ///
    /// # Errors
    /// The PKI or the TPM cannot be made.
    pub fn new(fixtures: &Fixtures, mode: &str) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        ensure!(rustix::process::geteuid().is_root(), "this needs root");
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let machine = Self {
            dir: tempfile::Builder::new()
                .prefix("trustme-machine-")
                .tempdir()?,
            programs: fixtures.programs.clone(),
            anchor: fixtures.anchor()?,
            tpm: Swtpm::start()?,
            id: format!("conformance-{}-{number}", std::process::id()),
        };
        machine.set_mode(mode)?;
        Ok(machine)
    }

    /// A path in the machine's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Another launch mode: off, measure or enforce.
    ///
    /// # Errors
    /// The configuration cannot be written.
    pub fn set_mode(&self, mode: &str) -> Result<()> {
        self.trust(&self.anchor, mode)
    }

    /// Other trust anchors, and a launch mode.
    ///
    /// # Errors
    /// The configuration cannot be written.
    pub fn trust(&self, anchors: &Path, mode: &str) -> Result<()> {
        let dir = self.dir.path().display();
        let (anchors, tcti) = (anchors.display(), self.tpm.tcti());
        let text = format!(
            "[launch]\nmode = \"{mode}\"\nanchors = \"{anchors}\"\nfloors = \"{dir}/floors\"\n\
             [tpm]\ntcti = \"{tcti}\"\n[log]\npath = \"{dir}/measure.log\"\n\
             [volumes]\ndir = \"{dir}/volumes\"\n"
        );
        Ok(fs::write(self.path("config.toml"), text)?)
    }

    /// trustme with arguments separated by single spaces; `ID` stands for the container's id.
    pub fn trustme(&self, line: &str) -> Command {
        let mut command = self.program("trustme");
        command.arg("--root").arg(self.path("root"));
        let parts = line
            .split(' ')
            .map(|part| if part == "ID" { &self.id } else { part });
        command.args(parts);
        command
    }

    /// trustmectl with arguments separated by single spaces.
    pub fn trustmectl(&self, line: &str) -> Command {
        let mut command = self.program("trustmectl");
        command.args(line.split(' '));
        command
    }

    fn program(&self, name: &str) -> Command {
        let mut command = Command::new(self.programs.path(name));
        command.env("TRUSTME_CONFIG", self.path("config.toml"));
        command
    }

    /// A copy of the fixtures' small bundle that may be changed: the configuration text's path.
    ///
    /// # Errors
    /// It cannot be converted or copied.
    pub fn install_small(&self, fixtures: &Fixtures) -> Result<PathBuf> {
        let store = self.path("store");
        ok(Command::new("cp")
            .arg("-a")
            .arg(fixtures.small_bundle()?)
            .arg(&store))?;
        Ok(store.join(format!("{NAME}-1.conf")))
    }

    /// Makes the OCI bundle of a GuestOS with `trustme-convert bundle`.
    ///
    /// # Errors
    /// It fails.
    pub fn make_bundle(&self, conf: &Path) -> Result<PathBuf> {
        let bundle = self.path("bundle");
        ok(self
            .program("trustme-convert")
            .arg("bundle")
            .arg(conf)
            .arg(&bundle))?;
        Ok(bundle)
    }

    /// Runs `trustme create` or `trustme run --detach`.
    ///
    /// # Errors
    /// It cannot be run; that it fails is in the result.
    pub fn launch(&self, verb: &str, bundle: &Path) -> Result<Ran> {
        run(self.trustme(verb).arg("--bundle").arg(bundle).arg(&self.id))
    }

    /// What `trustme state` prints.
    ///
    /// # Errors
    /// There is no such container.
    pub fn state(&self) -> Result<Value> {
        Ok(serde_json::from_str(&ok(&mut self.trustme("state ID"))?)?)
    }

    /// The container's first process.
    ///
    /// # Errors
    /// There is no such container, or it has ended.
    pub fn init(&self) -> Result<u32> {
        let pid = self.state()?["pid"]
            .as_u64()
            .context("the state has no pid")?;
        ensure!(pid > 0, "the container has ended");
        Ok(u32::try_from(pid)?)
    }

    /// Waits for a status of the container.
    ///
    /// # Errors
    /// It has another after ten seconds.
    pub fn wait_for(&self, status: &str) -> Result<()> {
        until(&format!("status {status}"), || {
            self.state().is_ok_and(|state| state["status"] == status)
        })
    }

    /// The directory of the container's only volume.
    ///
    /// # Errors
    /// It has none, or more.
    pub fn volume(&self) -> Result<PathBuf> {
        let mut volumes = Vec::new();
        for entry in fs::read_dir(self.path("volumes"))? {
            let path = entry?.path();
            if path.join("sealed.json").is_file() {
                volumes.push(path);
            }
        }
        ensure!(volumes.len() == 1, "volumes: {volumes:?}");
        volumes.pop().context("no volume")
    }

    /// Asserts that nothing of any container is left but volumes, log and floors.
    ///
    /// # Errors
    /// Names what is left.
    pub fn assert_clean(&self) -> Result<()> {
        remains::assert_none(self.dir.path(), &self.id)?;
        let mut files = Vec::new();
        for dir in ["root", "root/@launch"] {
            // A directory that is not there is empty.
            for entry in fs::read_dir(self.path(dir)).into_iter().flatten() {
                let path = entry?.path();
                if path != self.path("root/@launch") {
                    files.push(path);
                }
            }
        }
        for entry in fs::read_dir(self.path("volumes")).into_iter().flatten() {
            let path = entry?.path();
            if path.to_string_lossy().contains(".new-") {
                files.push(path);
            }
        }
        ensure!(files.is_empty(), "left behind: {files:?}");
        Ok(())
    }

    fn clean_up(&self) -> Result<()> {
        for entry in fs::read_dir(self.path("root")).into_iter().flatten() {
            let name = entry?.file_name();
            if name != "@launch" {
                run(self.trustme("delete --force").arg(&name))?;
            }
        }
        for entry in fs::read_dir(self.path("root/@launch"))
            .into_iter()
            .flatten()
        {
            run(self
                .program("trustme-hook")
                .args(["release", "--state-dir"])
                .arg(entry?.path()))?;
        }
        Ok(())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.clean_up() {
            eprintln!("cannot clean up {}: {error:#}", self.dir.path().display());
        }
    }
}
