//! From text to configuration.

use super::text::{Field, Position, Scanner, Statement, TextError, quoted};
use super::{GuestOsConfig, I18nString, MAX_MOUNTS, MAX_TEXT, Mount, MountType, rules};

/// Reads a whole text.
pub(super) fn configuration(bytes: &[u8]) -> Result<GuestOsConfig, TextError> {
    let mut scanner = Scanner::new(bytes, MAX_TEXT)?;
    let mut config = GuestOsConfig::default();
    let (mut name, mut hardware, mut version, mut description) = (None, None, None, None);
    let end = loop {
        let field = match scanner.statement()? {
            Statement::Field(field) => field,
            Statement::Close(at) => return Err(at.error("a field of GuestOSConfig", "`}`")),
            Statement::End(at) => break at,
        };
        match field.name {
            "name" => once(&mut name, field, |field| {
                field.string_that(rules::file_name)
            }),
            "hardware" => once(&mut hardware, field, |field| {
                field.string_that(rules::hardware)
            }),
            "version" => once(&mut version, field, Field::number),
            "mounts" => {
                let mount = mount(&mut scanner, &field, &config.mounts)?;
                config.mounts.push(mount);
                Ok(())
            }
            "init_path" => once(&mut config.init_path, field, |field| {
                field.string_that(rules::path)
            }),
            "init_param" => {
                config.init_param.push(field.string()?);
                Ok(())
            }
            "init_env" => {
                config.init_env.push(field.string_that(rules::variable)?);
                Ok(())
            }
            "mounts_setup" => {
                let mount = mount(&mut scanner, &field, &config.mounts_setup)?;
                config.mounts_setup.push(mount);
                Ok(())
            }
            "description" => once(&mut description, field, |field| {
                i18n_string(&mut scanner, &field)
            }),
            "description_long" => once(&mut config.description_long, field, |field| {
                i18n_string(&mut scanner, &field)
            }),
            "upstream_version" => once(&mut config.upstream_version, field, Field::string),
            "icon" => once(&mut config.icon, field, Field::string),
            "build_date" => once(&mut config.build_date, field, Field::string),
            "update_base_url" => once(&mut config.update_base_url, field, Field::string),
            "feature_bg_booting" => once(&mut config.feature_bg_booting, field, Field::boolean),
            "min_ram_limit" => once(&mut config.min_ram_limit, field, Field::number),
            "def_ram_limit" => once(&mut config.def_ram_limit, field, Field::number),
            "feature_install_guest" => {
                once(&mut config.feature_install_guest, field, Field::boolean)
            }
            _ => Err(field.error("a field of GuestOSConfig")),
        }?;
    };
    let end = End(end, "the end of the text");
    config.name = end.required("name", name)?;
    config.hardware = end.required("hardware", hardware)?;
    config.version = end.required("version", version)?;
    config.description = end.required("description", description)?;
    Ok(config)
}

/// Reads the mount that begins with `field`, behind `others`.
fn mount(
    scanner: &mut Scanner<'_>,
    field: &Field<'_>,
    others: &[Mount],
) -> Result<Mount, TextError> {
    field.open()?;
    if others.len() == MAX_MOUNTS {
        return Err(field.error(format!("at most {MAX_MOUNTS} {}", field.name)));
    }
    let mut mount = Mount::new("", "", "", MountType::Shared);
    let (mut image_file, mut mount_point, mut fs_type, mut mount_type) = (None, None, None, None);
    let close = loop {
        let field = match scanner.statement()? {
            Statement::Field(field) => field,
            Statement::Close(at) => break at,
            Statement::End(at) => return Err(at.error("`}`", "the end of the text")),
        };
        match field.name {
            "image_file" => once(&mut image_file, field, |field| {
                field.string_that(rules::file_name)
            }),
            "mount_point" => once(&mut mount_point, field, |field| {
                field.string_that(rules::mount_point)
            }),
            "fs_type" => once(&mut fs_type, field, |field| {
                field.string_that(rules::file_name)
            }),
            "mount_type" => once(&mut mount_type, field, |field| {
                field.one_of(&MountType::ALL, MountType::name)
            }),
            "min_size" => once(&mut mount.min_size, field, Field::number),
            "max_size" => once(&mut mount.max_size, field, Field::number),
            "def_size" => once(&mut mount.def_size, field, Field::number),
            "image_size" => once(&mut mount.image_size, field, Field::number),
            "image_sha1" => once(&mut mount.image_sha1, field, |field| {
                field.string_that(rules::sha1)
            }),
            "image_sha2_256" => once(&mut mount.image_sha2_256, field, |field| {
                field.string_that(rules::sha256)
            }),
            "mount_data" => once(&mut mount.mount_data, field, Field::string),
            "image_verity_sha256" => once(&mut mount.image_verity_sha256, field, |field| {
                field.string_that(rules::sha256)
            }),
            _ => Err(field.error("a field of GuestOSMount")),
        }?;
    };
    let end = End(close, "`}`");
    mount.image_file = end.required("image_file", image_file)?;
    mount.mount_point = end.required("mount_point", mount_point)?;
    mount.fs_type = end.required("fs_type", fs_type)?;
    mount.mount_type = end.required("mount_type", mount_type)?;
    if mount.mount_type != MountType::Flash && !mount.mount_point.starts_with('/') {
        let expected = format!("an absolute mount_point of a {} mount", mount.mount_type);
        return Err(close.error(expected, quoted(&mount.mount_point)));
    }
    if let Some(other) = others.iter().find(|other| share_a_file(other, &mount)) {
        let expected = format!("another image_file than {}", quoted(&other.image_file));
        return Err(close.error(expected, quoted(&mount.image_file)));
    }
    Ok(mount)
}

/// Whether the files of two mounts, `NAME.img` and `NAME.hash.img`, have names in common.
fn share_a_file(one: &Mount, other: &Mount) -> bool {
    let is_hash = |hash: &Mount, image: &Mount| {
        hash.image_verity_sha256.is_some()
            && image.image_file.strip_suffix(".hash") == Some(&hash.image_file)
    };
    one.image_file == other.image_file || is_hash(one, other) || is_hash(other, one)
}

/// Reads the text in several languages that begins with `field`.
fn i18n_string(scanner: &mut Scanner<'_>, field: &Field<'_>) -> Result<I18nString, TextError> {
    field.open()?;
    let mut string = I18nString::default();
    let mut en = None;
    let close = loop {
        let field = match scanner.statement()? {
            Statement::Field(field) => field,
            Statement::Close(at) => break at,
            Statement::End(at) => return Err(at.error("`}`", "the end of the text")),
        };
        match field.name {
            "en" => once(&mut en, field, Field::string),
            "de" => once(&mut string.de, field, Field::string),
            "fr" => once(&mut string.fr, field, Field::string),
            _ => Err(field.error("a field of I18NString")),
        }?;
    };
    string.en = End(close, "`}`").required("en", en)?;
    Ok(string)
}

/// Reads a field that may occur once into `slot`.
fn once<'t, T>(
    slot: &mut Option<T>,
    field: Field<'t>,
    read: impl FnOnce(Field<'t>) -> Result<T, TextError>,
) -> Result<(), TextError> {
    if slot.is_some() {
        return Err(field.error(format!("no second {}", field.name)));
    }
    *slot = Some(read(field)?);
    Ok(())
}

/// Where a message ends, and how it does.
struct End(Position, &'static str);

impl End {
    fn required<T>(&self, name: &str, value: Option<T>) -> Result<T, TextError> {
        value.ok_or_else(|| {
            self.0
                .error(format!("the field {name}, which is required"), self.1)
        })
    }
}
