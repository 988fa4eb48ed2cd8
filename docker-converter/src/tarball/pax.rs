//! Extended headers (POSIX.1-2017 pax, "pax Extended Header"): records `LENGTH KEY=VALUE\n`, values of any bytes.

use super::{MAX_XATTR_NAME, MAX_XATTR_VALUE, Xattr};

/// The records of an extended header that say something about an entry; the last of a kind counts.
#[derive(Debug, Default)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<i64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<i64>,
    pub(super) xattrs: Vec<Xattr>,
    pub(super) sparse: Sparse,
}

/// What GNU tar says about a sparse file in an extended header (its manual, "Storing Sparse Files").
#[derive(Debug, Default)]
pub(super) struct Sparse {
    pub(super) major: Option<i64>,
    pub(super) minor: Option<i64>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<i64>,
    /// Offset, length, offset, length … in the versions that have the map in the header.
    pub(super) map: Vec<i64>,
    pub(super) has_map: bool,
}

impl Extended {
    /// Reads the records of the header before an entry.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let mut extended = Self::default();
        for record in Records(bytes) {
            let (key, value) = record?;
            extended.take(key, value)?;
        }
        Ok(extended)
    }

    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        // An empty value takes the header's back.
        let named = |value: &[u8]| -> Result<Option<Vec<u8>>, String> {
            match value {
                [] => Ok(None),
                value if value.contains(&0) => {
                    Err("a path with a NUL in an extended header".to_owned())
                }
                value => Ok(Some(value.to_owned())),
            }
        };
        match key {
            b"path" => self.path = named(value)?,
            b"linkpath" => self.link_path = named(value)?,
            b"size" => self.size = number(key, value)?,
            b"uid" => self.uid = number(key, value)?,
            b"gid" => self.gid = number(key, value)?,
            b"mtime" => self.mtime = time(value)?,
            b"GNU.sparse.major" => self.sparse.major = number(key, value)?,
            b"GNU.sparse.minor" => self.sparse.minor = number(key, value)?,
            b"GNU.sparse.name" => self.sparse.name = named(value)?,
            b"GNU.sparse.realsize" | b"GNU.sparse.size" => {
                self.sparse.real_size = number(key, value)?
            }
            // Version 0.0 repeats two records for each piece, version 0.1 has one list.
            b"GNU.sparse.numblocks" => self.sparse.has_map = true,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let expects_offset = self.sparse.map.len().is_multiple_of(2);
                if expects_offset != (key == b"GNU.sparse.offset") {
                    return Err("a sparse map out of order".to_owned());
                }
                self.sparse
                    .map
                    .push(number(key, value)?.unwrap_or_default());
            }
            b"GNU.sparse.map" => {
                self.sparse.map = value
                    .split(|byte| *byte == b',')
                    .filter(|part| !part.is_empty())
                    .map(|part| Ok(number(key, part)?.unwrap_or_default()))
                    .collect::<Result<_, String>>()?;
            }
            key => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.take_xattr(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn take_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), String> {
        let shown = String::from_utf8_lossy(name);
        if name.is_empty() || name.len() > MAX_XATTR_NAME || name.contains(&0) {
            return Err(format!("an extended attribute called {shown:?}"));
        }
        if value.len() > MAX_XATTR_VALUE {
            return Err(format!(
                "extended attribute {shown:?} has {} bytes, Linux allows {MAX_XATTR_VALUE}",
                value.len()
            ));
        }
        self.xattrs.retain(|xattr| *xattr.name != *name);
        self.xattrs.push(Xattr {
            name: name.into(),
            value: value.into(),
        });
        Ok(())
    }
}

/// Checks that a global header says nothing about the entries that follow. Engines ignore global headers (git writes its
/// commit there); a POSIX reader would not.
pub(super) fn check_global(bytes: &[u8]) -> Result<(), String> {
    for record in Records(bytes) {
        let (key, _) = record?;
        let counts = [
            &b"path"[..],
            b"linkpath",
            b"size",
            b"uid",
            b"gid",
            b"uname",
            b"gname",
            b"mtime",
        ]
        .contains(&key)
            || [&b"SCHILY."[..], b"LIBARCHIVE.", b"GNU."]
                .iter()
                .any(|prefix| key.starts_with(prefix));
        if counts {
            return Err(format!(
                "a global extended header with {:?}, which engines read differently",
                String::from_utf8_lossy(key)
            ));
        }
    }
    Ok(())
}

/// The records of an extended header.
struct Records<'a>(&'a [u8]);

impl<'a> Iterator for Records<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), String>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let record = self.record();
        if record.is_none() {
            self.0 = &[];
        }
        Some(record.ok_or_else(|| "an extended header that is none".to_owned()))
    }
}

impl<'a> Records<'a> {
    fn record(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        let space = self.0.iter().position(|byte| *byte == b' ')?;
        let length: usize = digits(&self.0[..space])?.try_into().ok()?;
        let record = self.0.get(space + 1..length)?;
        self.0 = &self.0[length..];
        let record = record.strip_suffix(b"\n")?;
        let equals = record.iter().position(|byte| *byte == b'=')?;
        let key = &record[..equals];
        (!key.is_empty() && !key.contains(&0)).then_some((key, &record[equals + 1..]))
    }
}

fn digits(text: &[u8]) -> Option<i64> {
    let all = !text.is_empty() && text.iter().all(u8::is_ascii_digit);
    all.then(|| std::str::from_utf8(text).ok()?.parse().ok())
        .flatten()
}

/// A decimal number; `None` where the value is empty.
fn number(key: &[u8], value: &[u8]) -> Result<Option<i64>, String> {
    match value {
        [] => Ok(None),
        value => digits(value).map(Some).ok_or_else(|| {
            format!(
                "{} is no number in an extended header: {:?}",
                String::from_utf8_lossy(key),
                String::from_utf8_lossy(value)
            )
        }),
    }
}

/// Seconds since 1970, perhaps negative, perhaps with a fraction, which is rounded down.
fn time(value: &[u8]) -> Result<Option<i64>, String> {
    if value.is_empty() {
        return Ok(None);
    }
    let parsed = || {
        let (negative, rest) = match value.strip_prefix(b"-") {
            Some(rest) => (true, rest),
            None => (false, value),
        };
        let mut parts = rest.splitn(2, |byte| *byte == b'.');
        let seconds = digits(parts.next()?)?;
        let fraction = parts.next().unwrap_or_default();
        if !fraction.iter().all(u8::is_ascii_digit) {
            return None;
        }
        let below = i64::from(fraction.iter().any(|digit| *digit != b'0'));
        Some(if negative { -seconds - below } else { seconds })
    };
    parsed().map(Some).ok_or_else(|| {
        format!(
            "mtime is no time in an extended header: {:?}",
            String::from_utf8_lossy(value)
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(key: &str, value: &[u8]) -> Vec<u8> {
        let rest = key.len() + value.len() + 3;
        let mut length = rest + 1;
        while length != rest + length.to_string().len() {
            length = rest + length.to_string().len();
        }
        [format!("{length} {key}=").as_bytes(), value, b"\n"].concat()
    }

    #[test]
    fn values_hold_any_bytes() {
        let value = b"\0\n= 12 path=evil\n\xff";
        let header = [
            record("SCHILY.xattr.security.capability", value),
            record("path", b"good"),
        ]
        .concat();
        let extended = Extended::parse(&header).unwrap();
        assert_eq!(extended.path.unwrap(), b"good");
        assert_eq!(&*extended.xattrs[0].name, b"security.capability");
        assert_eq!(&*extended.xattrs[0].value, value);
    }

    #[test]
    fn the_last_record_counts_and_an_empty_one_takes_back() {
        let header = [
            record("path", b"first"),
            record("uid", b"7"),
            record("path", b"second"),
            record("uid", b""),
        ]
        .concat();
        let extended = Extended::parse(&header).unwrap();
        assert_eq!(extended.path.unwrap(), b"second");
        assert_eq!(extended.uid, None);
    }

    #[test]
    fn refuses_what_is_no_header() {
        for header in [
            &b"12 path=evil"[..],
            b"999 path=x\n",
            b"3 \n",
            b"0 path=x\n",
            b"11 path=x\n",
            b" path=x\n",
            b"-9 path=x\n",
            b"5 =x\n",
            b"10 path=\0\n",
            b"9 size=x\n",
        ] {
            assert!(Extended::parse(header).is_err(), "{header:?}");
        }
    }

    #[test]
    fn times() {
        for (text, expected) in [
            ("12", 12),
            ("12.9", 12),
            ("-1", -1),
            ("-1.5", -2),
            ("-1.0", -1),
        ] {
            assert_eq!(time(text.as_bytes()), Ok(Some(expected)), "{text}");
        }
        for text in ["x", "1.x", "--1", "1e3", "."] {
            assert!(time(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn a_global_header_may_only_comment() {
        check_global(&record("comment", b"0123456789abcdef")).unwrap();
        for key in ["path", "size", "SCHILY.xattr.user.x"] {
            assert!(check_global(&record(key, b"1")).is_err(), "{key}");
        }
    }
}
