//! Pushing (OCI distribution specification, "Push").

use indicatif::ProgressBar;
use ureq::SendBody;
use ureq::http::StatusCode;

use super::Repository;
use super::client::Failure;
use crate::blob::Digest;
use crate::carrier::{Carrier, MANIFEST_TYPE, Parts, digest_text};
use crate::error::Error;

impl Repository {
    /// Sends a carrier image: layer and configuration first, then the manifest, so that nobody sees half of it.
    ///
    /// # Errors
    /// The registry fails or refuses.
    pub fn push(&self, carrier: &Carrier, tag: &str, bar: &ProgressBar) -> Result<(), Error> {
        self.put_blob(&carrier.layer_digest, &carrier.layer, bar)?;
        let config = Parts::of_bytes(carrier.config.clone());
        self.put_blob(&config.digest()?, &config, &ProgressBar::hidden())?;
        let address = self.address(&format!("manifests/{tag}"));
        self.retry(|| {
            let headers = [("Content-Type", MANIFEST_TYPE)];
            self.send("PUT", &address, &headers, &carrier.manifest[..])
        })?;
        Ok(())
    }

    fn put_blob(&self, digest: &Digest, content: &Parts, bar: &ProgressBar) -> Result<(), Error> {
        let digest = digest_text(digest);
        let there = self.address(&format!("blobs/{digest}"));
        let exists = self.retry(|| match self.get("HEAD", &there, &[]) {
            Ok(_) => Ok(true),
            Err(failure) if failure.status == Some(StatusCode::NOT_FOUND) => Ok(false),
            Err(failure) => Err(failure),
        })?;
        if exists {
            return Ok(());
        }
        self.retry(|| {
            let begin = self.address("blobs/uploads/");
            let response = self.send("POST", &begin, &[("Content-Length", "0")], ())?;
            let place = self.target(&begin, &response)?;
            let separator = if place.contains('?') { '&' } else { '?' };
            let place = format!("{place}{separator}digest={digest}");
            bar.set_position(0);
            let mut reader = bar.wrap_read(content.reader());
            let length = content.size().to_string();
            let headers = [
                ("Content-Type", "application/octet-stream"),
                ("Content-Length", length.as_str()),
            ];
            self.send("PUT", &place, &headers, SendBody::from_reader(&mut reader))
                .map_err(|failure| Failure {
                    reason: format!("blob {digest}: {}", failure.reason),
                    ..failure
                })
        })?;
        Ok(())
    }
}
