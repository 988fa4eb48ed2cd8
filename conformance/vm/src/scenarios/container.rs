//! A container in the guest, driven through the runtime's command line.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use trustme_conformance::command::{Ran, until};
use trustme_conformance::{busybox, remains};

use super::Guest;

/// An OCI bundle in the scenario's directory, and a container of it.
#[derive(Debug)]
pub(super) struct Container<'a> {
    pub guest: &'a mut Guest,
    pub id: String,
    /// Launch mode.
    mode: &'static str,
}

impl<'a> Container<'a> {
    /// Busybox, with the scenario's name as id, launch mode off; `change` edits config.json.
    pub fn busybox(
        guest: &'a mut Guest,
        args: &[&str],
        change: impl FnOnce(&mut Value),
    ) -> Result<Self> {
        let id = guest.scenario.clone();
        let container = Self {
            guest,
            id,
            mode: "off",
        };
        let bundle = container.bundle();
        busybox::bundle(&Guest::program("trustme"), &bundle, args)?;
        busybox::change(&bundle, change)?;
        Ok(container)
    }

    /// A signed GuestOS of the host's, in launch mode enforce. Its files are copied, so that they may be changed.
    pub fn guestos(guest: &'a mut Guest, name: &str, id: &str) -> Result<Self> {
        let container = Self {
            guest,
            id: id.to_owned(),
            mode: "enforce",
        };
        let store = container.guest.work.join("store");
        fs::create_dir_all(&store)?;
        let from = container.guest.host.join("bundles");
        for suffix in [".conf", ".sig", ".cert", ""] {
            let mut copy = Command::new("cp");
            copy.arg("-a").arg(from.join(format!("{name}-1{suffix}")));
            container.guest.run(copy.arg(&store))?;
        }
        let mut convert = Command::new(Guest::program("trustme-convert"));
        convert
            .arg("bundle")
            .arg(store.join(format!("{name}-1.conf")))
            .arg(container.bundle());
        container.guest.run(&mut convert)?;
        Ok(container)
    }

    /// The OCI bundle.
    pub fn bundle(&self) -> PathBuf {
        self.guest.work.join("bundle")
    }

    /// A file of the GuestOS bundle, below its store.
    pub fn stored(&self, file: &str) -> PathBuf {
        self.guest.work.join("store").join(file)
    }

    /// The cgroup: the runtime's default is the container's id below the root.
    pub fn cgroup(&self, file: &str) -> PathBuf {
        PathBuf::from("/sys/fs/cgroup").join(&self.id).join(file)
    }

    /// trustme with arguments separated by single spaces; `ID` and `BUNDLE` stand for the container's.
    fn command(&self, line: &str) -> Result<Command> {
        let mut command = self.guest.ours("trustme", self.mode)?;
        command.arg("--root").arg(self.guest.work.join("root"));
        for part in line.split(' ') {
            match part {
                "ID" => command.arg(&self.id),
                "BUNDLE" => command.arg(self.bundle()),
                other => command.arg(other),
            };
        }
        Ok(command)
    }

    /// Runs trustme, which has to succeed.
    pub fn ok(&mut self, line: &str) -> Result<String> {
        let mut command = self.command(line)?;
        self.guest.run(&mut command)
    }

    /// Runs trustmectl, which has to succeed.
    pub fn ctl(&mut self, line: &str) -> Result<String> {
        let mut command = self.guest.ours("trustmectl", self.mode)?;
        self.guest.run(command.args(line.split(' ')))
    }

    /// Starts it.
    pub fn start(&mut self) -> Result<()> {
        self.ok("run --detach --bundle BUNDLE ID").map(drop)
    }

    /// Starts it, which has to be refused with an error that names each of `texts`; nothing may be left.
    pub fn start_refused(&mut self, texts: &[&str]) -> Result<()> {
        let mut command = self.command("run --detach --bundle BUNDLE ID")?;
        self.guest.outcome(&mut command)?.fails_saying(texts)?;
        self.assert_gone()
    }

    /// Runs a shell script in the container.
    pub fn inside(&mut self, script: &str) -> Result<Ran> {
        let mut command = self.command("exec ID sh -c")?;
        self.guest.outcome(command.arg(script))
    }

    /// Runs a shell script in the container, which has to succeed.
    pub fn script(&mut self, script: &str) -> Result<String> {
        self.inside(script)?.ok()
    }

    /// Runs a shell script in the container, which has to fail; its standard error.
    pub fn script_fails(&mut self, script: &str) -> Result<String> {
        self.inside(script)?.fails()
    }

    /// What `trustme state` prints.
    pub fn state(&mut self) -> Result<Value> {
        Ok(serde_json::from_str(&self.ok("state ID")?)?)
    }

    /// Its first process.
    pub fn init(&mut self) -> Result<u32> {
        let state = self.state()?;
        let pid = state["pid"].as_u64().context("the state has no pid")?;
        Ok(u32::try_from(pid)?)
    }

    /// Waits for a status.
    pub fn wait_for(&mut self, status: &str) -> Result<()> {
        until(&format!("status {status}"), || {
            self.state().is_ok_and(|state| state["status"] == status)
        })
    }

    /// Kills and deletes it; nothing may be left.
    pub fn end(&mut self, signal: &str) -> Result<()> {
        self.ok(&format!("kill ID {signal}"))?;
        self.wait_for("stopped")?;
        self.ok("delete ID")?;
        self.assert_gone()
    }

    fn assert_gone(&self) -> Result<()> {
        ensure!(!self.cgroup("").exists(), "its cgroup is left");
        remains::assert_none(&self.guest.work.join("root"), &format!("/{}", self.id))?;
        let store: &Path = &self.guest.work.join("store");
        remains::assert_none(store, &format!("/{}", self.id))
    }
}

/// A scenario that has failed leaves its container: the next one shall not find it.
impl Drop for Container<'_> {
    fn drop(&mut self) {
        if let Err(error) = self.ok("delete --force ID") {
            eprintln!("cannot delete {}: {error:#}", self.id);
        }
    }
}
