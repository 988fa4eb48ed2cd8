//! The OCI runtime: its commands and what they share.
//!
//! libcontainer sets the container up (namespaces, mounts, cgroups, seccomp); this crate drives it, keeps the state on
//! disk, protects the runtime's own binary and speaks runc's command line. docs/runtime.md tells the whole.

pub mod build;
pub mod bundle;
pub mod cgroup;
pub mod cli;
pub mod commands;
pub mod creation;
pub mod devices;
pub mod executor;
pub mod filesystem;
pub mod foreground;
pub mod hierarchy;
pub mod hooks;
pub mod idmap;
pub mod init;
pub mod jail;
pub mod launch;
pub mod limits;
pub mod log;
pub mod mounts;
pub mod nodes;
pub mod process;
pub mod root;
pub mod seal;
pub mod signal;
pub mod spawn;
pub mod state;
pub mod sys;
pub mod task;
pub mod terminal;
pub mod tree;
