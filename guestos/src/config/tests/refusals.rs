//! Texts that are not in the dialect or break a rule: each error says where, and what was expected.

use super::*;

#[test]
fn refusals_name_the_place() {
    // (what stands in TEXT, what is put there, the error)
    let cases = [
        // The dialect: statements.
        (
            "version: 7",
            "# comment",
            "line 3, column 1: expected a field or `}`, found `#`",
        ),
        (
            "version: 7",
            "version: 7 # comment",
            "line 3, column 12: expected the end of the line, found `#`",
        ),
        (
            "version: 7\n",
            "version: 7\r\n",
            "line 3, column 11: expected the end of the line, found a carriage return",
        ),
        (
            "version: 7",
            "version: 7,",
            "line 3, column 11: expected the end of the line, found `,`",
        ),
        (
            "version: 7",
            "version: 7;",
            "line 3, column 11: expected the end of the line, found `;`",
        ),
        (
            "version: 7\n",
            "version: 7 ",
            "line 3, column 12: expected the end of the line, found `m`",
        ),
        (
            "version: 7",
            "version 7",
            "line 3, column 9: expected `:` or `{`, found `7`",
        ),
        (
            "version: 7",
            "version:",
            "line 3, column 9: expected a value, found the end of the line",
        ),
        (
            "version: 7",
            "version:\n7",
            "line 3, column 9: expected a value, found the end of the line",
        ),
        (
            "version: 7",
            "version",
            "line 3, column 8: expected `:` or `{`, found the end of the line",
        ),
        (
            "version: 7",
            ": 7",
            "line 3, column 1: expected a field or `}`, found `:`",
        ),
        (
            "mounts {",
            "mounts: {",
            "line 4, column 9: expected a value, found `{`",
        ),
        (
            "mounts {",
            "mounts <",
            "line 4, column 8: expected `:` or `{`, found `<`",
        ),
        (
            "mounts {",
            "mounts\n{",
            "line 4, column 7: expected `:` or `{`, found the end of the line",
        ),
        (
            "mounts {",
            "mounts { image_file: \"x\"",
            "line 4, column 10: expected the end of the line, found `i`",
        ),
        (
            "mounts {",
            "mounts: 1\n{",
            "line 4, column 9: expected `{`, as mounts is a message, found `1`",
        ),
        (
            "version: 7",
            "version {",
            "line 3, column 9: expected a decimal number, found `{`",
        ),
        (
            "init_path",
            "}\ninit_path",
            "line 24, column 1: expected a field of GuestOSConfig, found `}`",
        ),
        (
            "}\ndescription_long",
            "}}\ndescription_long",
            "line 40, column 2: expected the end of the line, found `}`",
        ),
        (
            "version: 7",
            "[version]: 7",
            "line 3, column 1: expected a field or `}`, found `[`",
        ),
        (
            "version: 7",
            "version: [7]",
            "line 3, column 10: expected a value, found `[`",
        ),
        (
            "version: 7",
            "größe: 7",
            "line 3, column 3: expected `:` or `{`, found 'ö'",
        ),
        (
            "version: 7",
            "\u{a0}version: 7",
            "line 3, column 1: expected a field or `}`, found '\\u{a0}'",
        ),
        (
            "version: 7",
            "\0version: 7",
            "line 3, column 1: expected a field or `}`, found NUL",
        ),
        (
            "name:",
            "\u{feff}name:",
            "line 1, column 1: expected a field or `}`, found '\\u{feff}'",
        ),
        // The dialect: numbers, enums, truth values.
        (
            "version: 7",
            "version: 0x7",
            "line 3, column 10: expected a decimal number, found `0x7`",
        ),
        (
            "version: 7",
            "version: +7",
            "line 3, column 10: expected a value, found `+`",
        ),
        (
            "version: 7",
            "version: -7",
            "line 3, column 10: expected a value, found `-`",
        ),
        (
            "version: 7",
            "version: 7u",
            "line 3, column 10: expected a decimal number, found `7u`",
        ),
        (
            "version: 7",
            "version: 7.0",
            "line 3, column 11: expected the end of the line, found `.`",
        ),
        (
            "version: 7",
            "version: 1e3",
            "line 3, column 10: expected a decimal number, found `1e3`",
        ),
        (
            "version: 7",
            "version: 07",
            "line 3, column 10: expected a decimal number without leading zeros, found `07`",
        ),
        (
            "version: 7",
            "version: \"7\"",
            "line 3, column 10: expected a decimal number, found \"7\"",
        ),
        (
            "version: 7",
            "version: 18446744073709551616",
            "line 3, column 10: expected a number of at most 64 bits, found `18446744073709551616`",
        ),
        (
            "4294967295",
            "4294967296",
            "line 21, column 13: expected a number of at most 32 bits, found `4294967296`",
        ),
        (
            "SHARED_RW",
            "8",
            "line 8, column 15: expected one of SHARED, DEVICE, DEVICE_RW, EMPTY, COPY, FLASH, OVERLAY_RO, SHARED_RW, OVERLAY_RW, BIND_FILE, BIND_FILE_RW, STORE_ONLY, found `8`",
        ),
        (
            "SHARED_RW",
            "shared_rw",
            "line 8, column 15: expected one of SHARED, DEVICE, DEVICE_RW, EMPTY, COPY, FLASH, OVERLAY_RO, SHARED_RW, OVERLAY_RW, BIND_FILE, BIND_FILE_RW, STORE_ONLY, found `shared_rw`",
        ),
        (
            "SHARED_RW",
            "\"SHARED_RW\"",
            "line 8, column 15: expected one of SHARED, DEVICE, DEVICE_RW, EMPTY, COPY, FLASH, OVERLAY_RO, SHARED_RW, OVERLAY_RW, BIND_FILE, BIND_FILE_RW, STORE_ONLY, found \"SHARED_RW\"",
        ),
        (
            "booting: false",
            "booting: 0",
            "line 48, column 21: expected `true` or `false`, found `0`",
        ),
        (
            "booting: false",
            "booting: False",
            "line 48, column 21: expected `true` or `false`, found `False`",
        ),
        (
            "booting: false",
            "booting: t",
            "line 48, column 21: expected `true` or `false`, found `t`",
        ),
        // The dialect: strings.
        (
            "\"nginx\"",
            "'nginx'",
            "line 1, column 7: expected a value, found `'`",
        ),
        (
            "\"nginx\"",
            "nginx",
            "line 1, column 7: expected a string in quotes, found `nginx`",
        ),
        (
            "\"nginx\"",
            "1",
            "line 1, column 7: expected a string in quotes, found `1`",
        ),
        (
            "\"nginx\"",
            "\"ng\" \"inx\"",
            "line 1, column 12: expected the end of the line, found `\"`",
        ),
        (
            "\"nginx\"",
            "\"nginx",
            "line 1, column 13: expected `\"`, which ends the string, found the end of the line",
        ),
        (
            "\"nginx\"",
            "\"ng\tinx\"",
            "line 1, column 10: expected an escape instead of a control character, found '\\t'",
        ),
        (
            "\"nginx\"",
            "\"ng\0inx\"",
            "line 1, column 10: expected an escape instead of a control character, found NUL",
        ),
        (
            "\"nginx\"",
            "\"ng\x7finx\"",
            "line 1, column 10: expected an escape instead of a control character, found '\\u{7f}'",
        ),
        (
            "\"nginx\"",
            "\"nginx\\\\\"",
            "line 1, column 13: expected a string that does not end in a backslash, found \"nginx\\\\\"",
        ),
        (
            "\"nginx\"",
            "\"nginx\\\"",
            "line 1, column 15: expected `\"`, which ends the string, found the end of the line",
        ),
        (
            "\"nginx\"",
            "\"ng\\000inx\"",
            "line 1, column 10: expected a character that is not NUL, found `\\000`",
        ),
        (
            "\"nginx\"",
            "\"ng\\07\"",
            "line 1, column 10: expected three octal digits, of which the first is 0, found \"\\\\07\\\"\"",
        ),
        (
            "\"nginx\"",
            "\"ng\\081\"",
            "line 1, column 10: expected three octal digits, of which the first is 0, found \"\\\\081\"",
        ),
        (
            "\"nginx\"",
            "\"ng\\303\\244\"",
            "line 1, column 10: expected one of the escapes \\n \\t \\r \\\" \\' \\\\ or \\0 with two octal digits, found \"\\\\3\"",
        ),
        (
            "\"nginx\"",
            "\"ng\\x41\"",
            "line 1, column 10: expected one of the escapes \\n \\t \\r \\\" \\' \\\\ or \\0 with two octal digits, found \"\\\\x\"",
        ),
        (
            "Größe ✓\"",
            "Größe ✓\" x",
            "line 37, column 17: expected the end of the line, found `x`",
        ),
        // Fields.
        (
            "version: 7",
            "versions: 7",
            "line 3, column 1: expected a field of GuestOSConfig, found `versions`",
        ),
        (
            "version: 7",
            "image_file: \"x\"",
            "line 3, column 1: expected a field of GuestOSConfig, found `image_file`",
        ),
        (
            "  min_size",
            "  name",
            "line 20, column 3: expected a field of GuestOSMount, found `name`",
        ),
        (
            "  de: ",
            "  it: ",
            "line 38, column 3: expected a field of I18NString, found `it`",
        ),
        (
            "version: 7",
            "version: 7\nversion: 7",
            "line 4, column 1: expected no second version, found `version`",
        ),
        (
            "  de: ",
            "  en: ",
            "line 38, column 3: expected no second en, found `en`",
        ),
        (
            "description_long {",
            "description {",
            "line 41, column 1: expected no second description, found `description`",
        ),
        (
            "  min_size",
            "  def_size",
            "line 22, column 3: expected no second def_size, found `def_size`",
        ),
        (
            "version: 7\n",
            "",
            "line 51, column 1: expected the field version, which is required, found the end of the text",
        ),
        (
            "  fs_type: \"ext4\"\n",
            "",
            "line 22, column 1: expected the field fs_type, which is required, found `}`",
        ),
        (
            "  en: \"Größe ✓\"\n",
            "",
            "line 39, column 1: expected the field en, which is required, found `}`",
        ),
        // Values.
        (
            "\"nginx\"",
            "\"\"",
            "line 1, column 7: expected a name of 1 to 128 bytes without `/` and control characters, not `.` or `..`, found \"\"",
        ),
        (
            "\"nginx\"",
            "\"..\"",
            "line 1, column 7: expected a name of 1 to 128 bytes without `/` and control characters, not `.` or `..`, found \"..\"",
        ),
        (
            "\"nginx\"",
            "\"a/b\"",
            "line 1, column 7: expected a name of 1 to 128 bytes without `/` and control characters, not `.` or `..`, found \"a/b\"",
        ),
        (
            "\"nginx\"",
            "\"a\\nb\"",
            "line 1, column 7: expected a name of 1 to 128 bytes without `/` and control characters, not `.` or `..`, found \"a\\nb\"",
        ),
        (
            "\"x86\"",
            "\"x86_64\"",
            "line 2, column 11: expected `x86`, `arm` or `riscv`, found \"x86_64\"",
        ),
        (
            "\"root\"",
            "\"../root\"",
            "line 5, column 15: expected a name of 1 to 128 bytes without `/` and control characters, not `.` or `..`, found \"../root\"",
        ),
        (
            "\"/\"",
            "\"/..\"",
            "line 6, column 16: expected an absolute path without `.`, `..`, `//` and control characters, found \"/..\"",
        ),
        (
            "\"/\"",
            "\"//\"",
            "line 6, column 16: expected an absolute path without `.`, `..`, `//` and control characters, found \"//\"",
        ),
        (
            "\"/\"",
            "\"\"",
            "line 6, column 16: expected an absolute path, or the name of a partition, found \"\"",
        ),
        (
            "\"/\"",
            "\"a/b\"",
            "line 6, column 16: expected an absolute path, or the name of a partition, found \"a/b\"",
        ),
        (
            "\"/\"",
            "\"var\"",
            "line 14, column 1: expected an absolute mount_point of a SHARED_RW mount, found \"var\"",
        ),
        (
            "\"html\"",
            "\"root\"",
            "line 23, column 1: expected another image_file than \"root\", found \"root\"",
        ),
        (
            "\"html\"",
            "\"root.hash\"",
            "line 23, column 1: expected another image_file than \"root\", found \"root.hash\"",
        ),
        (
            "\"squashfs\"",
            "\"\"",
            "line 7, column 12: expected a name of 1 to 128 bytes without `/` and control characters, not `.` or `..`, found \"\"",
        ),
        (
            "da39",
            "da3g",
            "line 10, column 15: expected 40 hex digits, found \"da3ga3ee5e6b4b0d3255bfef95601890afd80709\"",
        ),
        (
            "\"da39",
            "\"",
            "line 10, column 15: expected 40 hex digits, found \"a3ee5e6b4b0d3255bfef95601890afd80709\"",
        ),
        (
            "\"E3B0",
            "\"E3B0E3B0",
            "line 11, column 19: expected 64 hex digits, found \"E3B0E3B0C44298FC1C149AFBF4C8996FB92427AE41E4649B934CA495991B7852B855\"",
        ),
        (
            "\"/sbin/",
            "\"sbin/",
            "line 24, column 12: expected an absolute path without `.`, `..`, `//` and control characters, found \"sbin/cservice\"",
        ),
        (
            "PATH=",
            "PATH",
            "line 28, column 11: expected NAME=VALUE, found \"PATH/usr/bin\"",
        ),
        (
            "PATH=",
            "=",
            "line 28, column 11: expected NAME=VALUE, found \"=/usr/bin\"",
        ),
    ];
    for (from, to, error) in cases {
        assert!(TEXT.contains(from), "{from}");
        assert_eq!(
            parse(&TEXT.replacen(from, to, 1)).unwrap_err(),
            error,
            "{to:?}"
        );
    }
}

#[test]
fn texts_that_end_early_or_are_no_text() {
    for (text, error) in [
        (
            String::new(),
            "line 1, column 1: expected the field name, which is required, found the end of the text",
        ),
        (
            TEXT.trim_end().to_owned(),
            "line 51, column 28: expected the end of the line, found the end of the text",
        ),
        (
            format!("{TEXT}mounts"),
            "line 52, column 7: expected `:` or `{`, found the end of the text",
        ),
        (
            format!("{TEXT}mounts {{"),
            "line 52, column 9: expected the end of the line, found the end of the text",
        ),
        (
            format!("{TEXT}mounts {{\n"),
            "line 53, column 1: expected `}`, found the end of the text",
        ),
        (
            format!("{TEXT}init_param: \"x"),
            "line 52, column 15: expected `\"`, which ends the string, found the end of the text",
        ),
        (
            format!("{TEXT}{}", " ".repeat(MAX_TEXT)),
            "line 1, column 1: expected a text of at most 1048576 bytes, found 1049",
        ),
    ] {
        let found = parse(&text).unwrap_err();
        assert!(found.starts_with(error), "{found}");
    }
    let bytes = [TEXT.as_bytes(), b"init_param: \"\xc3\xa4\xff\"\n"].concat();
    assert_eq!(
        GuestOsConfig::parse(&bytes).unwrap_err().to_string(),
        "line 52, column 15: expected UTF-8, found the byte 0xff"
    );
}

#[test]
fn mounts_are_counted() {
    let mount = |number| {
        format!(
            "mounts {{\nimage_file: \"{number}\"\nmount_point: \"/\"\nfs_type: \"x\"\nmount_type: EMPTY\n}}\n"
        )
    };
    // TEXT has two.
    let most: String = (2..MAX_MOUNTS).map(mount).collect();
    let text = format!("{TEXT}{most}");
    assert_eq!(parse(&text).unwrap().mounts.len(), MAX_MOUNTS);
    assert_eq!(
        parse(&format!("{text}{}", mount(MAX_MOUNTS))).unwrap_err(),
        format!(
            "line {}, column 1: expected at most 256 mounts, found `mounts`",
            52 + 6 * 254
        )
    );
}

/// No beginning of a text is accepted that has not all of the required fields; none makes the parser panic.
#[test]
fn beginnings_are_refused_until_the_description() {
    let complete = TEXT.find("description_long").unwrap();
    for end in (0..TEXT.len()).filter(|end| TEXT.is_char_boundary(*end)) {
        let accepted = parse(&TEXT[..end]).is_ok();
        assert!(!accepted || end >= complete, "{}", &TEXT[..end]);
    }
}
