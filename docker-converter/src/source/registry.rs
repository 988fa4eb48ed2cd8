//! Images in registries.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use indicatif::ProgressBar;
use oci_spec::image::Descriptor;

use super::Access;
use crate::blob::Blob;
use crate::error::Error;
use crate::registry::{Document, Reference, RegistriesConf, Repository, Wanted};

/// How many blobs are fetched at a time, as by containers/image.
const AT_A_TIME: usize = 6;

/// A repository, and the manifests of it that were read.
#[derive(Debug)]
pub struct Remote {
    /// The image as it was asked for.
    pub reference: Reference,
    /// Where it is.
    pub repository: Repository,
    documents: Mutex<Vec<Document>>,
}

impl Remote {
    /// Finds the image, at the first place that has it.
    ///
    /// # Errors
    /// No place has it; its registry is blocked.
    pub(super) fn open(reference: &Reference, access: &Access) -> Result<Self, Error> {
        let conf = RegistriesConf::load(&access.registry)?;
        let mut first = None;
        for endpoint in conf.endpoints(reference)? {
            let found = Repository::open(&access.registry, reference, &endpoint, false).and_then(
                |repository| {
                    let document = repository.manifest(&reference.wanted)?;
                    Ok((repository, document))
                },
            );
            match found {
                Ok((repository, document)) => {
                    return Ok(Self {
                        reference: reference.clone(),
                        repository,
                        documents: Mutex::new(vec![document]),
                    });
                }
                Err(error) => {
                    if let Some(error) = first.replace(error) {
                        access.progress.warn(&error.to_string());
                    }
                }
            }
        }
        Err(first.unwrap_or_else(|| Error::Reference {
            text: reference.to_string(),
            reason: "registries.conf names no place for it".to_owned(),
        }))
    }

    /// For messages.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(self.repository.shown())
    }

    /// What the reference names: the manifest or index.
    pub(super) fn top(&self) -> Document {
        self.lock()[0].clone()
    }

    /// All manifests and indexes that were read, the one first that the reference names.
    #[must_use]
    pub fn documents(&self) -> Vec<Document> {
        self.lock().clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Document>> {
        self.documents
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// A manifest or index.
    pub(super) fn manifest(&self, digest: &str) -> Result<Vec<u8>, Error> {
        if let Some(known) = self.lock().iter().find(|known| known.digest == digest) {
            return Ok(known.bytes.clone());
        }
        let document = self
            .repository
            .manifest(&Wanted::Digest(digest.to_owned()))?;
        let bytes = document.bytes.clone();
        self.lock().push(document);
        Ok(bytes)
    }

    /// Fetches blobs, several at a time; all are whole, or there is an error.
    pub(super) fn blobs(
        &self,
        descriptors: &[&Descriptor],
        access: &Access,
    ) -> Result<Vec<Blob>, Error> {
        let mut bytes = 0_u64;
        for descriptor in descriptors {
            bytes = bytes.saturating_add(descriptor.size());
        }
        if bytes > access.limits.size {
            let reason = format!(
                "its layers have {bytes} bytes, at most {} (--max-size)",
                access.limits.size
            );
            return Err(Error::Registry {
                what: self.repository.shown().to_owned(),
                reason,
            });
        }
        let what = format!(
            "fetching {} layers from {}",
            descriptors.len(),
            self.repository.shown()
        );
        let bar = access.progress.step(what, bytes);
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<Option<Result<Blob, Error>>>> =
            Mutex::new(descriptors.iter().map(|_| None).collect());
        std::thread::scope(|scope| {
            for _ in 0..AT_A_TIME.min(descriptors.len()) {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        let Some(descriptor) = descriptors.get(number) else {
                            return;
                        };
                        let fetched = self.blob(descriptor, &bar);
                        if fetched.is_err() {
                            // The others end with what they are at.
                            next.store(descriptors.len(), Ordering::Relaxed);
                        }
                        results.lock().unwrap_or_else(PoisonError::into_inner)[number] =
                            Some(fetched);
                    }
                });
            }
        });
        let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        let mut blobs = Vec::new();
        let mut first = None;
        for result in results.into_iter().flatten() {
            match result {
                Ok(blob) => blobs.push(blob),
                Err(error) => first = first.or(Some(error)),
            }
        }
        match first {
            Some(error) => Err(error),
            None => Ok(blobs),
        }
    }

    /// Fetches a blob.
    pub(super) fn blob(&self, descriptor: &Descriptor, bar: &ProgressBar) -> Result<Blob, Error> {
        let digest = descriptor.digest().to_string();
        let file = self.repository.blob(&digest, descriptor.size(), bar)?;
        Ok(Blob::new(Arc::new(file), 0, descriptor.size()))
    }
}
