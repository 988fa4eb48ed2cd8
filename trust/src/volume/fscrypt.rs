//! The fscrypt back-end: a sparse ext4 image in which one directory is encrypted by a policy of version 2.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use trustme_config::Config;
use zeroize::{Zeroize, Zeroizing};

use super::{IMAGE, NEW, Reason, Request, SEALED, SealedVolume, copy, open_dir};
use crate::tpm::{Claim, FirmwareLog, PcrSignatures, Sealing, Tpm};
use crate::{kernel, mount};

/// The encrypted directory.
const DATA: &str = "data";

/// The length of a volume's key: what AES-256-XTS takes, and the most that fscrypt does.
const KEY_SIZE: usize = 64;

/// Where programs are looked for, whatever the engine that calls has in its environment.
const PATH: &str = "/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes a new volume in a directory beside its final one, mounted at `target` meanwhile, and renames it when it is
/// complete and on disk.
pub(super) fn create(
    config: &Config,
    request: &Request<'_>,
    volumes: &Path,
    target: &Path,
) -> Result<(), Reason> {
    let new = volumes.join(format!("{}{NEW}{}", request.name, random_suffix()?));
    DirBuilder::new()
        .mode(0o700)
        .create(&new)
        .map_err(Reason::io("make", &new))?;
    let outcome = fill(config, request, &new, target).and_then(|()| {
        let dir = volumes.join(request.name);
        sync(&new)?;
        std::fs::rename(&new, &dir).map_err(Reason::io("rename to", &dir))?;
        sync(volumes)
    });
    if outcome.is_err() {
        // The error is what matters; what cannot be removed now, the next launch or release removes.
        let _ = std::fs::remove_dir_all(&new);
    }
    outcome
}

/// Makes key, image and content of a new volume in `dir`.
fn fill(config: &Config, request: &Request<'_>, dir: &Path, target: &Path) -> Result<(), Reason> {
    let image = dir.join(IMAGE);
    make_image(&image, request.size_mib)?;
    let (key, sealed) = {
        let tpm = Tpm::connect(&config.tpm.tcti)?;
        let key = random_key(&tpm)?;
        let sealing = Sealing {
            boot_pcrs: &config.volumes.pcrs,
            identity: &request.owner.digest(),
            signed: None,
            pin: None,
            log: &FirmwareLog::of_this_boot(),
        };
        let sealed = tpm.seal(key.as_slice(), &sealing)?;
        (key, sealed)
    };
    let path = dir.join(SEALED);
    let sealed = SealedVolume::new(request.filesystem, request.owner.clone(), sealed);
    sealed.write(&path).map_err(Reason::io("write", &path))?;

    attach(&image, target)?;
    let filled = encrypt(&key, target).and_then(|data| {
        let (root, mount_point) = request.content;
        let root_dir = open_dir(root).map_err(Reason::io("open", root))?;
        if let Some(content) = copy::directory_in(&root_dir, mount_point)
            .map_err(Reason::io("open", Path::new(mount_point)))?
        {
            let data_dir = open_dir(&data).map_err(Reason::io("open", &data))?;
            copy::tree(content.as_fd(), data_dir.as_fd())
                .map_err(Reason::io("copy the image's", Path::new(mount_point)))?;
        }
        Ok(())
    });
    let closed = super::close(target).map_err(Reason::io("unmount", target));
    filled?;
    closed?;
    sync_file(&image)
}

/// Opens the volume in `dir` at `target`; its data directory.
pub(super) fn open(
    config: &Config,
    request: &Request<'_>,
    dir: &Path,
    target: &Path,
) -> Result<PathBuf, Reason> {
    let path = dir.join(SEALED);
    let sealed = SealedVolume::read(&path).map_err(Reason::io("read", &path))?;
    if sealed.owner != *request.owner {
        return Err(Reason::OtherOwner {
            signer: sealed.owner.signer.to_string(),
            name: sealed.owner.name,
        });
    }
    let claim = Claim {
        identity: &request.owner.digest(),
        pin: None,
        signatures: &PcrSignatures::default(),
        log: &FirmwareLog::of_this_boot(),
    };
    let secret = Tpm::connect(&config.tpm.tcti)?.unseal(&sealed.key, &claim)?;
    let key: Zeroizing<[u8; KEY_SIZE]> = match secret.as_slice().try_into() {
        Ok(key) => Zeroizing::new(key),
        Err(_) => {
            let wrong =
                io::Error::other(format!("a key of {} bytes, not {KEY_SIZE}", secret.len()));
            return Err(Reason::io("read", &path)(wrong));
        }
    };
    attach(&dir.join(IMAGE), target)?;
    let data = target.join(DATA);
    let opened = unlock(&key, target, &data);
    if opened.is_err() {
        // The error is what matters; release finds the mount if it cannot be taken down now.
        let _ = super::close(target);
    }
    opened.map(|()| data)
}

/// Gives the mounted file system the key of its data directory.
fn unlock(key: &[u8; KEY_SIZE], target: &Path, data: &Path) -> Result<(), Reason> {
    let root = open_dir(target).map_err(Reason::io("open", target))?;
    let identifier = kernel::add_key(&root, key).map_err(Reason::io("add the key of", target))?;
    let data_dir = open_dir(data).map_err(Reason::io("open", data))?;
    match kernel::is_encrypted_with(data_dir, identifier) {
        Ok(true) => Ok(()),
        Ok(false) | Err(_) => Err(Reason::OtherKey(target.to_owned())),
    }
}

/// Makes the encrypted directory in a new file system.
fn encrypt(key: &[u8; KEY_SIZE], target: &Path) -> Result<PathBuf, Reason> {
    let root = open_dir(target).map_err(Reason::io("open", target))?;
    let identifier = kernel::add_key(&root, key).map_err(Reason::io("add the key of", target))?;
    let data = target.join(DATA);
    DirBuilder::new()
        .mode(0o755)
        .create(&data)
        .map_err(Reason::io("make", &data))?;
    let data_dir = open_dir(&data).map_err(Reason::io("open", &data))?;
    kernel::encrypt_directory(data_dir, identifier).map_err(Reason::io("encrypt", &data))?;
    Ok(data)
}

/// Takes the key of a mounted volume from the kernel; success where there is none.
pub(super) fn forget_key(target: &Path) -> io::Result<()> {
    let data = target.join(DATA);
    let data_dir = match open_dir(&data) {
        Ok(dir) => dir,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    // Not encrypted (a launch was killed just before), or encrypted with a key that was not added: nothing to take.
    let Ok(identifier) = kernel::directory_key(&data_dir) else {
        return Ok(());
    };
    drop(data_dir);
    match kernel::remove_key(open_dir(target)?, identifier) {
        Err(error) if error.raw_os_error() == Some(Errno::NOKEY.raw_os_error()) => Ok(()),
        outcome => outcome,
    }
}

/// Mounts an image: no set-user-id programs, no device nodes.
fn attach(image: &Path, target: &Path) -> Result<(), Reason> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(target)
        .map_err(Reason::io("make", target))?;
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::open(image, flags, Mode::empty()).map_err(Reason::io("open", image))?;
    let device =
        kernel::attach_loop(&File::from(file), false).map_err(Reason::io("attach", image))?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV;
    mount::device(&device.path, "ext4", target, flags).map_err(Reason::io("mount", image))
}

/// A sparse file with an empty ext4 whose metadata are written at once, so that nothing is left for the kernel to do
/// behind the container's back.
fn make_image(image: &Path, size_mib: u32) -> Result<(), Reason> {
    let file = File::options()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(image)
        .map_err(Reason::io("make", image))?;
    file.set_len(u64::from(size_mib) << 20)
        .map_err(Reason::io("make", image))?;
    let output = Command::new("mkfs.ext4")
        .args([
            "-q",
            "-F",
            "-O",
            "encrypt",
            "-m",
            "0",
            "-E",
            "lazy_itable_init=0,lazy_journal_init=0",
        ])
        .arg(image)
        .env("PATH", PATH)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Reason::Mkfs {
            path: image.to_owned(),
            reason: format!("{error} (Debian package e2fsprogs)"),
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(Reason::Mkfs {
        path: image.to_owned(),
        reason: format!("{}: {}", output.status, said.trim().replace('\n', ", ")),
    })
}

/// A new key: as strong as the better of the TPM's and the kernel's generators.
fn random_key(tpm: &Tpm) -> Result<Zeroizing<[u8; KEY_SIZE]>, Reason> {
    let mut key = Zeroizing::new([0; KEY_SIZE]);
    kernel_random(key.as_mut_slice())?;
    for (byte, other) in key.iter_mut().zip(tpm.random(KEY_SIZE)?.iter()) {
        *byte ^= other;
    }
    Ok(key)
}

/// Fills `bytes` from the kernel's generator.
fn kernel_random(bytes: &mut [u8]) -> Result<(), Reason> {
    let failed = Reason::io("read", Path::new("getrandom(2)"));
    let got = rustix::rand::getrandom(&mut *bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(&failed)?;
    if got < bytes.len() {
        bytes.zeroize();
        return Err(failed(Errno::IO));
    }
    Ok(())
}

/// What tells the directory of a volume in the making from that of a killed launch.
fn random_suffix() -> Result<String, Reason> {
    let mut bytes = [0; 8];
    kernel_random(&mut bytes)?;
    Ok(hex::encode(bytes))
}

/// Waits until a directory's entries are on disk.
fn sync(dir: &Path) -> Result<(), Reason> {
    sync_file(dir)
}

/// Waits until a file's content is on disk.
fn sync_file(path: &Path) -> Result<(), Reason> {
    File::open(path)
        .and_then(|file| file.sync_all())
        .map_err(Reason::io("write to disk", path))
}
