//! A piece of a file: a member of an archive, or a whole file of a layout.

use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use sha2::{Digest as _, Sha256};

use crate::tarball::Stream;

/// SHA-256 of something.
pub type Digest = [u8; 32];

/// What changes when a file is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// A piece of a file.
#[derive(Debug, Clone)]
pub struct Blob {
    file: Arc<File>,
    start: u64,
    size: u64,
}

impl Blob {
    /// `size` bytes of a file from `start` on.
    #[must_use]
    pub fn new(file: Arc<File>, start: u64, size: u64) -> Self {
        Self { file, start, size }
    }

    /// All of a file.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub fn whole(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self::new(Arc::new(file), 0, size))
    }

    /// How many bytes it has.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// What its file is like now.
    ///
    /// # Errors
    /// The file cannot be looked at.
    pub fn stamp(&self) -> io::Result<Stamp> {
        let metadata = self.file.metadata()?;
        Ok(Stamp {
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }

    /// A piece of it.
    #[must_use]
    pub fn piece(&self, start: u64, size: u64) -> Self {
        let start = start.min(self.size);
        Self {
            file: Arc::clone(&self.file),
            start: self.start + start,
            size: size.min(self.size - start),
        }
    }

    /// Reads it from its beginning.
    #[must_use]
    pub fn reader(&self) -> BlobReader {
        BlobReader {
            blob: self.clone(),
            position: 0,
        }
    }

    /// All of it, if it has at most `max` bytes.
    ///
    /// # Errors
    /// It is larger, or cannot be read.
    pub fn read(&self, max: u64) -> io::Result<Vec<u8>> {
        if self.size > max {
            let reason = format!("{} bytes, at most {max}", self.size);
            return Err(io::Error::new(ErrorKind::FileTooLarge, reason));
        }
        let mut bytes = vec![0; self.size as usize];
        self.reader().read_exact(&mut bytes)?;
        Ok(bytes)
    }
}

/// Reads a [`Blob`].
#[derive(Debug)]
pub struct BlobReader {
    blob: Blob,
    position: u64,
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.blob.size - self.position;
        let length = buffer
            .len()
            .min(usize::try_from(left).unwrap_or(usize::MAX));
        let read = self
            .blob
            .file
            .read_at(&mut buffer[..length], self.blob.start + self.position)?;
        if read == 0 && length > 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.position += read as u64;
        Ok(read)
    }
}

impl Stream for BlobReader {
    fn skip(&mut self, bytes: u64) -> io::Result<()> {
        if bytes > self.blob.size - self.position {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        self.position += bytes;
        Ok(())
    }
}

/// Hashes what is read through it.
#[derive(Debug)]
pub struct Hashing<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Hashing<R> {
    /// Hashes what is read from `inner`.
    pub fn new(inner: R) -> Self {
        Self {
            inner,
            hash: Sha256::new(),
        }
    }

    /// Reads the rest; the SHA-256 of everything.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn finish(mut self) -> io::Result<Digest> {
        io::copy(&mut self, &mut io::sink())?;
        Ok(self.hash.finalize().into())
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        Ok(read)
    }
}
