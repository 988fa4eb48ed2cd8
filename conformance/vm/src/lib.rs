//! The virtual machine for what a build machine's kernel lacks.
//!
//! The host side fetches Debian's kernel, makes an initramfs, starts swtpm and QEMU under emulation and shares a directory over 9p. The
//! guest side (`trustme-vm-guest`, a program of this crate) runs the scenarios named in the plan and writes one verdict
//! for each. One boot runs many scenarios: a boot is dear, a scenario is cheap. docs/testing.md says how to add one.

pub mod bundles;
pub mod cpio;
pub mod initramfs;
pub mod machine;
pub mod packages;
pub mod scenarios;
pub mod suite;
pub mod uefi;
pub mod verdict;
pub mod workshop;
