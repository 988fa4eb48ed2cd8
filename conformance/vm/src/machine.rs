//! Starts a software TPM and QEMU under emulation, and waits for the machine to power off.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::packages::checked;

/// How long swtpm may take to come up or to end.
const TPM_LIMIT: Duration = Duration::from_secs(10);

/// How the machine starts its kernel.
#[derive(Debug, Clone)]
pub enum Firmware {
    /// SeaBIOS and QEMU's direct kernel boot. The TPM is a CRB device.
    Direct {
        /// The bzImage.
        kernel: PathBuf,
        /// The initramfs.
        initramfs: PathBuf,
        /// The kernel's command line.
        command_line: String,
    },
    /// OVMF with its variables and an EFI system partition. The TPM is a TIS device.
    Uefi {
        /// OVMF's code, opened read-only.
        code: PathBuf,
        /// OVMF's variables: they hold the enrolled keys and whether Secure Boot is on.
        variables: PathBuf,
        /// A FAT image with EFI/BOOT/BOOTX64.EFI.
        system_partition: PathBuf,
    },
}

/// What a machine is switched on with.
#[derive(Debug)]
pub struct Power<'a> {
    /// How the kernel is started.
    pub firmware: &'a Firmware,
    /// Directory of the software TPM's state; it lasts over boots.
    pub tpm_state: &'a Path,
    /// Directory shared with the guest as `/host`.
    pub share: &'a Path,
    /// A raw disk for the guest: `/dev/vda`, or `/dev/vdb` behind an EFI system partition.
    pub disk: &'a Path,
    /// Where the serial console is kept.
    pub console_log: &'a Path,
    /// After this long the machine is killed, by pid.
    pub timeout: Duration,
}

/// Makes the state of a new software TPM: endorsement key and platform certificate, SHA-256 bank.
///
/// # Errors
/// Fails when `swtpm_setup` does.
pub fn new_tpm(state: &Path) -> Result<()> {
    fs::create_dir_all(state)?;
    checked(
        Command::new("swtpm_setup")
            .args(["--tpm2", "--tpmstate"])
            .arg(state)
            .args([
                "--create-ek-cert",
                "--create-platform-cert",
                "--lock-nvram",
                "--overwrite",
                "--pcr-banks",
                "sha256",
            ]),
    )
}

impl Power<'_> {
    /// Starts the machine and waits until it powers off; returns how long that took.
    ///
    /// # Errors
    /// A program cannot be started, or the machine is still running after the time-out. The console log is complete in both cases.
    pub fn run(&self) -> Result<Duration> {
        let started = Instant::now();
        let mut tpm = Tpm::start(self.tpm_state)?;
        let console = File::create(self.console_log)
            .with_context(|| format!("{}", self.console_log.display()))?;
        let mut qemu = Running::start(
            self.command(&tpm.socket)
                .stdin(Stdio::null())
                .stdout(console.try_clone()?)
                .stderr(console),
        )?;
        let status = qemu.wait(self.timeout)?;
        ensure!(status.success(), "qemu: {status}");
        tpm.ended()?;
        Ok(started.elapsed())
    }

    /// Gives the caller's terminal to the machine's console until it powers off.
    ///
    /// # Errors
    /// As [`Power::run`], without the time-out.
    pub fn interactive(&self) -> Result<()> {
        let mut tpm = Tpm::start(self.tpm_state)?;
        let status = self.command(&tpm.socket).status().context("qemu")?;
        ensure!(status.success(), "qemu: {status}");
        tpm.ended()
    }

    fn command(&self, tpm_socket: &Path) -> Command {
        let mut qemu = dying_with_us("qemu-system-x86_64");
        // `-accel kvm` hangs on the machines this runs on: emulation, with a thread per virtual CPU.
        qemu.args([
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            "2",
            "-m",
            "1536",
        ]);
        qemu.args(["-nographic", "-no-reboot", "-nic", "none"]);
        qemu.arg("-virtfs").arg(format!(
            "local,path={},mount_tag=host,security_model=none,id=host",
            self.share.display()
        ));
        qemu.arg("-chardev")
            .arg(format!("socket,id=ct,path={}", tpm_socket.display()));
        qemu.args(["-tpmdev", "emulator,id=tpm0,chardev=ct"]);
        match self.firmware {
            Firmware::Direct {
                kernel,
                initramfs,
                command_line,
            } => {
                qemu.args(["-M", "q35", "-device", "tpm-crb,tpmdev=tpm0"]);
                qemu.arg("-kernel")
                    .arg(kernel)
                    .arg("-initrd")
                    .arg(initramfs)
                    .arg("-append")
                    .arg(command_line);
            }
            Firmware::Uefi {
                code,
                variables,
                system_partition,
            } => {
                qemu.args(["-M", "q35,smm=on", "-device", "tpm-tis,tpmdev=tpm0"]);
                qemu.args(["-global", "driver=cfi.pflash01,property=secure,value=on"]);
                qemu.arg("-drive").arg(format!(
                    "if=pflash,unit=0,format=raw,readonly=on,file={}",
                    code.display()
                ));
                qemu.arg("-drive").arg(format!(
                    "if=pflash,unit=1,format=raw,file={}",
                    variables.display()
                ));
                qemu.arg("-drive").arg(format!(
                    "if=none,id=esp,format=raw,readonly=on,file={}",
                    system_partition.display()
                ));
                qemu.args(["-device", "virtio-blk-pci,drive=esp,bootindex=0"]);
            }
        }
        qemu.arg("-drive").arg(format!(
            "if=virtio,format=raw,cache=unsafe,file={}",
            self.disk.display()
        ));
        qemu
    }
}

/// A child process that is killed by its pid when dropped.
struct Running(Child, String);

impl Running {
    fn start(command: &mut Command) -> Result<Self> {
        let program = command.get_args().nth(2).unwrap_or_default();
        let name = program.to_string_lossy().into_owned();
        Ok(Self(command.spawn().with_context(|| name.clone())?, name))
    }

    fn wait(&mut self, limit: Duration) -> Result<std::process::ExitStatus> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.0.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!(
                    "{} did not end within {} s and was killed",
                    self.1,
                    limit.as_secs()
                );
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            // Both calls can only fail when the child is gone already.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// A running software TPM.
struct Tpm {
    process: Running,
    socket: PathBuf,
    // Removed with the value.
    _dir: tempfile::TempDir,
}

impl Tpm {
    fn start(state: &Path) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let socket = dir.path().join("swtpm.sock");
        let mut process = Running::start(
            dying_with_us("swtpm")
                .args(["socket", "--tpm2", "--terminate", "--tpmstate"])
                .arg(format!("dir={}", state.display()))
                .arg("--ctrl")
                .arg(format!("type=unixio,path={}", socket.display()))
                .stdin(Stdio::null()),
        )?;
        let deadline = Instant::now() + TPM_LIMIT;
        while !socket.exists() {
            if let Some(status) = process.0.try_wait()? {
                bail!("swtpm ended at once: {status}");
            }
            ensure!(
                Instant::now() < deadline,
                "swtpm: no socket after {TPM_LIMIT:?}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(Self {
            process,
            socket,
            _dir: dir,
        })
    }

    /// It ends with QEMU, and must have written its state before the next boot.
    fn ended(&mut self) -> Result<()> {
        self.process.wait(TPM_LIMIT)?;
        Ok(())
    }
}

/// A program that is killed when the thread that starts it ends, however that comes about.
fn dying_with_us(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]);
    command
}
