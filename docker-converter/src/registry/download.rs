//! Blobs arrive in files without names, are hashed on the way, and go on where a connection was cut.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use sha2::{Digest as _, Sha256};
use ureq::http::StatusCode;
use ureq::http::header;

use super::Repository;
use super::client::{Failure, MAX_MANIFEST};
use crate::carrier::digest_text;
use crate::error::Error;

/// How much is read at a time.
const CHUNK: usize = 128 << 10;
/// What an attempt must bring so that those before it are forgotten, in bytes.
const PROGRESS: u64 = 64 << 10;
/// What a registry must send in a second, on average over its timeout, in bytes.
const SLOWEST: u64 = 1 << 10;

/// A blob on its way.
struct Arriving {
    file: File,
    hash: Sha256,
    arrived: u64,
    size: u64,
}

impl Repository {
    /// A blob of a known size, its digest checked.
    ///
    /// # Errors
    /// The registry fails, or what it sends has another size or digest.
    pub fn blob(&self, digest: &str, size: u64, bar: &ProgressBar) -> Result<File, Error> {
        // Where skopeo and Podman put them: /tmp may be small.
        let dir =
            std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let mut arriving = Arriving {
            file: tempfile::tempfile_in(&dir).map_err(Error::io(&dir))?,
            hash: Sha256::new(),
            arrived: 0,
            size,
        };
        let address = self.address(&format!("blobs/{digest}"));
        let mut failed = 0;
        while arriving.arrived < size || failed == 0 && size == 0 {
            let before = arriving.arrived;
            match self.attempt(&address, &mut arriving, bar) {
                Ok(()) => break,
                Err(failure) => {
                    if arriving.arrived >= before + PROGRESS {
                        failed = 0;
                    }
                    failed += 1;
                    let failure = Failure {
                        reason: format!("blob {digest}: {}", failure.reason),
                        ..failure
                    };
                    self.pause(failure, failed)?;
                }
            }
        }
        let found = digest_text(&arriving.hash.finalize().into());
        if found != digest {
            return Err(self.error(format!("blob {digest}: it has the digest {found}")));
        }
        Ok(arriving.file)
    }

    /// A short blob, such as a signature, its digest checked.
    ///
    /// # Errors
    /// As [`Repository::blob`]; it is too long.
    pub fn small_blob(&self, digest: &str, size: u64) -> Result<Vec<u8>, Error> {
        if size > MAX_MANIFEST {
            return Err(self.error(format!(
                "blob {digest}: {size} bytes, at most {MAX_MANIFEST}"
            )));
        }
        let mut file = self.blob(digest, size, &ProgressBar::hidden())?;
        let mut bytes = Vec::new();
        file.rewind()
            .and_then(|()| file.read_to_end(&mut bytes))
            .map_err(|error| self.error(error.to_string()))?;
        Ok(bytes)
    }

    fn attempt(
        &self,
        address: &str,
        blob: &mut Arriving,
        bar: &ProgressBar,
    ) -> Result<(), Failure> {
        let range = format!("bytes={}-", blob.arrived);
        let headers = [("Range", range.as_str())];
        let headers = if blob.arrived > 0 { &headers[..] } else { &[] };
        let response = self.get("GET", address, headers)?;
        match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let said = response.headers().get(header::CONTENT_RANGE);
                let said = said
                    .and_then(|value| value.to_str().ok())
                    .unwrap_or_default();
                let expected = format!("bytes {}-{}/", blob.arrived, blob.size - 1);
                if !said.starts_with(&expected) {
                    return Err(Failure::lasting(format!(
                        "it sends {said:?}, expected {expected:?}: its size is another than announced"
                    )));
                }
            }
            // The server knows no ranges.
            _ if blob.arrived > 0 => blob.restart(bar)?,
            _ => {}
        }
        let length = response.body().content_length();
        if let Some(length) = length.filter(|length| blob.arrived + length != blob.size) {
            return Err(Failure::lasting(format!(
                "it has {} bytes, {} are announced",
                blob.arrived + length,
                blob.size
            )));
        }
        let mut reader = response.into_body().into_reader();
        let mut chunk = vec![0; CHUNK];
        let (mut since, mut then) = (Instant::now(), blob.arrived);
        loop {
            // With one byte more than there should be, to notice it.
            let wanted = (blob.size - blob.arrived)
                .saturating_add(1)
                .min(CHUNK as u64);
            let read = reader
                .read(&mut chunk[..wanted as usize])
                .map_err(|error| Failure::passing(error.to_string()))?;
            if read == 0 {
                break;
            }
            if blob.arrived + read as u64 > blob.size {
                return Err(Failure::lasting(format!(
                    "more than the {} bytes that are announced",
                    blob.size
                )));
            }
            blob.take(&chunk[..read])?;
            bar.inc(read as u64);
            if since.elapsed() >= self.timeout {
                check_speed(blob.arrived - then, since.elapsed())?;
                (since, then) = (Instant::now(), blob.arrived);
            }
        }
        match blob.arrived == blob.size {
            true => Ok(()),
            false => Err(Failure::passing(format!(
                "it ends after {} of {} bytes",
                blob.arrived, blob.size
            ))),
        }
    }
}

impl Arriving {
    fn take(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.file
            .write_all(bytes)
            .map_err(|error| Failure::lasting(format!("a temporary file: {error}")))?;
        self.hash.update(bytes);
        self.arrived += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self, bar: &ProgressBar) -> Result<(), Failure> {
        self.file
            .set_len(0)
            .and_then(|()| self.file.seek(SeekFrom::Start(0)))
            .map_err(|error| Failure::lasting(format!("a temporary file: {error}")))?;
        bar.set_position(bar.position().saturating_sub(self.arrived));
        self.hash = Sha256::new();
        self.arrived = 0;
        Ok(())
    }
}

fn check_speed(bytes: u64, time: Duration) -> Result<(), Failure> {
    match bytes < SLOWEST * time.as_secs() {
        true => Err(Failure::passing(format!(
            "too slow: {bytes} bytes in {} s",
            time.as_secs()
        ))),
        false => Ok(()),
    }
}
