//! A PKI for development: the three levels and file names that GyroidOS's own scripts make.
//!
//! A root CA (RSA 4096) that signs a sub-CA for software signing, which signs the key of a signer (both RSA-PSS 4096).

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use openssl::asn1::Asn1Time;
use openssl::bn::{BigNum, MsbOption};
use openssl::error::ErrorStack;
use openssl::hash::MessageDigest;
use openssl::pkey::{Id, PKey, Private};
use openssl::pkey_ctx::PkeyCtx;
use openssl::x509::extension::{
    AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage, SubjectKeyIdentifier,
};
use openssl::x509::{X509, X509Builder, X509KeyUsage, X509Name, X509NameBuilder};
use zeroize::Zeroizing;

use crate::chain;

/// Bits of every key.
const BITS: u32 = 4096;

/// Bits of a serial number: at most 20 bytes, positive, at least 64 from a generator (RFC 5280, section 4.1.2.2; CA/Browser Forum,
/// Baseline Requirements 7.1).
const SERIAL_BITS: i32 = 159;

const DAYS_A_YEAR: u32 = 365;

/// Why no PKI was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// The directory is there and holds something.
    #[error("{}: already holds files", .0.display())]
    NotEmpty(PathBuf),
    /// A file cannot be written.
    #[error("{}: cannot write", path.display())]
    Write {
        /// The file or directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file cannot be read, or is not what it should be.
    #[error("{}: {reason}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What was expected.
        reason: String,
    },
    /// OpenSSL fails.
    #[error("cannot make keys and certificates")]
    OpenSsl(#[from] ErrorStack),
}

/// What a certificate says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// As `CN=signer, O=company`.
    pub subject: String,
    /// Likewise.
    pub issuer: String,
    /// In hex.
    pub serial: String,
    /// As OpenSSL prints it.
    pub not_before: String,
    /// As OpenSSL prints it.
    pub not_after: String,
    /// The kind of its key, as `id-RSASSA-PSS`.
    pub key: String,
    /// The size of its key.
    pub bits: u32,
    /// Whether it may issue others.
    pub ca: bool,
    /// SHA-256 of its DER encoding, in hex.
    pub sha256: String,
}

/// The certificates of a PEM file.
///
/// # Errors
/// There is none, or one that cannot be read.
pub fn read(pem: &[u8]) -> Result<Vec<Certificate>, String> {
    let certificates = X509::stack_from_pem(pem).map_err(|error| error.to_string())?;
    if certificates.is_empty() {
        return Err("no certificate in PEM form".to_owned());
    }
    let read = |certificate: &X509| -> Result<Certificate, ErrorStack> {
        let key = certificate.public_key()?;
        Ok(Certificate {
            subject: chain::name(certificate.subject_name()),
            issuer: chain::name(certificate.issuer_name()),
            serial: certificate
                .serial_number()
                .to_bn()?
                .to_hex_str()?
                .to_string(),
            not_before: certificate.not_before().to_string(),
            not_after: certificate.not_after().to_string(),
            key: chain::kind(key.id()).to_owned(),
            bits: key.bits(),
            ca: certificate
                .key_usage()
                .is_some_and(|usage| usage.contains(X509KeyUsage::KEY_CERT_SIGN)),
            sha256: hex::encode(certificate.digest(MessageDigest::sha256())?),
        })
    };
    certificates
        .iter()
        .map(|certificate| read(certificate).map_err(|error| error.to_string()))
        .collect()
}

/// Issues a new signer with a new key, by the sub-CA of a directory that [`init`] made: `ssig_cml.{key,cert}` are replaced.
///
/// # Errors
/// See [`PkiError`]; the signer is the old one then.
pub fn renew(dir: &Path) -> Result<(), PkiError> {
    let path = |name: &str| dir.join(name);
    let file = |name: &str| {
        fs::read(path(name))
            .map(Zeroizing::new)
            .map_err(|error| PkiError::Read {
                path: path(name),
                reason: error.to_string(),
            })
    };
    let wrong = |name: &str| {
        let path = path(name);
        move |error: ErrorStack| PkiError::Read {
            path,
            reason: error.to_string(),
        }
    };
    let sub_ca = Issued {
        key: PKey::private_key_from_pem(&file("ssig_subca.key")?)
            .map_err(wrong("ssig_subca.key"))?,
        certificate: X509::from_pem(&file("ssig_subca.cert")?).map_err(wrong("ssig_subca.cert"))?,
    };
    if !sub_ca.certificate.public_key()?.public_eq(&sub_ca.key) {
        return Err(PkiError::Read {
            path: path("ssig_subca.cert"),
            reason: "the certificate of another key than ssig_subca.key".to_owned(),
        });
    }
    let signer = issue(Level::Signer, Some(&sub_ca))?;
    let chain = [signer.certificate.to_pem()?, sub_ca.certificate.to_pem()?].concat();
    let key = Zeroizing::new(signer.key.private_key_to_pem_pkcs8()?);
    // Both are on the disk before the first is replaced; between the two, signing says that they do not belong together.
    let staged = [
        ("ssig_cml.key", &key[..], 0o600),
        ("ssig_cml.cert", &chain[..], 0o644),
    ]
    .map(|(name, bytes, mode)| {
        let new = path(&format!(".{name}.new"));
        (name, bytes, mode, new)
    });
    let made = (|| {
        for (_, bytes, mode, new) in &staged {
            write_new(new, bytes, *mode)?;
        }
        for (name, _, _, new) in &staged {
            fs::rename(new, path(name)).map_err(|source| PkiError::Write {
                path: path(name),
                source,
            })?;
        }
        Ok(())
    })();
    if made.is_err() {
        for (_, _, _, new) in &staged {
            // The first error is the one to report.
            let _ = fs::remove_file(new);
        }
    }
    made
}

fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), PkiError> {
    OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
        .map_err(|source| PkiError::Write {
            path: path.to_owned(),
            source,
        })
}

/// What a certificate is for.
enum Level {
    Root,
    SubCa,
    Signer,
}

struct Issued {
    key: PKey<Private>,
    certificate: X509,
}

/// Makes `ssig_rootca.{key,cert}`, `ssig_subca.{key,cert}` and `ssig_cml.{key,cert}` in a directory that is not there or
/// empty; `ssig_cml.cert` holds the signer's certificate and the sub-CA's. The keys are not encrypted, and for the owner alone (0600).
///
/// # Errors
/// See [`PkiError`]; nothing is left behind then.
pub fn init(dir: &Path) -> Result<(), PkiError> {
    let write = |path: &Path| {
        let path = path.to_owned();
        move |source| PkiError::Write { path, source }
    };
    let dir = &std::path::absolute(dir).map_err(write(dir))?;
    let not_empty = || PkiError::NotEmpty(dir.clone());
    match fs::read_dir(dir).map(|mut entries| entries.next().is_some()) {
        Ok(true) => return Err(not_empty()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(write(dir)(error)),
        _ => {}
    }
    let root = issue(Level::Root, None)?;
    let sub_ca = issue(Level::SubCa, Some(&root))?;
    let signer = issue(Level::Signer, Some(&sub_ca))?;
    let chain = [signer.certificate.to_pem()?, sub_ca.certificate.to_pem()?].concat();

    let name = dir.file_name().unwrap_or_default().to_string_lossy();
    let staged = dir.with_file_name(format!(".{name}.{}", std::process::id()));
    let made = || {
        let builder = |path| DirBuilder::new().mode(0o700).create(path);
        builder(&staged).map_err(write(&staged))?;
        for (name, issued, certificates) in [
            ("ssig_rootca", &root, root.certificate.to_pem()?),
            ("ssig_subca", &sub_ca, sub_ca.certificate.to_pem()?),
            ("ssig_cml", &signer, chain),
        ] {
            let key = Zeroizing::new(issued.key.private_key_to_pem_pkcs8()?);
            for (extension, bytes, mode) in
                [("key", &key[..], 0o600), ("cert", &certificates[..], 0o644)]
            {
                write_new(&staged.join(format!("{name}.{extension}")), bytes, mode)?;
            }
        }
        fs::rename(&staged, dir).map_err(|error| match error.kind() {
            io::ErrorKind::DirectoryNotEmpty => not_empty(),
            _ => write(dir)(error),
        })
    };
    let made = made();
    if made.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_dir_all(&staged);
    }
    made
}

fn issue(level: Level, issuer: Option<&Issued>) -> Result<Issued, ErrorStack> {
    let (name, kind, years) = match level {
        Level::Root => ("trustme software signing root CA", Id::RSA, 20),
        Level::SubCa => ("trustme software signing sub-CA", Id::RSA_PSS, 10),
        Level::Signer => ("trustme software signing", Id::RSA_PSS, 5),
    };
    let mut context = PkeyCtx::new_id(kind)?;
    context.keygen_init()?;
    context.set_rsa_keygen_bits(BITS)?;
    let key = context.keygen()?;

    let mut builder = X509Builder::new()?;
    builder.set_version(2)?; // v3, counted from 0
    let mut serial = BigNum::new()?;
    serial.rand(SERIAL_BITS, MsbOption::ONE, false)?;
    let serial = serial.to_asn1_integer()?;
    builder.set_serial_number(&serial)?;
    let name = subject(name)?;
    builder.set_subject_name(&name)?;
    builder.set_issuer_name(issuer.map_or(&name, |issuer| issuer.certificate.subject_name()))?;
    let (now, end) = (
        Asn1Time::days_from_now(0)?,
        Asn1Time::days_from_now(years * DAYS_A_YEAR)?,
    );
    builder.set_not_before(&now)?;
    builder.set_not_after(&end)?;
    builder.set_pubkey(&key)?;
    let mut usage = KeyUsage::new();
    let mut constraints = BasicConstraints::new();
    constraints.critical();
    match level {
        Level::Root => constraints.ca(),
        Level::SubCa => constraints.ca().pathlen(0),
        Level::Signer => &mut constraints,
    };
    match level {
        Level::Root | Level::SubCa => usage.critical().key_cert_sign().crl_sign(),
        Level::Signer => usage.critical().digital_signature(),
    };
    builder.append_extension(constraints.build()?)?;
    builder.append_extension(usage.build()?)?;
    if matches!(level, Level::Signer) {
        builder.append_extension(ExtendedKeyUsage::new().code_signing().build()?)?;
    }
    let context = builder.x509v3_context(issuer.map(|issuer| issuer.certificate.as_ref()), None);
    let identifier = SubjectKeyIdentifier::new().build(&context)?;
    builder.append_extension(identifier)?;
    if issuer.is_some() {
        let context =
            builder.x509v3_context(issuer.map(|issuer| issuer.certificate.as_ref()), None);
        let identifier = AuthorityKeyIdentifier::new().keyid(true).build(&context)?;
        builder.append_extension(identifier)?;
    }
    builder.sign(
        issuer.map_or(&key, |issuer| &issuer.key),
        MessageDigest::sha512(),
    )?;
    Ok(Issued {
        key,
        certificate: builder.build(),
    })
}

fn subject(name: &str) -> Result<X509Name, ErrorStack> {
    let mut builder = X509NameBuilder::new()?;
    builder.append_entry_by_text("CN", name)?;
    Ok(builder.build())
}
