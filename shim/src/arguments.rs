//! The command line, which containerd writes in Go's form: `-id x`, `-id=x`, `--id x`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// What containerd asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Start a shim, or find the one of the pod.
    Start,
    /// Clean up after a shim that is gone.
    Delete,
    /// Be the shim.
    Serve,
    /// Say what the runtime can do.
    Info,
    /// Print the version.
    Version,
}

/// The command line.
#[derive(Debug, PartialEq, Eq)]
pub struct Arguments {
    /// What to do.
    pub action: Action,
    /// containerd's namespace of the container.
    pub namespace: String,
    /// The container, or the pod's first.
    pub id: String,
    /// containerd's address.
    pub address: String,
    /// The bundle's directory (`delete`).
    pub bundle: PathBuf,
    /// Log more.
    pub debug: bool,
}

impl Arguments {
    /// Parses the arguments after the program's name.
    ///
    /// # Errors
    /// An unknown flag or action, or a missing value.
    pub fn parse(arguments: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut parsed = Self {
            action: Action::Serve,
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            bundle: PathBuf::new(),
            debug: false,
        };
        let mut rest = arguments.into_iter();
        while let Some(argument) = rest.next() {
            let Some(flag) = argument.strip_prefix('-') else {
                parsed.action = match argument.as_str() {
                    "start" => Action::Start,
                    "delete" => Action::Delete,
                    other => bail!("unknown action {other:?}"),
                };
                continue;
            };
            let flag = flag.strip_prefix('-').unwrap_or(flag);
            let (flag, given) = match flag.split_once('=') {
                Some((flag, value)) => (flag, Some(value.to_owned())),
                None => (flag, None),
            };
            let mut value = || {
                let value = given.clone().or_else(|| rest.next());
                value.with_context(|| format!("flag needs an argument: -{flag}"))
            };
            match flag {
                "debug" => parsed.debug = given.as_deref() != Some("false"),
                "v" | "version" => parsed.action = Action::Version,
                "info" => parsed.action = Action::Info,
                "namespace" => parsed.namespace = value()?,
                "id" => parsed.id = value()?,
                "address" => parsed.address = value()?,
                "bundle" => parsed.bundle = value()?.into(),
                // The address is a function of the others, and events go to containerd's socket.
                "socket" | "debug-socket" | "publish-binary" => drop(value()?),
                _ => bail!("flag provided but not defined: -{flag}"),
            }
        }
        if !matches!(parsed.action, Action::Info | Action::Version) {
            for (flag, value) in [("namespace", &parsed.namespace), ("id", &parsed.id)] {
                // Both become names of directories.
                if value.is_empty() || value.contains('/') || value.starts_with('.') {
                    bail!("-{flag} {value:?} is no name");
                }
            }
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments> {
        Arguments::parse(line.split(' ').map(str::to_owned))
    }

    #[test]
    fn containerds_command_lines_are_understood() {
        let start = parse(
            "-namespace default -address /run/c.sock -publish-binary /usr/bin/containerd -id a -debug start",
        )
        .unwrap();
        assert_eq!(start.action, Action::Start);
        assert_eq!(
            (start.namespace.as_str(), start.id.as_str(), start.debug),
            ("default", "a", true)
        );
        assert_eq!(start.address, "/run/c.sock");
        let delete = parse("--namespace=n -id=a -bundle /b delete").unwrap();
        assert_eq!((delete.action, delete.debug), (Action::Delete, false));
        assert_eq!(delete.bundle, PathBuf::from("/b"));
        assert_eq!(parse("-info").unwrap().action, Action::Info);
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("-namespace n -id a").unwrap().action, Action::Serve);
    }

    #[test]
    fn wrong_command_lines_are_refused() {
        for line in [
            "start",
            "-namespace n start",
            "-namespace n -id",
            "-namespace n -id ../x start",
            "-namespace n -id .. delete",
            "-namespace n -id a stop",
            "-nosuch",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }
}
