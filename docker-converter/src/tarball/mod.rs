//! Reads tar archives as Go's archive/tar does, on which Docker, containerd and umoci stand: an archive that readers could
//! take differently is an error.
//!
//! The tar crate is not used for reading: it splits extended headers at line ends, so that the value of an extended
//! attribute can end a record (0.4.46), and it does not say where the pieces of a sparse file are.

mod header;
mod pax;

use std::io::{self, ErrorKind, Read};

use header::Header;
use pax::{Extended, Sparse};

/// Archives consist of blocks of this many bytes.
pub const BLOCK: usize = 512;

/// The longest header before an entry (extended header, long name), in bytes; Go's limit.
const MAX_EXTENSION: i64 = 1 << 20;
/// How many headers may stand before an entry.
const MAX_EXTENSIONS: usize = 16;
/// The longest path, in bytes: PATH_MAX of Linux without its NUL.
pub const MAX_PATH: usize = 4095;
/// The longest name, in bytes: NAME_MAX of Linux.
pub const MAX_NAME: usize = 255;
/// The longest name of an extended attribute: XATTR_NAME_MAX of Linux.
const MAX_XATTR_NAME: usize = 255;
/// The longest value of an extended attribute: XATTR_SIZE_MAX of Linux.
const MAX_XATTR_VALUE: usize = 65536;
/// Device numbers have 12 and 20 bits in Linux and squashfs.
const MAX_MAJOR: i64 = (1 << 12) - 1;
const MAX_MINOR: i64 = (1 << 20) - 1;

/// What a tar archive is read from.
pub trait Stream: Read {
    /// Goes on by `bytes`.
    ///
    /// # Errors
    /// The stream ends before.
    fn skip(&mut self, bytes: u64) -> io::Result<()>;
}

impl Stream for &[u8] {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        *self = self.get(bytes..).ok_or(ErrorKind::UnexpectedEof)?;
        Ok(())
    }
}

/// Why an archive cannot be read, and where.
#[derive(Debug, thiserror::Error)]
#[error("{}at byte {position}: {reason}", .path.as_ref().map(|path| format!("entry {path:?} ")).unwrap_or_default())]
pub struct TarError {
    /// Where the entry, with the headers before it, begins in the (uncompressed) archive.
    pub position: u64,
    /// The entry's path, as far as it is known.
    pub path: Option<String>,
    /// What was found or expected.
    pub reason: String,
}

/// An entry of an archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path: no `.` or `..`, no leading or trailing slash; empty for the root.
    pub path: Box<[u8]>,
    /// What it is.
    pub kind: Kind,
    /// Mode, owner, times, extended attributes.
    pub meta: Meta,
}

/// Everything about an inode but its content.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// Permissions with set-user-ID, set-group-ID and sticky bit.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Time of the last change, in seconds since 1970.
    pub mtime: i64,
    /// Extended attributes, no name twice.
    pub xattrs: Box<[Xattr]>,
}

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Xattr {
    /// Its full name, such as `security.capability`.
    pub name: Box<[u8]>,
    /// Its value.
    pub value: Box<[u8]>,
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A regular file.
    File(Content),
    /// A directory.
    Directory,
    /// A symbolic link to this.
    Symlink(Box<[u8]>),
    /// A hard link to the entry with this path, which is as clean as [`Entry::path`].
    Link(Box<[u8]>),
    /// A character device.
    Character(Device),
    /// A block device.
    Block(Device),
    /// A FIFO.
    Fifo,
}

/// A device's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// At most 12 bits.
    pub major: u32,
    /// At most 20 bits.
    pub minor: u32,
}

/// Where the content of a regular file is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Content {
    /// The file's size.
    pub size: u64,
    /// What is not zeros, ascending, not overlapping.
    pub pieces: Box<[Piece]>,
}

/// A piece of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Where it begins in the file.
    pub offset: u64,
    /// Where it begins in the (uncompressed) archive.
    pub position: u64,
    /// How many bytes it has.
    pub length: u64,
}

/// Reads the entries of an archive.
#[derive(Debug)]
pub struct Reader<S> {
    stream: S,
    position: u64,
    /// Where the next header is.
    next: u64,
    /// How many bytes before it are no content.
    padding: u64,
}

/// The headers before an entry.
#[derive(Default)]
struct Extensions {
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    extended: Option<Extended>,
}

impl<S: Stream> Reader<S> {
    /// Reads from where the stream stands.
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            position: 0,
            next: 0,
            padding: 0,
        }
    }

    /// The stream, which stands somewhere behind the last entry read.
    pub fn into_inner(self) -> S {
        self.stream
    }

    /// The next entry, `None` at the archive's end.
    ///
    /// # Errors
    /// What is there is no entry, or one that readers take differently, or the archive ends within it.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let position = self.next;
        let mut path = None;
        self.read_entry(&mut path).map_err(|reason| TarError {
            position,
            path: path.map(|path| String::from_utf8_lossy(&path).into_owned()),
            reason,
        })
    }

    fn read_entry(&mut self, path: &mut Option<Vec<u8>>) -> Result<Option<Entry>, String> {
        let mut extensions = Extensions::default();
        for _ in 0..MAX_EXTENSIONS {
            let Some(header) = self.header()? else {
                let none = extensions.long_path.is_none()
                    && extensions.long_link.is_none()
                    && extensions.extended.is_none();
                return match none {
                    true => Ok(None),
                    false => Err("the archive ends where an entry is announced".to_owned()),
                };
            };
            let twice = |what: &str| Err(format!("two {what} before one entry"));
            match header.kind() {
                b'x' if extensions.extended.is_some() => return twice("extended headers"),
                b'L' if extensions.long_path.is_some() => return twice("long names"),
                b'K' if extensions.long_link.is_some() => return twice("long link names"),
                b'x' => extensions.extended = Some(Extended::parse(&self.extension(&header)?)?),
                b'g' => pax::check_global(&self.extension(&header)?)?,
                b'L' => extensions.long_path = Some(until_nul(self.extension(&header)?)),
                b'K' => extensions.long_link = Some(until_nul(self.extension(&header)?)),
                _ => return self.entry(&header, extensions, path).map(Some),
            }
        }
        Err(format!(
            "more than {MAX_EXTENSIONS} headers before one entry"
        ))
    }

    fn entry(
        &mut self,
        header: &Header,
        extensions: Extensions,
        path: &mut Option<Vec<u8>>,
    ) -> Result<Entry, String> {
        let Extensions {
            long_path,
            long_link,
            extended,
        } = extensions;
        let extended = extended.unwrap_or_default();
        let raw = match (&extended.sparse.name, long_path, extended.path) {
            (Some(name), _, _) => name.clone(),
            (None, Some(path), _) | (None, None, Some(path)) => path,
            (None, None, None) => header.path()?,
        };
        *path = Some(raw.clone());
        let link = long_link
            .or(extended.link_path)
            .unwrap_or_else(|| header.link_name().to_owned());
        let size = extended.size.map_or_else(|| header.size(), Ok)?;
        let mut kind = header.kind();
        // Archives from before POSIX have no type for directories.
        if kind == 0 {
            kind = if raw.ends_with(b"/") { b'5' } else { b'0' };
        }
        let device = || device(header.device()?);
        let kind = match kind {
            b'0' => Kind::File(self.content(size, &extended.sparse)?),
            b'S' => Kind::File(self.gnu_sparse(size, header)?),
            // Only regular files have content, whatever the size says: so does Go.
            b'1' => Kind::Link(clean(&link).map_err(|reason| format!("hard link: {reason}"))?),
            b'2' => Kind::Symlink(symlink_target(link)?),
            b'3' => Kind::Character(device()?),
            b'4' => Kind::Block(device()?),
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                return Err(format!(
                    "an entry of the unknown type {:?}",
                    char::from(other)
                ));
            }
        };
        let id = |what: &str, id: i64| {
            // The last number means "none" to chown.
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| format!("{what} {id}"))
        };
        self.skip_content()?;
        Ok(Entry {
            path: clean(&raw)?,
            kind,
            meta: Meta {
                mode: (header.mode()? & 0o7777) as u16,
                uid: id("uid", extended.uid.map_or_else(|| header.uid(), Ok)?)?,
                gid: id("gid", extended.gid.map_or_else(|| header.gid(), Ok)?)?,
                mtime: extended.mtime.map_or_else(|| header.mtime(), Ok)?,
                xattrs: extended.xattrs.into(),
            },
        })
    }

    /// The content of a regular file, which the stream stands before.
    fn content(&mut self, size: i64, sparse: &Sparse) -> Result<Content, String> {
        let size = u64::try_from(size).map_err(|_| format!("a size of {size}"))?;
        let end = self.end_of(size)?;
        let map = match (sparse.major, sparse.minor) {
            (Some(1), Some(0)) => self.sparse_map(size)?,
            (None | Some(0), None | Some(0 | 1)) if sparse.has_map => sparse.map.clone(),
            (None, None) => {
                self.next = end;
                return Ok(Content::whole(size, self.position));
            }
            (major, minor) => {
                return Err(format!(
                    "a sparse file of version {}.{}, expected 0.0, 0.1 or 1.0",
                    major.unwrap_or_default(),
                    minor.unwrap_or_default()
                ));
            }
        };
        let stored = size - (self.position - self.next);
        self.next = end;
        let real_size = sparse
            .real_size
            .ok_or("a sparse file without its real size")?;
        if !map.len().is_multiple_of(2) {
            return Err("a sparse map with half a piece".to_owned());
        }
        let pieces = map.chunks_exact(2).map(|piece| (piece[0], piece[1]));
        Content::sparse(pieces, real_size, stored, self.position)
    }

    /// Version 1.0 of GNU's sparse format: the map is decimal numbers before the data.
    fn sparse_map(&mut self, size: u64) -> Result<Vec<i64>, String> {
        let mut text = Vec::new();
        let mut count: Option<usize> = None;
        let mut numbers = Vec::new();
        let mut read = 0;
        loop {
            while let Some(end) = text.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = text.drain(..=end).collect();
                let number: i64 = std::str::from_utf8(&line[..end])
                    .ok()
                    .and_then(|line| line.parse().ok())
                    .filter(|number| *number >= 0)
                    .ok_or("a sparse map that is no list of numbers")?;
                match count {
                    None => count = Some(usize::try_from(number).unwrap_or(usize::MAX)),
                    Some(_) => numbers.push(number),
                }
                if count.is_some_and(|count| numbers.len() == count.saturating_mul(2)) {
                    return Ok(numbers);
                }
            }
            read += BLOCK as u64;
            if read > size || read > MAX_EXTENSION as u64 {
                return Err("a sparse map without an end".to_owned());
            }
            text.extend_from_slice(&self.block()?.ok_or(TRUNCATED)?);
        }
    }

    /// GNU's oldest sparse format: the map is in the header and in blocks before the data.
    fn gnu_sparse(&mut self, size: i64, header: &Header) -> Result<Content, String> {
        let ((mut pieces, mut more), real_size) = header.gnu_sparse()?;
        while more {
            if pieces.len() as i64 > MAX_EXTENSION {
                return Err("a sparse map without an end".to_owned());
            }
            let (next, another) = header::sparse_extension(&self.block()?.ok_or(TRUNCATED)?)?;
            pieces.extend(next);
            more = another;
        }
        self.next = self.position;
        let stored = u64::try_from(size).map_err(|_| format!("a size of {size}"))?;
        let end = self.end_of(stored)?;
        self.next = end;
        Content::sparse(pieces.into_iter(), real_size, stored, self.position)
    }

    /// Where the header behind `size` bytes of content is.
    fn end_of(&mut self, size: u64) -> Result<u64, String> {
        self.padding = size.wrapping_neg() % BLOCK as u64;
        size.checked_next_multiple_of(BLOCK as u64)
            .and_then(|size| self.next.checked_add(size))
            .ok_or_else(|| format!("a size of {size}"))
    }

    /// The content of a header before an entry.
    fn extension(&mut self, header: &Header) -> Result<Vec<u8>, String> {
        let size = header.size()?;
        if !(0..=MAX_EXTENSION).contains(&size) {
            return Err(format!(
                "an extended header of {size} bytes, at most {MAX_EXTENSION}"
            ));
        }
        let mut bytes = vec![0; size as usize];
        self.read(&mut bytes)?;
        self.next = self.end_of(size as u64)?;
        Ok(bytes)
    }

    /// The next header; `None` at the end of the archive: two blocks of zeros, or nothing.
    fn header(&mut self) -> Result<Option<Header>, String> {
        self.skip_content()?;
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        let header = match Header::parse(block)? {
            Some(header) => Some(header),
            None => match self.block()? {
                Some(block) if Header::parse(block).map_or(true, |header| header.is_some()) => {
                    return Err("an entry after a block of zeros".to_owned());
                }
                _ => None,
            },
        };
        self.next = self.position;
        Ok(header)
    }

    fn skip_content(&mut self) -> Result<(), String> {
        let left = self.next - self.position;
        let padding = self.padding.min(left);
        self.stream.skip(left - padding).map_err(explain)?;
        // Archives may end within their last padding: so umoci 0.4.7 writes them, and Go reads them.
        io::copy(
            &mut Read::by_ref(&mut self.stream).take(padding),
            &mut io::sink(),
        )
        .map_err(explain)?;
        self.position = self.next;
        self.padding = 0;
        Ok(())
    }

    /// A block; `None` where the archive ends before it.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, String> {
        let mut block = [0; BLOCK];
        loop {
            match self.stream.read(&mut block) {
                Ok(0) => return Ok(None),
                Ok(read) => {
                    self.position += read as u64;
                    self.read(&mut block[read..])?;
                    return Ok(Some(block));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(explain(error)),
            }
        }
    }

    fn read(&mut self, bytes: &mut [u8]) -> Result<(), String> {
        self.stream.read_exact(bytes).map_err(explain)?;
        self.position += bytes.len() as u64;
        Ok(())
    }
}

impl Content {
    fn whole(size: u64, position: u64) -> Self {
        let piece = Piece {
            offset: 0,
            position,
            length: size,
        };
        Self {
            size,
            pieces: if size == 0 {
                Box::default()
            } else {
                Box::new([piece])
            },
        }
    }

    /// A file of `real_size` whose pieces (offset and length) lie one behind the other from `position` on, `stored` bytes.
    fn sparse(
        map: impl Iterator<Item = (i64, i64)>,
        real_size: i64,
        stored: u64,
        position: u64,
    ) -> Result<Self, String> {
        let wrong = || "a sparse map that does not fit its file".to_owned();
        let unsigned = |number: i64| u64::try_from(number).map_err(|_| wrong());
        let size = unsigned(real_size)?;
        let mut pieces = Vec::new();
        let (mut end, mut read) = (0_u64, 0_u64);
        for (offset, length) in map {
            let (offset, length) = (unsigned(offset)?, unsigned(length)?);
            if offset < end {
                return Err(wrong());
            }
            end = offset.checked_add(length).ok_or_else(wrong)?;
            if length > 0 {
                pieces.push(Piece {
                    offset,
                    position: position + read,
                    length,
                });
            }
            read = read.checked_add(length).ok_or_else(wrong)?;
        }
        match end <= size && read == stored {
            true => Ok(Self {
                size,
                pieces: pieces.into(),
            }),
            false => Err(wrong()),
        }
    }
}

const TRUNCATED: &str = "the archive ends within it";

fn explain(error: io::Error) -> String {
    match error.kind() {
        ErrorKind::UnexpectedEof => TRUNCATED.to_owned(),
        _ => error.to_string(),
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

fn device((major, minor): (i64, i64)) -> Result<Device, String> {
    match (0..=MAX_MAJOR).contains(&major) && (0..=MAX_MINOR).contains(&minor) {
        true => Ok(Device {
            major: major as u32,
            minor: minor as u32,
        }),
        false => Err(format!("a device with the numbers {major}:{minor}")),
    }
}

fn symlink_target(target: Vec<u8>) -> Result<Box<[u8]>, String> {
    match target.len() {
        0 => Err("a symbolic link to nothing".to_owned()),
        1..=MAX_PATH => Ok(target.into()),
        length => Err(format!(
            "a symbolic link to {length} bytes, at most {MAX_PATH}"
        )),
    }
}

/// A path relative to the root, without `.` and empty components.
fn clean(path: &[u8]) -> Result<Box<[u8]>, String> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop();
            }
            name if name.len() > MAX_NAME => {
                return Err(format!(
                    "a name of {} bytes, at most {MAX_NAME}",
                    name.len()
                ));
            }
            name => names.push(name),
        }
    }
    let clean = names.join(&b'/');
    match clean.len() {
        0..=MAX_PATH => Ok(clean.into()),
        length => Err(format!("a path of {length} bytes, at most {MAX_PATH}")),
    }
}
