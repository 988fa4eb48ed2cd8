//! A software TPM for tests: swtpm behind a Unix socket, and tpm2-tools that talk to it.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// One TPM at a time: the TSS's socket is inherited by programs that other tests start meanwhile, and swtpm, which serves
/// one client, would wait for them to close it.
static ONE: Mutex<()> = Mutex::new(());

/// A running swtpm; ends with the value. Its state survives a [`Swtpm::reboot`].
#[derive(Debug)]
pub struct Swtpm {
    dir: tempfile::TempDir,
    child: Child,
    _one: MutexGuard<'static, ()>,
}

impl Swtpm {
    /// Starts a new TPM.
    pub fn start() -> Self {
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        let child = run(dir.path());
        Self {
            dir,
            child,
            _one: one,
        }
    }

    /// Resets the TPM as a boot of the machine does.
    pub fn reboot(&mut self) {
        self.stop();
        self.child = run(self.dir.path());
    }

    /// Ends the TPM: nothing answers any more.
    pub fn stop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// swtpm's process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The TCTI string.
    pub fn tcti(&self) -> String {
        format!("swtpm:path={}", socket(self.dir.path()).display())
    }

    /// A path for a file that goes with the TPM.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a program of tpm2-tools in the TPM's directory; what it prints.
    pub fn tool(&self, program: &str, arguments: &[&str]) -> String {
        let output = Command::new(program)
            .args(arguments)
            .env("TPM2TOOLS_TCTI", self.tcti())
            .current_dir(self.dir.path())
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    /// The value that tpm2_pcrread prints for a PCR, lower-case hex.
    pub fn pcr(&self, pcr: u8) -> String {
        let printed = self.tool("tpm2_pcrread", &[&format!("sha256:{pcr}")]);
        let value = printed.split("0x").nth(1).unwrap().trim();
        value.to_lowercase()
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        // Fails only where the test has ended it already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("tpm.sock")
}

fn run(dir: &Path) -> Child {
    let socket = socket(dir);
    let _ = std::fs::remove_file(&socket);
    let child = Command::new("swtpm")
        .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
        .arg("--tpmstate")
        .arg(format!("dir={}", dir.display()))
        .arg("--server")
        .arg(format!("type=unixio,path={}", socket.display()))
        .arg("--ctrl")
        .arg(format!(
            "type=unixio,path={}",
            dir.join("tpm.sock.ctrl").display()
        ))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("swtpm");
    let deadline = Instant::now() + Duration::from_secs(10);
    while !socket.exists() {
        assert!(Instant::now() < deadline, "swtpm does not come up");
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}
