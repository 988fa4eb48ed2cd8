//! TLS: authorities and this client's certificates, as containers-certs.d(5) says.

use std::fs;
use std::path::{Path, PathBuf};

use openssl::pkey::PKey;
use ureq::tls::{
    Certificate, ClientCert, PemItem, PrivateKey, RootCerts, TlsConfig, TlsProvider, parse_pem,
};
use zeroize::Zeroizing;

use super::Options;
use crate::error::Error;

/// Directories of directories called `HOST[:PORT]`.
const DIRECTORIES: [&str; 2] = ["/etc/containers/certs.d", "/etc/docker/certs.d"];

/// Where Debian and others keep the machine's authorities in one file; `SSL_CERT_FILE` names another, as for OpenSSL.
const SYSTEM: [&str; 3] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/cert.pem",
];

/// What connections to a host are made with.
pub(super) fn configuration(
    options: &Options,
    host: &str,
    verify: bool,
) -> Result<TlsConfig, Error> {
    let mut authorities = Vec::new();
    let mut client = None;
    for dir in directories(options, host) {
        let entries = match fs::read_dir(&dir) {
            Err(error) if options.cert_dir.is_some() => return Err(Error::io(&dir)(error)),
            Err(_) => continue,
            Ok(entries) => entries,
        };
        let mut paths = Vec::new();
        for entry in entries {
            paths.push(entry.map_err(Error::io(&dir))?.path());
        }
        paths.sort();
        for path in paths {
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("crt") => authorities.extend(certificates(&path)?),
                Some("cert") => client = Some(pair(&path)?),
                _ => {}
            }
        }
        break;
    }
    let roots = match authorities.is_empty() {
        true => RootCerts::PlatformVerifier,
        false => {
            authorities.extend(system()?);
            RootCerts::new_with_certs(&authorities)
        }
    };
    Ok(TlsConfig::builder()
        .provider(TlsProvider::NativeTls)
        .root_certs(roots)
        .client_cert(client)
        .disable_verification(!verify)
        .build())
}

/// The first of these that is there counts.
fn directories(options: &Options, host: &str) -> Vec<PathBuf> {
    match &options.cert_dir {
        Some(dir) => vec![dir.clone()],
        None => DIRECTORIES.map(|dir| Path::new(dir).join(host)).to_vec(),
    }
}

/// The machine's authorities: those of the registry are trusted beside them.
fn system() -> Result<Vec<Certificate<'static>>, Error> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let known = SYSTEM.map(PathBuf::from);
    match named.into_iter().chain(known).find(|path| path.is_file()) {
        Some(path) => certificates(&path),
        None => Ok(Vec::new()),
    }
}

fn certificates(path: &Path) -> Result<Vec<Certificate<'static>>, Error> {
    let pem = fs::read(path).map_err(Error::io(path))?;
    let mut found = Vec::new();
    for item in parse_pem(&pem) {
        match item.map_err(|error| Error::image(path, error.to_string()))? {
            PemItem::Certificate(certificate) => found.push(certificate),
            _ => return Err(Error::image(path, "expected certificates only")),
        }
    }
    match found.is_empty() {
        true => Err(Error::image(path, "no certificate in it, expected PEM")),
        false => Ok(found),
    }
}

/// `NAME.cert` with `NAME.key`.
fn pair(path: &Path) -> Result<ClientCert, Error> {
    let chain = certificates(path)?;
    let key_path = path.with_extension("key");
    let pem = Zeroizing::new(fs::read(&key_path).map_err(Error::io(&key_path))?);
    // PKCS#1 and SEC 1 too, of which native-tls knows nothing. No prompt for a password.
    let key = PKey::private_key_from_pem_callback(&pem, |_| Ok(0))
        .and_then(|key| key.private_key_to_pem_pkcs8())
        .map(Zeroizing::new)
        .map_err(|_| Error::image(&key_path, "expected a private key without a password, PEM"))?;
    let key =
        PrivateKey::from_pem(&key).map_err(|error| Error::image(&key_path, error.to_string()))?;
    Ok(ClientCert::new_with_certs(&chain, key))
}
