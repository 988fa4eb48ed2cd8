//! Kernel interfaces that no crate wraps: loop devices, fscrypt keys and policies, and one environment variable. The only
//! module of this crate with `unsafe` code.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;

use linux_raw_sys::loop_device::{
    LO_FLAGS_AUTOCLEAR, LO_FLAGS_READ_ONLY, LOOP_CONFIGURE, LOOP_CTL_GET_FREE, loop_config,
    loop_info64,
};
use rustix::ioctl::{self, Ioctl, IoctlOutput, Opcode, Setter, Updater, opcode};
use zeroize::Zeroize;

/// Keeps the TSS from writing its own lines to stderr, which belongs to this program's one-line error. Call it first
/// thing in `main`, before any thread exists. A `TSS2_LOG` that the caller has set stands.
pub fn quiet_tss() {
    if std::env::var_os("TSS2_LOG").is_none() {
        // SAFETY: called at the start of main, when no other thread can read the environment.
        unsafe { std::env::set_var("TSS2_LOG", "all+none") };
    }
}

/// How often another program may snatch the free loop device that the kernel named.
const LOOP_TRIES: u32 = 64;

/// LOOP_CTL_GET_FREE, which answers with its return value.
struct GetFree;

// SAFETY: LOOP_CTL_GET_FREE takes no argument and returns the number of a device, or an error.
unsafe impl Ioctl for GetFree {
    type Output = u32;
    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        LOOP_CTL_GET_FREE
    }

    fn as_ptr(&mut self) -> *mut std::ffi::c_void {
        std::ptr::null_mut()
    }

    unsafe fn output_from_ptr(
        out: IoctlOutput,
        _: *mut std::ffi::c_void,
    ) -> rustix::io::Result<u32> {
        Ok(out.unsigned_abs())
    }
}

/// A loop device that is in use as long as this value, or a mount of it, exists; it detaches itself afterwards.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    /// `/dev/loopN`.
    pub(crate) path: PathBuf,
    _open: File,
}

/// Attaches the open file, not whatever its path names by now, to a loop device.
///
/// # Errors
/// No loop device is free, or the kernel refuses.
pub(crate) fn attach_loop(file: &File, read_only: bool) -> io::Result<LoopDevice> {
    let control = File::options()
        .read(true)
        .write(true)
        .open("/dev/loop-control")?;
    let flags = match read_only {
        true => LO_FLAGS_AUTOCLEAR as u32 | LO_FLAGS_READ_ONLY as u32,
        false => LO_FLAGS_AUTOCLEAR as u32,
    };
    let config = loop_config {
        fd: file.as_raw_fd() as u32,
        block_size: 0,
        info: loop_info64 {
            lo_device: 0,
            lo_inode: 0,
            lo_rdevice: 0,
            lo_offset: 0,
            lo_sizelimit: 0,
            lo_number: 0,
            lo_encrypt_type: 0,
            lo_encrypt_key_size: 0,
            lo_flags: flags,
            lo_file_name: [0; 64],
            lo_crypt_name: [0; 64],
            lo_encrypt_key: [0; 32],
            lo_init: [0; 2],
        },
        __reserved: [0; 8],
    };
    for _ in 0..LOOP_TRIES {
        // SAFETY: see GetFree.
        let number = unsafe { ioctl::ioctl(&control, GetFree) }?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::options().read(true).write(!read_only).open(&path)?;
        // SAFETY: LOOP_CONFIGURE reads one loop_config; `fd` in it is open for the whole call.
        let configured = unsafe {
            ioctl::ioctl(
                &device,
                Setter::<{ LOOP_CONFIGURE }, loop_config>::new(config),
            )
        };
        match configured {
            Ok(()) => {
                return Ok(LoopDevice {
                    path,
                    _open: device,
                });
            }
            Err(rustix::io::Errno::BUSY) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(io::Error::other(
        "every free loop device was taken by another program",
    ))
}

/// The name that the kernel derives from a key (fscrypt v2).
pub(crate) type KeyIdentifier = [u8; 16];

/// include/uapi/linux/fscrypt.h: FSCRYPT_POLICY_V2.
const POLICY_V2: u8 = 2;
/// FSCRYPT_MODE_AES_256_XTS.
const AES_256_XTS: u8 = 1;
/// FSCRYPT_MODE_AES_256_CTS.
const AES_256_CTS: u8 = 4;
/// FSCRYPT_POLICY_FLAGS_PAD_32: names are padded to multiples of 32 bytes.
const PAD_32: u8 = 3;
/// FSCRYPT_KEY_SPEC_TYPE_IDENTIFIER.
const BY_IDENTIFIER: u32 = 2;

/// struct fscrypt_policy_v2.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PolicyV2 {
    version: u8,
    contents_mode: u8,
    names_mode: u8,
    flags: u8,
    reserved: [u8; 4],
    key: KeyIdentifier,
}

impl PolicyV2 {
    /// AES-256-XTS for contents, AES-256-CTS for names.
    fn new(key: KeyIdentifier) -> Self {
        Self {
            version: POLICY_V2,
            contents_mode: AES_256_XTS,
            names_mode: AES_256_CTS,
            flags: PAD_32,
            reserved: [0; 4],
            key,
        }
    }
}

/// struct fscrypt_get_policy_ex_arg.
#[repr(C)]
struct GetPolicy {
    size: u64,
    policy: PolicyV2,
}

/// struct fscrypt_key_specifier.
#[repr(C)]
struct KeySpecifier {
    kind: u32,
    reserved: u32,
    identifier: KeyIdentifier,
    padding: [u8; 16],
}

impl KeySpecifier {
    fn new(identifier: KeyIdentifier) -> Self {
        Self {
            kind: BY_IDENTIFIER,
            reserved: 0,
            identifier,
            padding: [0; 16],
        }
    }
}

/// struct fscrypt_add_key_arg without the key that follows it.
#[repr(C)]
struct AddKeyHead {
    specifier: KeySpecifier,
    raw_size: u32,
    key_id: u32,
    reserved: [u32; 8],
}

/// struct fscrypt_add_key_arg with a 64-byte key.
#[repr(C)]
struct AddKey {
    head: AddKeyHead,
    raw: [u8; 64],
}

/// struct fscrypt_remove_key_arg.
#[repr(C)]
struct RemoveKey {
    specifier: KeySpecifier,
    status: u32,
    reserved: [u32; 5],
}

/// FS_IOC_SET_ENCRYPTION_POLICY: its number was made with the 12 bytes of struct fscrypt_policy_v1.
const SET_POLICY: Opcode = opcode::read::<[u8; 12]>(b'f', 19);
/// FS_IOC_GET_ENCRYPTION_POLICY_EX.
const GET_POLICY: Opcode = opcode::read_write::<[u8; 9]>(b'f', 22);
/// FS_IOC_ADD_ENCRYPTION_KEY.
const ADD_KEY: Opcode = opcode::read_write::<AddKeyHead>(b'f', 23);
/// FS_IOC_REMOVE_ENCRYPTION_KEY.
const REMOVE_KEY: Opcode = opcode::read_write::<RemoveKey>(b'f', 24);

/// Gives a key to the file system that `file` is on; how the kernel names it.
///
/// # Errors
/// The file system or the kernel has no fscrypt.
pub(crate) fn add_key(file: impl AsFd, key: &[u8; 64]) -> io::Result<KeyIdentifier> {
    let mut argument = AddKey {
        head: AddKeyHead {
            specifier: KeySpecifier::new([0; 16]),
            raw_size: key.len() as u32,
            key_id: 0,
            reserved: [0; 8],
        },
        raw: *key,
    };
    // SAFETY: the kernel reads the head and raw_size bytes after it, and writes the specifier.
    let outcome = unsafe { ioctl::ioctl(file, Updater::<{ ADD_KEY }, AddKey>::new(&mut argument)) };
    argument.raw.zeroize();
    outcome?;
    Ok(argument.head.specifier.identifier)
}

/// Takes a key from the file system that `file` is on; files that are open keep theirs until they are closed.
///
/// # Errors
/// The file system does not have the key.
pub(crate) fn remove_key(file: impl AsFd, key: KeyIdentifier) -> io::Result<()> {
    let mut argument = RemoveKey {
        specifier: KeySpecifier::new(key),
        status: 0,
        reserved: [0; 5],
    };
    // SAFETY: the kernel reads and writes one fscrypt_remove_key_arg.
    unsafe {
        ioctl::ioctl(
            file,
            Updater::<{ REMOVE_KEY }, RemoveKey>::new(&mut argument),
        )
    }?;
    Ok(())
}

/// Encrypts an empty directory, and whatever is made in it, with a key that the file system has: contents with
/// AES-256-XTS, names with AES-256-CTS.
///
/// # Errors
/// The directory is not empty or has a policy already, or the key is absent.
pub(crate) fn encrypt_directory(dir: impl AsFd, key: KeyIdentifier) -> io::Result<()> {
    // SAFETY: the kernel reads one policy, as long as its version byte says.
    unsafe {
        ioctl::ioctl(
            dir,
            Setter::<{ SET_POLICY }, PolicyV2>::new(PolicyV2::new(key)),
        )
    }?;
    Ok(())
}

/// Whether a directory is encrypted with this key as [`encrypt_directory`] does it.
///
/// # Errors
/// The directory is not encrypted, or the kernel has no fscrypt.
pub(crate) fn is_encrypted_with(dir: impl AsFd, key: KeyIdentifier) -> io::Result<bool> {
    Ok(policy(dir)? == PolicyV2::new(key))
}

/// The key that a directory is encrypted with.
///
/// # Errors
/// The directory is not encrypted, or the kernel has no fscrypt.
pub(crate) fn directory_key(dir: impl AsFd) -> io::Result<KeyIdentifier> {
    Ok(policy(dir)?.key)
}

fn policy(dir: impl AsFd) -> io::Result<PolicyV2> {
    let mut argument = GetPolicy {
        size: size_of::<PolicyV2>() as u64,
        policy: PolicyV2::new([0; 16]),
    };
    // SAFETY: the kernel writes at most `size` bytes of policy.
    unsafe {
        ioctl::ioctl(
            dir,
            Updater::<{ GET_POLICY }, GetPolicy>::new(&mut argument),
        )
    }?;
    Ok(argument.policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of a C program that includes <linux/fscrypt.h> (Debian 12's linux-libc-dev).
    #[test]
    fn request_numbers_and_sizes_are_the_kernels() {
        assert_eq!(SET_POLICY, 0x800c_6613);
        assert_eq!(GET_POLICY, 0xc009_6616);
        assert_eq!(ADD_KEY, 0xc050_6617);
        assert_eq!(REMOVE_KEY, 0xc040_6618);
        assert_eq!(size_of::<PolicyV2>(), 24);
        assert_eq!(size_of::<KeySpecifier>(), 40);
        assert_eq!(std::mem::offset_of!(AddKey, raw), 80);
    }
}
