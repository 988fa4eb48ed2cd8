//! A busybox container in the guest, driven through the runtime's command line.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::Value;
use trustme_conformance::command::until;
use trustme_conformance::{busybox, remains};

use super::Guest;

/// An OCI bundle in the scenario's directory, and a container of it with the scenario's name as id. Launch mode off.
#[derive(Debug)]
pub(super) struct Container<'a> {
    pub guest: &'a mut Guest,
    pub id: String,
}

impl<'a> Container<'a> {
    /// Makes the bundle; `change` edits its config.json.
    pub fn new(
        guest: &'a mut Guest,
        args: &[&str],
        change: impl FnOnce(&mut Value),
    ) -> Result<Self> {
        let bundle = guest.work.join("bundle");
        busybox::bundle(&Guest::program("trustme"), &bundle, args)?;
        busybox::change(&bundle, change)?;
        let id = guest.scenario.clone();
        Ok(Self { guest, id })
    }

    /// The cgroup: the runtime's default is the container's id below the root.
    pub fn cgroup(&self, file: &str) -> PathBuf {
        PathBuf::from("/sys/fs/cgroup").join(&self.id).join(file)
    }

    /// trustme with arguments separated by single spaces; `ID` and `BUNDLE` stand for the container's.
    pub fn command(&self, line: &str) -> Command {
        let mut command = Command::new(Guest::program("trustme"));
        command.arg("--root").arg(self.guest.work.join("root"));
        for part in line.split(' ') {
            match part {
                "ID" => command.arg(&self.id),
                "BUNDLE" => command.arg(self.guest.work.join("bundle")),
                other => command.arg(other),
            };
        }
        command
    }

    /// Runs trustme, which has to succeed.
    pub fn ok(&mut self, line: &str) -> Result<String> {
        let mut command = self.command(line);
        self.guest.run(&mut command)
    }

    /// Runs a shell script in the container, which has to succeed.
    pub fn script(&mut self, script: &str) -> Result<String> {
        let mut command = self.command("exec ID sh -c");
        self.guest.run(command.arg(script))
    }

    /// Runs a shell script in the container, which has to fail; its standard error.
    pub fn script_fails(&mut self, script: &str) -> Result<String> {
        let mut command = self.command("exec ID sh -c");
        self.guest.refused(command.arg(script))
    }

    /// Waits for a status.
    pub fn wait_for(&mut self, status: &str) -> Result<()> {
        until(&format!("status {status}"), || {
            self.ok("state ID")
                .ok()
                .and_then(|state| serde_json::from_str::<Value>(&state).ok())
                .is_some_and(|state| state["status"] == status)
        })
    }

    /// Kills and deletes it; nothing may be left.
    pub fn end(&mut self) -> Result<()> {
        self.ok("kill ID KILL")?;
        self.wait_for("stopped")?;
        self.ok("delete ID")?;
        ensure!(!self.cgroup("").exists(), "its cgroup is left");
        remains::assert_none(&self.guest.work.join("root"), &format!("/{}", self.id))
    }
}
