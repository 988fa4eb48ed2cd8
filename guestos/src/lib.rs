#![doc = include_str!("../README.md")]

pub mod bundle;
mod chain;
pub mod config;
pub mod grant;
pub mod image_config;
pub mod manifest;
pub mod pki;
mod pss;
mod seccomp;
pub mod signature;
pub mod sigstore;
mod superblock;
pub mod tree_digest;
pub mod verity;
pub mod write;
