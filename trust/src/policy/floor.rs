//! Rollback floors: the lowest version of a GuestOS that may start, one file per name.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

/// Longer files hold no number.
const MAX_SIZE: u64 = 64;

/// Why a floor is not known, or not set.
#[derive(Debug, thiserror::Error)]
pub enum FloorError {
    /// The name cannot be a file name.
    #[error(
        "{0:?} is not a GuestOS name: letters, digits, '.', '_', '-', '+', not beginning with '.'"
    )]
    Name(String),
    /// The file cannot be read or written.
    #[error("rollback floor {}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file does not hold a number.
    #[error("{}: {text:?} is not a version", path.display())]
    Number {
        /// The file.
        path: PathBuf,
        /// What it holds.
        text: String,
    },
}

fn file(floors: &Path, name: &str) -> Result<PathBuf, FloorError> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-' | b'+');
    match !name.is_empty() && !name.starts_with('.') && name.len() <= 200 && name.bytes().all(good)
    {
        true => Ok(floors.join(name)),
        false => Err(FloorError::Name(name.to_owned())),
    }
}

fn failed(path: &Path) -> impl Fn(io::Error) -> FloorError {
    move |source| FloorError::Io {
        path: path.to_owned(),
        source,
    }
}

/// The lowest version of the GuestOS `name` that may start; `None` where every version may.
///
/// # Errors
/// The name cannot be a file name, or the file holds no number.
pub fn read(floors: &Path, name: &str) -> Result<Option<u64>, FloorError> {
    let path = file(floors, name)?;
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = match rustix::fs::open(&path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(errno) => return Err(failed(&path)(errno.into())),
    };
    let mut bytes = Vec::new();
    file.take(MAX_SIZE)
        .read_to_end(&mut bytes)
        .map_err(failed(&path))?;
    let text = String::from_utf8_lossy(&bytes);
    match text.trim_end().parse() {
        Ok(version) => Ok(Some(version)),
        Err(_) => Err(FloorError::Number {
            path,
            text: text.into_owned(),
        }),
    }
}

/// Sets the lowest version of the GuestOS `name` that may start.
///
/// # Errors
/// The name cannot be a file name, or the file cannot be written; then the floor is what it was.
pub fn write(floors: &Path, name: &str, version: u64) -> Result<(), FloorError> {
    let path = file(floors, name)?;
    let new = floors.join(format!(".{name}.new"));
    let dir = DirBuilder::new().recursive(true).mode(0o755).create(floors);
    dir.map_err(failed(floors))?;
    let write = || {
        let options = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .clone();
        let mut file = options.open(&new)?;
        writeln!(file, "{version}")?;
        file.sync_all()?;
        std::fs::rename(&new, &path)?;
        File::open(floors)?.sync_all()
    };
    write().map_err(failed(&path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_floor_is_read_as_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let floors = dir.path().join("floors");
        assert_eq!(read(&floors, "nginx").unwrap(), None);
        for version in [3, u64::MAX, 2] {
            write(&floors, "nginx", version).unwrap();
            assert_eq!(read(&floors, "nginx").unwrap(), Some(version));
        }
        assert_eq!(read(&floors, "apache").unwrap(), None);
        assert_eq!(std::fs::read_dir(&floors).unwrap().count(), 1);
    }

    #[test]
    fn what_is_no_floor_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        for text in ["", "x", "-1", "1 2", "18446744073709551616"] {
            std::fs::write(dir.path().join("nginx"), text).unwrap();
            assert!(
                matches!(read(dir.path(), "nginx"), Err(FloorError::Number { .. })),
                "{text:?}"
            );
        }
        for name in ["", ".", "..", "a/b", ".hidden", "ä"] {
            assert!(
                matches!(read(dir.path(), name), Err(FloorError::Name(_))),
                "{name:?}"
            );
            assert!(
                matches!(write(dir.path(), name, 1), Err(FloorError::Name(_))),
                "{name:?}"
            );
        }
    }
}
