//! A tar archive as a list of parts: headers in memory, contents in files. It can be read any number of times.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use tar::{Builder, EntryType, Header};

use crate::blob::{Blob, BlobReader, Digest, Hashing};
use crate::error::Error;

/// The size of a tar archive's blocks, in bytes (POSIX, pax).
const BLOCK: u64 = 512;

/// A tar archive. Entries are root's, of 1970.
#[derive(Debug, Default)]
pub struct Parts(Vec<Part>);

#[derive(Debug, Clone)]
enum Part {
    Bytes(Vec<u8>),
    File(PathBuf, Blob),
}

impl Parts {
    /// Not an archive, just bytes.
    #[must_use]
    pub fn of_bytes(bytes: Vec<u8>) -> Self {
        Self(vec![Part::Bytes(bytes)])
    }

    /// Adds a directory.
    ///
    /// # Errors
    /// Its name is too long.
    pub fn directory(&mut self, path: &str) -> Result<(), Error> {
        self.header(&format!("{path}/"), EntryType::Directory, 0o755, 0)
    }

    /// Adds a file with a content in memory.
    ///
    /// # Errors
    /// Its name is too long.
    pub fn bytes(&mut self, path: &str, content: Vec<u8>) -> Result<(), Error> {
        let size = content.len() as u64;
        self.header(path, EntryType::Regular, 0o644, size)?;
        self.0.push(Part::Bytes(content));
        self.pad(size);
        Ok(())
    }

    /// Adds a file with the content of another; `on_disk` is for messages.
    ///
    /// # Errors
    /// Its name is too long.
    pub fn file(&mut self, path: &str, on_disk: &Path, content: Blob) -> Result<(), Error> {
        let size = content.size();
        self.header(path, EntryType::Regular, 0o644, size)?;
        self.0.push(Part::File(on_disk.to_owned(), content));
        self.pad(size);
        Ok(())
    }

    /// Adds a file with another archive as its content.
    ///
    /// # Errors
    /// Its name is too long.
    pub fn archive(&mut self, path: &str, content: &Self) -> Result<(), Error> {
        let size = content.size();
        self.header(path, EntryType::Regular, 0o644, size)?;
        self.0.extend(content.0.iter().cloned());
        self.pad(size);
        Ok(())
    }

    /// Adds the end of the archive.
    pub fn end(&mut self) {
        self.0.push(Part::Bytes(vec![0; 2 * BLOCK as usize]));
    }

    /// How many bytes there are.
    #[must_use]
    pub fn size(&self) -> u64 {
        let size = |part: &Part| match part {
            Part::Bytes(bytes) => bytes.len() as u64,
            Part::File(_, blob) => blob.size(),
        };
        self.0.iter().map(size).sum()
    }

    /// The SHA-256 of all of it.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn digest(&self) -> Result<Digest, Error> {
        let whole = Hashing::new(self.reader()).finish();
        whole.map_err(|error| Error::io(self.first_file())(error))
    }

    /// Reads it from its beginning.
    #[must_use]
    pub fn reader(&self) -> PartsReader<'_> {
        PartsReader {
            parts: &self.0,
            open: None,
            position: 0,
        }
    }

    fn first_file(&self) -> &Path {
        let path = self.0.iter().find_map(|part| match part {
            Part::File(path, _) => Some(path.as_path()),
            Part::Bytes(_) => None,
        });
        path.unwrap_or(Path::new("archive"))
    }

    fn header(&mut self, path: &str, kind: EntryType, mode: u32, size: u64) -> Result<(), Error> {
        let mut header = Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(size);
        let mut builder = Builder::new(Vec::new());
        builder
            .append_data(&mut header, path, io::empty())
            .map_err(|error| Error::image(Path::new(path), error.to_string()))?;
        // Dropped by `get_ref`, the builder adds no end of archive.
        self.0.push(Part::Bytes(builder.get_ref().clone()));
        Ok(())
    }

    fn pad(&mut self, size: u64) {
        let padding = size.next_multiple_of(BLOCK) - size;
        self.0.push(Part::Bytes(vec![0; padding as usize]));
    }
}

/// Reads [`Parts`].
#[derive(Debug)]
pub struct PartsReader<'a> {
    /// What is not read to its end, that which is being read first.
    parts: &'a [Part],
    /// The file that is being read.
    open: Option<BlobReader>,
    /// How far the bytes are read that are being read.
    position: usize,
}

impl Read for PartsReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let [part, rest @ ..] = self.parts {
            let read = match part {
                Part::Bytes(bytes) => {
                    let left = &bytes[self.position..];
                    let length = left.len().min(buffer.len());
                    buffer[..length].copy_from_slice(&left[..length]);
                    self.position += length;
                    length
                }
                Part::File(path, blob) => {
                    let reader = self.open.get_or_insert_with(|| blob.reader());
                    reader.read(buffer).map_err(|error| {
                        io::Error::new(error.kind(), format!("{}: {error}", path.display()))
                    })?
                }
            };
            if read > 0 || buffer.is_empty() {
                return Ok(read);
            }
            (self.parts, self.open, self.position) = (rest, None, 0);
        }
        Ok(0)
    }
}
