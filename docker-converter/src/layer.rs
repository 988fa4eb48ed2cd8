//! Reads a layer once: checks its digests, lists its entries, and keeps its content where it can be read again.

use std::fs::File;
use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::bufread::MultiGzDecoder;
use indicatif::ProgressBar;
use sha2::{Digest as _, Sha256};

use crate::blob::{Blob, Digest, Hashing};
use crate::tarball::{Entry, Kind, Reader, Stream};

/// How much is decompressed, hashed and written at a time.
const CHUNK: usize = 256 << 10;

/// What names, extended attributes and the like of all layers may take in memory, in bytes: enough for three million files.
const MAX_MEMORY: u64 = 1 << 30;

/// How a layer is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// gzip, one or more members.
    Gzip,
    /// zstd, one or more frames.
    Zstd,
}

impl Compression {
    /// What the first bytes of a layer say.
    #[must_use]
    pub fn of(start: &[u8]) -> Self {
        match start {
            [0x1f, 0x8b, ..] => Self::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Self::Zstd,
            _ => Self::None,
        }
    }
}

/// A layer as an image names it.
#[derive(Debug, Clone)]
pub struct PackedLayer {
    /// For messages: its digest, or its name in an archive.
    pub name: String,
    /// Its bytes.
    pub blob: Blob,
    /// How they are compressed.
    pub compression: Compression,
    /// Their SHA-256, where the image says it.
    pub digest: Option<Digest>,
    /// The SHA-256 of the uncompressed layer.
    pub diff_id: Digest,
}

/// A layer that was read.
#[derive(Debug)]
pub struct Layer {
    /// Its entries in their order.
    pub entries: Vec<Entry>,
    /// Its uncompressed bytes.
    pub content: Blob,
}

/// How many bytes any layer may have uncompressed, whatever its ratio.
const FREE_SIZE: u64 = 64 << 20;

/// What an image may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of all uncompressed layers together, and of the image's files together.
    pub size: u64,
    /// The most bytes that a byte of a compressed layer may become, on average; a layer of up to 64 MiB may have any ratio.
    pub ratio: u64,
}

impl Limits {
    /// The most bytes that a layer of `packed` bytes may have uncompressed.
    fn unpacked(self, packed: u64) -> u64 {
        packed.saturating_mul(self.ratio).max(FREE_SIZE)
    }
}

/// What all layers of an image together may take.
#[derive(Debug)]
pub struct Budget {
    limits: Limits,
    size: AtomicU64,
    memory: AtomicU64,
}

impl Budget {
    /// All that the limits allow.
    #[must_use]
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            size: AtomicU64::new(limits.size),
            memory: AtomicU64::new(MAX_MEMORY),
        }
    }

    fn take_size(&self, bytes: u64) -> io::Result<()> {
        take(&self.size, bytes).ok_or_else(|| {
            let reason = format!(
                "the layers have more than {} bytes (--max-size)",
                self.limits.size
            );
            io::Error::new(ErrorKind::FileTooLarge, reason)
        })
    }

    fn take_memory(&self, entry: &Entry) -> Result<(), String> {
        let xattrs = &entry.meta.xattrs;
        let mut bytes = size_of::<Entry>() + entry.path.len() + size_of_val(&**xattrs);
        for xattr in xattrs {
            bytes += xattr.name.len() + xattr.value.len();
        }
        bytes += match &entry.kind {
            Kind::File(content) => size_of_val(&*content.pieces),
            Kind::Symlink(target) | Kind::Link(target) => target.len(),
            _ => 0,
        };
        take(&self.memory, bytes as u64)
            .ok_or_else(|| format!("names and attributes take more than {MAX_MEMORY} bytes"))
    }
}

fn take(from: &AtomicU64, amount: u64) -> Option<()> {
    from.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
        left.checked_sub(amount)
    })
    .ok()
    .map(|_| ())
}

impl PackedLayer {
    /// Reads it. What is compressed is kept uncompressed in a file without a name in `dir`.
    ///
    /// # Errors
    /// What is wrong with it: a digest, its compression, an entry, its size.
    pub fn read(
        &self,
        dir: &Path,
        budget: &Budget,
        progress: &ProgressBar,
    ) -> Result<Layer, String> {
        let compressed = progress.wrap_read(self.blob.reader());
        if self.compression == Compression::None {
            // Digest and diff_id are of the same bytes.
            if let Some(digest) = self.digest.filter(|digest| *digest != self.diff_id) {
                return Err(mismatch(
                    "diff_id in the image configuration",
                    digest,
                    self.diff_id,
                ));
            }
            let (entries, diff_id) = list(compressed, None, budget, u64::MAX);
            self.check_diff_id(&entries, diff_id)?;
            return Ok(Layer {
                entries: entries?,
                content: self.blob.clone(),
            });
        }
        let file =
            tempfile::tempfile_in(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        let mut hashing = Hashing::new(compressed);
        let buffered = BufReader::with_capacity(CHUNK, &mut hashing);
        let most = budget.limits.unpacked(self.blob.size());
        let (entries, diff_id) = match self.compression {
            Compression::Zstd => match zstd::Decoder::with_buffer(buffered) {
                Ok(decoder) => list(decoder, Some(&file), budget, most),
                Err(error) => (Err(error.to_string()), Err(error)),
            },
            _ => list(MultiGzDecoder::new(buffered), Some(&file), budget, most),
        };
        // A blob that was damaged on its way is told from one that was made wrong.
        let digest = hashing.finish().map_err(|error| error.to_string())?;
        if let Some(expected) = self.digest.filter(|expected| *expected != digest) {
            return Err(mismatch("digest", expected, digest));
        }
        self.check_diff_id(&entries, diff_id)?;
        let size = file.metadata().map_err(|error| error.to_string())?.len();
        Ok(Layer {
            entries: entries?,
            content: Blob::new(Arc::new(file), 0, size),
        })
    }

    /// Compares the diff_id. Where the stream has no end because it is damaged, the error of the entries tells more.
    fn check_diff_id(
        &self,
        entries: &Result<Vec<Entry>, String>,
        found: io::Result<Digest>,
    ) -> Result<(), String> {
        match (found, entries) {
            (Ok(found), _) if found != self.diff_id => {
                Err(mismatch("diff_id", self.diff_id, found))
            }
            (Ok(_), _) => Ok(()),
            (Err(_), Err(entries)) => Err(entries.clone()),
            (Err(error), Ok(_)) => Err(error.to_string()),
        }
    }
}

/// Lists the entries of an uncompressed layer of at most `most` bytes, writes it to a file, and hashes it to its end.
fn list<R: Read>(
    reader: R,
    copy: Option<&File>,
    budget: &Budget,
    most: u64,
) -> (Result<Vec<Entry>, String>, io::Result<Digest>) {
    let mut unpacked = Reader::new(Unpacked {
        reader,
        copy,
        budget,
        hash: Sha256::new(),
        buffer: vec![0; CHUNK],
        start: 0,
        end: 0,
        failed: false,
        left: most,
    });
    let entries = entries(&mut unpacked, budget);
    (entries, unpacked.into_inner().finish())
}

fn entries<S: Stream>(reader: &mut Reader<S>, budget: &Budget) -> Result<Vec<Entry>, String> {
    let mut entries = Vec::new();
    while let Some(entry) = reader.next_entry().map_err(|error| error.to_string())? {
        budget.take_memory(&entry)?;
        entries.push(entry);
    }
    Ok(entries)
}

/// A layer while it is uncompressed: everything that passes is hashed and copied.
struct Unpacked<'a, R> {
    reader: R,
    copy: Option<&'a File>,
    budget: &'a Budget,
    hash: Sha256,
    buffer: Vec<u8>,
    /// What of the buffer is still to be read.
    start: usize,
    end: usize,
    /// Whether a read failed: decoders may seem to be at their end after that.
    failed: bool,
    /// How many bytes more there may be.
    left: u64,
}

impl<R: Read> Unpacked<'_, R> {
    /// What there is to read, nothing at the end.
    fn fill(&mut self) -> io::Result<&[u8]> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
            let next = self.next_chunk();
            self.failed |= next.is_err();
            self.end = next?;
        }
        Ok(&self.buffer[self.start..self.end])
    }

    fn next_chunk(&mut self) -> io::Result<usize> {
        let read = loop {
            match self.reader.read(&mut self.buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                read => break read?,
            }
        };
        let new = &self.buffer[..read];
        self.budget.take_size(read as u64)?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            let ratio = self.budget.limits.ratio;
            let reason = format!("it becomes more than {ratio} times as large (--max-ratio)");
            io::Error::new(ErrorKind::FileTooLarge, reason)
        })?;
        self.hash.update(new);
        if let Some(mut copy) = self.copy {
            copy.write_all(new)?;
        }
        Ok(read)
    }

    /// Reads to the end, behind the archive's own; the SHA-256 of everything.
    fn finish(mut self) -> io::Result<Digest> {
        if self.failed {
            return Err(io::Error::other("it cannot be read to its end"));
        }
        while !self.fill()?.is_empty() {
            self.start = self.end;
        }
        Ok(self.hash.finalize().into())
    }
}

impl<R: Read> Read for Unpacked<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let there = self.fill()?;
        let length = there.len().min(buffer.len());
        buffer[..length].copy_from_slice(&there[..length]);
        self.start += length;
        Ok(length)
    }
}

impl<R: Read> Stream for Unpacked<'_, R> {
    fn skip(&mut self, mut bytes: u64) -> io::Result<()> {
        while bytes > 0 {
            let there = self.fill()?.len();
            if there == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let length = there.min(usize::try_from(bytes).unwrap_or(usize::MAX));
            self.start += length;
            bytes -= length as u64;
        }
        Ok(())
    }
}

fn mismatch(what: &str, expected: Digest, found: Digest) -> String {
    format!(
        "its {what} is sha256:{}, expected sha256:{}",
        hex::encode(found),
        hex::encode(expected)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tarball::Meta;

    #[test]
    fn memory_is_bounded() {
        let budget = Budget {
            memory: AtomicU64::new(1000),
            ..Budget::new(Limits { size: 0, ratio: 1 })
        };
        let entry = Entry {
            path: vec![b'x'; 600].into(),
            kind: Kind::Directory,
            meta: Meta::default(),
        };
        assert_eq!(budget.take_memory(&entry), Ok(()));
        let error = budget.take_memory(&entry).unwrap_err();
        assert!(
            error.contains("names and attributes take more than"),
            "{error}"
        );
    }
}
