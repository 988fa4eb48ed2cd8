//! dm-verity devices: the kernel checks each block of an image against the signed root hash when it reads it.

use std::fs::File;
use std::path::PathBuf;

use devicemapper::{DM, DevId, DmFlags, DmName, DmOptions};

use super::LaunchError;
use crate::kernel;

/// Sectors of 512 bytes in a block of 4096.
const SECTORS_A_BLOCK: u64 = 8;

/// A hash tree as its superblock describes it.
#[derive(Debug, Clone)]
pub(super) struct Tree {
    /// How many blocks of 4096 bytes it covers.
    pub(super) data_blocks: u64,
    /// The salt before each block.
    pub(super) salt: Vec<u8>,
    /// The root hash, which is signed.
    pub(super) root: [u8; 32],
}

impl Tree {
    /// The parameters of a `verity` target (Linux, admin-guide/device-mapper/verity.rst): version 1, both block sizes 4096,
    /// the tree behind the superblock's block.
    fn parameters(&self, data: &str, hash: &str) -> String {
        let salt = match self.salt.as_slice() {
            [] => "-".to_owned(),
            salt => hex::encode(salt),
        };
        let (blocks, root) = (self.data_blocks, hex::encode(self.root));
        format!("1 {data} {hash} 4096 4096 {blocks} 1 sha256 {root} {salt}")
    }
}

/// The device mapper, where the kernel has one and lets this program use it.
pub(super) fn mapper() -> Option<DM> {
    DM::new().ok()
}

/// Makes a dm-verity device whose name begins with `prefix`; its path.
///
/// # Errors
/// The kernel has no dm-verity, or refuses.
pub(super) fn open(
    mapper: &DM,
    prefix: &str,
    data: &File,
    hash: &File,
    tree: &Tree,
) -> Result<PathBuf, LaunchError> {
    let name = format!("{prefix}root");
    let failed = |error: devicemapper::DmError| LaunchError::Verity {
        name: name.clone(),
        reason: error.to_string(),
    };
    let attach = |file| {
        kernel::attach_loop(file, true).map_err(|error| LaunchError::Verity {
            name: name.clone(),
            reason: format!("loop device: {error}"),
        })
    };
    let (data, hash) = (attach(data)?, attach(hash)?);
    let parameters = tree.parameters(&data.path.to_string_lossy(), &hash.path.to_string_lossy());
    let dm_name = DmName::new(&name).map_err(failed)?;
    let id = DevId::Name(dm_name);
    let read_only = DmOptions::default().set_flags(DmFlags::DM_READONLY);
    mapper
        .device_create(dm_name, None, read_only)
        .map_err(failed)?;
    let table = [(
        0,
        tree.data_blocks * SECTORS_A_BLOCK,
        "verity".to_owned(),
        parameters,
    )];
    let opened = mapper
        .table_load(&id, &table, read_only)
        .and_then(|_| mapper.device_suspend(&id, DmOptions::default()));
    match opened {
        Ok(device) => Ok(PathBuf::from(format!("/dev/dm-{}", device.device().minor))),
        Err(error) => {
            // The error is what matters; release finds the device by its name.
            let _ = mapper.device_remove(&id, DmOptions::default());
            Err(failed(error))
        }
    }
}

/// Removes every device whose name begins with `prefix`.
pub(super) fn remove(prefix: &str) -> Result<(), LaunchError> {
    let Some(mapper) = mapper() else {
        return Ok(());
    };
    let failed = |name: &str, error: devicemapper::DmError| LaunchError::Verity {
        name: name.to_owned(),
        reason: error.to_string(),
    };
    for (name, _, _) in mapper
        .list_devices()
        .map_err(|error| failed(prefix, error))?
    {
        let text = name.to_string();
        if text.starts_with(prefix) {
            // What still uses the device keeps it until it ends.
            let options = DmOptions::default().set_flags(DmFlags::DM_DEFERRED_REMOVE);
            mapper
                .device_remove(&DevId::Name(&name), options)
                .map_err(|error| failed(&text, error))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of the kernel's documentation (verity.rst), with other values.
    #[test]
    fn parameters_are_those_of_veritysetup() {
        let tree = Tree {
            data_blocks: 256,
            salt: vec![0xAB; 32],
            root: [0xCD; 32],
        };
        let expected = format!(
            "1 /dev/loop0 /dev/loop1 4096 4096 256 1 sha256 {} {}",
            "cd".repeat(32),
            "ab".repeat(32)
        );
        assert_eq!(tree.parameters("/dev/loop0", "/dev/loop1"), expected);
        let unsalted = Tree {
            salt: vec![],
            ..tree
        };
        assert!(unsalted.parameters("a", "b").ends_with(" -"));
    }

    /// Needs a kernel with device mapper: the virtual machine's.
    #[test]
    fn the_kernel_gives_only_blocks_that_verify() {
        let Some(mapper) = mapper() else {
            eprintln!("skipped: no device mapper here");
            return;
        };
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let mut content: Vec<u8> = (0..300_u32 << 12)
            .map(|place| (place >> 12) as u8)
            .collect();
        std::fs::write(path("data"), &content).unwrap();
        let output = std::process::Command::new("veritysetup")
            .arg("format")
            .args([path("data"), path("hash")])
            .output()
            .unwrap();
        let printed = String::from_utf8(output.stdout).unwrap();
        let value = |name: &str| {
            let line = printed
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .unwrap();
            hex::decode(line.trim()).unwrap()
        };
        let tree = Tree {
            data_blocks: 300,
            salt: value("Salt:"),
            root: value("Root hash:").try_into().unwrap(),
        };
        let prefix = "trustme-test-verity-";
        let read = |content: &[u8], tree: &Tree| {
            std::fs::write(path("data"), content).unwrap();
            let open = |name| File::open(path(name)).unwrap();
            let device = super::open(&mapper, prefix, &open("data"), &open("hash"), tree).unwrap();
            let outcome = std::fs::read(device);
            remove(prefix).unwrap();
            outcome
        };
        assert_eq!(read(&content, &tree).unwrap(), content);
        let wrong = Tree {
            root: [1; 32],
            ..tree.clone()
        };
        assert!(read(&content, &wrong).is_err());
        *content.last_mut().unwrap() ^= 1;
        assert!(read(&content, &tree).is_err());
        let left = mapper.list_devices().unwrap();
        assert!(
            !left
                .iter()
                .any(|(name, _, _)| name.to_string().starts_with(prefix))
        );
    }
}
