//! X.509: the certificates beside a configuration text, the trust anchors, and the path from one to the other.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use openssl::asn1::{Asn1Time, Asn1TimeRef};
use openssl::pkey::{Id, PKey, Public};
use openssl::sha::sha256;
use openssl::stack::Stack;
use openssl::x509::store::X509StoreBuilder;
use openssl::x509::verify::X509VerifyParam;
use openssl::x509::{X509, X509KeyUsage, X509NameRef, X509PurposeId, X509Ref, X509StoreContext};

use crate::signature::SignatureError;

/// The anchor whose signatures GyroidOS reports as "locally signed" (gyroidos/cml, its local CA).
const LOCAL_ANCHOR: &str = "localca_rootca.cert";

/// More certificates than this are no chain of a person's making.
const MAX_CERTIFICATES: usize = 16;

/// The largest file of certificates that is read, in bytes.
const MAX_SIZE: u64 = 4 << 20;

/// What OpenSSL calls 112 bits: RSA from 2048 bits, no SHA-1 in certificates (SSL_CTX_set_security_level(3)).
const SECURITY_LEVEL: i32 = 2;

/// Certificates that are trusted to sign GuestOS configurations, in the order in which they are tried.
#[derive(Debug, Clone)]
pub struct Anchors(Vec<Anchor>);

#[derive(Debug, Clone)]
struct Anchor {
    path: PathBuf,
    certificate: X509,
}

/// Who signed a configuration text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signer {
    /// The subject of the signer's certificate, as `CN=signer, O=company`.
    pub subject: String,
    /// SHA-256 of the DER encoding of the signer's SubjectPublicKeyInfo.
    pub spki_sha256: [u8; 32],
    /// The file of the anchor that the certificate chain ends at.
    pub anchor: PathBuf,
    /// Whether that anchor is the device's own CA.
    pub locally_signed: bool,
    /// When the first certificate of the chain expires.
    pub not_after: SystemTime,
}

impl Anchors {
    /// Reads a PEM file, or every file of a directory in the order of their names (hidden files, keys and subdirectories
    /// left out).
    ///
    /// # Errors
    /// A file cannot be read or holds anything but certificates; there is none at all.
    pub fn load(path: &Path) -> Result<Self, SignatureError> {
        let mut anchors = Vec::new();
        for file in files(path)? {
            let size = fs::metadata(&file)
                .map_err(SignatureError::read(&file))?
                .len();
            if size > MAX_SIZE {
                return Err(SignatureError::certificate(
                    &file,
                    format!("{size} bytes, at most {MAX_SIZE}"),
                ));
            }
            let text = fs::read(&file).map_err(SignatureError::read(&file))?;
            let certificates = X509::stack_from_pem(&text)
                .map_err(|error| SignatureError::certificate(&file, error.to_string()))?;
            if certificates.is_empty() {
                return Err(SignatureError::certificate(
                    &file,
                    "no certificate in PEM form",
                ));
            }
            let anchor = |certificate| Anchor {
                path: file.clone(),
                certificate,
            };
            anchors.extend(certificates.into_iter().map(anchor));
        }
        // The software-signing root, then the store, then the local CA: GyroidOS's order.
        anchors.sort_by_key(Anchor::is_local);
        match anchors.is_empty() {
            true => Err(SignatureError::certificate(
                path,
                "a directory without certificates",
            )),
            false => Ok(Self(anchors)),
        }
    }
}

impl Anchor {
    fn is_local(&self) -> bool {
        self.path
            .file_name()
            .is_some_and(|name| name == LOCAL_ANCHOR)
    }
}

fn files(path: &Path) -> Result<Vec<PathBuf>, SignatureError> {
    if !fs::metadata(path)
        .map_err(SignatureError::read(path))?
        .is_dir()
    {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).map_err(SignatureError::read(path))? {
        let path = entry.map_err(SignatureError::read(path))?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        let key = path.extension().is_some_and(|extension| extension == "key");
        if !hidden
            && !key
            && fs::metadata(&path)
                .map_err(SignatureError::read(&path))?
                .is_file()
        {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// The certificates of a `.cert` file: the signer's first.
#[derive(Debug)]
pub(crate) struct Chain {
    certificates: Vec<X509>,
}

impl Chain {
    /// Reads certificates in PEM form. Text before each (RFC 7468, section 2) is allowed, as `openssl ca` writes it; everything
    /// else must be what an encoder of PEM writes, so that no byte of a certificate can be changed unnoticed.
    pub(crate) fn parse(pem: &[u8]) -> Result<Self, String> {
        let text = std::str::from_utf8(pem).map_err(|_| "not a text".to_owned())?;
        let mut certificates = Vec::new();
        let mut block: Option<String> = None;
        for (number, line) in (1..).zip(text.split_inclusive('\n')) {
            let wrong = |what: &str| Err(format!("line {number}: {what}"));
            match (&mut block, line.trim_end_matches('\n')) {
                (None, "-----BEGIN CERTIFICATE-----") => block = Some(line.to_owned()),
                (None, text) if text.contains("-----") => {
                    return wrong("expected -----BEGIN CERTIFICATE-----");
                }
                (None, _) => {}
                (Some(begun), "-----END CERTIFICATE-----") => {
                    begun.push_str(line);
                    let parsed = X509::from_pem(begun.as_bytes())
                        .and_then(|found| Ok((found.to_pem()?, found)));
                    match parsed {
                        Ok((encoded, found))
                            if encoded.trim_ascii_end() == begun.trim_end().as_bytes() =>
                        {
                            certificates.push(found);
                        }
                        Ok(_) => {
                            return wrong(
                                "the certificate that ends here is not encoded as PEM and DER demand",
                            );
                        }
                        Err(error) => {
                            return wrong(&format!("the certificate that ends here: {error}"));
                        }
                    }
                    block = None;
                }
                (Some(begun), _) => begun.push_str(line),
            }
        }
        if !certificates.is_empty() && !text.ends_with("-----END CERTIFICATE-----\n") {
            return Err("does not end with a certificate".to_owned());
        }
        match (block, certificates.len()) {
            (Some(_), _) => Err("ends within a certificate".to_owned()),
            (None, 0) => Err("no certificate in PEM form".to_owned()),
            (None, number) if number > MAX_CERTIFICATES => {
                Err(format!("{number} certificates, at most {MAX_CERTIFICATES}"))
            }
            (None, _) => Ok(Self { certificates }),
        }
    }

    pub(crate) fn signer(&self) -> &X509Ref {
        &self.certificates[0]
    }

    pub(crate) fn key(&self) -> Result<PKey<Public>, String> {
        self.signer()
            .public_key()
            .map_err(|error| error.to_string())
    }

    /// Follows the chain to the first anchor that it reaches, at the given time.
    pub(crate) fn verify(&self, anchors: &Anchors, at: SystemTime) -> Result<Signer, String> {
        let mut reasons: Vec<String> = Vec::new();
        for anchor in &anchors.0 {
            match self.verify_against(anchor, at) {
                Ok(signer) => return Ok(signer),
                Err(reason) if reasons.contains(&reason) => {}
                Err(reason) => reasons.push(reason),
            }
        }
        Err(reasons.join("; "))
    }

    fn verify_against(&self, anchor: &Anchor, at: SystemTime) -> Result<Signer, String> {
        let said = |error: openssl::error::ErrorStack| error.to_string();
        let mut others = Stack::new().map_err(said)?;
        for certificate in &self.certificates[1..] {
            others.push(certificate.clone()).map_err(said)?;
        }
        let mut parameters = X509VerifyParam::new().map_err(said)?;
        parameters.set_auth_level(SECURITY_LEVEL);
        parameters.set_purpose(X509PurposeId::ANY).map_err(said)?;
        let seconds = at
            .duration_since(UNIX_EPOCH)
            .unwrap_or(Duration::ZERO)
            .as_secs();
        parameters.set_time(i64::try_from(seconds).unwrap_or(i64::MAX));
        let mut store = X509StoreBuilder::new().map_err(said)?;
        store.set_param(&parameters).map_err(said)?;
        store.add_cert(anchor.certificate.clone()).map_err(said)?;
        let mut context = X509StoreContext::new().map_err(said)?;
        let chain = context
            .init(&store.build(), self.signer(), &others, |context| {
                if !context.verify_cert()? {
                    let at = context
                        .current_cert()
                        .map(|certificate| name(certificate.subject_name()));
                    return Ok(Err(format!(
                        "{}: {}",
                        at.unwrap_or_default(),
                        context.error().error_string()
                    )));
                }
                Ok(Ok(context
                    .chain()
                    .into_iter()
                    .flatten()
                    .map(ToOwned::to_owned)
                    .collect::<Vec<_>>()))
            })
            .map_err(said)??;
        self.check_use(&chain)?;
        let not_after = chain
            .iter()
            .map(|certificate| time(certificate.not_after()));
        Ok(Signer {
            subject: name(self.signer().subject_name()),
            spki_sha256: self
                .key()?
                .public_key_to_der()
                .map(|spki| sha256(&spki))
                .map_err(said)?,
            anchor: anchor.path.clone(),
            locally_signed: anchor.is_local(),
            not_after: not_after.min().unwrap_or(UNIX_EPOCH),
        })
    }

    /// The signer may sign; nothing stands in the file that the chain does not need.
    fn check_use(&self, chain: &[X509]) -> Result<(), String> {
        let signer = self.signer();
        // RFC 5280, section 4.2.1.3: without the extension every use is allowed.
        if signer
            .key_usage()
            .is_some_and(|usage| !usage.contains(X509KeyUsage::DIGITAL_SIGNATURE))
        {
            return Err(format!(
                "{}: its key usage is not digitalSignature",
                name(signer.subject_name())
            ));
        }
        for (number, certificate) in (1..).zip(&self.certificates) {
            if !chain
                .iter()
                .any(|used| used.to_der().ok() == certificate.to_der().ok())
            {
                let subject = name(certificate.subject_name());
                return Err(format!(
                    "certificate {number} ({subject}) is no part of the signer's chain"
                ));
            }
        }
        Ok(())
    }
}

/// A distinguished name in the order of its encoding, as `CN=signer, O=company`.
pub(crate) fn name(name: &X509NameRef) -> String {
    let entry = |entry: &openssl::x509::X509NameEntryRef| {
        let key = entry.object().nid().short_name().unwrap_or("?").to_owned();
        let value = entry.data().to_string().unwrap_or_default();
        format!("{key}={}", value.escape_debug())
    };
    name.entries().map(entry).collect::<Vec<_>>().join(", ")
}

fn time(time: &Asn1TimeRef) -> SystemTime {
    let since = Asn1Time::from_unix(0).and_then(|epoch| epoch.diff(time));
    let seconds = since.map_or(0, |diff| {
        i64::from(diff.days) * 86_400 + i64::from(diff.secs)
    });
    UNIX_EPOCH + Duration::from_secs(seconds.try_into().unwrap_or(0))
}

/// What a public key is, for people and for the choice of the padding.
pub(crate) fn kind(id: Id) -> &'static str {
    match id {
        Id::RSA => "rsaEncryption",
        Id::RSA_PSS => "id-RSASSA-PSS",
        Id::EC => "EC",
        _ => "of another kind",
    }
}
