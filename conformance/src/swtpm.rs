//! A software TPM: swtpm behind a Unix socket, and tpm2-tools that talk to it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use crate::command::{ok, until};

/// A running swtpm; ends with the value. Its state survives a [`Swtpm::reboot`].
#[derive(Debug)]
pub struct Swtpm {
    dir: tempfile::TempDir,
    child: Child,
}

impl Swtpm {
    /// Makes and starts a new TPM.
    ///
    /// # Errors
    /// swtpm cannot be run, or does not come up.
    pub fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("trustme-tpm-").tempdir()?;
        let child = power_on(dir.path())?;
        Ok(Self { dir, child })
    }

    /// Resets the TPM as a boot of the machine does: PCRs at zero, sealed objects still its own.
    ///
    /// # Errors
    /// swtpm does not come up again.
    pub fn reboot(&mut self) -> Result<()> {
        self.power_off()?;
        self.child = power_on(self.dir.path())?;
        Ok(())
    }

    /// Ends the TPM: nothing answers any more.
    ///
    /// # Errors
    /// The kernel's.
    pub fn power_off(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// swtpm's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The TCTI string.
    pub fn tcti(&self) -> String {
        format!("swtpm:path={}", socket(self.dir.path()).display())
    }

    /// Runs a program of tpm2-tools; the line's parts are separated by single spaces. What it prints.
    ///
    /// # Errors
    /// It fails.
    pub fn tool(&self, line: &str) -> Result<String> {
        let mut command = crate::command::line(line);
        command.env("TPM2TOOLS_TCTI", self.tcti());
        ok(command.current_dir(self.dir.path()))
    }

    /// The value that tpm2_pcrread prints for a PCR of the SHA-256 bank, lower-case hex.
    ///
    /// # Errors
    /// tpm2_pcrread fails.
    pub fn pcr(&self, pcr: u8) -> Result<String> {
        let printed = self.tool(&format!("tpm2_pcrread sha256:{pcr}"))?;
        let value = printed
            .split("0x")
            .nth(1)
            .context("tpm2_pcrread prints no value")?;
        Ok(value.trim().to_lowercase())
    }

    /// Extends a PCR of the SHA-256 bank with 32 bytes 0xAB: "another boot state".
    ///
    /// # Errors
    /// tpm2_pcrextend fails.
    pub fn extend(&self, pcr: u8) -> Result<()> {
        let digest = "ab".repeat(32);
        self.tool(&format!("tpm2_pcrextend {pcr}:sha256={digest}"))?;
        Ok(())
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        // Fails only where it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("tpm.sock")
}

fn power_on(dir: &Path) -> Result<Child> {
    let socket = socket(dir);
    let control = dir.join("tpm.sock.ctrl");
    for old in [&socket, &control] {
        if old.exists() {
            std::fs::remove_file(old)?;
        }
    }
    // It ends with the thread that started it, also when that is killed.
    let child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "swtpm", "socket", "--tpm2"])
        .args(["--flags", "not-need-init,startup-clear"])
        .arg("--tpmstate")
        .arg(format!("dir={}", dir.display()))
        .arg("--server")
        .arg(format!("type=unixio,path={}", socket.display()))
        .arg("--ctrl")
        .arg(format!("type=unixio,path={}", control.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("cannot run swtpm")?;
    until("swtpm's sockets", || socket.exists() && control.exists())?;
    Ok(child)
}
