//! Why an image cannot be converted.

use std::io;
use std::path::{Path, PathBuf};

use trustme_guestos::bundle::BundleError;

/// Why an image cannot be converted. Every message begins with what is at fault.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The words that name the image are not in skopeo's notation.
    #[error("{text:?}: {reason}")]
    Reference {
        /// The words.
        text: String,
        /// What was expected.
        reason: String,
    },
    /// A file or directory cannot be opened, read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An archive, a layout or something in it is not as it should be.
    #[error("{}: {reason}", path.display())]
    Image {
        /// The archive or layout, or the file in it.
        path: PathBuf,
        /// What was expected and what was found.
        reason: String,
    },
    /// A layer is not as it should be.
    #[error("{}: layer {number} ({name}): {reason}", path.display())]
    Layer {
        /// The archive or layout.
        path: PathBuf,
        /// The lowest layer is 1.
        number: usize,
        /// Its digest or its name in the archive.
        name: String,
        /// What was expected and what was found, and where.
        reason: String,
    },
    /// A GuestOS cannot say what the image says.
    #[error("the image configuration: {0}")]
    Configuration(String),
    /// The image file system cannot be made.
    #[error("{program}: {reason}")]
    Program {
        /// The program that makes it.
        program: &'static str,
        /// What it said.
        reason: String,
    },
    /// A registry, or an engine, does not give what it should.
    #[error("{what}: {reason}")]
    Registry {
        /// The image, and where it is.
        what: String,
        /// What was expected and what was found.
        reason: String,
    },
    /// The bundle cannot be written.
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

impl Error {
    pub(crate) fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io {
            path: path.to_owned(),
            source,
        }
    }

    pub(crate) fn image(path: &Path, reason: impl Into<String>) -> Self {
        Self::Image {
            path: path.to_owned(),
            reason: reason.into(),
        }
    }
}
