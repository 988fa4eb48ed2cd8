mod generated;
mod refusals;

use super::*;

/// Every field, in the order of their numbers. protoc 3.21 encodes it, and decodes that to the same text, but for octal
/// escapes in place of UTF-8.
const TEXT: &str = r#"name: "nginx"
hardware: "x86"
version: 7
mounts {
  image_file: "root"
  mount_point: "/"
  fs_type: "squashfs"
  mount_type: SHARED_RW
  image_size: 18446744073709551615
  image_sha1: "da39a3ee5e6b4b0d3255bfef95601890afd80709"
  image_sha2_256: "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855"
  mount_data: "context=\"a\",b"
  image_verity_sha256: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
}
mounts {
  image_file: "html"
  mount_point: "/var/www/html"
  fs_type: "ext4"
  mount_type: EMPTY
  min_size: 0
  max_size: 4294967295
  def_size: 16
}
init_path: "/sbin/cservice"
init_param: "nginx"
init_param: ""
init_param: "a\n\t\r\"\'\\b\033"
init_env: "PATH=/usr/bin"
init_env: "EMPTY="
mounts_setup {
  image_file: "boot"
  mount_point: "boot"
  fs_type: "none"
  mount_type: FLASH
}
description {
  en: "Größe ✓"
  de: "x"
  fr: ""
}
description_long {
  en: ""
}
upstream_version: "1.22"
icon: "icon.png"
build_date: "2026-11-23"
update_base_url: "https://example.org/"
feature_bg_booting: false
min_ram_limit: 64
def_ram_limit: 128
feature_install_guest: true
"#;

fn parse(text: &str) -> Result<GuestOsConfig, String> {
    GuestOsConfig::parse(text.as_bytes()).map_err(|error| error.to_string())
}

fn config() -> GuestOsConfig {
    parse(TEXT).unwrap()
}

#[test]
fn every_field_is_read() {
    let root = Mount {
        image_size: Some(u64::MAX),
        image_sha1: Some("da39a3ee5e6b4b0d3255bfef95601890afd80709".to_owned()),
        image_sha2_256: Some(
            "E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855".to_owned(),
        ),
        mount_data: Some("context=\"a\",b".to_owned()),
        image_verity_sha256: Some(
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855".to_owned(),
        ),
        ..Mount::new("root", "/", "squashfs", MountType::SharedRw)
    };
    let html = Mount {
        min_size: Some(0),
        max_size: Some(u32::MAX),
        def_size: Some(16),
        ..Mount::new("html", "/var/www/html", "ext4", MountType::Empty)
    };
    let expected = GuestOsConfig {
        name: "nginx".to_owned(),
        hardware: "x86".to_owned(),
        version: 7,
        mounts: vec![root, html],
        init_path: Some("/sbin/cservice".to_owned()),
        init_param: ["nginx", "", "a\n\t\r\"'\\b\x1b"]
            .map(str::to_owned)
            .to_vec(),
        init_env: ["PATH=/usr/bin", "EMPTY="].map(str::to_owned).to_vec(),
        mounts_setup: vec![Mount::new("boot", "boot", "none", MountType::Flash)],
        description: I18nString {
            en: "Größe ✓".to_owned(),
            de: Some("x".to_owned()),
            fr: Some(String::new()),
        },
        description_long: Some(I18nString::english("")),
        upstream_version: Some("1.22".to_owned()),
        icon: Some("icon.png".to_owned()),
        build_date: Some("2026-11-23".to_owned()),
        update_base_url: Some("https://example.org/".to_owned()),
        feature_bg_booting: Some(false),
        min_ram_limit: Some(64),
        def_ram_limit: Some(128),
        feature_install_guest: Some(true),
    };
    assert_eq!(config(), expected);
    // `\'` need not be escaped.
    assert_eq!(expected.to_text().unwrap(), TEXT.replace("\\'", "'"));
}

#[test]
fn defaults_are_those_of_the_message() {
    let text = "name: \"a\"\nhardware: \"arm\"\nversion: 0\ndescription {\n  en: \"\"\n}\n";
    let config = parse(text).unwrap();
    let expected = GuestOsConfig {
        name: "a".to_owned(),
        hardware: "arm".to_owned(),
        ..GuestOsConfig::default()
    };
    assert_eq!(config, expected);
    assert_eq!(config.init_path(), "/init");
    assert_eq!(config.to_text().unwrap(), text);
}

#[test]
fn what_both_parsers_read_alike_is_accepted() {
    // (what stands in TEXT, what is put there), without any change of meaning.
    for (from, to) in [
        ("version: 7", "  version: 7"),
        ("version: 7", "\tversion: 7"),
        ("version: 7", "version:7"),
        ("version: 7", "version :  7 \t"),
        ("version: 7\n", "\n \nversion: 7\n\n"),
        ("mounts {", "mounts{"),
        ("}\ninit_path", "  } \ninit_path"),
        (
            "mount_point: \"/\"\n  fs_type: \"squashfs\"",
            "fs_type: \"squashfs\"\n  mount_point: \"/\"",
        ),
    ] {
        assert!(TEXT.contains(from), "{from}");
        let text = TEXT.replacen(from, to, 1);
        assert_eq!(parse(&text).as_ref(), Ok(&config()), "{to:?}");
    }
    let spaced = TEXT.replacen("nginx", "a\\040b\\047\\042", 1);
    assert_eq!(parse(&spaced).unwrap().name, "a b'\"");
}

#[test]
fn what_cannot_be_said_is_not_written() {
    type Change = fn(&mut GuestOsConfig);
    let cases: [(Change, &str); 6] = [
        (
            |config| config.init_param.push("a\\".to_owned()),
            "expected a string that does not end in a backslash, found \"a\\\\\"",
        ),
        (
            |config| config.init_param.push("a\0b".to_owned()),
            "expected a character that is not NUL, found `\\000`",
        ),
        (
            |config| config.description.en = "\x7f".to_owned(),
            "expected an escape instead of a control character, found '\\u{7f}'",
        ),
        (
            |config| config.mounts[0].image_file = "a/b".to_owned(),
            "expected a name of 1 to 128 bytes without `/` and control characters, not `.` or `..`, found \"a/b\"",
        ),
        (
            |config| config.name = "n".repeat(129),
            "expected a name of 1 to 128 bytes without `/` and control characters, not `.` or `..`, found \"nnn",
        ),
        (
            |config| config.description.en = "x".repeat(MAX_TEXT),
            "expected a text of at most 1048576 bytes, found 10",
        ),
    ];
    for (change, error) in cases {
        let mut config = config();
        change(&mut config);
        let said = config.to_text().unwrap_err().to_string();
        assert!(said.contains(error), "{said}");
    }
}
