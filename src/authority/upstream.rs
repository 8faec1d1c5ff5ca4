//! How upstreams are verified: the system's roots and those of `--upstream-ca`, and nothing weaker.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use super::certificate::read_capped;
use super::{ALPN, provider};

/// Largest file of extra roots: the whole of a system's store is a quarter of it.
const ROOTS_FILE_MAX: u64 = 1024 * 1024;

/// The system's trust store, read once.
#[derive(Debug, Default)]
pub struct SystemRoots {
    certificates: Vec<CertificateDer<'static>>,
    warnings: Vec<String>,
}

impl SystemRoots {
    /// Reads the trust store, where `SSL_CERT_FILE` and `SSL_CERT_DIR` say or where the system has it. It reads some
    /// hundred files on some systems: call it once.
    #[must_use]
    pub fn read() -> SystemRoots {
        let found = rustls_native_certs::load_native_certs();
        let mut warnings: Vec<String> =
            found.errors.iter().map(|error| format!("the system's trust store is damaged: {error}")).collect();
        if found.certs.is_empty() {
            warnings.push(
                "the system has no trust store, so no upstream is trusted but by --upstream-ca; install ca-certificates"
                    .to_owned(),
            );
        }
        SystemRoots { certificates: found.certs, warnings }
    }

    /// The certificates.
    #[must_use]
    pub fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.certificates
    }

    /// What an operator should know.
    #[must_use]
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }
}

/// Why the roots of `--upstream-ca` are not taken.
#[derive(Debug)]
pub enum RootsError {
    /// The file cannot be read.
    Unreadable {
        /// Which.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The file holds what is no root certificate, or none.
    Content {
        /// Which.
        path: PathBuf,
        /// What is wrong, and what to do.
        reason: String,
    },
    /// The TLS library refuses its own defaults: our bug.
    Tls(rustls::Error),
}

impl std::fmt::Display for RootsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            RootsError::Unreadable { path, source } => {
                write!(f, "cannot read --upstream-ca {}: {source}", path.display())
            }
            RootsError::Content { path, reason } => write!(f, "--upstream-ca {} {reason}", path.display()),
            RootsError::Tls(error) => write!(f, "the TLS settings for upstreams are refused: {error}"),
        }
    }
}

impl std::error::Error for RootsError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            RootsError::Unreadable { source, .. } => Some(source),
            RootsError::Content { .. } => None,
            RootsError::Tls(error) => Some(error),
        }
    }
}

/// The TLS settings towards upstreams: certificates verified, names checked, `http/1.1` alone, no client certificate,
/// and no session that one container's connection could resume from another's.
///
/// # Errors
/// [`RootsError`], for `--upstream-ca`: a file that cannot be read, or that holds anything but certificates.
pub fn upstream_config(system: &SystemRoots, extra: Option<&Path>) -> Result<Arc<ClientConfig>, RootsError> {
    let mut roots = RootCertStore::empty();
    // Stores hold a certificate or two that no library takes; the others count.
    roots.add_parsable_certificates(system.certificates.iter().cloned());
    if let Some(path) = extra {
        add_extra(&mut roots, path)?;
    }
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(RootsError::Tls)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

fn add_extra(roots: &mut RootCertStore, path: &Path) -> Result<(), RootsError> {
    let refused = |reason: String| RootsError::Content { path: path.to_owned(), reason };
    let text = read_capped(path, ROOTS_FILE_MAX)
        .map_err(|source| RootsError::Unreadable { path: path.to_owned(), source })?
        .ok_or_else(|| refused(format!("has more than {ROOTS_FILE_MAX} bytes; leave only the roots you need in it")))?;
    let mut count = 0;
    for certificate in CertificateDer::pem_slice_iter(&text) {
        count += 1;
        let certificate = certificate
            .map_err(|_| refused(format!("is damaged: the PEM of its certificate {count} cannot be read")))?;
        roots
            .add(certificate)
            .map_err(|error| refused(format!("holds a certificate ({count}) that cannot be a root: {error}")))?;
    }
    if count == 0 {
        return Err(refused("holds no certificate in PEM form (`-----BEGIN CERTIFICATE-----`)".to_owned()));
    }
    Ok(())
}
