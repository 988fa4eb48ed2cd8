//! The configuration of a GuestOS: message GuestOSConfig in the text dialect that GyroidOS reads.
//!
//! Our parser is strict where GyroidOS's is sloppy: a text that the two could read differently is an error. docs/guestos.md
//! lists what is decided how.

mod read;
pub(crate) mod rules;
#[cfg(test)]
mod tests;
mod text;
mod write;

use std::fmt;

use serde::Serialize;

pub use text::TextError;

/// The longest text that is read, in bytes.
pub const MAX_TEXT: usize = 1024 * 1024;

/// The most mounts of a configuration, and as many for setting up.
pub const MAX_MOUNTS: usize = 256;

/// The init that GyroidOS itself puts into a container. Where it is named, what runs is `init_param`.
pub const INJECTED_INIT: &str = "/sbin/cservice";

/// What a GuestOS is (GuestOSConfig). Optional fields are `None` where the text does not name them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct GuestOsConfig {
    /// Its name, which with the version makes the names of its files: at most 128 bytes, no `/`.
    pub name: String,
    /// The hardware it runs on: `x86`, `arm` or `riscv`.
    pub hardware: String,
    /// Its version.
    pub version: u64,
    /// What is mounted in a container.
    pub mounts: Vec<Mount>,
    /// The program that runs first; [`GuestOsConfig::init_path`] knows the default.
    pub init_path: Option<String>,
    /// Its arguments.
    pub init_param: Vec<String>,
    /// Its environment, as `NAME=VALUE`.
    pub init_env: Vec<String>,
    /// What is mounted while a container is set up.
    pub mounts_setup: Vec<Mount>,
    /// What it is, in a line.
    pub description: I18nString,
    /// What it is, at length.
    pub description_long: Option<I18nString>,
    /// The version of what it was made from.
    pub upstream_version: Option<String>,
    /// The name of an icon's file. A field of bytes, of which the dialect can carry only UTF-8.
    pub icon: Option<String>,
    /// When it was built.
    pub build_date: Option<String>,
    /// Where its images are downloaded from.
    pub update_base_url: Option<String>,
    /// Whether it can start in the background (true where not named).
    pub feature_bg_booting: Option<bool>,
    /// The least memory it runs with, in MiB (128 where not named).
    pub min_ram_limit: Option<u32>,
    /// The memory it usually gets, in MiB (1024 where not named).
    pub def_ram_limit: Option<u32>,
    /// Whether it can install other GuestOSes (false where not named).
    pub feature_install_guest: Option<bool>,
}

impl GuestOsConfig {
    /// Reads a configuration text.
    ///
    /// # Errors
    /// The first place where the text is not in the dialect, or breaks a rule for a field.
    pub fn parse(bytes: &[u8]) -> Result<Self, TextError> {
        read::configuration(bytes)
    }

    /// The configuration as text, fields in the order of their numbers.
    ///
    /// # Errors
    /// A value breaks a rule for its field, or the dialect cannot say it: a string that ends in a backslash, NUL, DEL, a
    /// text of more than [`MAX_TEXT`] bytes.
    pub fn to_text(&self) -> Result<String, UnwritableError> {
        let text = write::configuration(self);
        match Self::parse(text.as_bytes()) {
            Ok(_) => Ok(text),
            Err(TextError {
                expected, found, ..
            }) => Err(UnwritableError { expected, found }),
        }
    }

    /// The path of the program that runs first, `/init` where the text names none.
    #[must_use]
    pub fn init_path(&self) -> &str {
        self.init_path.as_deref().unwrap_or("/init")
    }
}

/// A configuration that cannot be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a GuestOS configuration cannot say this: expected {expected}, found {found}")]
pub struct UnwritableError {
    /// What a configuration may hold.
    pub expected: String,
    /// What it holds.
    pub found: String,
}

/// A mount of a container (GuestOSMount).
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Mount {
    /// The image `<image_file>.img`, and `<image_file>.hash.img` with its hash tree.
    pub image_file: String,
    /// Where it is mounted: an absolute path, or a partition for [`MountType::Flash`].
    pub mount_point: String,
    /// The image's file system.
    pub fs_type: String,
    /// What becomes of the image.
    pub mount_type: MountType,
    /// The least size of an [`MountType::Empty`] in MiB (10 where not named).
    pub min_size: Option<u32>,
    /// The largest size of an [`MountType::Empty`] in MiB (16384 where not named).
    pub max_size: Option<u32>,
    /// The usual size of an [`MountType::Empty`] in MiB (1024 where not named).
    pub def_size: Option<u32>,
    /// The image's size in bytes.
    pub image_size: Option<u64>,
    /// SHA-1 of the image, 40 hex digits.
    pub image_sha1: Option<String>,
    /// SHA-256 of the image, 64 hex digits.
    pub image_sha2_256: Option<String>,
    /// Options for mounting it, as mount(2) takes them.
    pub mount_data: Option<String>,
    /// The root hash of the image's dm-verity tree, 64 hex digits.
    pub image_verity_sha256: Option<String>,
}

impl Mount {
    /// A mount with the required fields only.
    #[must_use]
    pub fn new(
        image_file: impl Into<String>,
        mount_point: impl Into<String>,
        fs_type: impl Into<String>,
        mount_type: MountType,
    ) -> Self {
        Self {
            image_file: image_file.into(),
            mount_point: mount_point.into(),
            fs_type: fs_type.into(),
            mount_type,
            min_size: None,
            max_size: None,
            def_size: None,
            image_size: None,
            image_sha1: None,
            image_sha2_256: None,
            mount_data: None,
            image_verity_sha256: None,
        }
    }
}

/// What becomes of an image (GuestOSMount.Type).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum MountType {
    /// Mounted read-only.
    Shared,
    /// Copied from a partition of the device.
    Device,
    /// As [`MountType::Device`], writable.
    DeviceRw,
    /// Created, encrypted, when a container first starts.
    Empty,
    /// Deprecated.
    Copy,
    /// Written to a partition.
    Flash,
    /// Overlaid read-only.
    OverlayRo,
    /// Mounted with a tmpfs over it that takes changes.
    SharedRw,
    /// A persistent layer that takes the changes of the mount point.
    OverlayRw,
    /// A file, mounted over another.
    BindFile,
    /// As [`MountType::BindFile`], writable.
    BindFileRw,
    /// Kept and verified, but not mounted.
    StoreOnly,
}

impl MountType {
    /// All types, in the order of their numbers.
    pub const ALL: [Self; 12] = [
        Self::Shared,
        Self::Device,
        Self::DeviceRw,
        Self::Empty,
        Self::Copy,
        Self::Flash,
        Self::OverlayRo,
        Self::SharedRw,
        Self::OverlayRw,
        Self::BindFile,
        Self::BindFileRw,
        Self::StoreOnly,
    ];

    /// Its name in the text.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shared => "SHARED",
            Self::Device => "DEVICE",
            Self::DeviceRw => "DEVICE_RW",
            Self::Empty => "EMPTY",
            Self::Copy => "COPY",
            Self::Flash => "FLASH",
            Self::OverlayRo => "OVERLAY_RO",
            Self::SharedRw => "SHARED_RW",
            Self::OverlayRw => "OVERLAY_RW",
            Self::BindFile => "BIND_FILE",
            Self::BindFileRw => "BIND_FILE_RW",
            Self::StoreOnly => "STORE_ONLY",
        }
    }

    /// Whether the bundle holds an image for it, which is compared with size and digest.
    #[must_use]
    pub const fn has_image(self) -> bool {
        matches!(
            self,
            Self::Shared | Self::SharedRw | Self::OverlayRo | Self::Flash | Self::StoreOnly
        )
    }
}

impl fmt::Display for MountType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// A text in English and perhaps in other languages (I18NString).
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct I18nString {
    /// English.
    pub en: String,
    /// German.
    pub de: Option<String>,
    /// French.
    pub fr: Option<String>,
}

impl I18nString {
    /// A text in English only.
    #[must_use]
    pub fn english(text: impl Into<String>) -> Self {
        Self {
            en: text.into(),
            de: None,
            fr: None,
        }
    }
}
