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
use openssl::x509::{X509, X509Builder, X509Name, X509NameBuilder};
use zeroize::Zeroizing;

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
    /// OpenSSL fails.
    #[error("cannot make keys and certificates")]
    OpenSsl(#[from] ErrorStack),
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
                let path = staged.join(format!("{name}.{extension}"));
                OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(mode)
                    .open(&path)
                    .and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()))
                    .map_err(write(&path))?;
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
