//! What is wrong with a configuration file, and where: file, line and key.

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the kernel, or the size or UTF-8 check, said.
        source: std::io::Error,
    },
    /// The file is not TOML: no key can be named.
    #[error("{}:{line}: {reason}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A key is unknown or its value is wrong.
    #[error("{}:{line}: {key}: {reason}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key with its table, as in `launch.mode`.
        key: String,
        /// What is wrong.
        reason: String,
    },
}

impl ConfigError {
    /// `error` of reading `text` as a configuration: its span leads to line and key.
    pub(crate) fn at_span(path: &Path, text: &str, error: &toml::de::Error) -> Self {
        let span = error.span().unwrap_or(0..0);
        let line = line_of(text, span.start);
        let reason = error.message().replace('\n', ", ");
        let path = path.to_owned();
        match key_at(text, &span) {
            Some(key) => Self::Key {
                path,
                line,
                key,
                reason,
            },
            None => Self::Syntax { path, line, reason },
        }
    }

    /// `reason` at the line of `key`; line 1 where the file leaves the key to its default.
    pub(crate) fn at_key(path: &Path, text: &str, key: &str, reason: String) -> Self {
        let start = DeTable::parse(text)
            .ok()
            .and_then(|table| {
                leaves(table.get_ref())
                    .into_iter()
                    .find(|(name, _)| name == key)
                    .map(|(_, span)| span.start)
            })
            .unwrap_or(0);
        Self::Key {
            path: path.to_owned(),
            line: line_of(text, start),
            key: key.to_owned(),
            reason,
        }
    }
}

/// The line of the byte at `offset`, from 1.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text
        .bytes()
        .take(offset)
        .filter(|byte| *byte == b'\n')
        .count()
}

/// The key whose name or value holds `span`: the innermost. `None` where the text is no TOML.
fn key_at(text: &str, span: &Range<usize>) -> Option<String> {
    let table = DeTable::parse(text).ok()?;
    leaves(table.get_ref())
        .into_iter()
        .filter(|(_, range)| range.start <= span.start && span.end <= range.end)
        .min_by_key(|(_, range)| range.len())
        .map(|(name, _)| name)
}

/// Every key with its table's name before it, and the bytes from its name to the end of its value.
fn leaves(table: &DeTable<'_>) -> Vec<(String, Range<usize>)> {
    let mut found = Vec::new();
    for (key, value) in table {
        let range = key.span().start.min(value.span().start)..key.span().end.max(value.span().end);
        found.push((key.get_ref().to_string(), range));
        if let DeValue::Table(inner) = value.get_ref() {
            found.extend(
                leaves(inner)
                    .into_iter()
                    .map(|(name, range)| (format!("{}.{name}", key.get_ref()), range)),
            );
        }
    }
    found
}
