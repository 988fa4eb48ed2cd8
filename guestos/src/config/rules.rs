//! Rules for the values of fields. Each says what is expected where a value breaks it.

/// Bytes of a name: with a version of 20 digits and `.hash.img` it still makes a file name (NAME_MAX is 255).
const MAX_NAME: usize = 128;

/// Bytes of a path (PATH_MAX of linux/limits.h, without the NUL).
const MAX_PATH: usize = 4095;

type Broken = Result<(), String>;

fn demand(kept: bool, expected: impl Into<String>) -> Broken {
    if kept { Ok(()) } else { Err(expected.into()) }
}

/// A name of which file names are made.
pub(super) fn file_name(text: &str) -> Broken {
    let fits = (1..=MAX_NAME).contains(&text.len());
    let plain = !text.contains(|char: char| char == '/' || char.is_control());
    demand(
        fits && plain && text != "." && text != "..",
        format!(
            "a name of 1 to {MAX_NAME} bytes without `/` and control characters, not `.` or `..`"
        ),
    )
}

/// Hardware that GyroidOS knows.
pub(super) fn hardware(text: &str) -> Broken {
    demand(
        matches!(text, "x86" | "arm" | "riscv"),
        "`x86`, `arm` or `riscv`",
    )
}

/// A place in a container, or a partition.
pub(super) fn mount_point(text: &str) -> Broken {
    if text.starts_with('/') {
        path(text)
    } else {
        file_name(text).map_err(|_| "an absolute path, or the name of a partition".to_owned())
    }
}

/// An absolute path that does not lead upwards.
pub(crate) fn path(text: &str) -> Broken {
    let components = || text.trim_end_matches('/').split('/').skip(1);
    let plain = components().all(|component| !matches!(component, "" | "." | ".."));
    demand(
        text.starts_with('/')
            && !text.ends_with("//")
            && plain
            && text.len() <= MAX_PATH
            && !text.contains(char::is_control),
        "an absolute path without `.`, `..`, `//` and control characters",
    )
}

/// A variable of the environment.
pub(super) fn variable(text: &str) -> Broken {
    let named = text
        .split_once('=')
        .is_some_and(|(name, _)| !name.is_empty());
    demand(named, "NAME=VALUE")
}

/// SHA-1 in hex.
pub(super) fn sha1(text: &str) -> Broken {
    hex(text, 40)
}

/// SHA-256 in hex.
pub(super) fn sha256(text: &str) -> Broken {
    hex(text, 64)
}

fn hex(text: &str, digits: usize) -> Broken {
    demand(
        text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit()),
        format!("{digits} hex digits"),
    )
}
