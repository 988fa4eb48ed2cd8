//! Names of images in registries: `HOST/REPOSITORY[:TAG][@DIGEST]`, with Docker's short forms.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// The longest name (distribution, reference/reference.go).
const MAX_NAME: usize = 255;
/// The longest tag.
const MAX_TAG: usize = 128;

/// An image in a registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// `HOST[:PORT]`, `docker.io` where the text names none.
    pub host: String,
    /// The repository in it: `library/nginx`.
    pub repository: String,
    /// Which image in it.
    pub wanted: Wanted,
}

/// Which image of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wanted {
    /// The one that a tag names now.
    Tag(String),
    /// The one with a digest, `sha256:HEX`.
    Digest(String),
}

impl Reference {
    /// `HOST/REPOSITORY`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.wanted {
            Wanted::Tag(tag) => write!(formatter, "{}:{tag}", self.name()),
            Wanted::Digest(digest) => write!(formatter, "{}@{digest}", self.name()),
        }
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let wrong = |reason: &str| Error::Reference {
            text: text.to_owned(),
            reason: reason.to_owned(),
        };
        let (name, digest) = match text.split_once('@') {
            Some((name, digest)) => (name, Some(digest)),
            None => (text, None),
        };
        let (name, tag) = match name.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (name, None),
        };
        let (host, repository) = match name.split_once('/') {
            Some((host, rest)) if host.contains(['.', ':']) || host == "localhost" => (host, rest),
            _ => ("docker.io", name),
        };
        let repository = match host == "docker.io" && !repository.contains('/') {
            true => format!("library/{repository}"),
            false => repository.to_owned(),
        };
        if !is_host(host) {
            return Err(wrong("expected HOST[:PORT]/REPOSITORY[:TAG|@DIGEST]"));
        }
        if host.len() + 1 + repository.len() > MAX_NAME || !repository.split('/').all(is_component)
        {
            return Err(wrong(
                "expected a repository of lower-case letters, digits, and . _ - between them",
            ));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(wrong("expected a tag of letters, digits, _ . and -"));
        }
        if digest.is_some_and(|digest| !is_digest(digest)) {
            return Err(wrong("expected a digest in the form sha256:HEX"));
        }
        if digest.is_some() && tag.is_some() {
            return Err(wrong("expected a tag or a digest, found both"));
        }
        Ok(Self {
            host: host.to_owned(),
            repository,
            wanted: match digest {
                Some(digest) => Wanted::Digest(digest.to_owned()),
                None => Wanted::Tag(tag.unwrap_or("latest").to_owned()),
            },
        })
    }
}

fn is_host(host: &str) -> bool {
    let (name, port) = match host.rsplit_once(':') {
        Some((name, port)) => (name, port),
        None => (host, "1"),
    };
    let plain =
        |char: char| char.is_ascii_alphanumeric() || matches!(char, '.' | '-' | '[' | ']' | ':');
    !name.is_empty() && name.chars().all(plain) && port.parse::<u16>().is_ok()
}

/// A path component: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`.
fn is_component(text: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = text.as_bytes();
    let ends = [bytes.first(), bytes.last()];
    let separators = text.split(|char: char| char.is_ascii() && alphanumeric(char as u8));
    ends.iter()
        .all(|end| end.is_some_and(|byte| alphanumeric(*byte)))
        && separators
            .filter(|between| !between.is_empty())
            .all(|between| {
                matches!(between, "." | "_" | "__") || between.bytes().all(|byte| byte == b'-')
            })
}

fn is_tag(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    !text.is_empty()
        && text.len() <= MAX_TAG
        && !text.starts_with(['.', '-'])
        && text.bytes().all(plain)
}

/// Whether a text is `sha256:HEX`.
#[must_use]
pub fn is_digest(text: &str) -> bool {
    let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    text.strip_prefix("sha256:")
        .is_some_and(|digits| digits.len() == 64 && digits.bytes().all(hex))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What docker pull takes and makes of it.
    #[test]
    fn names() {
        let digest = format!("sha256:{}", "a".repeat(64));
        for (text, name) in [
            (
                "nginx".to_owned(),
                "docker.io/library/nginx:latest".to_owned(),
            ),
            ("nginx:1".to_owned(), "docker.io/library/nginx:1".to_owned()),
            ("me/x".to_owned(), "docker.io/me/x:latest".to_owned()),
            ("localhost/x".to_owned(), "localhost/x:latest".to_owned()),
            ("[::1]:5000/a".to_owned(), "[::1]:5000/a:latest".to_owned()),
            (
                "r.io:5000/a/b-c__d:T".to_owned(),
                "r.io:5000/a/b-c__d:T".to_owned(),
            ),
            (format!("r.io/a@{digest}"), format!("r.io/a@{digest}")),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), name);
        }
        for text in [
            "",
            "r.io/",
            "r.io/A",
            "r.io/a..b",
            "r.io/../b",
            "r.io/a:",
            "r.io/a:-x",
            "r.io/a@sha256:1",
            "r.io:x/a",
            "r.io/a?b",
            "r.io/a b",
            "user@r.io/a",
            "r.io/a//b",
        ] {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
