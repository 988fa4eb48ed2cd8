//! The little DER (X.690) that keys of tokens need: ECDSA signatures, and the envelope of keys that a TPM has wrapped.

/// `ECDSA-Sig-Value` (RFC 5480) of two big-endian numbers.
pub(super) fn ecdsa(r: &[u8], s: &[u8]) -> Vec<u8> {
    let numbers = [integer(r), integer(s)].concat();
    value(0x30, &numbers)
}

fn integer(number: &[u8]) -> Vec<u8> {
    let zeros = number.iter().take_while(|byte| **byte == 0).count();
    let mut bytes = number[zeros..].to_vec();
    if bytes.first().is_none_or(|first| *first >= 0x80) {
        bytes.insert(0, 0);
    }
    value(0x02, &bytes)
}

fn value(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut bytes = vec![tag];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => bytes.push(short),
        _ => {
            let long = length.to_be_bytes();
            let zeros = long.iter().take_while(|byte| **byte == 0).count();
            bytes.push(0x80 | (long.len() - zeros) as u8);
            bytes.extend_from_slice(&long[zeros..]);
        }
    }
    bytes.extend_from_slice(content);
    bytes
}

/// Reads values one after the other.
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    /// The next value: its tag and its content; `None` at the end.
    pub(super) fn next(&mut self) -> Result<Option<(u8, &'a [u8])>, String> {
        let Some((tag, rest)) = self.0.split_first() else {
            return Ok(None);
        };
        let cut = || "cut off".to_owned();
        let (first, rest) = rest.split_first().ok_or_else(cut)?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(*first), rest),
            0x81..=0x83 => {
                let (bytes, rest) = rest
                    .split_at_checked((first & 0x7f).into())
                    .ok_or_else(cut)?;
                let length = bytes
                    .iter()
                    .fold(0, |length, byte| length << 8 | usize::from(*byte));
                (length, rest)
            }
            _ => return Err("a length that is not allowed".to_owned()),
        };
        let (content, rest) = rest.split_at_checked(length).ok_or_else(cut)?;
        self.0 = rest;
        Ok(Some((*tag, content)))
    }

    /// The content of the next value, which must have this tag.
    pub(super) fn expect(&mut self, tag: u8, what: &str) -> Result<&'a [u8], String> {
        match self.next()? {
            Some((found, content)) if found == tag => Ok(content),
            _ => Err(format!("no {what}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signatures() {
        assert_eq!(ecdsa(&[0, 1], &[0x80]), [0x30, 7, 2, 1, 1, 2, 2, 0, 0x80]);
        let long = ecdsa(&[0x7f; 66], &[0x7f; 66]);
        assert_eq!(long[..3], [0x30, 0x81, 136]);
        let mut reader = Reader(&long);
        let mut inner = Reader(reader.expect(0x30, "sequence").unwrap());
        assert_eq!(inner.expect(0x02, "number").unwrap(), [0x7f; 66]);
        for cut in 1..long.len() {
            assert!(Reader(&long[..cut]).next().is_err());
        }
    }
}
