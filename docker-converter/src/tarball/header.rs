//! A tar header block (POSIX.1-2017 pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format").

use super::BLOCK;

// Where the fields lie.
const NAME: std::ops::Range<usize> = 0..100;
const MODE: std::ops::Range<usize> = 100..108;
const UID: std::ops::Range<usize> = 108..116;
const GID: std::ops::Range<usize> = 116..124;
const SIZE: std::ops::Range<usize> = 124..136;
const MTIME: std::ops::Range<usize> = 136..148;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const TYPE: usize = 156;
const LINK_NAME: std::ops::Range<usize> = 157..257;
const MAGIC: std::ops::Range<usize> = 257..265;
const DEVICE_MAJOR: std::ops::Range<usize> = 329..337;
const DEVICE_MINOR: std::ops::Range<usize> = 337..345;
const USTAR_PREFIX: std::ops::Range<usize> = 345..500;
/// GNU tar keeps the access time where ustar has the prefix.
const GNU_ACCESS_TIME: std::ops::Range<usize> = 345..357;
const GNU_SPARSE: std::ops::Range<usize> = 386..482;
const GNU_IS_EXTENDED: usize = 482;
const GNU_REAL_SIZE: std::ops::Range<usize> = 483..495;
/// Of a block that continues a GNU sparse map.
const EXTENSION_SPARSE: std::ops::Range<usize> = 0..504;
const EXTENSION_IS_EXTENDED: usize = 504;
/// Offset and length of a piece of a sparse file.
const GNU_PIECE: usize = 24;

/// Offset and length of the pieces of a sparse file, and whether more follow in another block.
pub(super) type SparseMap = (Vec<(i64, i64)>, bool);

/// A header block whose checksum is right.
#[derive(Debug, Clone)]
pub(super) struct Header([u8; BLOCK]);

impl Header {
    /// The header in a block, `None` for a block of zeros.
    pub(super) fn parse(block: [u8; BLOCK]) -> Result<Option<Self>, String> {
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let stored = number(&block[CHECKSUM]).map_err(|_| "no tar header".to_owned())?;
        let sum: i64 = block
            .iter()
            .enumerate()
            // The checksum's own field counts as spaces.
            .map(|(at, byte)| i64::from(if CHECKSUM.contains(&at) { b' ' } else { *byte }))
            .sum();
        if sum != stored {
            return Err(format!(
                "no tar header: its checksum is {sum}, it says {stored}"
            ));
        }
        Ok(Some(Self(block)))
    }

    pub(super) fn kind(&self) -> u8 {
        self.0[TYPE]
    }

    /// The path, with ustar's prefix.
    pub(super) fn path(&self) -> Result<Vec<u8>, String> {
        let name = text(&self.0[NAME]);
        let mut path = Vec::new();
        if self.is_ustar() {
            path.extend_from_slice(text(&self.0[USTAR_PREFIX]));
            if !path.is_empty() {
                path.push(b'/');
            }
        } else if self.is_gnu() && self.0[GNU_ACCESS_TIME.start] != 0 {
            // Old writers put a prefix there all the same: the path would be another one.
            number(&self.0[GNU_ACCESS_TIME])
                .map_err(|_| "a GNU header with ustar's path prefix".to_owned())?;
        }
        path.extend_from_slice(name);
        Ok(path)
    }

    pub(super) fn link_name(&self) -> &[u8] {
        text(&self.0[LINK_NAME])
    }

    pub(super) fn mode(&self) -> Result<i64, String> {
        self.number("mode", MODE)
    }

    pub(super) fn uid(&self) -> Result<i64, String> {
        self.number("uid", UID)
    }

    pub(super) fn gid(&self) -> Result<i64, String> {
        self.number("gid", GID)
    }

    pub(super) fn size(&self) -> Result<i64, String> {
        self.number("size", SIZE)
    }

    pub(super) fn mtime(&self) -> Result<i64, String> {
        self.number("mtime", MTIME)
    }

    /// Major and minor number of a device.
    pub(super) fn device(&self) -> Result<(i64, i64), String> {
        if !self.is_ustar() && !self.is_gnu() {
            return Ok((0, 0));
        }
        Ok((
            self.number("device number", DEVICE_MAJOR)?,
            self.number("device number", DEVICE_MINOR)?,
        ))
    }

    /// GNU's oldest form of a sparse file: the map's beginning, and the file's real size.
    pub(super) fn gnu_sparse(&self) -> Result<(SparseMap, i64), String> {
        if !self.is_gnu() {
            return Err("a GNU sparse file without a GNU header".to_owned());
        }
        let map = (pieces(&self.0[GNU_SPARSE])?, self.0[GNU_IS_EXTENDED] != 0);
        Ok((map, self.number("real size", GNU_REAL_SIZE)?))
    }

    fn is_ustar(&self) -> bool {
        &self.0[MAGIC][..6] == b"ustar\0"
    }

    fn is_gnu(&self) -> bool {
        &self.0[MAGIC] == b"ustar  \0"
    }

    fn number(&self, what: &str, field: std::ops::Range<usize>) -> Result<i64, String> {
        let field = &self.0[field];
        number(field)
            .map_err(|()| format!("{what} is no number: {:?}", String::from_utf8_lossy(field)))
    }
}

/// A block that continues a GNU sparse map.
pub(super) fn sparse_extension(block: &[u8; BLOCK]) -> Result<SparseMap, String> {
    Ok((
        pieces(&block[EXTENSION_SPARSE])?,
        block[EXTENSION_IS_EXTENDED] != 0,
    ))
}

fn pieces(field: &[u8]) -> Result<Vec<(i64, i64)>, String> {
    field
        .chunks_exact(GNU_PIECE)
        .take_while(|piece| piece[0] != 0)
        .map(|piece| {
            let (offset, length) = piece.split_at(GNU_PIECE / 2);
            Ok((number(offset)?, number(length)?))
        })
        .collect::<Result<_, ()>>()
        .map_err(|()| "no sparse map".to_owned())
}

/// A field up to its first NUL.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits between spaces and NULs, or GNU's base 256: two's complement, big-endian, the top bit set as a mark.
fn number(field: &[u8]) -> Result<i64, ()> {
    if field[0] & 0x80 != 0 {
        let negative = field[0] & 0x40 != 0;
        let mut value: i64 = if negative { -1 } else { 0 };
        for (at, byte) in field.iter().enumerate() {
            let byte = match (at, negative) {
                (0, false) => byte & 0x7f,
                _ => *byte,
            };
            let shifted = value.checked_mul(256).ok_or(())?;
            value = shifted | i64::from(byte);
        }
        return Ok(value);
    }
    trim(field)
        .iter()
        .try_fold(0_i64, |value, digit| match digit {
            b'0'..=b'7' => value
                .checked_mul(8)
                .map(|value| value + i64::from(digit - b'0'))
                .ok_or(()),
            _ => Err(()),
        })
}

/// A field without the spaces and NULs around it.
fn trim(field: &[u8]) -> &[u8] {
    let padding = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !padding(byte));
    let end = field.iter().rposition(|byte| !padding(byte));
    match (start, end) {
        (Some(start), Some(end)) => &field[start..=end],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (field, expected) in [
            (&b"0000644\0"[..], Ok(0o644)),
            (b"    644 ", Ok(0o644)),
            (b"\0\0\0\0\0\0\0\0", Ok(0)),
            (b"77777777", Ok(0o7777_7777)),
            (b"\x80\0\0\0\x80\0\0\0", Ok(0x8000_0000)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Ok(-2)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Ok(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", Err(())),
            (b"0000648\0", Err(())),
            (b"12 34\0\0\0", Err(())),
            (b"-1\0\0\0\0\0\0", Err(())),
        ] {
            assert_eq!(number(field), expected, "{field:?}");
        }
    }
}
