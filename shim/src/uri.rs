//! The URIs in which containerd names log files and logging programs: `file:///path`, `binary:///program?key=value`.

use std::path::PathBuf;

use anyhow::{Result, ensure};

/// The absolute path behind the scheme.
///
/// # Errors
/// The path is not absolute, or wrongly escaped.
pub fn path(rest: &str) -> Result<PathBuf> {
    let (path, _) = rest.split_once('?').unwrap_or((rest, ""));
    ensure!(path.starts_with('/'), "{path:?} is no absolute path");
    Ok(unescape(path, false)?.into())
}

/// Keys and values behind the path, as arguments of a program: a key, and its value if that is not empty.
///
/// # Errors
/// Wrongly escaped.
pub fn arguments(rest: &str) -> Result<Vec<String>> {
    let (_, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut arguments = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        arguments.push(unescape(key, true)?);
        if !value.is_empty() {
            arguments.push(unescape(value, true)?);
        }
    }
    Ok(arguments)
}

/// Resolves `%41`, and `+` where it means a space (RFC 3986; HTML forms).
fn unescape(text: &str, plus: bool) -> Result<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let digits: Vec<u8> = rest.by_ref().take(2).collect();
                let digits = std::str::from_utf8(&digits).unwrap_or_default();
                let value = u8::from_str_radix(digits, 16)
                    .ok()
                    .filter(|_| digits.len() == 2);
                ensure!(value.is_some(), "{text:?}: wrong escape %{digits}");
                value.unwrap_or_default()
            }
            b'+' if plus => b' ',
            other => other,
        });
    }
    Ok(String::from_utf8(bytes)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_arguments() {
        assert_eq!(path("/a%20b?x").unwrap(), PathBuf::from("/a b"));
        assert_eq!(
            arguments("/l?--tag=x%26y+z&flag&e=").unwrap(),
            ["--tag", "x&y z", "flag", "e"]
        );
        assert!(arguments("/l").unwrap().is_empty());
        for wrong in ["relative", "/a%2", "/a%zz", "/%ff"] {
            assert!(path(wrong).is_err(), "{wrong}");
        }
    }
}
